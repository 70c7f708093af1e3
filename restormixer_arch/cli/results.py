"""The last lines of a run: what was measured, and where the results lie."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from restormixer_arch.data.tables import Row, with_average, write_tables
from restormixer_arch.output import is_first_process
from restormixer_arch.protocol import ReportsGain
from restormixer_arch.training.trainer import Testing, Training


def measured(model: Any) -> dict[str, str]:
    """Return data set -> its metrics in words.

    A model with ``gain()`` shows what was gained; of any other model of BasicSR the best value of each metric is shown.
    """
    return {name: _words(metrics) for name, metrics in values(model).items()}


def values(model: Any) -> dict[str, dict[str, tuple[float | None, float]]]:
    """Return data set -> metric -> (mean of the inputs, None where they were not measured; mean of the restored)."""
    if isinstance(model, ReportsGain):
        return model.gain()
    best = getattr(model, "best_metric_results", {})
    return {name: {m: (None, record["val"]) for m, record in metrics.items()} for name, metrics in best.items()}


def training_lines(run: Training) -> list[str]:
    """One line per validated data set, each with the place of the weights; at least one."""
    models = Path(run.opt["path"]["models"])
    latest = models / "net_g_latest.pth"
    place = f"weights: {os.path.relpath(latest if latest.exists() else models)}"
    lines = [f"{name}: {text}; {place}" for name, text in measured(run.model).items()]
    return lines or [place]


def test_lines(run: Testing) -> list[str]:
    """One line per tested data set, with the place of the restored images where they were saved.

    The results also go to ``results.md``, ``.csv`` and ``.json`` in the run's folder; a last line gives the average
    of several data sets and that place.
    """
    images = Path(run.opt["path"]["visualization"])
    texts = measured(run.model)
    lines = []
    for dataset in run.opt["datasets"].values():
        parts = [texts.get(dataset["name"]) or "no metrics"]
        if run.opt["val"]["save_img"]:
            parts.append(f"images: {os.path.relpath(images / dataset['name'])}")
        lines.append(f"{dataset['name']}: {'; '.join(parts)}")
    rows = [Row(name, run.images.get(name, 0), metrics) for name, metrics in values(run.model).items() if metrics]
    if rows and is_first_process():
        table = write_tables(Path(run.opt["path"]["results_root"]), rows)
        *_, average = with_average(rows)
        if len(rows) > 1:
            lines.append(f"average of {len(rows)} sets: {_words(average.values)}; table: {os.path.relpath(table)}")
    return lines


def _words(metrics: Mapping[str, tuple[float | None, float]]) -> str:
    return ", ".join(
        f"{_title(metric)} {_value(metric, after)}" if before is None else _gained(metric, before, after)
        for metric, (before, after) in metrics.items()
    )


def _gained(metric: str, before: float, after: float) -> str:
    # Two identical pictures have an infinite PSNR, which have no gain to show.
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
