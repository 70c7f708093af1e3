"""``basicsr prepare pairs``: convert your own images into a dataset for training and validation."""

from __future__ import annotations

import os
from pathlib import Path

from restormixer_arch.cli.parsing import Parser, add_output, path_name, switches_for, whole_number
from restormixer_arch.cli.prepare.writing import (
    add_writing_options,
    check_sizes,
    make_job,
    prepare_jobs,
    write_pairs_once,
)
from restormixer_arch.data.degradations.labels import parse_mixture
from restormixer_arch.data.images.folder import existing_folder
from restormixer_arch.data.preparation.find_pairs import clear_folder_cache
from restormixer_arch.data.preparation.own_pairs import find_own_images
from restormixer_arch.data.preparation.prepare import Job, conflicting_paths, paths_of_part
from restormixer_arch.errors import UserError
from restormixer_arch.output import print_result, shell_join, warn

DESCRIPTION = (
    "Pair the images of two folders by name, check them, keep some for validation, cut the others into overlapping "
    "sub-images, and write LMDBs in BasicSR's format. With --degrade instead of --lq, training makes the degraded "
    "images itself, and validation pairs are generated once."
)


def run(arguments: list[str]) -> int:
    """Prepare the images. Returns the exit code."""
    parser = Parser("prepare pairs", DESCRIPTION)
    parser.add_argument("--gt", type=path_name, required=True, metavar="DIR", help="folder of the clean images")
    parser.add_argument(
        "--lq", type=path_name, metavar="DIR", help="folder of the degraded ones, named like their clean partners"
    )
    parser.add_argument("--degrade", metavar="LABELS", help="such as rain,haze_rain,jpeg; all: basicsr degrade --help")
    parser.add_argument("--scale", type=int, choices=(1, 2, 3, 4), default=1, help="with --degrade down (default: 1)")
    help_text = "folder of the new set, such as datasets/mine"
    add_output(parser, required=True, metavar="DIR", help=help_text)
    parser.add_argument(
        "--val", type=whole_number, metavar="N", help="clean images for validation (default: a tenth, at most 50)"
    )
    add_writing_options(parser)
    args = parser.parse_args(arguments)
    check_sizes(args.crop, args.step)
    if bool(args.lq) == bool(args.degrade):
        raise UserError("basicsr prepare pairs: expected either --lq or --degrade")
    if args.scale > 1 and not args.degrade:
        raise UserError("--scale: belongs to --degrade; pairs of two folders have the same size")
    if args.val == 0 and args.degrade:
        raise UserError("--val: expected at least 1 with --degrade, which makes validation pairs of them, got 0")
    labels = [label.strip() for label in args.degrade.split(",")] if args.degrade else []
    with switches_for(degradations="--degrade"):
        if labels:
            parse_mixture(labels, args.scale)
    gt, out = existing_folder(args.gt, "--gt"), args.out
    place = Path(os.path.abspath(out))  # "." has neither a name nor a parent
    lq = existing_folder(args.lq, "--lq") if args.lq else None
    if lq and os.path.normcase(os.path.realpath(lq)) == os.path.normcase(os.path.realpath(gt)):
        raise UserError(f"--lq: {str(args.lq)!r} is the folder of --gt, expected the folder of the degraded images")
    clear_folder_cache()
    parts = find_own_images(gt, lq, args.val)
    for folder, count in parts[0].deeper.items():
        warn(f"{folder}: {count} images in its subfolders were skipped; prepare each folder as a separate dataset")
    jobs = [make_job(found, args, out, multiple=args.scale) for found in parts]
    root = place.parent if out.name in ("", "..") else out.parent
    if not prepare_jobs(jobs, args.workers, args.skip_bad, root, _stale_outputs(jobs, out, bool(labels))):
        return 130
    if labels:
        options = {"degradations": labels, "scale": args.scale}
        shown = f"pairs {place.name}: {', '.join(labels)}"
        print_result(write_pairs_once(shown, jobs[-1].places["gt"], out / "val_pairs", options, args.format))
    print_result(f"next: basicsr init --data {shell_join([out])} --output my.yml")
    return 0


def _stale_outputs(jobs: list[Job], out: Path, is_drawn: bool) -> list[Path]:
    """Return files of earlier preparations that training would mistake for a part of the dataset.

    These are validation images if this preparation creates none, and generated validation pairs if they were created
    from other clean images or if this preparation pairs two folders.
    """
    left = [] if any(job.found.part.name == "val" for job in jobs) else paths_of_part(out, "val")
    pairs = out / "val_pairs"
    if pairs.exists() and (not is_drawn or any(conflicting_paths(job)[0] for job in jobs)):
        left.append(pairs)
    return left
