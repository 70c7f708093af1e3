"""Provide what all preparations share: arguments, jobs, summaries, and the warning about copies of test images."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restormixer_arch.cli.parsing import Parser, whole_number
from restormixer_arch.data.preparation.find_pairs import Found
from restormixer_arch.data.preparation.overlap import find_copies
from restormixer_arch.data.preparation.prepare import (
    MAX_LISTED,
    NOT_MADE_HERE,
    Job,
    Summary,
    conflicting_paths,
    destination_error,
    prepare_part,
)
from restormixer_arch.data.preparation.sub_images import Recipe
from restormixer_arch.errors import UserError
from restormixer_arch.folder_lock import locked
from restormixer_arch.output import print_error, print_result, warn
from restormixer_arch.processes import cores

if TYPE_CHECKING:
    from restormixer_arch.data.preparation.fixed_set import Compositions


MAX_WORKERS = 16  # limit of the default: more processes would wait for the disk


def add_writing_options(parser: Parser) -> None:
    """Add the arguments of all preparations: format, sub-images, processes, and the handling of bad pairs."""
    parser.add_argument("--format", choices=["lmdb", "folder"], default="lmdb", help="default: lmdb")
    parser.add_argument("--crop", type=int, metavar="N", help="side of training sub-images, 0 for whole images")
    parser.add_argument("--step", type=int, metavar="N", help="pixels from one sub-image to the next")
    parser.add_argument(
        "--workers",
        type=whole_number,
        default=min(cores(), MAX_WORKERS),
        metavar="N",
        help="processes (default: one per core)",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out bad pairs instead of stopping at the first")


def check_sizes(crop: int | None, step: int | None) -> None:
    """Raise UserError if the sizes of sub-images are invalid."""
    if crop is not None and (crop < 0 or crop % 12):
        raise UserError(f"--crop must be 0 or a multiple of 12, which all scales divide, got {crop}")
    if step is not None and (step < 1 or step % 12):
        raise UserError(f"--step must be a multiple of 12, which all scales divide, got {step}")


def make_job(
    found: Found, args: Namespace, folder: Path, scales: tuple[int, ...] = (), multiple: int | None = None
) -> Job:
    """Return the job of a part for ``--crop``, ``--step`` and ``--format``.

    Raises:
        UserError: if ``--step`` is larger than the crop, or is given for training images that are not cut.
    """
    part = found.part
    crop = part.crop if args.crop is None or part.name != "train" else args.crop
    step = (args.step or (part.step if crop == part.crop else max(crop // 24 * 12, 12))) if crop else 0
    if args.step and not crop and part.name == "train":
        raise UserError("--step: needs --crop, since no sub-images are cut without it")
    if step > crop:
        raise UserError(f"--step must be at most --crop, or pixels between sub-images are lost: {step} > {crop}")
    return Job(found, Recipe(crop, step, scales, multiple or (12 if scales else 1)), args.format, folder)


def prepare_jobs(jobs: list[Job], workers: int, skip_bad: bool, root: Path, others: Iterable[Path] = ()) -> bool:
    """Prepare parts, print a summary of each, and warn of training images that are in a test or validation set.

    Training images are compared with the test sets under ``root`` and the validation images of their own set when all
    parts exist, if any of the parts is new.

    Args:
        jobs: jobs of the parts.
        workers, skip_bad: see :func:`prepare_part`.
        root: folder of the prepared sets.
        others: files of another preparation in the folder of the set.

    Returns:
        False if Ctrl-C stopped the preparation, else True.

    Raises:
        UserError: see :func:`prepare_part`. All files of another preparation are listed in one error before any work.
    """
    _check_places(jobs, list(others))
    is_new = False
    for job in jobs:
        try:
            summary = prepare_part(job, workers, skip_bad)
        except KeyboardInterrupt:
            print_error(f"stopped; finished work on {job.found.shown} is kept; run the same command again to resume")
            return False
        for line in summary_lines(summary):
            print_result(line)
        is_new |= not summary.was_there
    for job in jobs:
        if is_new and job.found.part.name == "train":
            try:
                _warn_of_copies(job, root)
            except KeyboardInterrupt:
                text = "was prepared, but not compared with all test and validation sets; remove it to repeat this"
                print_error(f"stopped; {job.found.shown} {text}")
                return False
    return True


def _check_places(jobs: list[Job], others: list[Path]) -> None:
    for folder in dict.fromkeys(job.folder for job in jobs):
        found = [conflicting_paths(job) for job in jobs if job.folder == folder]
        paths = [*(path for of_job, _ in found for path in of_job), *others]
        if paths:
            why = next((why for _, why in found if why), NOT_MADE_HERE)
            raise destination_error(paths, why)


def _warn_of_copies(job: Job, root: Path) -> None:
    copies = find_copies([unit.gt for unit in job.found.units], root, job.folder)
    if copies:
        file, test = copies[0]
        warn(
            f"{job.found.shown}: training images that are also in a test or validation set: {len(copies)}, first "
            f"{file} ({test}); results on it would be too optimistic; remove them and prepare again"
        )


def summary_lines(summary: Summary) -> list[str]:
    """Return a line with the result of a part, and a line for each skipped pair, up to :data:`MAX_LISTED`."""
    job = summary.job
    images = ", ".join(f"{kind} {count} ({_size(summary.content[kind])})" for kind, count in summary.images.items())
    (least, most) = summary.sizes or ([0, 0], [0, 0])
    sizes = "x".join(map(str, most)) if least == most else f"{'x'.join(map(str, least))} to {'x'.join(map(str, most))}"
    parts = [job.found.formatted_count, f"images {images}", f"height x width {sizes}"]
    if summary.skipped:
        parts.append(f"{len(summary.skipped)} skipped")
    if job.found.ignored:
        parts.append(f"{len(job.found.ignored)} files that are not images ignored ({job.found.ignored[0].name}, ...)")
    if summary.was_there:
        parts.append("already prepared")
    else:
        resumed = f", {summary.resumed} done before" if summary.resumed else ""
        now = 1 - summary.resumed / len(job.found.units)
        rate = now * sum(summary.images.values()) / max(summary.seconds, 1e-3)
        parts.append(f"{summary.seconds:.1f} s, {rate:.0f} images/s{resumed}")
    lines = [f"{job.found.shown}: {'; '.join(parts)} -> {places(job)}"]
    lines += [f"  skipped: {reason}" for reason in summary.skipped[:MAX_LISTED]]
    if len(summary.skipped) > MAX_LISTED:
        lines.append(f"  and {len(summary.skipped) - MAX_LISTED} more, listed in {job.record}")
    return lines


def write_pairs_once(
    shown: str, gt: Path, out: Path, options: dict[str, Any], form: str, compositions: Compositions | None = None
) -> str:
    """Write a fixed set of pairs, unless it exists. Returns a line about the set.

    Raises:
        UserError: if a set exists that was created with other settings, in another format or from other clean images.
    """
    from restormixer_arch.data.preparation.fixed_set import difference_of_set, write_fixed_set  # imports torch

    with locked(out.parent, "another --out"):
        if not out.exists():
            count, _ = write_fixed_set(str(gt), out, **options, lmdb=form == "lmdb", compositions=compositions)
            return f"{shown}; {count} pairs -> {out}"
        if difference := difference_of_set(out, str(gt), options, lmdb=form == "lmdb"):
            raise UserError(f"{out}: {difference}; remove it or choose another --out")
    return f"{shown}; already prepared -> {out}"


def places(job: Job) -> str:
    paths = list(job.places.values())
    stem, end = f"{job.folder / job.found.part.name}_", paths[0].suffix
    return f"{stem}{{{','.join(job.kinds)}}}{end}" if len(job.kinds) > 1 else str(paths[0])


def _size(content: int) -> str:
    return f"{content / 1e9:.2f} GB" if content >= 1e9 else f"{content / 1e6:.1f} MB"
