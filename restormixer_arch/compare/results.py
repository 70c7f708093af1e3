"""The format of ``results.json``: everything that a comparison has measured, and where its pictures lie.

All paths are relative to the folder that ``results.json`` lies in, with forward slashes. Infinite values (the PSNR of
two identical pictures) stand as the text ``Infinity``. Competitors are known by their names, and keep the order of the
option file; the first one is what the others are compared with.
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
    """A part of ``results.json`` or ``study.json``: no key may be unknown, and infinity is kept."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


Kind = TypeVar("Kind", bound=ResultModel)


class Metric(ResultModel):
    """A measure: the registered function, its arguments, and which way is better."""

    type: str
    arguments: dict[str, Any] = {}
    better: Literal["higher", "lower"] = "higher"

    @property
    def digits(self) -> int:
        """Digits to show after the point: two of PSNR and NIQE, four of the others, which lie in [0, 1]."""
        return 2 if any(name in self.type for name in ("psnr", "niqe")) else 4


class Latency(ResultModel):
    """Seconds of restoring one (1, C, size, size) picture: median, lower and upper quartile, number of runs."""

    median: float
    low: float
    high: float
    runs: int


class Training(ResultModel):
    """How a competitor was trained: iterations, pictures of a batch, and seconds of the whole process.

    The seconds of a resumed training are the sum of its parts, without those of a part that was killed. ``flops`` are
    the operations of one forward pass of one of its crops, a multiply-add counts two; None where crops have no fixed
    size.
    """

    iterations: int
    batch_size: int
    seconds: float
    flops: float | None = None


class Competitor(ResultModel):
    """A network that is compared.

    Attributes:
        name: of the option file.
        arch: registered name of the architecture, such as ``RestorMixer``, or ``NAFNet (spandrel)``.
        arguments: the keys of ``network_g`` without ``type``; empty where spandrel recognized the weights.
        weights: the file that was loaded.
        training: how it was trained in this comparison, None where the weights came from elsewhere.
        parameters: how many the network has.
        flops: floating-point operations of one forward pass of (1, C, size, size), scans and attention included; a
            multiply-add counts two. ``macs`` is half of it.
        thop_macs: multiply-adds of the same pass as the counter thop prints them, None where it is not installed.
        thop_parameters: parameters as thop prints them.
        latency: of the same pass.
        peak_bytes: the most memory that a process held which did nothing but load the network and run that pass;
            None where the system does not report it.
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
    """One picture of a dataset.

    Attributes:
        name: of the picture, unique in its dataset.
        input: the degraded picture as PNG, in super-resolution enlarged by bicubic interpolation to the truth's size.
        truth: the true picture as PNG, None where there is none.
        restored: competitor -> its picture, as PNG.
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
    """A competitor's values minus those of the first competitor on the same pictures: mean and 95% interval.

    Attributes:
        mean: over the photographs, and in a study over the seeds.
        low, high: interval of the mean, see :mod:`.differences`; None with fewer than two photographs.
    """

    mean: float
    low: float | None
    high: float | None


class DataSet(ResultModel):
    """The pictures of one dataset, and what follows from them.

    Attributes:
        difference: metric -> competitor (all but the first) -> paired difference to the first one.
    """

    name: str
    pictures: list[Picture]
    difference: dict[str, dict[str, Difference]]

    def mean(self, metric: str, competitor: str) -> float:
        """The mean of a metric over the pictures."""
        return fmean(picture.values[metric][competitor] for picture in self.pictures)

    def input_mean(self, metric: str) -> float:
        """The mean of a metric over the inputs."""
        return fmean(picture.input_values[metric] for picture in self.pictures)


class Comparison(ResultModel):
    """All of a comparison.

    Attributes:
        format: of this file.
        name: of the option file.
        machine: processor, threads and versions, as ``basicsr bench`` writes them.
        size: side of the square picture that latency, memory and operations were measured with.
        budget: what every competitor was given, in words, such as ``600 iterations``; None where nothing was trained.
        metrics: name in the option file -> the measure.
        settings: what the values follow from: datasets, metrics, networks, weights and how they were trained.
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
    """Write ``results.json``; return its place."""
    return write_text_atomically(folder / FILE, comparison.model_dump_json(indent=1) + "\n")


def read(folder: Path) -> Comparison:
    """Read the ``results.json`` of a folder. Raises UserError if it cannot be read or is not such a file."""
    return read_part(Comparison, folder / FILE)


def read_part(kind: type[Kind], file: Path) -> Kind:
    """Read a file of one of these formats.

    Raises:
        UserError: it cannot be read, or is no such file.
    """
    try:
        return kind.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{file}: {where}: {first['msg']}, expected results of basicsr compare") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
