"""Write the tables of a comparison: Markdown for reading, and CSV in full precision."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from restormixer_arch.compare.columns import columns, quality_titles, show_difference, show_metric
from restormixer_arch.compare.results import Comparison, Competitor, DataSet
from restormixer_arch.output import write_text_atomically
from restormixer_arch.training.results import csv_text, markdown_text

INPUT = "input"


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``table.md`` and ``table.csv``, and return their paths."""
    texts = {"table.md": markdown(comparison), "table.csv": comma_separated(comparison)}
    return [write_text_atomically(folder / name, text) for name, text in texts.items()]


def markdown(comparison: Comparison) -> str:
    """Return the means and costs of all competitors, and their differences from the first one, in Markdown."""
    table = columns(comparison)
    names = [INPUT, *(markdown_text(competitor.name) for competitor in comparison.competitors)]
    cells = [[f"**{cell.text}**" if cell.best else cell.text for cell in column.cells] for column in table]
    parts = [
        _heading(comparison),
        markdown_table(["", *(markdown_text(column.title) for column in table)], zip(names, *cells, strict=True)),
        _notes(comparison),
    ]
    if len(comparison.competitors) > 1:
        parts += [
            _difference_title(comparison),
            markdown_table(["", *map(markdown_text, quality_titles(comparison))], _differences(comparison)),
        ]
    return "\n\n".join(parts) + "\n"


def comma_separated(comparison: Comparison) -> str:
    """Return CSV with a row for the inputs and one for each competitor, in SI units and full precision."""
    cells = [{"competitor": INPUT}, *map(_cost_cells, comparison.competitors)]
    for dataset, metric in _measures(comparison):
        title, difference = _title(dataset, metric), dataset.difference.get(metric, {})
        cells[0][title] = dataset.input_mean(metric)
        for competitor, row in zip(comparison.competitors, cells[1:], strict=True):
            row[title] = dataset.mean(metric, competitor.name)
            found = difference.get(competitor.name)
            parts = {"difference": None, "low": None, "high": None}
            parts |= {"difference": found.mean, "low": found.low, "high": found.high} if found else {}
            row |= {f"{title} {part}": value for part, value in parts.items()}
    text = io.StringIO()
    table = csv.DictWriter(text, list(cells[1]), restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(cells)
    return text.getvalue()


def _cost_cells(competitor: Competitor) -> dict[str, object]:
    training = competitor.training
    return {
        "competitor": csv_text(competitor.name),
        "arch": competitor.arch,
        "parameters": competitor.parameters,
        "macs": competitor.macs,
        "thop_macs": competitor.thop_macs,
        "latency_seconds": competitor.latency.median,
        "peak_bytes": competitor.peak_bytes,
        "iterations": training and training.iterations,
        "training_seconds": training and training.seconds,
    }


def _heading(comparison: Comparison) -> str:
    title = f"# {markdown_text(comparison.name)}"
    sets = ", ".join(f"{dataset.name} ({len(dataset.pictures)} pictures)" for dataset in comparison.datasets)
    who = (
        "Each"
        if all(competitor.training for competitor in comparison.competitors)
        else "Each network without given weights"
    )
    budget = f" {who} was trained for {comparison.budget}." if comparison.budget else ""
    return f"{title}\n\nMeans over {markdown_text(sets)}.{budget} The best value of a column is bold."


def _notes(comparison: Comparison) -> str:
    machine, runs = comparison.machine, comparison.competitors[0].latency.runs
    size = f"{comparison.size}x{comparison.size}"
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    lower = [name for name, metric in comparison.metrics.items() if metric.better == "lower"]
    lines = [
        f"GMAC, latency (median of {runs} runs in turn) and peak memory of the process are those of one {size} picture "
        f"on {machine['processor']}, {threads}, torch {machine['versions']['torch']}. GMAC counts "
        "scans and attention, with BatchNorm folded; thop counts only some types of layers, unfolded."
    ]
    if lower:
        lines.append(f"Lower is better: {', '.join(lower)}.")
    return "\n".join(lines)


def _difference_title(comparison: Comparison) -> str:
    first = markdown_text(comparison.competitors[0].name)
    return f"Difference from {first} on the same images: mean and 95% interval over the photographs (Student's t)."


def _differences(comparison: Comparison) -> Iterator[list[str]]:
    for competitor in comparison.competitors[1:]:
        cells = [
            show_difference(
                dataset.difference[metric][competitor.name], partial(show_metric, comparison.metrics[metric])
            )
            for dataset, metric in _measures(comparison)
        ]
        yield [markdown_text(competitor.name), *cells]


def _measures(comparison: Comparison) -> Iterator[tuple[DataSet, str]]:
    for dataset in comparison.datasets:
        for metric in comparison.metrics:
            yield dataset, metric


def _title(dataset: DataSet, metric: str) -> str:
    return f"{dataset.name} {metric}"


def markdown_table(head: list[str], rows: Iterable[tuple[str, ...] | list[str]]) -> str:
    """Return a Markdown table with a left-aligned first column and right-aligned other columns."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
