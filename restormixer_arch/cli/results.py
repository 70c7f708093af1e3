"""The last lines of a run: what was measured, and where the results lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from restormixer_arch.basicsr_adapter.run_hooks import Run


def measured(model: Any) -> dict[str, str]:
    """Return data set -> its metrics in words.

    A model with ``gain()`` (data set -> metric -> (value of the input, value of the restored)) shows what was
    gained; of any other model of BasicSR the best value of each metric is shown.
    """
    gain = getattr(model, "gain", None)
    if gain is not None:
        return {
            name: ", ".join(_gained(metric, *values) for metric, values in metrics.items())
            for name, metrics in gain().items()
        }
    best = getattr(model, "best_metric_results", {})
    return {
        name: ", ".join(f"{_title(metric)} {_value(metric, record['val'])}" for metric, record in metrics.items())
        for name, metrics in best.items()
    }


def training_lines(run: Run) -> list[str]:
    """One line per validated data set, each with the place of the weights; at least one."""
    models = Path(run.opt["path"]["models"])
    latest = models / "net_g_latest.pth"
    place = f"weights: {os.path.relpath(latest if latest.exists() else models)}"
    lines = [f"{name}: {text}; {place}" for name, text in measured(run.model).items()]
    return lines or [place]


def test_lines(run: Run) -> list[str]:
    """One line per tested data set, with the place of the restored images where they were saved."""
    images = Path(run.opt["path"]["visualization"])
    texts = measured(run.model)
    lines = []
    for dataset in run.opt["datasets"].values():
        parts = [texts.get(dataset["name"]) or "no metrics"]
        if run.opt["val"]["save_img"]:
            parts.append(f"images: {os.path.relpath(images / dataset['name'])}")
        lines.append(f"{dataset['name']}: {'; '.join(parts)}")
    return lines


def _gained(metric: str, before: float, after: float) -> str:
    gained = f" ({after - before:+.2f})" if _in_decibels(metric) else ""
    return f"{_title(metric)} {_value(metric, before, unit=False)} -> {_value(metric, after)}{gained}"


def _value(metric: str, value: float, unit: bool = True) -> str:
    if _in_decibels(metric):
        return f"{value:.2f}{' dB' if unit else ''}"
    return f"{value:.3f}"


def _title(metric: str) -> str:
    return metric.upper()


def _in_decibels(metric: str) -> bool:
    return "psnr" in metric.lower()
