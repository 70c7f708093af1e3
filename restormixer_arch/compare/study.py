"""The format of ``study.json``: values of every picture under several budgets and seeds, and what follows from them.

:mod:`.study_run` measures them; :mod:`.study_page` makes the tables of ``study.md`` and the curves of ``study.png``.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from restormixer_arch.compare.differences import SeedVariance, difference_over_seeds, mean_by_photograph, seed_variance
from restormixer_arch.compare.results import Difference, Metric, ResultModel
from restormixer_arch.errors import UserError

FORMAT = 1
FIELD_SIDE = 256  # pixels of the crops that the gradient of the context is taken on, at most
ROUNDING = 0.01  # by which means over the same inputs may differ between machines


class Row(ResultModel):
    """A competitor after one run, on one data set by one metric.

    Attributes:
        operations: of its training: three forward passes for each crop of each batch; a multiply-add counts two. None
            where the crops have no fixed size.
        values: picture -> value.
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
    """What a competitor costs; ``latency`` in seconds and ``flops`` are of one picture of the comparison's size."""

    name: str
    arch: str
    arguments: dict[str, Any]
    lr: float
    step_seconds: float | None
    parameters: int
    flops: float
    latency: float


class ContextUse(ResultModel):
    """What a network uses of a picture.

    Attributes:
        psnr: side of the crop -> mean PSNR in RGB of its middle.
        by_label: label -> the same, over the pictures of that label.
        radius: percent of the gradient -> distance from the middle pixel within which that much of it lies.
    """

    psnr: dict[int, float]
    by_label: dict[str, dict[int, float]]
    radius: dict[int, int]


class Study(ResultModel):
    """All of a study.

    Attributes:
        inputs: data set -> metric -> mean over the inputs.
        context: competitor -> how much of a picture it uses after the longest run.
    """

    format: Literal[1] = FORMAT
    name: str
    machine: dict[str, Any]
    networks: list[Network]
    metrics: dict[str, Metric]
    inputs: dict[str, dict[str, float]]
    rows: list[Row]
    context: dict[str, ContextUse] = {}

    @property
    def minutes(self) -> list[float]:
        return sorted({row.minutes for row in self.rows})

    @property
    def measures(self) -> list[tuple[str, str]]:
        """Each data set with each metric."""
        return list(dict.fromkeys((row.dataset, row.metric) for row in self.rows))

    def rows_by_seed(self, competitor: str, minutes: float, measure: tuple[str, str]) -> dict[int, Row]:
        """Return the rows of a competitor under one budget, by seed."""
        wanted = (competitor, minutes, *measure)
        return {r.manual_seed: r for r in self.rows if (r.competitor, r.minutes, r.dataset, r.metric) == wanted}

    def difference(self, competitor: str, minutes: float, measure: tuple[str, str]) -> Difference | None:
        """Return a competitor's difference to the first one over the seeds that both have, None if there is none.

        Its interval is over the photographs, and over the seeds by the variance of all that were trained with several.
        Pictures of one photograph under several labels are not independent, and count as one.
        """
        own, first = (self.rows_by_seed(name, minutes, measure) for name in (competitor, self.networks[0].name))
        seeds = [seed for seed in own if seed in first]
        if not seeds:
            return None
        differences = by_photograph(own, seeds) - by_photograph(first, seeds)
        return difference_over_seeds(differences, self.seed_variance(measure))

    def seed_variance(self, measure: tuple[str, str]) -> SeedVariance | None:
        """Return the variance between the seeds of one network, pooled over networks and budgets."""
        each = ((network.name, minutes) for network in self.networks for minutes in self.minutes)
        groups = [self.rows_by_seed(name, minutes, measure) for name, minutes in each]
        return seed_variance(by_photograph(rows, list(rows)) for rows in groups if len(rows) > 1)

    def mean(self, competitor: str, minutes: float, measure: tuple[str, str]) -> float | None:
        """Return a competitor's mean over the pictures of all its seeds, None if it was not trained for that long."""
        rows = self.rows_by_seed(competitor, minutes, measure)
        return fmean(fmean(row.values.values()) for row in rows.values()) if rows else None


def join(parts: dict[Path, Study]) -> Study:
    """Put the parts of one study together: runs or competitors of it that were trained apart, on any machines.

    The machine is that of the first part, latencies are those of the first part that has the network. The context is
    left out, see :func:`find_context`.

    Args:
        parts: file -> its study.

    Raises:
        UserError: they are not parts of one study, or two have the same training.
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
                raise UserError(f"{file}: {what} is in {other} already")
        known = {network.name for network in joined.networks}
        joined.networks += [network for network in part.networks if network.name not in known]
        joined.rows += part.rows
    joined.context = {}
    return joined


def find_context(joined: Study, parts: dict[Path, Study]) -> dict[str, Path]:
    """Return for each network the part whose context holds it, of the parts that have the longest run of all."""
    longest = [file for file, part in parts.items() if part.minutes[-1] == joined.minutes[-1]]
    places = {name: file for file in reversed(longest) for name in parts[file].context}
    return {network.name: places[network.name] for network in joined.networks if network.name in places}


def _key(row: Row) -> tuple[str, float, int, str, str]:
    return row.competitor, row.minutes, row.manual_seed, row.dataset, row.metric


def _difference_in_kind(study: Study, part: Study) -> str | None:
    """Say in what a part differs that must be alike in all parts of a study."""
    for key in ("name", "metrics"):
        if getattr(study, key) != getattr(part, key):
            return f"its {key}"
    pictures = {row.dataset: row.values.keys() for row in study.rows}
    if {row.dataset: row.values.keys() for row in part.rows} != pictures:
        return "the pictures"
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


def by_photograph(rows: dict[int, Row], seeds: list[int]) -> np.ndarray:
    """Return the mean over the pictures of each photograph, (seeds, photographs)."""
    pictures = list(rows[seeds[0]].values)
    values = np.array([[rows[seed].values[picture] for picture in pictures] for seed in seeds])
    return mean_by_photograph(pictures, values)
