"""Create the pages of studies: tables in Markdown, with the plots of :mod:`.study_plots`."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np

from restormixer_arch.compare.columns import show_difference
from restormixer_arch.compare.results import Difference, read_part
from restormixer_arch.compare.study import FIELD_SIDE, Study, find_context, join, radius_of
from restormixer_arch.compare.study_plots import CONTEXT, copy_field, draw, draw_context, draw_curves
from restormixer_arch.compare.tables import markdown_table
from restormixer_arch.data.degradations.labels import label_of
from restormixer_arch.errors import UserError
from restormixer_arch.output import print_result, write_text_atomically
from restormixer_arch.training.results import markdown_text

STUDY = "study.json"  # in the results folder of a study
JOINT = "studies"  # file name, without extension, of the curves of several studies


def write(study: Study, folder: Path) -> list[Path]:
    """Write ``study.json`` and ``study.md``, and return their paths."""
    return [
        write_text_atomically(folder / STUDY, study.model_dump_json() + "\n"),
        write_text_atomically(folder / "study.md", markdown(study)),
    ]


def markdown(study: Study) -> str:
    """Return the tables of a study: costs, means, differences from the first network, crossings, labels and context."""
    first = markdown_text(study.networks[0].name)
    interval = "only over the photographs, since each network was trained with one seed"
    if any(study.seed_variance(measure) for measure in study.measures):
        interval = "over the photographs, and over the seeds by the variance of all networks that were trained with "
        interval += "several, assumed to be that of each"
    parts = [
        f"# {markdown_text(study.name)}",
        "Minutes are on an idle machine: each network is trained for as many iterations as fit, given its time per "
        "step. Empty cells were not run. Cells show the mean over images and seeds, then the difference from "
        f"{first}, with its 95% interval in brackets: {interval}.",
        _costs(study),
    ]
    for measure in study.measures:
        parts += [f"## {markdown_text(', '.join(measure))}", _means(study, measure)]
        of_seeds = study.seed_variance(measure)
        if of_seeds and not of_seeds.adds:
            parts.append("The seeds differ by no more than chance here; the intervals are only over the photographs.")
        parts += [*crossings(study, measure), *_per_label(study, measure)]
    if study.context:
        parts += ["## Context", _context(study)]
    return "\n\n".join(parts) + "\n"


def _costs(study: Study) -> str:
    side_by_side = all(network.latency for network in study.networks)
    head = ["", "parameters", "rate", "step", "GMAC", *["latency"] * side_by_side]
    head += [f"iterations, {m:g} min" for m in study.minutes]
    rows = []
    for network in study.networks:
        step = f"{network.step_seconds:.3f} s" if network.step_seconds else ""
        costs = [f"{network.parameters:,}", f"{network.lr:g}", step, f"{network.flops / 2e9:.2f}"]
        found = [
            next(iter(study.rows_by_seed(network.name, m, study.measures[0]).values()), None) for m in study.minutes
        ]
        iterations = [f"{row.iterations:,}" if row else "" for row in found]
        if side_by_side and network.latency:
            costs.append(f"{network.latency * 1e3:.0f} ms")
        rows.append([markdown_text(network.name), *costs, *iterations])
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
    """Report where the lead changes between a competitor and the first one, interpolated log-linearly in the minutes.

    It changes if one is ahead under one budget and the other under a longer one, and both intervals of the difference
    exclude 0. The crossing is where the difference first changes sign between these two budgets.
    """
    first, found = markdown_text(study.networks[0].name), []
    for network in study.networks[1:]:
        points = [(m, d) for m in study.minutes if (d := study.difference(network.name, m, measure))]
        sure = [place for place, (_, difference) in enumerate(points) if is_significant(difference)]
        for start, end in pairwise(sure):
            if points[start][1].mean * points[end][1].mean < 0:
                between = pairwise((m, d.mean) for m, d in points[start : end + 1])
                at = next(_zero(*low, *high) for low, high in between if low[1] * high[1] <= 0)
                shown = f"{at:.0f}" if at >= 10 else f"{at:.2g}"
                found.append(f"- {markdown_text(network.name)} and {first} cross at about {shown} minutes.")
    return ["\n".join(found)] if found else []


def _zero(minutes: float, before: float, later: float, after: float) -> float:
    """Return the minutes at which a line from ``before`` to ``after`` is 0, on a logarithmic scale of minutes."""
    return math.exp(math.log(minutes) + (math.log(later) - math.log(minutes)) * before / (before - after))


def _per_label(study: Study, measure: tuple[str, str]) -> list[str]:
    """Return the means per label over the seeds that all networks have in common; empty for fewer than two labels.

    They are for the budget for which the most networks were trained; if there are several, for the longest of these.
    """
    digits = study.metrics[measure[1]].digits
    by_minutes = {minutes: study.trained(minutes, measure) for minutes in study.minutes}
    minutes = max(by_minutes, key=lambda each: (len(by_minutes[each]), each))
    trained = by_minutes[minutes]
    seeds = set.intersection(*map(set, trained.values()))
    labels: dict[str, list[str]] = {}
    for picture in next(iter(next(iter(trained.values())).values())).values:
        if label := label_of(picture):
            labels.setdefault(label, []).append(picture)
    if len(labels) < 2 or not seeds:
        return []
    table = []
    for label, pictures in sorted(labels.items()):
        means = [fmean(rows[seed].values[name] for seed in seeds for name in pictures) for rows in trained.values()]
        table.append([label, *(f"{mean:.{digits}f}" for mean in means)])
    shown = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"
    head = ["", *map(markdown_text, trained)]
    return [f"Per label, after {minutes:g} minutes, {shown}:", markdown_table(head, table)]


def is_significant(difference: Difference) -> bool:
    """Return whether a difference has an interval that excludes 0."""
    return difference.low is not None and difference.high is not None and difference.low * difference.high > 0


def _context(study: Study) -> str:
    uses = study.context
    first, any_use = next(iter(uses.items()))
    sizes, shares, labels = list(any_use.psnr), list(any_use.radius), any_use.labels
    small, large, side = f"{sizes[0]}x{sizes[0]}", f"{sizes[-1]}x{sizes[-1]}", min(FIELD_SIDE, sizes[-1])

    def show(difference: Difference) -> str:
        return show_difference(difference, lambda value: f"{value:.2f}")

    head = ["", *(f"{size}x{size}" for size in sizes), "gain", f"more than {markdown_text(first)}"]
    head += [f"{share}% within" for share in shares]
    rows = []
    for name, use in uses.items():
        means = [f"{fmean(psnr.values()):.2f}" for psnr in use.psnr.values()]
        more = ""
        if name != first:
            means[-1] += f"; {show(use.lead_over(any_use))}"
            more = show(use.gain(over=any_use))
        rows.append([markdown_text(name), *means, show(use.gain()), more, *(f"{use.radius[s]} px" for s in shares)])
    even = [f"{radius_of(np.ones((side, side)), share / 100)} px" for share in shares]
    rows.append(["uniform", *[""] * (len(sizes) + 2), *even])
    gains = [[label, *(show(use.gain(label)) for use in uses.values())] for label in labels]
    parts = [
        f"PSNR in RGB of the center {small} pixels of {len(any_use.psnr[sizes[0]])} images when the network is given "
        f"larger and larger crops around them, and the gain of {large} over {small} pixels, in dB; part of the gain is "
        f"that the border of the crop is farther away. For {large} pixels, also the difference from "
        f"{markdown_text(first)}. Brackets hold the 95% intervals over the photographs.",
        "Then the distance in input pixels within which that fraction of the center pixel's gradient lies, without the "
        f"pixel itself, inside crops of {side}x{side}: a mean over all images, each with the same weight. The last row "
        "shows the values for a gradient that is uniform over the crop.",
        markdown_table(head, rows),
    ]
    if len(labels) > 1:
        parts += [f"Gain of {large} over {small} pixels per label, in dB:"]
        parts += [markdown_table(["", *map(markdown_text, uses)], gains)]
    return "\n\n".join(parts)


def write_joined(folders: list[Path], out: Path) -> None:
    """Join the result folders of the parts of one study; write the files that the folder of a complete study contains.

    Raises:
        UserError: if a folder contains no study, or they are not parts of one study.
    """
    parts = {folder / STUDY: read_part(Study, folder / STUDY) for folder in folders}
    joined = join(parts)
    places = find_context(joined, parts)
    joined.context = {name: parts[file].context[name] for name, file in places.items()}
    fields = out / CONTEXT
    (fields if places else out).mkdir(parents=True, exist_ok=True)
    for name, file in places.items():
        copy_field(file.parent / CONTEXT / f"{name}.png", fields / f"{name}.png")
    written = [*write(joined, out), draw(joined, out / "study.png")]
    if places:
        written.append(draw_context(joined.context, fields, out / f"{CONTEXT}.png"))
    for place in written:
        print_result(str(place))


def write_pages(files: list[Path], out: Path) -> None:
    """Write tables (``<name>.md``) and curves (``<name>.png``) of studies, named after their files.

    For a file called ``study.json``, as in a results folder, the name of the study is used instead. For several
    studies, also write ``studies.png``, with a row for the first dataset of each. For a study with a context whose
    receptive fields are in ``context/`` next to the file, also write ``<name>_context.png``.

    Raises:
        UserError: if a file is not a study, two pages would have the same name, or a receptive field cannot be read.
    """
    studies: dict[str, Study] = {}
    fields: dict[str, Path] = {}
    for file in files:
        study = read_part(Study, file)
        name = study.name if file.name == STUDY else file.stem
        if name in studies or (name == JOINT and len(files) > 1):
            raise UserError(f"{file}: another page would be named {name!r} too; give the file another name")
        studies[name] = study
        if study.context and (file.parent / CONTEXT).is_dir():
            fields[name] = file.parent / CONTEXT
    out.mkdir(parents=True, exist_ok=True)
    for name, study in studies.items():
        print_result(str(write_text_atomically(out / f"{name}.md", markdown(study))))
        print_result(str(draw(study, out / f"{name}.png")))
        if name in fields:
            print_result(str(draw_context(study.context, fields[name], out / f"{name}_{CONTEXT}.png")))
    if len(studies) > 1:
        rows = [(study, study.measures[0]) for study in studies.values()]
        print_result(str(draw_curves(rows, out / f"{JOINT}.png")))
