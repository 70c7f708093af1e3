"""The page of a study: its tables in Markdown, beside the pictures of :mod:`.study_plots`."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

from restormixer_arch.compare.columns import show_difference
from restormixer_arch.compare.results import Difference, read_part
from restormixer_arch.compare.study import FIELD_SIDE, Study, find_context, join
from restormixer_arch.compare.study_plots import CONTEXT, copy_field, draw, draw_context, draw_curves
from restormixer_arch.compare.tables import markdown_table
from restormixer_arch.data.degradations.labels import label_of
from restormixer_arch.errors import UserError
from restormixer_arch.output import say, write_text_atomically
from restormixer_arch.training.results import markdown_text

STUDY = "study.json"  # in the folder of its results
JOINT = "studies"  # name of the curves of several studies


def write(study: Study, folder: Path) -> list[Path]:
    """Write ``study.json`` and ``study.md``; return their places."""
    return [
        write_text_atomically(folder / STUDY, study.model_dump_json() + "\n"),
        write_text_atomically(folder / "study.md", markdown(study)),
    ]


def markdown(study: Study) -> str:
    """Return the tables of a study: costs, means, differences to the first network, crossings, labels and context."""
    first = markdown_text(study.networks[0].name)
    interval = "over the photographs alone, since each network was trained with one seed"
    if any(study.seed_variance(measure) for measure in study.measures):
        interval = "over the photographs, and over the seeds by the variance of all networks that were trained with "
        interval += "several, assumed to be that of each"
    parts = [
        f"# {markdown_text(study.name)}",
        "Minutes are those of a quiet machine: each network was trained for the iterations that fill them, by the "
        "seconds of its step. Means over the pictures and seeds; then the difference to "
        f"{first} over the seeds that both have, and in brackets its 95% interval: {interval}.",
        _costs(study),
    ]
    for measure in study.measures:
        parts += [f"## {markdown_text(', '.join(measure))}", _means(study, measure), *crossings(study, measure)]
        parts += _by_label(study, measure)
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


def _by_label(study: Study, measure: tuple[str, str]) -> list[str]:
    """Return the means by label after the longest run, over the seeds that all have; nothing for one label."""
    minutes, digits = study.minutes[-1], study.metrics[measure[1]].digits
    trained = {network.name: study.rows_by_seed(network.name, minutes, measure) for network in study.networks}
    trained = {name: rows for name, rows in trained.items() if rows}
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
    return [f"By label, after {minutes:g} minutes, {shown}:", markdown_table(head, table)]


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


def write_joined(folders: list[Path], out: Path) -> None:
    """Join the parts of one study, the folders of its results; write what the folder of a whole one holds.

    Raises:
        UserError: a folder holds no study, or they are not parts of one.
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
        say(str(place))


def write_pages(files: list[Path], out: Path) -> None:
    """Write tables (``<name>.md``) and curves (``<name>.png``) of studies, named as their files are.

    A file that is called ``study.json``, as in the folder of its results, has the name of the study instead. Of several
    studies also ``studies.png``, a row for the first data set of each.

    Raises:
        UserError: a file is no study, or two have one name, so that a page would take another's place.
    """
    studies: dict[str, Study] = {}
    for file in files:
        study = read_part(Study, file)
        name = study.name if file.name == STUDY else file.stem
        if name in studies or (name == JOINT and len(files) > 1):
            raise UserError(f"{file}: another page would be named {name!r} too; give the file another name")
        studies[name] = study
    out.mkdir(parents=True, exist_ok=True)
    for name, study in studies.items():
        say(str(write_text_atomically(out / f"{name}.md", markdown(study))))
        say(str(draw(study, out / f"{name}.png")))
    if len(studies) > 1:
        rows = [(study, study.measures[0]) for study in studies.values()]
        say(str(draw_curves(rows, out / f"{JOINT}.png")))
