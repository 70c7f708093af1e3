"""The page of a study: tables in Markdown, curves and receptive fields as PNG."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from restormixer_arch.compare.columns import show_difference
from restormixer_arch.compare.results import Difference, read_part
from restormixer_arch.compare.study import FIELD_SIDE, ContextUse, Study
from restormixer_arch.compare.tables import markdown_table
from restormixer_arch.errors import UserError
from restormixer_arch.output import atomic_paths, say, write_text_atomically
from restormixer_arch.training.reports import plot_text
from restormixer_arch.training.results import markdown_text

COLORS, MARKERS = 10, "osD^v"  # matplotlib's colors before they repeat; then the marker changes
JOINT = "studies"  # name of the curves of several studies
DARKEST = 1e-5  # of the largest gradient, in the picture of the receptive fields


def write(study: Study, folder: Path) -> list[Path]:
    """Write ``study.json`` and ``study.md``; return their places."""
    return [
        write_text_atomically(folder / "study.json", study.model_dump_json() + "\n"),
        write_text_atomically(folder / "study.md", markdown(study)),
    ]


def markdown(study: Study) -> str:
    """Return the tables of a study: means, differences to the first competitor, crossings, costs and context."""
    first = markdown_text(study.networks[0].name)
    parts = [
        f"# {markdown_text(study.name)}",
        "Minutes are those of a quiet machine: each network was trained for the iterations that fill them, by the "
        "seconds of its step. Means over the pictures and seeds; then the difference to "
        f"{first} over the seeds that both have, and in brackets its 95% interval: over the photographs, and over the "
        "seeds by the variance of all networks that were trained with several, assumed to be that of each.",
        _costs(study),
    ]
    for measure in study.measures:
        parts += [f"## {markdown_text(', '.join(measure))}", _means(study, measure), *crossings(study, measure)]
    if study.context:
        parts += ["## Context", _context(study)]
    return "\n\n".join(parts) + "\n"


def _costs(study: Study) -> str:
    head = ["", "parameters", "rate", "step", "GMAC", "latency", *(f"iterations, {m:g} min" for m in study.minutes)]
    rows = []
    for network in study.networks:
        step = f"{network.step_seconds:.3f} s" if network.step_seconds else ""
        costs = [f"{network.parameters:,}", f"{network.lr:g}", step, f"{network.flops / 2e9:.2f}"]
        found = [
            next(iter(study.rows_by_seed(network.name, m, study.measures[0]).values()), None) for m in study.minutes
        ]
        iterations = [f"{row.iterations:,}" if row else "" for row in found]
        rows.append([markdown_text(network.name), *costs, f"{network.latency * 1e3:.0f} ms", *iterations])
    return markdown_table(head, rows)


def _means(study: Study, measure: tuple[str, str]) -> str:
    digits = study.metrics[measure[1]].digits

    def show(value: float) -> str:
        return f"{value:.{digits}f}"

    rows = [["input", *[show(study.inputs[measure[0]][measure[1]])] * len(study.minutes)]]
    for network in study.networks:
        cells = []
        for minutes in study.minutes:
            found = study.rows_by_seed(network.name, minutes, measure)
            mean = study.mean(network.name, minutes, measure)
            cell = "" if mean is None else show(mean)
            if found and network is not study.networks[0]:
                difference = study.difference(network.name, minutes, measure)
                cell += "; " + show_difference(difference, show) if difference else ""
            cells.append(cell + (f", {len(found)} seeds" if len(found) > 1 else ""))
        rows.append([markdown_text(network.name), *cells])
    return markdown_table(["", *(f"{minutes:g} minutes" for minutes in study.minutes)], rows)


def crossings(study: Study, measure: tuple[str, str]) -> list[str]:
    """Say between which budgets a competitor and the first one change places; the minutes are log-linear between.

    Budgets under which the interval of the difference holds 0 are passed over.
    """
    first, found = markdown_text(study.networks[0].name), []
    for network in study.networks[1:]:
        points = [(m, study.difference(network.name, m, measure)) for m in study.minutes]
        known = [(minutes, difference.mean) for minutes, difference in points if difference and is_sure(difference)]
        for (low, before), (high, after) in zip(known, known[1:], strict=False):
            if before * after < 0:
                at = math.exp(math.log(low) + (math.log(high) - math.log(low)) * before / (before - after))
                shown = f"{at:.0f}" if at >= 10 else f"{at:.2g}"
                found.append(f"- {markdown_text(network.name)} and {first} change places at about {shown} minutes.")
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
            markdown_text(name),
            *(f"{use.psnr[size]:.2f}" for size in sizes),
            *(f"{use.radius[share]} px" for share in shares),
        ]
        for name, use in study.context.items()
    ]
    gains = [
        [
            markdown_text(name),
            *(f"{use.by_label[label][sizes[-1]] - use.by_label[label][sizes[0]]:+.2f}" for label in labels),
        ]
        for name, use in study.context.items()
    ]
    middle = f"the middle {sizes[0]}x{sizes[0]} pixels"
    return "\n\n".join(
        [
            f"PSNR in RGB of {middle} when the network is given crops of growing size around them; and the distance in "
            "input pixels within which that share of the gradient of the middle pixel lies, the pixel itself left out, "
            f"inside crops of {min(FIELD_SIDE, sizes[-1])}x{min(FIELD_SIDE, sizes[-1])}, a mean over all pictures.",
            markdown_table(head, rows),
            f"By label, what {sizes[-1]}x{sizes[-1]} pixels gain over {sizes[0]}x{sizes[0]} there, in dB:",
            markdown_table(["", *labels], gains),
        ]
    )


def draw(study: Study, path: Path) -> Path:
    """Draw the first metric of each data set, see :func:`draw_curves`."""
    return draw_curves([(study, m) for m in study.measures if m[1] == study.measures[0][1]], path)


def draw_curves(rows: list[tuple[Study, tuple[str, str]]], path: Path) -> Path:
    """Draw data sets with metrics against minutes and against the operations of the training, a row each, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot, which would look for a display

    figure = Figure(figsize=(11, 3.8 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    all_panels = figure.subplots(len(rows), 2, squeeze=False, sharey="row")
    for (study, measure), panels in zip(rows, all_panels, strict=True):
        for number, network in enumerate(study.networks):
            _draw_network(study, network.name, measure, panels, MARKERS[number // COLORS % len(MARKERS)])
        panels[0].set_ylabel(plot_text(": ".join(measure)))
        panels[0].set_xlabel("minutes of a quiet machine")
        panels[1].set_xlabel("operations of the training")
        panels[0].set_xscale("log")
        panels[0].set_xticks(study.minutes, [f"{minutes:g}" for minutes in study.minutes])
        panels[0].minorticks_off()
        panels[1].set_xscale("log")
        for panel in panels:
            panel.grid(alpha=0.25)
    all_panels[0, 0].legend(fontsize="small")
    bars = f"Bars: 95% interval of the difference to {plot_text(rows[0][0].networks[0].name)}. Dots: seeds."
    figure.supxlabel(bars, fontsize="small")
    with atomic_paths([path]) as [part]:
        figure.savefig(part, dpi=110, format="png")
    return path


def _draw_network(study: Study, name: str, measure: tuple[str, str], panels: Any, marker: str) -> None:
    """A line through the means; its bars are the interval of the difference to the first one, small dots the seeds."""
    found = [(minutes, rows) for minutes in study.minutes if (rows := study.rows_by_seed(name, minutes, measure))]
    means = [study.mean(name, minutes, measure) for minutes, _ in found]
    differences = [study.difference(name, minutes, measure) for minutes, _ in found]
    bars = [
        (d.mean - d.low, d.high - d.mean) if d and d.low is not None and d.high is not None else (0.0, 0.0)
        for d in differences
    ]
    label = plot_text(name)
    for panel, of in ((panels[0], lambda row: row.minutes), (panels[1], lambda row: row.operations)):
        places = [of(next(iter(rows.values()))) for _, rows in found]
        if None in places:
            continue
        line = panel.errorbar(places, means, yerr=np.array(bars).T, label=label, marker=marker, markersize=4, capsize=2)
        dots = [(of(row), fmean(row.values.values())) for _, rows in found if len(rows) > 1 for row in rows.values()]
        if dots:
            panel.plot(*zip(*dots, strict=True), ".", color=line[0].get_color(), markersize=4, alpha=0.6)


def draw_context(uses: dict[str, ContextUse], fields: dict[str, np.ndarray], path: Path) -> Path:
    """Draw the receptive fields side by side, each divided by its largest value off the middle, on one log scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    columns = min(3, len(uses))
    rows = -(-len(uses) // columns)
    figure = Figure(figsize=(3.4 * columns + 1, 3.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for (name, use), panel in zip(uses.items(), panels, strict=False):
        field = fields[name].copy()
        field[field.shape[0] // 2, field.shape[1] // 2] = 0
        shown = panel.imshow((field / field.max()).clip(DARKEST), norm=LogNorm(DARKEST, 1), cmap="inferno")
        panel.set_title(f"{plot_text(name)}: 90% within {use.radius[90]} px")
    figure.colorbar(shown, ax=figure.axes, label="gradient of the middle pixel, relative", shrink=0.8)
    with atomic_paths([path]) as [part]:
        figure.savefig(part, dpi=110, format="png")
    return path


def write_pages(files: list[Path], out: Path) -> None:
    """Write tables (``<name>.md``) and curves (``<name>.png``) of studies, named as their files are.

    Of several studies also ``studies.png``, a row for the first data set of each.

    Raises:
        UserError: a file is no study, or two have one name, so that a page would take another's place.
    """
    studies: dict[str, Study] = {}
    for file in files:
        if file.stem in studies or (file.stem == JOINT and len(files) > 1):
            raise UserError(f"{file}: another page would be named {file.stem!r} too; give the file another name")
        studies[file.stem] = read_part(Study, file)
    out.mkdir(parents=True, exist_ok=True)
    for name, study in studies.items():
        say(str(write_text_atomically(out / f"{name}.md", markdown(study))))
        say(str(draw(study, out / f"{name}.png")))
    if len(studies) > 1:
        rows = [(study, study.measures[0]) for study in studies.values()]
        say(str(draw_curves(rows, out / f"{JOINT}.png")))
