"""A study: the comparisons of one option file under several budgets and seeds, and what follows from all of them.

Each run is a comparison in a folder of its own. ``study.json`` has the values of every picture; :mod:`.study_page`
makes the tables of ``study.md`` and the curves of ``study.png`` of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from restormixer_arch.compare.context import Use, measure_context
from restormixer_arch.compare.differences import SeedSpread, difference_over_seeds, seed_spread
from restormixer_arch.compare.options import merge_train, name_of_run, options_of_run
from restormixer_arch.compare.results import Comparison, Competitor, Difference, Metric, Part
from restormixer_arch.compare.run import compare, folder_of_results
from restormixer_arch.data.degradations.labels import split_label
from restormixer_arch.output import note, user_path

FORMAT = 1
DIGITS = 4  # of the values that are kept
BACKWARD = 2  # operations of a backward pass, in forward passes


class Row(Part):
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


class Network(Part):
    """What a competitor costs; ``latency`` in seconds and ``flops`` are of one picture of the comparison's size."""

    name: str
    arch: str
    arguments: dict[str, Any]
    lr: float
    step_seconds: float | None
    parameters: int
    flops: float
    latency: float


class Study(Part):
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
    context: dict[str, Use] = {}

    @property
    def minutes(self) -> list[float]:
        return sorted({row.minutes for row in self.rows})

    @property
    def measures(self) -> list[tuple[str, str]]:
        """Each data set with each metric."""
        return list(dict.fromkeys((row.dataset, row.metric) for row in self.rows))

    def of(self, competitor: str, minutes: float, measure: tuple[str, str]) -> dict[int, Row]:
        """Return the rows of a competitor under one budget, by seed."""
        wanted = (competitor, minutes, *measure)
        return {r.manual_seed: r for r in self.rows if (r.competitor, r.minutes, r.dataset, r.metric) == wanted}

    def difference(self, competitor: str, minutes: float, measure: tuple[str, str]) -> Difference | None:
        """Return a competitor's difference to the first one over the seeds that both have, None if there is none.

        Its interval is over the photographs, and over the seeds by the spread of all that were trained with several.
        Pictures of one photograph under several labels are not independent, and count as one.
        """
        own, first = (self.of(name, minutes, measure) for name in (competitor, self.networks[0].name))
        seeds = [seed for seed in own if seed in first]
        if not seeds:
            return None
        return difference_over_seeds(by_photograph(own, seeds) - by_photograph(first, seeds), self.spread(measure))

    def spread(self, measure: tuple[str, str]) -> SeedSpread | None:
        """Return how far the seeds of one network lie apart, pooled over networks and budgets."""
        groups = [self.of(network.name, minutes, measure) for network in self.networks for minutes in self.minutes]
        return seed_spread(by_photograph(rows, list(rows)) for rows in groups if len(rows) > 1)

    def mean(self, competitor: str, minutes: float, measure: tuple[str, str]) -> float | None:
        """Return a competitor's mean over the pictures of all its seeds, None if it was not trained for that long."""
        rows = self.of(competitor, minutes, measure)
        return fmean(fmean(row.values.values()) for row in rows.values()) if rows else None


def by_photograph(rows: dict[int, Row], seeds: list[int]) -> np.ndarray:
    """Return the mean over the pictures of each photograph, (seeds, photographs)."""
    photographs: dict[str, list[str]] = {}
    for picture in rows[seeds[0]].values:
        photographs.setdefault(split_label(picture)[0], []).append(picture)
    return np.array([[fmean(rows[seed].values[p] for p in group) for group in photographs.values()] for seed in seeds])


def run_study(options: dict[str, Any], *, resume: bool) -> Iterator[tuple[Comparison, Path]]:
    """Run the comparisons of a study in their order; each is yielded as soon as it is measured.

    Args:
        options: as :func:`.options.read_compare_file` returns them, with ``runs``.
        resume: in the folder of an earlier study, whose trainings and results are kept; it is renamed otherwise.

    Raises:
        as :func:`.run.compare` does.
    """
    folder = user_path(options_of_run(options, options["runs"][0])["path"]["results_root"])
    with folder_of_results(folder, resume=resume):
        for run in options["runs"]:
            note(f"{options['name']}: {name_of_run(run)}")
            yield compare(options_of_run(options, run), resume=resume, reuse=True)


def join(options: dict[str, Any], comparisons: list[Comparison]) -> Study:
    """Put the comparisons of a study together.

    Args:
        options: of the study.
        comparisons: of its runs, in their order.
    """
    rows: list[Row] = []
    for run, comparison in zip(options["runs"], comparisons, strict=True):
        for competitor in comparison.competitors:
            training = competitor.training
            if training is None:  # options.py sees to it that every competitor of a study is trained
                raise AssertionError(f"{competitor.name} was not trained")
            common = {
                "competitor": competitor.name,
                **{key: run[key] for key in ("minutes", "manual_seed")},
                "iterations": training.iterations,
                "operations": training_operations(competitor),
            }
            for dataset in comparison.datasets:
                for metric in comparison.metrics:
                    values = {
                        picture.name: round(picture.values[metric][competitor.name], DIGITS)
                        for picture in dataset.pictures
                    }
                    rows.append(Row(**common, dataset=dataset.name, metric=metric, values=values))
    first = comparisons[0]
    known = {competitor.name: competitor for each in reversed(comparisons) for competitor in each.competitors}
    networks = [
        Network(
            name=name,
            arch=known[name].arch,
            arguments=known[name].arguments,
            lr=merge_train(options, name)["optim_g"]["lr"],
            step_seconds=options["competitors"][name].get("step_seconds"),
            parameters=known[name].parameters,
            flops=known[name].flops,
            latency=known[name].latency.median,
        )
        for name in options["competitors"]
        if name in known
    ]
    inputs = {d.name: {metric: d.input_mean(metric) for metric in first.metrics} for d in first.datasets}
    return Study(
        name=options["name"], machine=first.machine, networks=networks, metrics=first.metrics, inputs=inputs, rows=rows
    )


def training_operations(competitor: Competitor) -> float | None:
    """Return the operations of a competitor's training, None where they were not counted."""
    training = competitor.training
    if training is None or training.flops is None:
        return None
    return (1 + BACKWARD) * training.flops * training.batch_size * training.iterations


def add_context(study: Study, options: dict[str, Any], found: list[tuple[Comparison, Path]]) -> dict[str, np.ndarray]:
    """Measure how much of a picture the networks of the longest run use; return their receptive fields to draw."""
    longest = max(study.minutes)
    at = next(i for i, run in enumerate(options["runs"]) if run["minutes"] == longest)
    own = options_of_run(options, options["runs"][at])
    study.context, fields = measure_context(own, options["context"], *found[at])
    return fields
