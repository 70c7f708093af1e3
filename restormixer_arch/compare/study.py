"""A study: the comparisons of one option file under several budgets and seeds, and what follows from all of them.

Each run is a comparison in a folder of its own. ``study.json`` has the values of every picture; the tables of
``study.md`` and the curves of ``study.png`` are made of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from restormixer_arch.compare.context import Use, draw_context, measure_context
from restormixer_arch.compare.options import is_trained, merge_train, name_of_run, options_of_run
from restormixer_arch.compare.results import Comparison, Difference, Metric, Part
from restormixer_arch.compare.run import CONFIDENCE, compare
from restormixer_arch.compare.tables import markdown_table, show_difference
from restormixer_arch.data.degradations.labels import label_of
from restormixer_arch.output import atomic_paths, note, write_text_atomically

FORMAT = 1
DRAWS = 4000  # of the bootstrap
DIGITS = 4  # of the values that are kept
BACKWARD = 2  # operations of a backward pass, in forward passes


class Row(Part):
    """A competitor after one run, on one data set by one metric.

    Attributes:
        operations: of its training: three forward passes for each picture of each batch; a multiply-add counts two.
        values: picture -> value.
    """

    competitor: str
    minutes: float
    manual_seed: int
    iterations: int
    operations: float
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

        Pictures of one photograph under several labels are not independent, and count as one.
        """
        own, first = (self.of(name, minutes, measure) for name in (competitor, self.networks[0].name))
        seeds = [seed for seed in own if seed in first]
        if not seeds:
            return None
        photographs: dict[str, list[str]] = {}
        for picture in own[seeds[0]].values:
            photographs.setdefault(photograph_of(picture), []).append(picture)
        differences = [
            [fmean(own[seed].values[p] - first[seed].values[p] for p in pictures) for pictures in photographs.values()]
            for seed in seeds
        ]
        return bootstrap(np.array(differences))


def photograph_of(picture: str) -> str:
    """Return the name of a picture without the label at its end."""
    return picture.removesuffix(f"_{label_of(picture)}")


def bootstrap(differences: np.ndarray) -> Difference:
    """Return the mean of differences (seeds, photographs) and its interval, with both resampled with replacement.

    With one seed the interval is over photographs alone. It is None where a difference is not finite, or is alone.
    """
    seeds, photographs = differences.shape
    mean = float(differences.mean())
    if photographs < 2 or not np.isfinite(differences).all():
        return Difference(mean=mean, low=None, high=None)
    rng = np.random.default_rng(0)
    drawn_seeds = rng.integers(seeds, size=(DRAWS, seeds))
    drawn = rng.integers(photographs, size=(DRAWS, photographs))
    counts = np.apply_along_axis(np.bincount, 1, drawn, minlength=photographs) / photographs
    means = np.take_along_axis(counts @ differences.T, drawn_seeds, axis=1).mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Difference(mean=mean, low=float(low), high=float(high))


def run_study(options: dict[str, Any], *, resume: bool) -> Iterator[tuple[Comparison, Path]]:
    """Run the comparisons of a study in their order; each is yielded as soon as it is measured.

    Args:
        options: as :func:`.options.read_compare_file` returns them, with ``runs``.
        resume: in the folders of earlier runs, whose trainings and results are kept; they are renamed otherwise.

    Raises:
        as :func:`.run.compare` does.
    """
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
            if training is None:
                continue
            common = {
                "competitor": competitor.name,
                **{key: run[key] for key in ("minutes", "manual_seed")},
                "iterations": training.iterations,
                "operations": training_operations(options, competitor.flops, training.iterations),
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
        if name in known and is_trained(options, name)
    ]
    inputs = {d.name: {metric: d.input_mean(metric) for metric in first.metrics} for d in first.datasets}
    return Study(
        name=options["name"], machine=first.machine, networks=networks, metrics=first.metrics, inputs=inputs, rows=rows
    )


def training_operations(options: dict[str, Any], flops: float, iterations: int) -> float:
    """Return the operations of a training, of which a forward pass of the measured size has ``flops``."""
    data = options["datasets"]["train"]
    side = data["gt_size"] / options.get("scale", 1) / options["measure"]["size"]
    return (1 + BACKWARD) * flops * side**2 * data["batch_size_per_gpu"] * iterations


def finish(options: dict[str, Any], found: list[tuple[Comparison, Path]]) -> tuple[Study, list[Path]]:
    """Put a study together, measure the context, and write all of it; return it, and the files."""
    study = join(options, [comparison for comparison, _ in found])
    folder = found[0][1].parent
    places = []
    if options.get("context"):
        longest = max(study.minutes)
        at = next(i for i, run in enumerate(options["runs"]) if run["minutes"] == longest)
        own = options_of_run(options, options["runs"][at])
        study.context, fields = measure_context(own, options["context"], *found[at])
        places.append(draw_context(study.context, fields, folder / "context.png"))
    places += [
        write_text_atomically(folder / "study.json", study.model_dump_json(indent=None) + "\n"),
        write_text_atomically(folder / "study.md", markdown(study)),
        draw(study, folder / "study.png"),
    ]
    return study, places


# --- tables ----------------------------------------------------------------------------------------------------------


def markdown(study: Study) -> str:
    """Return the tables of a study: means, differences to the first competitor, crossings, costs and context."""
    first = study.networks[0].name
    parts = [
        f"# {study.name}",
        "Minutes are those of a quiet machine: each network was trained for the iterations that fill them, by the "
        "seconds of its step. Means over the pictures and seeds; in brackets the 95% interval of the difference to "
        f"{first}, of a bootstrap over photographs and seeds.",
        _costs(study),
    ]
    for measure in study.measures:
        parts += [f"## {measure[0]}, {measure[1]}", _means(study, measure), *crossings(study, measure)]
    if study.context:
        parts += ["## Context", _context(study)]
    return "\n\n".join(parts) + "\n"


def _costs(study: Study) -> str:
    head = ["", "parameters", "rate", "step", "GMAC", "latency", *(f"iterations, {m:g} min" for m in study.minutes)]
    rows = []
    for network in study.networks:
        step = f"{network.step_seconds:.3f} s" if network.step_seconds else ""
        costs = [f"{network.parameters:,}", f"{network.lr:g}", step, f"{network.flops / 2e9:.2f}"]
        found = [next(iter(study.of(network.name, m, study.measures[0]).values()), None) for m in study.minutes]
        iterations = [f"{row.iterations:,}" if row else "" for row in found]
        rows.append([network.name, *costs, f"{network.latency * 1e3:.0f} ms", *iterations])
    return markdown_table(head, rows)


def _means(study: Study, measure: tuple[str, str]) -> str:
    digits = study.metrics[measure[1]].digits
    rows = [["input", *[f"{study.inputs[measure[0]][measure[1]]:.{digits}f}"] * len(study.minutes)]]
    for network in study.networks:
        cells = []
        for minutes in study.minutes:
            found = study.of(network.name, minutes, measure)
            cell = f"{mean_over_seeds(found):.{digits}f}" if found else ""
            if found and network is not study.networks[0]:
                difference = study.difference(network.name, minutes, measure)
                cell += "; " + show_difference(difference, lambda value: f"{value:.{digits}f}") if difference else ""
            cells.append(cell + (f", {len(found)} seeds" if len(found) > 1 else ""))
        rows.append([network.name, *cells])
    return markdown_table(["", *(f"{minutes:g} minutes" for minutes in study.minutes)], rows)


def mean_over_seeds(rows: dict[int, Row]) -> float:
    """Return the mean over the pictures of all seeds."""
    return fmean(fmean(row.values.values()) for row in rows.values())


def crossings(study: Study, measure: tuple[str, str]) -> list[str]:
    """Say between which budgets a competitor and the first one change places; the minutes are log-linear between.

    Budgets under which the interval of the difference holds 0 are passed over.
    """
    first, found = study.networks[0].name, []
    for network in study.networks[1:]:
        points = [(m, study.difference(network.name, m, measure)) for m in study.minutes]
        known = [(minutes, difference.mean) for minutes, difference in points if difference and is_sure(difference)]
        for (low, before), (high, after) in zip(known, known[1:], strict=False):
            if before * after < 0:
                at = math.exp(math.log(low) + (math.log(high) - math.log(low)) * before / (before - after))
                found.append(f"- {network.name} and {first} change places at about {at:.0f} minutes.")
    return ["\n".join(found)] if found else []


def is_sure(difference: Difference) -> bool:
    """Whether the interval of a difference is known and does not hold 0."""
    return difference.low is not None and difference.high is not None and difference.low * difference.high > 0


def _context(study: Study) -> str:
    any_use = next(iter(study.context.values()))
    sizes, shares, labels = list(any_use.psnr), list(any_use.radius), list(any_use.by_label)
    head = ["PSNR of the middle", *(f"{size}x{size}" for size in sizes), *(f"{s}% within" for s in shares)]
    rows = [
        [
            name,
            *(f"{use.psnr[size]:.2f}" for size in sizes),
            *(f"{use.radius[share]} px" for share in shares),
        ]
        for name, use in study.context.items()
    ]
    gains = [
        [name, *(f"{use.by_label[label][sizes[-1]] - use.by_label[label][sizes[0]]:+.2f}" for label in labels)]
        for name, use in study.context.items()
    ]
    middle = f"the middle {sizes[0]}x{sizes[0]} pixels"
    return "\n\n".join(
        [
            f"PSNR in RGB of {middle} when the network is given crops of growing size around them, and the distance in "
            "input pixels within which that share of the gradient of the middle pixel lies, the pixel itself left out.",
            markdown_table(head, rows),
            f"By label, what {sizes[-1]}x{sizes[-1]} pixels gain over {sizes[0]}x{sizes[0]} there, in dB:",
            markdown_table(["", *labels], gains),
        ]
    )


# --- curves ----------------------------------------------------------------------------------------------------------


def draw(study: Study, path: Path) -> Path:
    """Draw the first metric of each data set against minutes and against the operations of the training, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot, which would look for a display

    measures = [m for m in study.measures if m[1] == study.measures[0][1]]
    figure = Figure(figsize=(11, 3.8 * len(measures)), layout="constrained")
    FigureCanvasAgg(figure)
    for measure, panels in zip(measures, figure.subplots(len(measures), 2, squeeze=False, sharey="row"), strict=True):
        for network in study.networks:
            _draw_network(study, network.name, measure, panels)
        panels[0].set_ylabel(f"{measure[0]}: {measure[1]}")
        panels[0].set_xlabel("minutes of one quiet core")
        panels[1].set_xlabel("operations of the training")
        panels[0].set_xscale("log")
        panels[0].set_xticks(study.minutes, [f"{minutes:g}" for minutes in study.minutes])
        panels[0].minorticks_off()
        panels[1].set_xscale("log")
        for panel in panels:
            panel.grid(alpha=0.25)
    panels[0].legend(fontsize="small")
    with atomic_paths([path]) as [part]:
        figure.savefig(part, dpi=110, format="png")
    return path


def _draw_network(study: Study, name: str, measure: tuple[str, str], panels: Any) -> None:
    """A line through the means; its bars are the interval of the difference to the first one, small dots the seeds."""
    found = [(minutes, rows) for minutes in study.minutes if (rows := study.of(name, minutes, measure))]
    means = [mean_over_seeds(rows) for _, rows in found]
    differences = [study.difference(name, minutes, measure) for minutes, _ in found]
    bars = [
        (d.mean - d.low, d.high - d.mean) if d and d.low is not None and d.high is not None else (0.0, 0.0)
        for d in differences
    ]
    for panel, of in ((panels[0], lambda row: row.minutes), (panels[1], lambda row: row.operations)):
        places = [of(next(iter(rows.values()))) for _, rows in found]
        line = panel.errorbar(places, means, yerr=np.array(bars).T, label=name, marker="o", markersize=4, capsize=2)
        dots = [(of(row), fmean(row.values.values())) for _, rows in found if len(rows) > 1 for row in rows.values()]
        if dots:
            panel.plot(*zip(*dots, strict=True), ".", color=line[0].get_color(), markersize=4, alpha=0.6)
