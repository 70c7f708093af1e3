"""Report the results of a run: its last lines, and tables with a row for each dataset and one for their average.

The value of a dataset is the mean over its images. The average is the mean over the datasets, each with the same weight
regardless of its number of images, as in deraining papers. Two identical images have an infinite PSNR; means over them
are also infinite, and are written as ``inf`` in all three files.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from restormixer_arch.config.rules import AVERAGE
from restormixer_arch.hub import LATEST_WEIGHTS
from restormixer_arch.models.validation import last_means
from restormixer_arch.output import is_first_process, shown_path, write_text_atomically
from restormixer_arch.protocol import ReportsGain
from restormixer_arch.training.run import Testing
from restormixer_arch.training.trainer import Training


@dataclass(frozen=True)
class Row:
    """A row for a dataset or the average: number of images, and metric -> (input value or None, restored value)."""

    name: str
    images: int
    values: Mapping[str, tuple[float | None, float]]


def with_average(rows: list[Row]) -> list[Row]:
    """Return the rows and, if there are at least two, a last one with the average of the metrics that all have."""
    if len(rows) < 2:
        return rows
    metrics = [metric for metric in rows[0].values if all(metric in row.values for row in rows)]
    values = {}
    for metric in metrics:
        before, after = zip(*(row.values[metric] for row in rows), strict=True)
        values[metric] = (None if None in before else fmean(before), fmean(after))
    return [*rows, Row(AVERAGE, sum(row.images for row in rows), values)]


def markdown(rows: list[Row]) -> str:
    """Return a Markdown table; a cell is ``input -> restored`` if the input was measured."""
    metrics = _metrics(rows)
    lines = [f"| set | images | {' | '.join(metrics)} |", f"| --- | --: |{' --: |' * len(metrics)}"]
    for row in rows:
        cells = [_cell(metric, row.values.get(metric)) for metric in metrics]
        lines.append(f"| {markdown_text(row.name)} | {row.images} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def comma_separated(rows: list[Row]) -> str:
    """Return a CSV table in full precision, with a column ``<metric>_input`` if the input was measured."""
    columns = ["set", "images"]
    for metric in _metrics(rows):
        measured = any(row.values.get(metric, (None,))[0] is not None for row in rows)
        columns += [metric, *([f"{metric}_input"] * measured)]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    for row in rows:
        cells = {metric: after for metric, (_, after) in row.values.items()}
        cells |= {f"{metric}_input": before for metric, (before, _) in row.values.items() if before is not None}
        table.writerow({"set": csv_text(row.name), "images": row.images, **cells})
    return text.getvalue()


def csv_text(name: str) -> str:
    """Return a name, escaped if a spreadsheet would read it as a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def markdown_text(name: str) -> str:
    """Return a name escaped for a cell of a Markdown table."""
    return " ".join(name.split()).replace("|", "\\|")


def json_text(rows: list[Row]) -> str:
    """Return dataset -> {images, metric: {restored[, input]}} in JSON; an infinite value is the string ``inf``."""
    content = {}
    for row in rows:
        values = {}
        for metric, (before, after) in row.values.items():
            values[metric] = {"restored": _finite(after)} | ({} if before is None else {"input": _finite(before)})
        content[row.name] = {"images": row.images, **values}
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def write_tables(folder: Path, rows: list[Row]) -> Path:
    """Write ``results.md``, ``results.csv`` and ``results.json`` atomically; return the path of the first."""
    rows = with_average(rows)
    for suffix, text in (("csv", comma_separated(rows)), ("json", json_text(rows)), ("md", markdown(rows))):
        write_text_atomically(folder / f"results.{suffix}", text)
    return folder / "results.md"


def _metrics(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(metric for row in rows for metric in row.values))


def _cell(metric: str, values: tuple[float | None, float] | None) -> str:
    if values is None:
        return ""
    digits = 2 if "psnr" in metric.lower() else 4
    return " -> ".join(f"{value:.{digits}f}" for value in values if value is not None)


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def result_lines(model: Any) -> dict[str, str]:
    """Return dataset -> text with its metrics of the last validation, and those of the inputs if measured."""
    return {name: _words(metrics) for name, metrics in values(model).items()}


def values(model: Any) -> dict[str, dict[str, tuple[float | None, float]]]:
    """Return dataset -> metric -> (mean of the inputs or None if not measured, mean of the restored images)."""
    if isinstance(model, ReportsGain):
        return model.gain()
    names = dict.fromkeys((*getattr(model, "best_metric_results", {}), *vars(model).get("last_means", {})))
    return {name: {m: (None, mean) for m, mean in last_means(model, name).items()} for name in names}


def training_lines(run: Training) -> list[str]:
    """Return one line per validated dataset, at least one, each with the path of the weights."""
    models = Path(run.opt["path"]["models"])
    latest = models / LATEST_WEIGHTS
    place = f"weights: {shown_path(latest if latest.exists() else models)}"
    lines = [f"{name}: {text}; {place}" for name, text in result_lines(run.model).items()]
    return lines or [place]


def test_lines(run: Testing) -> list[str]:
    """Return one line per tested dataset, with the folder of the restored images if they were saved.

    The results are also written to ``results.md``, ``.csv`` and ``.json`` in the run's folder; for several datasets,
    a last line contains the average and the path of the table.
    """
    images = Path(run.opt["path"]["visualization"])
    texts = result_lines(run.model)
    lines = []
    for dataset in run.opt["datasets"].values():
        parts = [texts.get(dataset["name"]) or "no metrics"]
        if run.opt["val"]["save_img"]:
            parts.append(f"images: {shown_path(images / dataset['name'])}")
        lines.append(f"{dataset['name']}: {'; '.join(parts)}")
    rows = [Row(name, run.images.get(name, 0), metrics) for name, metrics in values(run.model).items() if metrics]
    if rows and is_first_process():
        table = write_tables(Path(run.opt["path"]["results_root"]), rows)
        *_, average = with_average(rows)
        if len(rows) > 1:
            lines.append(f"average of {len(rows)} sets: {_words(average.values)}; table: {shown_path(table)}")
    return lines


def _words(metrics: Mapping[str, tuple[float | None, float]]) -> str:
    return ", ".join(
        f"{_title(metric)} {_value(metric, after)}" if before is None else _gain(metric, before, after)
        for metric, (before, after) in metrics.items()
    )


def _gain(metric: str, before: float, after: float) -> str:
    # Two identical images have an infinite PSNR, for which there is no gain to show.
    gained = f" ({after - before:+.2f})" if _in_decibels(metric) and math.isfinite(after - before) else ""
    return f"{_title(metric)} {_value(metric, before, unit=False)} -> {_value(metric, after)}{gained}"


def _value(metric: str, value: float, unit: bool = True) -> str:
    if _in_decibels(metric):
        return f"{value:.2f}{' dB' if unit else ''}"
    return f"{value:.3f}"


def _title(metric: str) -> str:
    return metric.upper()


def _in_decibels(metric: str) -> bool:
    return "psnr" in metric.lower()
