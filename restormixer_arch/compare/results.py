"""Define the format of ``results.json``: all measurements of a comparison, and the paths of its images.

All paths are relative to the folder of ``results.json``, with forward slashes. Infinite values (the PSNR of two
identical images) are stored as the text ``Infinity``. Competitors are identified by their names, and are in the order
of the option file; the others are compared with the first one.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from restormixer_arch.errors import UserError
from restormixer_arch.output import write_text_atomically

FORMAT = 1
FILE = "results.json"


class ResultModel(BaseModel):
    """A part of ``results.json`` or ``study.json``; unknown keys are rejected, and infinity is kept."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


Kind = TypeVar("Kind", bound=ResultModel)


class Metric(ResultModel):
    """A metric: the registered function, its arguments, and whether higher or lower is better."""

    type: str
    arguments: dict[str, Any] = {}
    better: Literal["higher", "lower"] = "higher"

    @property
    def digits(self) -> int:
        """Number of decimal places to show: two for PSNR and NIQE, four for the others, which are in [0, 1]."""
        return 2 if any(name in self.type for name in ("psnr", "niqe")) else 4


class Latency(ResultModel):
    """Seconds for restoring one (1, C, size, size) image: median, lower and upper quartile, and number of runs."""

    median: float
    low: float
    high: float
    runs: int


class Training(ResultModel):
    """How a competitor was trained: iterations, images per batch, and seconds of the complete process.

    The seconds of a resumed training run are the sum of its parts, without any part that was killed. ``flops`` are the
    operations of a forward pass of one training crop (a multiply-add is two operations), or None if crops have no
    fixed size.
    """

    iterations: int
    batch_size: int
    seconds: float
    flops: float | None = None


class Competitor(ResultModel):
    """A network of the comparison.

    Attributes:
        name: name in the option file.
        arch: registered name of the architecture, such as ``RestorMixer``, or ``NAFNet (spandrel)``.
        arguments: keys of ``network_g`` without ``type``; empty if spandrel recognized the weights.
        weights: weight file that was loaded.
        training: how it was trained in this comparison, or None if the weights came from elsewhere.
        parameters: number of parameters.
        flops: floating-point operations of one forward pass of (1, C, size, size), including scans and attention; a
            multiply-add is two operations. ``macs`` is half of it.
        thop_macs: multiply-adds of the same pass as counted by thop, or None if it is not installed.
        thop_parameters: number of parameters as counted by thop.
        latency: latency of the same pass.
        peak_bytes: peak memory of a process that only loads the network and runs that pass, or None if the system
            does not report it.
    """

    name: str
    arch: str
    arguments: dict[str, Any] = {}
    weights: str | None = None
    training: Training | None = None
    parameters: int
    flops: float
    thop_macs: float | None = None
    thop_parameters: float | None = None
    latency: Latency
    peak_bytes: int | None = None

    @property
    def macs(self) -> float:
        return self.flops / 2


class Picture(ResultModel):
    """One image of a dataset.

    Attributes:
        name: name of the image, unique in its dataset.
        input: path of the degraded image (PNG), for super-resolution enlarged to the GT size by bicubic interpolation.
        truth: path of the GT image (PNG), or None if there is none.
        restored: competitor -> path of its restored image (PNG).
        input_values: metric -> value of ``input``.
        values: metric -> competitor -> value.
    """

    name: str
    input: str
    truth: str | None
    restored: dict[str, str]
    input_values: dict[str, float]
    values: dict[str, dict[str, float]]


class Difference(ResultModel):
    """A competitor's values minus those of the first competitor on the same images: mean and 95% interval.

    Attributes:
        mean: mean over the photographs, and in a study also over the seeds.
        low, high: interval of the mean, see :mod:`.differences`; None with fewer than two photographs, or if a
            difference is not finite.
    """

    mean: float
    low: float | None
    high: float | None


class DataSet(ResultModel):
    """The images of one dataset, and the differences between the competitors.

    Attributes:
        difference: metric -> competitor (all but the first) -> paired difference from the first one.
    """

    name: str
    pictures: list[Picture]
    difference: dict[str, dict[str, Difference]]

    def mean(self, metric: str, competitor: str) -> float:
        """Return the mean of a metric over a competitor's images."""
        return fmean(picture.values[metric][competitor] for picture in self.pictures)

    def input_mean(self, metric: str) -> float:
        """Return the mean of a metric over the inputs."""
        return fmean(picture.input_values[metric] for picture in self.pictures)


class Comparison(ResultModel):
    """All results of a comparison.

    Attributes:
        format: version of the file format.
        name: name of the comparison in the option file.
        machine: processor, threads and versions, as ``basicsr bench`` writes them.
        size: side of the square image for latency, memory and operations, in pixels.
        budget: training budget of every competitor as text, such as ``600 iterations``; None if nothing was trained.
        metrics: name in the option file -> metric.
        settings: settings that the values depend on: datasets, metrics, networks, weights and how they were trained.
    """

    format: Literal[1] = FORMAT
    name: str
    machine: dict[str, Any]
    size: int
    budget: str | None = None
    metrics: dict[str, Metric]
    competitors: list[Competitor]
    datasets: list[DataSet]
    settings: dict[str, Any] = {}


def write(comparison: Comparison, folder: Path) -> Path:
    """Write ``results.json`` and return its path."""
    return write_text_atomically(folder / FILE, comparison.model_dump_json(indent=1) + "\n")


def read(folder: Path) -> Comparison:
    """Read the ``results.json`` of a folder. Raises UserError if it cannot be read or has another format."""
    return read_part(Comparison, folder / FILE)


def read_part(kind: type[Kind], file: Path) -> Kind:
    """Read a file in the format of ``kind``.

    Raises:
        UserError: if it cannot be read, or has another format.
    """
    try:
        return kind.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{file}: {where}: {first['msg']}, expected results of basicsr compare") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
