"""The learning curve of a training as a picture: the loss above, the validations' PSNR below."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from restormixer_arch.whole_files import whole

BLUE, GRAY = "#1f6fb4", "#8c8c8c"
SIZE_INCHES, DPI = (8.0, 6.5), 120
SMOOTHED = 0.02  # the span of the running mean as a part of the rows


def draw_curves(losses: list[dict[str, Any]], validations: list[dict[str, Any]], path: Path, title: str) -> None:
    """Write the PNG.

    Args:
        losses: rows with ``iteration`` and columns ``l_*``, which are added up.
        validations: rows with ``iteration``, ``dataset``, and metrics with ``<metric>_input`` where it is known.
        path: of the PNG.
        title: of the picture.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot, which would look for a display

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    metric = _shown_metric(validations)
    panels = figure.subplots(2 if metric else 1, 1, sharex=True, squeeze=False)[:, 0]
    _draw_losses(panels[0], losses)
    if metric:
        _draw_metric(panels[1], validations, metric)
    panels[-1].set_xlabel("iteration")
    for panel in panels:
        panel.grid(alpha=0.25)
    with whole([path]) as [part]:
        figure.savefig(part, dpi=DPI, format="png")


def _draw_losses(panel: Any, rows: list[dict[str, Any]]) -> None:
    points = [(row["iteration"], sum(v for name, v in row.items() if name.startswith("l_"))) for row in rows]
    points = [(iteration, value) for iteration, value in points if math.isfinite(value) and value > 0]
    panel.set_ylabel("loss")
    if not points:
        return
    iterations, values = zip(*points, strict=True)
    span = max(1, round(len(values) * SMOOTHED))
    panel.plot(iterations, values, color=BLUE, alpha=0.35 if span > 1 else 1.0, linewidth=1.2)
    if span > 1:
        smooth = [
            math.fsum(values[max(0, at - span) : at + 1]) / len(values[max(0, at - span) : at + 1])
            for at in range(len(values))
        ]
        panel.plot(iterations, smooth, color=BLUE, linewidth=1.8)
    panel.set_yscale("log")
    for axis in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
        axis("{x:g}")  # 0.3, not 3 x 10^-1


def _draw_metric(panel: Any, rows: list[dict[str, Any]], metric: str) -> None:
    unit = " in dB" if "psnr" in metric.lower() else ""
    panel.set_ylabel(f"{metric.upper()}{unit}")
    for name in dict.fromkeys(row["dataset"] for row in rows):
        own = [row for row in rows if row["dataset"] == name and metric in row]
        (line,) = panel.plot([row["iteration"] for row in own], [row[metric] for row in own], marker="o", markersize=4)
        line.set_label(f"{name}, restored")
        before = next((row[f"{metric}_input"] for row in own if f"{metric}_input" in row), None)
        if before is not None:
            panel.axhline(before, color=line.get_color(), linestyle="--", linewidth=1, label=f"{name}, input")
    panel.legend(loc="best", fontsize="small")


def _shown_metric(rows: list[dict[str, Any]]) -> str | None:
    """The first PSNR there is, or else the first metric."""
    names = [name for row in rows for name in row if name not in ("iteration", "dataset") and name[-6:] != "_input"]
    return next((name for name in names if "psnr" in name.lower()), names[0] if names else None)
