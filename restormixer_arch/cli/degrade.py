"""``basicsr degrade``: write overview sheets, fixed sets and sets from other libraries; measure speed and coverage."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError

from restormixer_arch.cli.parsing import Parser, add_output, path_name, positive_number, switches_for, whole_number
from restormixer_arch.data.degradations.labels import CDD11, NAMES
from restormixer_arch.errors import UserError, did_you_mean
from restormixer_arch.output import print_result

MIN_SIDE = 16  # minimum side in pixels of the images of "speed", as needed by compression and blur

ACTIONS = {
    "sheet": "show all degradations of a photograph on one image",
    "set": "write a fixed validation set: clean images under every label",
    "speed": "measure images/s of each degradation",
    "others": "write test sets generated with albumentations and kornia",
    "coverage": "compare generated degradations with real pairs",
}


def run(arguments: list[str]) -> int:
    """Run an action and return the exit code; exit as argparse does if help is requested."""
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, ACTIONS))
        lines = [f"  {name:<{width}}  {purpose}" for name, purpose in ACTIONS.items()]
        lines += ["", f"labels, or several joined by _ in this order, such as {CDD11[-2]}:"]
        lines += [f"  {name:<{width}}  {what}" for name, what in NAMES.items()]
        lines += ["", "'basicsr degrade ACTION --help' describes an action."]
        print_result("\n".join(["usage: basicsr degrade ACTION [options]", "", "actions:", *lines]))
        raise SystemExit(0 if arguments else 2)
    name, *rest = arguments
    if name not in ACTIONS:
        raise UserError(
            f"basicsr degrade: unknown action {name!r}, expected {', '.join(ACTIONS)}.{did_you_mean(name, ACTIONS)}"
        )
    {"sheet": _sheet, "set": _set, "speed": _speed, "others": _others, "coverage": _coverage}[name](rest)
    return 0


def _sheet(arguments: list[str]) -> None:
    parser = Parser("degrade sheet", "Show all degradations of a photograph on one sheet.")
    parser.add_argument("--photo", type=path_name, required=True, metavar="FILE", help="photograph to degrade")
    add_output(parser, required=True, metavar="FILE", help="sheet to write, .png or .jpg")
    parser.add_argument("--seed", type=whole_number, default=0, metavar="N", help="random seed (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    args = parser.parse_args(arguments)
    from restormixer_arch.data.degradations.sheet import write_sheet

    write_sheet(args.photo, args.out, args.seed, overwrite=args.overwrite)
    print_result(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


def _set(arguments: list[str]) -> None:
    parser = Parser("degrade set", "Write a fixed validation set: clean images under every label.")
    parser.add_argument("--gt", type=path_name, required=True, metavar="DIR", help="folder or LMDB of the clean images")
    add_output(parser, required=True, metavar="DIR", help="folder to create")
    parser.add_argument(
        "--labels", nargs="+", default=["cdd11"], metavar="LABEL", help="such as low_haze (default: CDD-11's eleven)"
    )
    parser.add_argument("--seed", type=whole_number, default=0, metavar="N", help="random seed (default: 0)")
    parser.add_argument(
        "--scale", type=positive_number, default=1, metavar="N", help="scale of labels with 'down' (default: 1)"
    )
    parser.add_argument("--gt-size", type=positive_number, metavar="N", help="crop the center, at most N by N pixels")
    parser.add_argument("--recursive", action="store_true", help="read subfolders too")
    parser.add_argument("--lmdb", action="store_true", help="write LMDBs instead of folders")
    args = parser.parse_args(arguments)
    from restormixer_arch.data.preparation.fixed_set import write_fixed_set

    with switches_for(dataroot_gt="--gt", degradations="--labels", gt_size="--gt-size"):
        count, labels = write_fixed_set(
            str(args.gt),
            args.out,
            "cdd11" if args.labels == ["cdd11"] else args.labels,
            seed=args.seed,
            scale=args.scale,
            gt_size=args.gt_size,
            recursive=args.recursive,
            lmdb=args.lmdb,
        )
    print_result(f"{args.out}: {count} pairs under {len(labels)} labels ({', '.join(labels)})")


def _others(arguments: list[str]) -> None:
    from restormixer_arch.data.preparation.other_generators import INSTALL, write_other_sets

    parser = Parser("degrade others", "Write test sets generated with albumentations and kornia, if installed.")
    parser.add_argument("--gt", type=path_name, required=True, metavar="DIR", help="folder or LMDB of the clean images")
    add_output(parser, required=True, metavar="DIR", help="folder for the test sets")
    parser.add_argument("--libraries", nargs="+", default=list(INSTALL), metavar="NAME", help=" or ".join(INSTALL))
    parser.add_argument(
        "--gt-size",
        type=positive_number,
        default=256,
        metavar="N",
        help="side of the center crop (default: 256)",
    )
    parser.add_argument("--seed", type=whole_number, default=0, metavar="N", help="random seed (default: 0)")
    args = parser.parse_args(arguments)
    sets = write_other_sets(str(args.gt), args.out, tuple(args.libraries), args.gt_size, args.seed)
    print_result(f"{args.out}: {', '.join(sets)}")


def _speed(arguments: list[str]) -> None:
    parser = Parser("degrade speed", "Measure images/s of each degradation on one thread.")
    parser.add_argument(
        "--size", type=_side, default=256, metavar="N", help="side of the images, from 16 (default: 256)"
    )
    parser.add_argument("--seconds", type=_seconds, default=1.0, metavar="S", help="time per degradation (default: 1)")
    args = parser.parse_args(arguments)
    from restormixer_arch.data.degradations.sheet import report_speeds

    report_speeds(args.size, args.seconds)


def _side(text: str) -> int:
    """Parse an image side in pixels that all degradations accept (argparse type)."""
    if not text.isdecimal() or int(text) < MIN_SIDE:
        raise ArgumentTypeError(f"expected a whole number from {MIN_SIDE}, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    """Parse a positive time in seconds (argparse type)."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def _coverage(arguments: list[str]) -> None:
    parser = Parser("degrade coverage", "Compare statistics of generated degradations with those of real pairs.")
    parser.add_argument("--lq", type=path_name, required=True, metavar="DIR", help="degraded images: folder or LMDB")
    parser.add_argument(
        "--gt", type=path_name, required=True, metavar="DIR", help="clean images with the same names: folder or LMDB"
    )
    parser.add_argument("--labels", nargs="+", required=True, metavar="LABEL", help="what to generate, such as rain")
    parser.add_argument("--clean", type=path_name, metavar="DIR", help="clean images to degrade (default: --gt)")
    parser.add_argument(
        "--count", type=positive_number, default=100, metavar="N", help="generated pairs (default: 100)"
    )
    parser.add_argument("--seed", type=whole_number, default=0, metavar="N", help="random seed (default: 0)")
    args = parser.parse_args(arguments)
    from restormixer_arch.data.degradations.coverage import compare_folders, coverage_table

    clean = str(args.clean) if args.clean else None
    with switches_for(degradations="--labels"):
        rows = compare_folders(str(args.lq), str(args.gt), args.labels, clean=clean, count=args.count, seed=args.seed)
    print_result(coverage_table(rows))
