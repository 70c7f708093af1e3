"""Draw the plots of a study as PNG: curves, receptive fields, and the gain of larger crops."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from restormixer_arch.compare.columns import with_unit
from restormixer_arch.compare.results import Difference
from restormixer_arch.compare.study import ContextUse, Row, Study
from restormixer_arch.errors import UserError
from restormixer_arch.output import atomic_paths
from restormixer_arch.training.reports import plot_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTEXT = "context"  # name of the folder of receptive fields, and of the plot that shows them
COLORS, MARKERS = 10, "osD^v"  # number of matplotlib's colors before they repeat; then the marker changes
COLUMNS = 3  # receptive fields per row
SIDE_BY_SIDE = 1.03  # factor between the positions of two networks that were trained for the same minutes
HEIGHT = 0.7  # total height of a label's networks, as a fraction of a row
DECADES = 5  # range of the gradient shown, from its largest value off the center down to black


def draw(study: Study, path: Path) -> Path:
    """Draw the first metric of each dataset, see :func:`draw_curves`."""
    return draw_curves([(study, m) for m in study.measures if m[1] == study.measures[0][1]], path)


def draw_curves(rows: list[tuple[Study, tuple[str, str]]], path: Path) -> Path:
    """Draw metrics against minutes and against training operations as PNG, with one row for each dataset and metric."""
    figure = _figure(11, 3.8 * len(rows))
    all_panels = figure.subplots(len(rows), 2, squeeze=False, sharey="row")
    explained: list[str] = []
    for (study, measure), panels in zip(rows, all_panels, strict=True):
        for number, network in enumerate(study.networks):
            _draw_network(study, network.name, measure, panels, _marker(number))
        dataset, metric = measure
        panels[0].set_ylabel(plot_text(f"{dataset}: {with_unit(metric, study.metrics[metric])}"))
        panels[0].set_xlabel("minutes on an idle machine, networks side by side")
        panels[1].set_xlabel("operations of the training")
        panels[0].set_xscale("log")
        panels[0].set_xticks(study.minutes, [f"{minutes:g}" for minutes in study.minutes])
        panels[0].minorticks_off()
        panels[1].set_xscale("log")
        for panel in panels:
            panel.grid(alpha=0.25)
        names = [network.name for network in study.networks]
        if names != explained:  # the colors belong to other networks than in the row above
            panels[0].legend(fontsize="small")
            explained = names
    several = any(study.seed_variance(measure) for study, measure in rows)
    over = "photographs and seeds. Dots: seeds" if several else "photographs (one seed)"
    firsts = " or ".join(dict.fromkeys(plot_text(study.networks[0].name) for study, _ in rows))
    bars = f"Bars: 95% interval of the difference from {firsts}, over {over}."
    figure.supxlabel(bars, fontsize="small")
    return _save(figure, path)


def _draw_network(study: Study, name: str, measure: tuple[str, str], panels: Any, marker: str) -> None:
    """Draw a line through a network's means, with intervals of the difference from the first, and dots for seeds."""

    def side_by_side(row: Row) -> float:
        names = list(study.trained(row.minutes, measure))
        return row.minutes * SIDE_BY_SIDE ** (names.index(name) - (len(names) - 1) / 2)

    found = [(minutes, rows) for minutes in study.minutes if (rows := study.rows_by_seed(name, minutes, measure))]
    means = [study.mean(name, minutes, measure) for minutes, _ in found]
    is_first = name == study.networks[0].name  # which has no difference from itself
    bars = _bars(None if is_first else study.difference(name, minutes, measure) for minutes, _ in found)
    label = plot_text(name)
    for panel, of in ((panels[0], side_by_side), (panels[1], lambda row: row.operations)):
        places = [of(next(iter(rows.values()))) for _, rows in found]
        if None in places:
            continue
        line = panel.errorbar(places, means, yerr=bars, label=label, marker=marker, markersize=4, capsize=2)
        dots = [(of(row), fmean(row.values.values())) for _, rows in found if len(rows) > 1 for row in rows.values()]
        if dots:
            panel.plot(*zip(*dots, strict=True), ".", color=line[0].get_color(), markersize=4, alpha=0.6)


def _bars(differences: Iterable[Difference | None]) -> np.ndarray:
    """Return how far the intervals extend below and above their means, (2, differences); 0 without an interval."""
    return np.array(
        [
            (d.mean - d.low, d.high - d.mean) if d and d.low is not None and d.high is not None else (0.0, 0.0)
            for d in differences
        ]
    ).T


def write_field(field: np.ndarray, path: Path) -> None:
    """Write a receptive field (H, W) as an 8-bit PNG: its logarithm, relative to its largest value off the center.

    White is that largest value, black 10**-:data:`DECADES` of it or less; each gray level is 1/51 of a decade.
    The center pixel is left out and is black.
    """
    shown = field.astype(np.float64)
    shown[shown.shape[0] // 2, shown.shape[1] // 2] = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        level = 1 + np.log10(shown / shown.max()) / DECADES
    image = Image.fromarray(np.round(255 * np.nan_to_num(level, nan=0, neginf=0).clip(0, 1)).astype(np.uint8))
    with atomic_paths([path]) as [part]:
        image.save(part, format="png")


def copy_field(source: Path, target: Path) -> None:
    """Copy a file of :func:`write_field`. Raises UserError if it cannot be read."""
    try:
        content = source.read_bytes()
    except OSError as error:
        raise UserError(f"{source}: the receptive field cannot be read: {error.strerror}") from error
    with atomic_paths([target]) as [part]:
        part.write_bytes(content)


def draw_context(uses: dict[str, ContextUse], fields: Path, path: Path) -> Path:
    """Draw the receptive fields, the PSNR of the center against the crop size, and the gain of large crops per label.

    Args:
        uses: competitor -> how much of an image it uses.
        fields: folder with a PNG from :func:`write_field` for each competitor.
        path: output file, PNG.

    Raises:
        UserError: if one of the PNGs cannot be read.
    """
    rows = -(-len(uses) // COLUMNS)
    figure = _figure(11, 3.5 * rows + 4.2)
    top, bottom = figure.subfigures(2, height_ratios=[3.5 * rows, 4.2])
    panels = top.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for (name, use), panel in zip(uses.items(), panels, strict=False):
        level = _read_field(fields / f"{name}.png") / 255
        shown = panel.imshow(DECADES * (level - 1), vmin=-DECADES, vmax=0, cmap="inferno")
        panel.set_title(f"{plot_text(name)}: 90% within {use.radius[90]} px", fontsize="medium")
    top.colorbar(shown, ax=panels.tolist(), label="gradient of the center pixel, relative, log10", shrink=0.8)
    _draw_gains(uses, *bottom.subplots(1, 2, width_ratios=[2, 3]))
    return _save(figure, path)


def _read_field(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("L"), dtype=np.float64)
    except OSError as error:
        raise UserError(f"{file}: the receptive field cannot be read: {error.strerror or error}") from error


def _draw_gains(uses: dict[str, ContextUse], by_size: Any, per_label: Any) -> None:
    """Draw the PSNR against the side of the crop, and for each label the gain of the largest crop over the smallest."""
    any_use = next(iter(uses.values()))
    sizes, labels = list(any_use.psnr), any_use.labels
    rows: list[str | None] = [*labels] if len(labels) > 1 else [None]
    for number, (name, use) in enumerate(uses.items()):
        style = {"marker": _marker(number), "markersize": 4, "label": plot_text(name)}
        by_size.plot(sizes, [fmean(psnr.values()) for psnr in use.psnr.values()], **style)
        gains = [use.gain(label) for label in rows]
        places = np.arange(len(rows)) + HEIGHT * ((number + 0.5) / len(uses) - 0.5)
        means = [gain.mean for gain in gains]
        per_label.errorbar(means, places, xerr=_bars(gains), linestyle="", capsize=2, linewidth=1, **style)
    per_label.set_yticks(range(len(rows)), [plot_text(label or "all pictures") for label in rows])
    by_size.set_xscale("log")
    by_size.set_xticks(sizes, [str(size) for size in sizes])
    by_size.minorticks_off()
    by_size.set_xlabel("side of the crop, pixels")
    by_size.set_ylabel(f"PSNR of its center {sizes[0]}x{sizes[0]}, dB")
    per_label.set_xlabel(f"gain of {sizes[-1]}x{sizes[-1]} over {sizes[0]}x{sizes[0]} pixels in dB, 95% intervals")
    per_label.invert_yaxis()
    per_label.axvline(0, color="gray", linewidth=0.8)
    per_label.legend(fontsize="small")
    for panel in (by_size, per_label):
        panel.grid(alpha=0.25)


def _marker(number: int) -> str:
    return MARKERS[number // COLORS % len(MARKERS)]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot, which would look for a display

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    with atomic_paths([path]) as [part]:
        figure.savefig(part, dpi=110, format="png")
    return path
