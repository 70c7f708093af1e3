"""Build the columns of a comparison's table, for Markdown and ``report.html``, and format their values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from restormixer_arch.benchmark.tables import show_giga, show_memory, show_minutes, show_parameters, show_time
from restormixer_arch.compare.results import Comparison, Competitor, DataSet, Difference, Metric

UNITS = {"psnr": "dB"}


@dataclass(frozen=True)
class Cell:
    """A cell of the table.

    Attributes:
        text: displayed text.
        value: number to sort by, or None if the cell has no value.
        best: whether the cell is displayed as the best one of its column.
        note: small print below the text.
    """

    text: str = ""
    value: float | None = None
    best: bool = False
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        title: column heading.
        tip: explanation of the column in one or two sentences.
        better: ``higher`` or ``lower``, or None if neither is better.
        cells: a cell for the inputs, then one for each competitor.
    """

    title: str
    tip: str
    better: str | None
    cells: list[Cell]


def columns(comparison: Comparison) -> list[Column]:
    """Return the columns: each metric of each dataset, then the costs."""
    return [*_quality(comparison), *_costs(comparison)]


def show_metric(metric: Metric, value: float) -> str:
    """Return a metric's value as text."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return "not a number" if math.isnan(value) else f"{value:.{metric.digits}f}".replace("-", "−")


def with_unit(name: str, metric: Metric) -> str:
    """Return the name of a metric, followed by its unit if it has one."""
    units = [unit for part, unit in UNITS.items() if part in metric.type]
    return f"{name} ({units[0]})" if units else name


def show_values(values: list[float | None], show: Callable[[float], str], better: str | None) -> list[tuple[str, bool]]:
    """Return each value as text ("" for None), and if there are several, whether the text equals that of the best."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    best = show((max if better == "higher" else min)(known)) if better and len(known) > 1 else None
    texts = ["" if value is None else show(value) for value in values]
    return [(text, text == best) for text in texts]


def show_difference(difference: Difference, show: Callable[[float], str]) -> str:
    """Return a paired difference as ``+0.12 (+0.05 to +0.19)``, without brackets if it has no interval."""

    def signed(value: float) -> str:
        return ("+" if value > 0 else "") + show(value)

    if difference.low is None or difference.high is None:
        return signed(difference.mean)
    return f"{signed(difference.mean)} ({signed(difference.low)} to {signed(difference.high)})"


def quality_titles(comparison: Comparison) -> list[str]:
    """Return the titles of the metric columns, including the dataset if there are several."""
    several = len(comparison.datasets) > 1
    return [
        f"{dataset.name} {with_unit(name, metric)}" if several else with_unit(name, metric)
        for dataset in comparison.datasets
        for name, metric in comparison.metrics.items()
    ]


def _quality(comparison: Comparison) -> Iterator[Column]:
    first, titles = comparison.competitors[0].name, iter(quality_titles(comparison))
    for dataset in comparison.datasets:
        for name, metric in comparison.metrics.items():
            tip = (
                f"Mean of {name} over the {len(dataset.pictures)} pictures of {dataset.name}; "
                f"{metric.better} is better. In small print below: the difference from {first} on the same images, "
                "its mean and 95% interval (Student's t over the photographs)."
            )
            yield Column(next(titles), tip, metric.better, _quality_cells(comparison, dataset, name))


def _quality_cells(comparison: Comparison, dataset: DataSet, name: str) -> list[Cell]:
    metric, difference = comparison.metrics[name], dataset.difference.get(name, {})
    show = partial(show_metric, metric)
    values = [dataset.mean(name, competitor.name) for competitor in comparison.competitors]
    notes = [
        show_difference(difference[competitor.name], show) if competitor.name in difference else ""
        for competitor in comparison.competitors
    ]
    mean = dataset.input_mean(name)
    return [Cell(show(mean), mean), *_cells(values, show, metric.better, notes)]


def _costs(comparison: Comparison) -> Iterator[Column]:
    everybody, size = comparison.competitors, f"{comparison.size} × {comparison.size}"
    runs = everybody[0].latency.runs

    def column(
        title: str,
        tip: str,
        value: Callable[[Competitor], float | None],
        show: Callable[[float], str],
        better: str | None = "lower",
        note: Callable[[Competitor], str] = lambda competitor: "",
    ) -> Column:
        cells = _cells([value(c) for c in everybody], show, better, [note(c) for c in everybody])
        return Column(title, tip, better, [Cell(), *cells])

    yield column("Parameters", "Number of learned parameters.", lambda c: c.parameters, show_parameters)
    tip = f"Billions of multiply-adds for one {size} image: scans and attention included, "
    tip += "BatchNorm folded."
    yield column("GMAC", tip, lambda c: c.macs, show_giga)
    if any(c.thop_macs is not None for c in everybody):
        tip = "The same as counted by thop, which covers only some types of layers and counts BatchNorm as a separate "
        tip += "layer. Shown for comparison with tables that were made with thop."
        yield column("thop's GMAC", tip, lambda c: c.thop_macs, show_giga, None)
    tip = f"Time of restoring one {size} picture: median of {runs} runs, in turn with the other competitors. "
    tip += "In small print below: the quartiles."
    yield column("Latency", tip, lambda c: c.latency.median, show_time, note=_quartiles)
    if any(c.peak_bytes is not None for c in everybody):
        tip = f"Peak memory of a process that only loads the network and restores one {size} image."
        yield column("Peak memory", tip, lambda c: c.peak_bytes, show_memory)
    if any(c.training for c in everybody):
        tip = (
            "Steps of its training in this comparison; empty where the weights came from elsewhere. Below it in small "
        )
        tip += "print: the crops of a step."
        yield column("Iterations", tip, lambda c: c.training and c.training.iterations, str, None, _crops)
        tip = "Training time, including the start of the process."
        yield column("Training", tip, lambda c: c.training and c.training.seconds, show_minutes, None)


def _cells(
    values: list[float | None], show: Callable[[float], str], better: str | None, notes: list[str]
) -> list[Cell]:
    """Return the cells; if there are several values, mark all whose text equals that of the best one."""
    shown = zip(values, show_values(values, show, better), notes, strict=True)
    return [Cell(text, value, best, note) for value, (text, best), note in shown]


def _quartiles(competitor: Competitor) -> str:
    return f"{show_time(competitor.latency.low)} to {show_time(competitor.latency.high)}"


def _crops(competitor: Competitor) -> str:
    return f"{competitor.training.batch_size} crops" if competitor.training else ""
