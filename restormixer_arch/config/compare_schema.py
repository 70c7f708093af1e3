"""Define the sections of option files of ``basicsr compare``; see :mod:`restormixer_arch.config.schema`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from restormixer_arch.config.schema import AnyFile, Logger, Metric
from restormixer_arch.config.section import Section, Typed
from restormixer_arch.config.train_schema import Optimization, Steps, Warmup
from restormixer_arch.config.values import FileName, Positive, Rate, Seed

PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Budget(Section):
    """What every competitor may use; one of the two."""

    iterations: Positive | None = Field(default=None, description="the same iterations for all")
    minutes: PositiveNumber | None = Field(default=None, description="the same wall-clock time for all")


class CompareTrain(Warmup, Optimization, Steps):
    """How every competitor is trained: by RestorMixerModel, with one cosine of the learning rate over the budget."""

    budget: Budget | None = Field(default=None, description="'iterations: N' or 'minutes: N'; of a study, see 'runs'")
    eta_min: Rate = Field(default=0.0, description="the learning rate at the end")


class CompetitorKeys(Section):
    """A network with its weights, a network to train, weights whose network is recognized, or a previous run."""

    network_g: Typed | None = Field(default=None, description="type and arguments of the network")
    weights: str | None = Field(default=None, description="weight file; it is not trained further")
    param_key: str | None = Field(default=None, description="entry of the weight file, such as params_ema")
    run: str | None = Field(default=None, description="folder of a previous training, such as experiments/NAME")
    checkpoint: Literal["newest", "best"] | None = Field(default=None, description="which weights of the run")
    train: dict[str, Any] | None = Field(default=None, description="what differs from the common section 'train'")
    multiple_of: Positive | None = Field(default=None, description="pad pictures to a multiple of this")
    step_seconds: PositiveNumber | None = Field(
        default=None,
        description="seconds per training step on an idle machine, as printed by 'basicsr compare --steps'",
    )


class CompareVal(Section):
    metrics: Annotated[dict[str, Metric], Field(min_length=1)] = Field(description="what is measured")


class Measure(Section):
    """How latency, memory and operations are measured."""

    size: Positive = Field(default=256, description="side of the square picture")
    rounds: Positive = Field(default=7, description="measurements per network, taken in turn")


class Run(Section):
    """One comparison of a study: a budget and a seed, for all competitors or some of them."""

    minutes: PositiveNumber = Field(description="the budget of each competitor, by its step_seconds")
    manual_seed: Seed = Field(description="of every training")
    competitors: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="names of the competitors to run, including the first one (default: all)"
    )


class Context(Section):
    """How much of a picture the longest trained networks use."""

    dataset: dict[str, Any] = Field(description="the dataset; its images must be at least as large as the largest crop")
    sizes: Annotated[list[Positive], Field(min_length=2)] = Field(
        default=[64, 128, 256, 512], description="sides of the crops, each a multiple of the smallest one"
    )


class ComparePath(Section):
    results_root: str | None = None


class CompareFile(AnyFile):
    name: FileName = Field(description="the comparison, names its folder")
    scale: Positive = Field(default=1, description="1 where images keep their size")
    manual_seed: Seed = 0
    competitors: Annotated[dict[str, CompetitorKeys], Field(min_length=1)] = Field(
        description="name -> the network, its weights or its run; differences are relative to the first one"
    )
    datasets: dict[str, dict[str, Any]] = Field(description="train, and val, test or test_<n>, to measure on")
    train: dict[str, Any] | None = None
    runs: Annotated[list[Run], Field(min_length=1)] | None = Field(
        default=None, description="a study: comparisons with several budgets and seeds, instead of train.budget"
    )
    context: Context | None = None
    val: CompareVal = Field(description="metrics")
    measure: Measure = Measure()
    logger: Logger | None = None
    path: ComparePath = ComparePath()
