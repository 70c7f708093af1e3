"""Define the format of ``study.json``: values of every image for several budgets and seeds, and their statistics.

:mod:`.study_run` measures them; :mod:`.study_page` creates the tables of ``study.md``, and :mod:`.study_plots` the
curves of ``study.png``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from restormixer_arch.compare.differences import (
    SeedVariance,
    difference_over_seeds,
    mean_per_photograph,
    paired_difference,
    seed_variance,
)
from restormixer_arch.compare.results import Difference, Metric, ResultModel
from restormixer_arch.data.degradations.labels import label_of
from restormixer_arch.errors import UserError

FORMAT = 1
FIELD_SIDE = 256  # maximum side in pixels of the crops for the receptive field
DIFFERENT_CONTEXT = "the context of {} has other crops or images than that of {}"
DIGITS = 4  # decimal places of the stored values
ROUNDING = 0.01  # maximum difference between machines in means over the same inputs


class Row(ResultModel):
    """The values of a competitor after one run, for one dataset and one metric.

    Attributes:
        operations: operations of its training: three forward passes for each crop of each batch, where a multiply-add
            is two operations; None if the crops have no fixed size.
        values: image -> value.
    """

    competitor: str
    minutes: float
    manual_seed: int
    iterations: int
    operations: float | None
    dataset: str
    metric: str
    values: dict[str, float]


class Network(ResultModel):
    """The costs of a competitor; ``latency`` in seconds and ``flops`` are for one image of the comparison's size.

    A joined study has no latencies, since those of its parts were not measured side by side.
    """

    name: str
    arch: str
    arguments: dict[str, Any]
    lr: float
    step_seconds: float | None
    parameters: int
    flops: float
    latency: float | None


class ContextUse(ResultModel):
    """How much of an image a network uses.

    Attributes:
        psnr: side of the crop -> image -> PSNR of its center, in RGB.
        radius: percentage of the gradient -> distance in pixels from the center pixel within which it is.
    """

    psnr: dict[int, dict[str, float]]
    radius: dict[int, int]

    @property
    def measured(self) -> tuple[list[tuple[int, list[str]]], list[int]]:
        """Crops with their images, and percentages of the gradient, which must be the same for all networks."""
        return [(size, list(values)) for size, values in self.psnr.items()], list(self.radius)

    @property
    def labels(self) -> list[str]:
        """The labels of the images, sorted."""
        return sorted({label for picture in next(iter(self.psnr.values())) if (label := label_of(picture))})

    def gain(self, label: str | None = None, over: ContextUse | None = None) -> Difference:
        """Return the gain of the largest crop over the smallest one in dB, with its interval over the photographs.

        Args:
            label: label of the images to use, or None for all images.
            over: context used by another network; the result is then how much more this one gains.
        """
        own = self._gains(label)
        return paired_difference(own, over._gains(label) if over else [0.0] * len(own))

    def lead_over(self, of: ContextUse) -> Difference:
        """Return the lead over another network in the largest crop, in dB."""
        own, other = (list(use.psnr.values())[-1] for use in (self, of))
        return paired_difference(_photographs(own), _photographs({picture: other[picture] for picture in own}))

    def _gains(self, label: str | None) -> list[float]:
        smallest, *_, largest = self.psnr.values()
        pictures = [picture for picture in smallest if label in (None, label_of(picture))]
        return _photographs({picture: largest[picture] - smallest[picture] for picture in pictures})


def _photographs(values: dict[str, float]) -> list[float]:
    """Return the mean over the images of each photograph."""
    return mean_per_photograph(list(values), np.array(list(values.values()))).tolist()


def differently_measured(uses: Mapping[str, ContextUse]) -> str | None:
    """Return the first network whose context has other crops or images than that of the first network, or None."""
    measured = [use.measured for use in uses.values()]
    return next((name for name, own in zip(uses, measured, strict=True) if own != measured[0]), None)


class Study(ResultModel):
    """All results of a study.

    Attributes:
        inputs: dataset -> metric -> mean over the inputs.
        context: competitor -> how much of an image it uses after the longest run.
    """

    format: Literal[1] = FORMAT
    name: str
    machine: dict[str, Any]
    networks: list[Network]
    metrics: dict[str, Metric]
    inputs: dict[str, dict[str, float]]
    rows: list[Row]
    context: dict[str, ContextUse] = {}

    @model_validator(mode="after")
    def check_rows(self) -> Study:
        """Raise ValueError if networks or rows are missing, or rows cannot be compared with each other."""
        if not self.networks or not self.rows:
            raise ValueError("a study has at least one network and one row")
        names = {network.name for network in self.networks}
        pictures: dict[str, list[str]] = {}
        iterations: dict[tuple[str, float], int] = {}
        for row in self.rows:
            what = f"{row.competitor}, {row.minutes:g} minutes"
            if row.competitor not in names:
                raise ValueError(f"{what}: not one of the networks")
            if row.metric not in self.metrics or row.metric not in self.inputs.get(row.dataset, {}):
                raise ValueError(f"{what}: no input of {row.dataset} by {row.metric}")
            if not row.values or list(row.values) != pictures.setdefault(row.dataset, list(row.values)):
                raise ValueError(f"{what}: the images of {row.dataset} differ from those of earlier rows")
            if row.iterations != iterations.setdefault((row.competitor, row.minutes), row.iterations):
                raise ValueError(f"{what}: trained for different iterations with different seeds")
        if name := differently_measured(self.context):
            raise ValueError(DIFFERENT_CONTEXT.format(name, next(iter(self.context))))
        return self

    @property
    def minutes(self) -> list[float]:
        return sorted({row.minutes for row in self.rows})

    @property
    def measures(self) -> list[tuple[str, str]]:
        """Each pair of a dataset and a metric."""
        return list(dict.fromkeys((row.dataset, row.metric) for row in self.rows))

    def rows_by_seed(self, competitor: str, minutes: float, measure: tuple[str, str]) -> dict[int, Row]:
        """Return seed -> row of a competitor for one budget, dataset and metric."""
        wanted = (competitor, minutes, *measure)
        return {r.manual_seed: r for r in self.rows if (r.competitor, r.minutes, r.dataset, r.metric) == wanted}

    def difference(self, competitor: str, minutes: float, measure: tuple[str, str]) -> Difference | None:
        """Return the difference of a competitor's mean over its seeds from the first one's, None if either is missing.

        Its interval is over the photographs, and over the seeds with the pooled variance of all networks trained with
        several. Images of one photograph with different labels are not independent, so they are averaged.
        """
        own, first = (self.rows_by_seed(name, minutes, measure) for name in (competitor, self.networks[0].name))
        if not own or not first:
            return None
        return difference_over_seeds(per_photograph(own), per_photograph(first), self.seed_variance(measure))

    def trained(self, minutes: float, measure: tuple[str, str]) -> dict[str, dict[int, Row]]:
        """Return competitor -> seed -> row, for the competitors that were trained for that many minutes."""
        rows = {network.name: self.rows_by_seed(network.name, minutes, measure) for network in self.networks}
        return {name: own for name, own in rows.items() if own}

    def seed_variance(self, measure: tuple[str, str]) -> SeedVariance | None:
        """Return the variance between a network's seeds, pooled over networks and budgets; None if there is none."""
        each = ((network.name, minutes) for network in self.networks for minutes in self.minutes)
        groups = [self.rows_by_seed(name, minutes, measure) for name, minutes in each]
        return seed_variance(per_photograph(rows) for rows in groups if len(rows) > 1)

    def mean(self, competitor: str, minutes: float, measure: tuple[str, str]) -> float | None:
        """Return a competitor's mean over the images of all its seeds, or None if it was not trained for that long."""
        rows = self.rows_by_seed(competitor, minutes, measure)
        return fmean(fmean(row.values.values()) for row in rows.values()) if rows else None


def join(parts: dict[Path, Study]) -> Study:
    """Join the parts of one study: runs or competitors that were trained separately, on any machines.

    The machine, and the network that the others are compared with, are those of the first part. Latencies and context
    are left out; for the context, see :func:`find_context`.

    Args:
        parts: file -> its study.

    Raises:
        UserError: if they are not parts of one study, or two contain the same training run.
    """
    files = iter(parts)
    first_file = next(files)
    joined = parts[first_file].model_copy(deep=True)
    places = {_key(row): first_file for row in joined.rows}
    for file in files:
        part = parts[file]
        if difference := _difference_in_kind(joined, part):
            raise UserError(f"{file}: differs from {first_file} in {difference}: they are not parts of one study")
        for row in part.rows:
            if (other := places.setdefault(_key(row), file)) != file:
                what = f"{row.competitor}, {row.minutes:g} minutes, manual_seed {row.manual_seed}"
                raise UserError(f"{file}: {what} is already in {other}")
        known = {network.name for network in joined.networks}
        joined.networks += [network.model_copy() for network in part.networks if network.name not in known]
        joined.rows += part.rows
    for network in joined.networks:
        network.latency = None
    joined.context = {}
    return joined


def find_context(joined: Study, parts: dict[Path, Study]) -> dict[str, Path]:
    """Return network -> file of the part whose context contains it, among the parts that have the longest run.

    Raises:
        UserError: if the contexts have different crops or images.
    """
    longest = [file for file, part in parts.items() if part.minutes[-1] == joined.minutes[-1]]
    found = {name: file for file in reversed(longest) for name in parts[file].context}
    places = {network.name: found[network.name] for network in joined.networks if network.name in found}
    if name := differently_measured({name: parts[file].context[name] for name, file in places.items()}):
        raise UserError(f"{places[name]}: {DIFFERENT_CONTEXT.format(name, next(iter(places)))}")
    return places


def _key(row: Row) -> tuple[str, float, int, str, str]:
    return row.competitor, row.minutes, row.manual_seed, row.dataset, row.metric


def _difference_in_kind(study: Study, part: Study) -> str | None:
    """Return what differs in a part although it must be the same in all parts of a study, or None."""
    for key in ("name", "metrics"):
        if getattr(study, key) != getattr(part, key):
            return f"its {key}"
    pictures = {row.dataset: list(row.values) for row in study.rows}
    if {row.dataset: list(row.values) for row in part.rows} != pictures:
        return "the pictures"
    iterations = {(row.competitor, row.minutes): row.iterations for row in study.rows}
    for row in part.rows:
        if iterations.get((row.competitor, row.minutes), row.iterations) != row.iterations:
            return f"the iterations of {row.competitor}, {row.minutes:g} minutes"
    for dataset, means in study.inputs.items():
        if any(abs(part.inputs[dataset][metric] - mean) > ROUNDING for metric, mean in means.items()):
            return f"the inputs of {dataset}"
    own = {network.name: network for network in study.networks}
    for network in part.networks:
        same = own.get(network.name)
        for key in Network.model_fields:
            if same and key != "latency" and getattr(same, key) != getattr(network, key):
                return f"{key} of {network.name}"
    return None


def per_photograph(rows: dict[int, Row]) -> np.ndarray:
    """Return the mean over the images of each photograph, (seeds, photographs)."""
    values = np.array([list(row.values.values()) for row in rows.values()])
    return mean_per_photograph(list(next(iter(rows.values())).values), values)


def radius_of(field: np.ndarray, share: float) -> int:
    """Return the distance in pixels from the center within which that share of a field (H, W) is.

    The center pixel itself is left out, since it contains the complete identity path of a residual network.
    """
    height, width = field.shape
    rows, columns = np.arange(height)[:, None] - height // 2, np.arange(width)[None, :] - width // 2
    distance = np.ceil(np.sqrt(rows**2 + columns**2)).astype(int)
    rings = np.bincount(distance.ravel(), weights=field.astype(np.float64).ravel())
    rings[0] = 0
    total = rings.cumsum()
    return int((total < share * total[-1]).sum())
