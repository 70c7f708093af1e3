"""``basicsr prepare``: convert public datasets, as distributed, into the pairs that the option files expect."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from restormixer_arch.cli.parsing import Parser, add_output, path_name
from restormixer_arch.cli.prepare.writing import (
    add_writing_options,
    check_sizes,
    make_job,
    places,
    prepare_jobs,
    write_pairs_once,
)
from restormixer_arch.data.images.folder import existing_folder
from restormixer_arch.data.preparation.find_pairs import Found, clear_folder_cache, expected_layouts, find_part
from restormixer_arch.data.preparation.layouts import SETS, TASKS, PublicSet
from restormixer_arch.data.preparation.photos import PHOTOS, find_photos, fixed_pairs
from restormixer_arch.data.preparation.prepare import MAX_LISTED, Job, check_part
from restormixer_arch.errors import UserError, did_you_mean
from restormixer_arch.output import note, print_error, print_result

DESCRIPTION = (
    "Find the pairs of public datasets under a folder, check every image, cut training images into overlapping "
    "sub-images, and write LMDBs in BasicSR's format. Nothing is downloaded."
)
SCALES = (2, 3, 4)
ALL_TASKS = (*TASKS, PHOTOS.task)


def run(arguments: list[str]) -> int:
    """Prepare, check or list the datasets. Returns the exit code."""
    args = _parser().parse_args(arguments)
    chosen = _chosen(args)
    if args.scale and not any(public.scales for public in chosen):
        raise UserError(f"--scale: is for the task sr, got {args.task}")
    root = existing_folder(args.root, "--root")
    clear_folder_cache()
    jobs = _photo_jobs(args, root) if args.task == PHOTOS.task else list(_jobs(args, chosen, root))
    if args.dry_run:
        for job in jobs:
            for line in _found_lines(job):
                print_result(line)
        return 0
    if args.check:
        return _check(args, jobs)
    if not prepare_jobs(jobs, args.workers, args.skip_bad, args.out):
        return 130
    if args.task == PHOTOS.task:
        for line in _fixed_lines(args):
            print_result(line)
    return 0


def _parser() -> Parser:
    parser = Parser("prepare", DESCRIPTION)
    parser.add_argument(
        "task",
        metavar="TASK",
        help=f"{', '.join(ALL_TASKS)}; or pairs, for your own images: basicsr prepare pairs --help",
    )
    help_text = "folder that the downloaded sets are in"
    parser.add_argument("--root", type=path_name, required=True, metavar="DIR", help=help_text)
    add_output(parser, default="datasets", metavar="DIR", help="folder to write to (default: datasets)")
    parser.add_argument("--sets", nargs="+", metavar="NAME", help="only these sets")
    add_writing_options(parser)
    scales = " ".join(map(str, SCALES))
    parser.add_argument(
        "--scale",
        nargs="+",
        type=int,
        choices=SCALES,
        help=f"scales of the task sr (default: {scales})",
    )
    parser.add_argument("--check", action="store_true", help="compare what was prepared with its sources")
    parser.add_argument("--dry-run", action="store_true", help="list what is found and write nothing")
    return parser


def _chosen(args: Namespace) -> list[PublicSet]:
    """Return the datasets to look for. Raises UserError for an unknown task or dataset, or invalid sizes."""
    if args.task not in ALL_TASKS:
        hint = did_you_mean(args.task, ALL_TASKS)
        raise UserError(f"unknown task {args.task!r}.{hint} Tasks: {', '.join(ALL_TASKS)}; your own images: pairs")
    of_task = {name: public for name, public in (*SETS.items(), (PHOTOS.name, PHOTOS)) if public.task == args.task}
    for name in args.sets or ():
        if name not in of_task:
            hint = did_you_mean(name, of_task)
            raise UserError(f"--sets: {name!r} is not a set of {args.task}.{hint} Sets: {', '.join(of_task)}")
    check_sizes(args.crop, args.step)
    return [public for name, public in of_task.items() if not args.sets or name in args.sets]


def _jobs(args: Namespace, chosen: list[PublicSet], root: Path) -> Iterator[Job]:
    """Return a job for each part that exists. Raises UserError if none exists, or if a set of ``--sets`` is missing."""
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
    scales = tuple(sorted(set(args.scale or SCALES))) if public.scales else ()
    return make_job(found, args, args.out / public.name, scales)


def _photo_jobs(args: Namespace, root: Path) -> list[Job]:
    found, others = find_photos(root)
    if others:
        note(f"{root}: {len(others)} images that are not in the split are left out, first {others[0].name}")
    return [_job(args, PHOTOS, part) for part in found]


def _fixed_lines(args: Namespace) -> Iterator[str]:
    """Write the fixed pairs of the photographs, unless they exist, and yield a line about each set."""
    for fixed in fixed_pairs(args.out / PHOTOS.name, args.format):
        options = {"degradations": list(fixed.labels), "gt_size": fixed.size}
        shown = f"{PHOTOS.name} {fixed.out.name}: {', '.join(fixed.labels)}; {fixed.size}x{fixed.size}"
        yield write_pairs_once(shown, fixed.gt, fixed.out, options, args.format, fixed.compositions)


def _check(args: Namespace, jobs: list[Job]) -> int:
    bad = 0
    for job in jobs:
        count, problems = check_part(job, args.workers)
        line = f"{job.found.shown}: {count} images compared, {len(problems)} problems in {places(job)}"
        bad += _report(line, problems)
    if args.task == PHOTOS.task:
        from restormixer_arch.data.preparation.fixed_set import check_fixed_set  # imports torch

        for fixed in fixed_pairs(args.out / PHOTOS.name, args.format):
            count, problems = check_fixed_set(str(fixed.gt), fixed.out, args.format == "lmdb", fixed.compositions)
            shown = f"{PHOTOS.name} {fixed.out.name}"
            bad += _report(f"{shown}: {count} images compared, {len(problems)} problems in {fixed.out}", problems)
    return 2 if bad else 0


def _report(line: str, problems: list[str]) -> int:
    """Print what was checked and the first problems. Returns the number of problems."""
    print_result(line)
    for problem in problems[:MAX_LISTED]:
        print_error(f"error: {problem}")
    return len(problems)


def _found_lines(job: Job) -> Iterator[str]:
    found = job.found
    cut = f"sub-images of {job.recipe.crop} every {job.recipe.step}" if job.recipe.crop else "whole images"
    yield f"{found.shown}: {found.formatted_count}, {cut} -> {places(job)}"
    for folder in found.folders:
        yield f"  from {folder}"
    for path in found.ignored[:MAX_LISTED]:
        yield f"  ignored, not an image: {path}"
