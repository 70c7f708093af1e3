"""``basicsr restore``: restore pictures and videos of one's own, without ground truth or option file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from restormixer_arch.basicsr_adapter.output import complain, is_first_process, note, say
from restormixer_arch.cli.parsing import Parser, positive_number, whole_number
from restormixer_arch.errors import UserError
from restormixer_arch.memory import parse_bytes

if TYPE_CHECKING:
    from restormixer_arch.data.restore_jobs import Job
    from restormixer_arch.models.restore import Restorer

DESCRIPTION = """Restore pictures and videos. Folders are read with their sub-folders; names are kept; what is there
already is skipped. Depth, gray, alpha, colour profile and metadata stay, the EXIF orientation is applied; a video's
sound is not kept. Exit code 2 where a file could not be restored: the others are."""


def parser() -> Parser:
    parser = Parser("restore", DESCRIPTION)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="file, folder, or pattern in quotes")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write into")
    add_settings(parser)
    parser.add_argument("--overwrite", action="store_true", help="restore anew what is there already")
    parser.add_argument("--compare", action="store_true", help="also write before and after side by side")
    return parser


def add_settings(parser: Parser) -> None:
    """Add the arguments that :func:`restorer_of` reads."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--weights", metavar="FILE", help="weights, .pth or .safetensors")
    source.add_argument("--task", metavar="NAME", help="installed weights, such as derain (the default)")
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="average over 8 flips and turns, 8 times slower; not for rain, which falls",
    )
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="default fp32")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    parser.add_argument(
        "--tile",
        type=positive_number,
        metavar="N",
        help="side of the tiles; default: what memory allows, or what suits the installed weights best",
    )
    parser.add_argument(
        "--overlap", type=whole_number, metavar="N", help="least overlap of tiles, in pixels (default 64)"
    )
    parser.add_argument("--blend", choices=["hann", "linear"], default="hann", help="of tiles (default hann)")
    parser.add_argument(
        "--max-memory",
        type=_memory,
        metavar="SIZE",
        help="such as 3G: of the whole process on a CPU (default 3G), of the GPU (default 80%% of what is free)",
    )


def run(arguments: list[str]) -> int:
    """Restore the files. Returns the exit code: 0, 2 where one could not be restored, 130 if stopped."""
    args = parser().parse_args(arguments)
    from restormixer_arch.data.restore_jobs import find_jobs, make_folder

    jobs = find_jobs(args.inputs, args.output, compare=args.compare)
    todo = [job for job in jobs if args.overwrite or not all(output.exists() for output in job.outputs)]
    restored, failed = 0, 0
    if todo:
        restorer = restorer_of(args)
        make_folder(args.output)
        try:
            with tqdm(todo, desc="restore", unit="file", disable=None, dynamic_ncols=True) as bar:
                for job in bar:
                    if _done(job, restorer, args.overwrite, bar):
                        restored += 1
                    else:
                        failed += 1
        except KeyboardInterrupt:
            hint = "" if args.overwrite else "; the same command goes on with the rest"
            complain(f"stopped after {restored + failed} of {len(todo)} files{hint}")
            return 130
    parts = [f"{restored} restored", f"{len(jobs) - len(todo)} already there", f"{failed} failed"]
    say(f"{args.output}: {', '.join(part for part in parts if not part.startswith('0 ')) or 'nothing to do'}")
    return 2 if failed else 0


def restorer_of(args: argparse.Namespace, weights: str | Path | None = None) -> Restorer:
    """The network of ``weights``, or else of ``--weights`` or ``--task``, with the settings of the command line.

    Raises:
        UserError: device, weights or settings do not do.
    """
    from restormixer_arch.models.load import DEFAULT_TASK, load_restorer, shipped_weights
    from restormixer_arch.models.restore import pick_device

    device = pick_device(args.device)
    return load_restorer(
        weights or args.weights or shipped_weights(args.task or DEFAULT_TASK),
        device,
        tile=args.tile,
        overlap=args.overlap,
        blend=args.blend,
        precision=args.precision,
        self_ensemble=args.self_ensemble,
        max_memory=args.max_memory,
    )


def _done(job: Job, restorer: Restorer, overwrite: bool, bar: tqdm) -> bool:
    """Restore one file; a mistake is reported and False returned."""
    from restormixer_arch.cli.restore_file import restore_file

    def show(unit: str, done: int, total: int) -> None:
        count = f"{done}/{total}" if total else str(done)
        bar.set_postfix_str(f"{job.source.name}, {unit} {count}")

    bar.set_postfix_str(job.source.name)
    try:
        remark = restore_file(job, restorer, overwrite=overwrite, show=show)
    except UserError as error:
        with tqdm.external_write_mode():
            complain(f"error: {error}")
        return False
    if remark and is_first_process():
        with tqdm.external_write_mode():
            note(remark)
    return True


def _memory(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
