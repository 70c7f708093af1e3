"""What an option file of ``basicsr compare`` may hold; see :mod:`restormixer_arch.config.schema`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from restormixer_arch.config.schema import (
    AnyFile,
    Count,
    FileName,
    Logger,
    Metric,
    Optimization,
    Positive,
    Rate,
    Section,
    Steps,
    Typed,
    Warmup,
)


class Budget(Section):
    """What every competitor may use; one of the two."""

    iterations: Positive | None = Field(default=None, description="the same iterations for all")
    minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="the same wall-clock for all"
    )


class CompareTrain(Warmup, Optimization, Steps):
    """How every competitor is trained: by RestorMixerModel, with one cosine of the learning rate over the budget."""

    budget: Budget = Field(description="'iterations: N' or 'minutes: N'")
    eta_min: Rate = Field(default=0.0, description="the learning rate at the end")


class CompetitorKeys(Section):
    """A network with its weights, a network to train, weights whose network is recognized, or a previous run."""

    network_g: Typed | None = Field(default=None, description="type and arguments of the network")
    weights: str | None = Field(default=None, description="file of weights; it is not trained any further")
    param_key: str | None = Field(default=None, description="entry of the file of weights, such as params_ema")
    run: str | None = Field(default=None, description="folder of a previous training, such as experiments/NAME")
    checkpoint: Literal["newest", "best"] | None = Field(default=None, description="which weights of the run")
    train: dict[str, Any] | None = Field(default=None, description="what differs from the common section 'train'")
    multiple_of: Positive | None = Field(default=None, description="pad pictures to a multiple of this")


class CompareVal(Section):
    metrics: Annotated[dict[str, Metric], Field(min_length=1)] = Field(description="what is measured")


class Measure(Section):
    """How latency, memory and operations are measured."""

    size: Positive = Field(default=256, description="side of the square picture")
    rounds: Positive = Field(default=7, description="runs of each network, in turn")


class ComparePath(Section):
    results_root: str | None = None


class CompareFile(AnyFile):
    name: FileName = Field(description="the comparison, names its folder")
    scale: Positive = Field(default=1, description="1 where images keep their size")
    manual_seed: Count = 0
    competitors: Annotated[dict[str, CompetitorKeys], Field(min_length=1)] = Field(
        description="name -> the network, its weights or its run; differences are to the first one"
    )
    datasets: dict[str, dict[str, Any]] = Field(description="train, and val, test or test_<n>, to measure on")
    train: dict[str, Any] | None = None
    val: CompareVal = Field(description="metrics")
    measure: Measure = Measure()
    logger: Logger | None = None
    path: ComparePath = ComparePath()
