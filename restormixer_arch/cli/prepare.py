"""``basicsr prepare``: turn public data sets, as they are distributed, into the pairs that the option files expect."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from restormixer_arch.cli.parsing import Parser
from restormixer_arch.data.images.folder import existing_folder
from restormixer_arch.data.preparation.find_pairs import Found, expected_layouts, find_part, forget_folders
from restormixer_arch.data.preparation.layouts import SETS, TASKS, PublicSet
from restormixer_arch.data.preparation.photos import PHOTOS, find_photos, fixed_pairs
from restormixer_arch.data.preparation.prepare import SHOWN, Job, Summary, check_part, prepare_part
from restormixer_arch.data.preparation.sub_images import Recipe
from restormixer_arch.errors import UserError, did_you_mean
from restormixer_arch.output import complain, note, say

DESCRIPTION = (
    "Find the pairs of public data sets under a folder, check every image, cut training images into overlapping "
    "sub-images, and write LMDBs in BasicSR's format. Nothing is downloaded."
)
SCALES = (2, 3, 4)
ALL_TASKS = (*TASKS, PHOTOS.task)


def run(arguments: list[str]) -> int:
    """Prepare, check or list. Returns the exit code."""
    args = _parser().parse_args(arguments)
    chosen = _chosen(args)
    root = existing_folder(args.root, "--root")
    forget_folders()
    jobs = _photo_jobs(args, root) if args.task == PHOTOS.task else list(_jobs(args, chosen, root))
    if args.dry_run:
        for job in jobs:
            for line in _found_lines(job):
                say(line)
        return 0
    if args.check:
        return _check(args, jobs)
    for job in jobs:
        try:
            summary = prepare_part(job, args.workers, args.skip_bad)
        except KeyboardInterrupt:
            complain(f"stopped; what is done of {job.found.shown} is kept, the same command resumes from there")
            return 130
        for line in summary_lines(summary):
            say(line)
    if args.task == PHOTOS.task:
        for line in _fixed_lines(args):
            say(line)
    return 0


def summary_lines(summary: Summary) -> list[str]:
    """Say what became of a part, in a line, and one more for each pair that was left out, up to a few."""
    job = summary.job
    images = ", ".join(f"{kind} {count} ({_size(summary.content[kind])})" for kind, count in summary.images.items())
    (least, most) = summary.sizes or ([0, 0], [0, 0])
    sizes = "x".join(map(str, most)) if least == most else f"{'x'.join(map(str, least))} to {'x'.join(map(str, most))}"
    parts = [job.found.count_in_words, f"images {images}", f"height x width {sizes}"]
    if summary.skipped:
        parts.append(f"{len(summary.skipped)} skipped")
    if job.found.ignored:
        parts.append(f"{len(job.found.ignored)} files that are no images ignored ({job.found.ignored[0].name}, ...)")
    if summary.was_there:
        parts.append("there already")
    else:
        resumed = f", {summary.resumed} done before" if summary.resumed else ""
        now = 1 - summary.resumed / len(job.found.units)
        rate = now * sum(summary.images.values()) / max(summary.seconds, 1e-3)
        parts.append(f"{summary.seconds:.1f} s, {rate:.0f} images/s{resumed}")
    lines = [f"{job.found.shown}: {'; '.join(parts)} -> {_places(job)}"]
    lines += [f"  skipped: {reason}" for reason in summary.skipped[:SHOWN]]
    if len(summary.skipped) > SHOWN:
        lines.append(f"  and {len(summary.skipped) - SHOWN} more, listed in {job.record}")
    return lines


def _parser() -> Parser:
    parser = Parser("prepare", DESCRIPTION)
    parser.add_argument("task", metavar="TASK", help=", ".join(ALL_TASKS))
    parser.add_argument("--root", required=True, metavar="DIR", help="folder that the downloaded sets are in")
    parser.add_argument("--out", default="datasets", metavar="DIR", help="folder to write to (default: datasets)")
    parser.add_argument("--sets", nargs="+", metavar="NAME", help="only these sets")
    parser.add_argument("--format", choices=["lmdb", "folder"], default="lmdb", help="default: lmdb")
    scales = " ".join(map(str, SCALES))
    parser.add_argument(
        "--scale", nargs="+", type=int, choices=SCALES, default=list(SCALES), help=f"of task sr (default: {scales})"
    )
    parser.add_argument("--crop", type=int, metavar="N", help="side of training sub-images, 0 for whole images")
    parser.add_argument("--step", type=int, metavar="N", help="pixels between two sub-images")
    parser.add_argument("--workers", type=int, default=_cores(), metavar="N", help="processes (default: one a core)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out bad pairs instead of stopping at the first")
    parser.add_argument("--check", action="store_true", help="compare what was prepared with its sources")
    parser.add_argument("--dry-run", action="store_true", help="list what is found and write nothing")
    return parser


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chosen(args: Namespace) -> list[PublicSet]:
    """Return the sets to look for. Raises UserError: an unknown task or set, or sizes that make no sense."""
    if args.task not in ALL_TASKS:
        hint = did_you_mean(args.task, ALL_TASKS)
        raise UserError(f"unknown task {args.task!r}.{hint} Tasks: {', '.join(ALL_TASKS)}")
    of_task = {name: public for name, public in (*SETS.items(), (PHOTOS.name, PHOTOS)) if public.task == args.task}
    for name in args.sets or ():
        if name not in of_task:
            hint = did_you_mean(name, of_task)
            raise UserError(f"--sets: {name!r} is no set of {args.task}.{hint} Sets: {', '.join(of_task)}")
    if args.crop is not None and (args.crop < 0 or args.crop % 12):
        raise UserError(f"--crop must be 0 or a multiple of 12, which all scales divide, got {args.crop}")
    if args.step is not None and (args.step < 1 or args.step % 12):
        raise UserError(f"--step must be a multiple of 12, which all scales divide, got {args.step}")
    return [public for name, public in of_task.items() if not args.sets or name in args.sets]


def _jobs(args: Namespace, chosen: list[PublicSet], root: Path) -> Iterator[Job]:
    """Yield a job for each part that is there. Raises UserError: none is, or a set that was asked for is not."""
    absent = []
    jobs = []
    for public in chosen:
        found = [part for part in (find_part(root, public, part) for part in public.parts) if part]
        jobs += [_job(args, public, part) for part in found]
        if not found:
            absent.append(public)
    if absent and (args.sets or not jobs):
        places = "; ".join(f"{public.name} in {expected_layouts(public)}" for public in absent[:3])
        names = ", ".join(public.name for public in absent)
        raise UserError(f"{root}: {names} not found; expected {places} (all layouts: data/DATASETS.md)")
    if absent:
        note(f"not found under {root}: {', '.join(public.name for public in absent)}")
    return iter(jobs)


def _job(args: Namespace, public: PublicSet, found: Found) -> Job:
    part = found.part
    crop = part.crop if args.crop is None or part.name != "train" else args.crop
    step = (args.step or (part.step if crop == part.crop else max(crop // 24 * 12, 12))) if crop else 0
    if step > crop:
        raise UserError(f"--step must be at most --crop, or pixels between sub-images are lost: {step} > {crop}")
    scales = tuple(sorted(set(args.scale))) if public.scales else ()
    recipe = Recipe(crop, step, scales, multiple=12 if scales else 1)
    return Job(found, recipe, args.format, Path(args.out).expanduser() / public.name)


def _photo_jobs(args: Namespace, root: Path) -> list[Job]:
    found, others = find_photos(root)
    if others:
        note(f"{root}: {len(others)} images that are not in the split are left out, first {others[0].name}")
    return [_job(args, PHOTOS, part) for part in found]


def _fixed_lines(args: Namespace) -> Iterator[str]:
    """Write the fixed pairs of the photographs, or find them there, and say so."""
    from restormixer_arch.data.preparation.fixed_set import recorded_options, write_fixed_set  # imports torch

    for fixed in fixed_pairs(Path(args.out).expanduser() / PHOTOS.name, args.format):
        options = {"degradations": list(fixed.labels), "gt_size": fixed.size}
        shown = f"{PHOTOS.name} {fixed.out.name}: {', '.join(fixed.labels)}; {fixed.size}x{fixed.size}"
        if not fixed.out.exists():
            lmdb = args.format == "lmdb"
            count, _ = write_fixed_set(str(fixed.gt), fixed.out, **options, lmdb=lmdb, compositions=fixed.compositions)
            yield f"{shown}; {count} pairs -> {fixed.out}"
        elif options.items() <= recorded_options(fixed.out).items():
            yield f"{shown}; there already -> {fixed.out}"
        else:
            raise UserError(f"{fixed.out}: was made with other settings; remove it or choose another --out")


def _check(args: Namespace, jobs: list[Job]) -> int:
    bad = 0
    for job in jobs:
        count, problems = check_part(job, args.workers)
        line = f"{job.found.shown}: {count} images compared, {len(problems)} problems in {_places(job)}"
        bad += _report(line, problems)
    if args.task == PHOTOS.task:
        from restormixer_arch.data.preparation.fixed_set import check_fixed_set  # imports torch

        for fixed in fixed_pairs(Path(args.out).expanduser() / PHOTOS.name, args.format):
            count, problems = check_fixed_set(str(fixed.gt), fixed.out, args.format == "lmdb", fixed.compositions)
            shown = f"{PHOTOS.name} {fixed.out.name}"
            bad += _report(f"{shown}: {count} images compared, {len(problems)} problems in {fixed.out}", problems)
    return 2 if bad else 0


def _report(line: str, problems: list[str]) -> int:
    """Show what was checked and its first problems. Returns their number."""
    say(line)
    for problem in problems[:SHOWN]:
        complain(f"error: {problem}")
    return len(problems)


def _found_lines(job: Job) -> Iterator[str]:
    found = job.found
    cut = f"sub-images of {job.recipe.crop} every {job.recipe.step}" if job.recipe.crop else "whole images"
    yield f"{found.shown}: {found.count_in_words}, {cut} -> {_places(job)}"
    for folder in found.folders:
        yield f"  from {folder}"
    for path in found.ignored[:SHOWN]:
        yield f"  ignored, no image: {path}"


def _places(job: Job) -> str:
    paths = list(job.places.values())
    stem, end = f"{job.folder / job.found.part.name}_", paths[0].suffix
    return f"{stem}{{{','.join(job.kinds)}}}{end}" if len(job.kinds) > 1 else str(paths[0])


def _size(content: int) -> str:
    return f"{content / 1e9:.2f} GB" if content >= 1e9 else f"{content / 1e6:.1f} MB"
