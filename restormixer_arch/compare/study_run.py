"""Run a study: the comparisons of one option file with several budgets and seeds, each in its own folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from restormixer_arch.compare.context import measure_context
from restormixer_arch.compare.options import merge_train, name_of_run, options_of_run
from restormixer_arch.compare.results import Comparison, Competitor
from restormixer_arch.compare.run import compare, folder_of_results
from restormixer_arch.compare.study import DIGITS, Network, Row, Study
from restormixer_arch.output import note, user_path

BACKWARD = 2  # operations of a backward pass, relative to a forward pass


def run_study(options: dict[str, Any], *, resume: bool) -> Iterator[tuple[Comparison, Path]]:
    """Run the comparisons of a study in order, and yield each as soon as it is measured.

    Args:
        options: options from :func:`.options.read_compare_file`, with ``runs``.
        resume: whether to resume in the folder of an earlier study and keep its training runs and results; otherwise
            that folder is renamed.

    Raises:
        UserError, ComparisonInterrupted: see :func:`.run.compare`.
    """
    folder = user_path(options_of_run(options, options["runs"][0])["path"]["results_root"])
    with folder_of_results(folder, resume=resume):
        for run in options["runs"]:
            note(f"{options['name']}: {name_of_run(run)}")
            yield compare(options_of_run(options, run), resume=resume, reuse=True)


def study_of(options: dict[str, Any], comparisons: list[Comparison]) -> Study:
    """Combine the comparisons of a study.

    Args:
        options: options of the study.
        comparisons: comparisons of its runs, in order; the last ones may be missing if they have not been run yet.
    """
    rows: list[Row] = []
    for run, comparison in zip(options["runs"], comparisons, strict=False):
        for competitor in comparison.competitors:
            training = competitor.training
            if training is None:  # options.py ensures that every competitor of a study is trained
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
    """Return the operations of a competitor's training, or None if they were not counted."""
    training = competitor.training
    if training is None or training.flops is None:
        return None
    return (1 + BACKWARD) * training.flops * training.batch_size * training.iterations


def add_context(study: Study, options: dict[str, Any], found: list[tuple[Comparison, Path]], out: Path) -> None:
    """Measure how much of an image the networks of the longest run use; write their receptive fields to ``out``."""
    longest = max(study.minutes)
    at = next(i for i, run in enumerate(options["runs"]) if run["minutes"] == longest)
    own = options_of_run(options, options["runs"][at])
    study.context = measure_context(own, options["context"], *found[at], out)
