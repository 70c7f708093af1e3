"""``basicsr restore``: restore your own images and videos, without ground truth or option file.

The files to read and write are determined before the first one is read. Names are kept: ``photo.jpg`` goes to
``out/photo.jpg``, and ``holiday/sea/1.jpg`` of the folder ``holiday`` to ``out/sea/1.jpg``. An output is written under
a temporary name and renamed when it is complete.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from restormixer_arch.cli import parsing
from restormixer_arch.cli.parsing import Parser
from restormixer_arch.errors import UserError, exception_text
from restormixer_arch.inference.files import (
    ALREADY_PRESENT,
    COMPARED,
    COPIED,
    FAILED,
    RESTORED,
    FileOptions,
    Outcome,
    output_exists,
    restore_file,
)
from restormixer_arch.inference.installed import AUTO, DEFAULT_TASK, installed_weights
from restormixer_arch.inference.jobs import Job, find_jobs, make_folder
from restormixer_arch.inference.shards import gpu_of_process, limit_threads, parse_shard, shard_of_process, wait_for_all
from restormixer_arch.output import is_first_process, note, print_error, print_result, printable

if TYPE_CHECKING:
    from restormixer_arch.inference.auto import AutoRestorer
    from restormixer_arch.inference.restorer import Restorer

DESCRIPTION = "Restore images and videos. Folders are read with their subfolders; names are kept; files that exist"
DESCRIPTION += " already are skipped. If a file fails, the others are still restored, and the exit code is 2."
KEPT_CONTENT = """what is kept and what is not:
  all images   size, 8 or 16 bits, gray or RGB, alpha. The EXIF orientation is applied to the pixels. Palettes become
               RGB, CMYK becomes 8-bit sRGB. Animations and multi-page files are rejected.
  JPEG         ICC profile, EXIF, XMP, IPTC, comment, resolution; written with quality 95, 4:4:4
  PNG          color chunks (ICC, gAMA, cHRM, sRGB, cICP, ...), EXIF, XMP, texts, resolution, whatever their size
  TIFF         ICC profile, tags, EXIF, GPS, XMP, IPTC, resolution, GeoTIFF's places; written with deflate;
               thumbnail pages are dropped
  WebP         ICC profile, EXIF, XMP; lossless stays lossless, lossy is written with quality 95
  AVIF, HEIC   ICC profile, EXIF, XMP, of HEIC also the color space (nclx); 8 bits; written with quality 95
               (HEIC needs 'restormixer[heif]')
  BMP          resolution
  PGM, PPM     only pixels
  videos       ('restormixer[video]') time of each frame, size, rotation, color tags, sound, subtitles, chapters,
               title and other tags; encoded again: H.264, VP9 in WebM. 10 bits stay with H.264; alpha stays in WebM
               and MKV (VP9), and in MOV (ProRes). AVI, MP4, M4V, MOV, MKV and WebM are read. A video whose
               frame size changes is rejected.
Anything else that is lost is listed at the end of the run.
"""


def parser() -> Parser:
    parser = Parser("restore", DESCRIPTION)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = "\n".join(re.findall(r".{1,110}(?: |$)", DESCRIPTION)), KEPT_CONTENT
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="file, folder, or pattern in quotes")
    parsing.add_output(parser, name="output", required=True, metavar="DIR", help="folder to write into")
    add_settings(parser)
    parser.add_argument("--overwrite", action="store_true", help="restore again and replace existing results")
    parser.add_argument(
        "--compare", action="store_true", help="also write input and result side by side; existing results are kept"
    )
    parser.add_argument(
        "--sheet", type=parsing.path_name, metavar="FILE", help="also write a contact sheet, .png or .jpg"
    )
    parser.add_argument("--shard", type=parse_shard, metavar="I/N", help="only shard I of N, counted from 1")
    parser.add_argument(
        "--video-quality",
        type=parsing.video_quality,
        metavar="N",
        help="quality of videos, from 0 (lossless) to 51 (smallest file): H.264's constant rate factor (default: 12); "
        "ProRes has no such setting",
    )
    parser.add_argument(
        "--max-pixels",
        type=parsing.number_of_pixels,
        metavar="N",
        help="most pixels of an image, such as 200M, for images that you trust (default: 179M); see also --max-memory",
    )
    return parser


def add_settings(parser: Parser, *, auto: bool = True) -> None:
    """Add the arguments that :func:`restorer_of` reads. If ``auto``, the help also describes ``--task auto``."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--weights",
        type=parsing.path_name,
        metavar="FILE",
        help=".pth, .safetensors, .onnx, folder, or a hub's ORG/NAME",
    )
    source.add_argument(
        "--task",
        type=parsing.task_name,
        metavar="NAME",
        help="installed weights: derain (default), desnow, dehaze, low_light, deblur, denoise, mixed, sr_x2, sr_x3 or "
        "sr_x4"
        + ("; auto: chosen for each file; files that seem clean or are uncertain are copied unchanged" if auto else ""),
    )
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="average over 8 flips and rotations, 8 times slower; not for rain, whose direction is fixed",
    )
    parser.add_argument(
        "--strength",
        type=parsing.share,
        default=1.0,
        metavar="S",
        help="from 0, the input, to 1, the restored image (default: 1)",
    )
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16", "fp16", "auto"],
        default="fp32",
        help="auto: bf16 for derain, mixed and sr_x* on hardware where it is faster (default: fp32)",
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument(
        "--tile",
        type=parsing.positive_number,
        metavar="N",
        help="side of the tiles (default: as large as memory allows, at most 2048)",
    )
    parser.add_argument(
        "--overlap",
        type=parsing.whole_number,
        metavar="N",
        help="minimum overlap of tiles in pixels (default: 64, less for tiles below 128)",
    )
    parser.add_argument("--blend", choices=["hann", "linear"], default="hann", help="blending of tiles (default: hann)")
    parser.add_argument(
        "--max-memory",
        type=parsing.memory_size,
        metavar="SIZE",
        help="such as 3G: limit for the whole process on a CPU (default: 3G more than before the first image), or for "
        "the GPU (default: 80%% of what is free)",
    )


def run(arguments: list[str]) -> int:
    """Restore the files. Returns the exit code: 0, 2 if a file could not be restored, 130 if stopped."""
    args = parser().parse_args(arguments)
    shard = args.shard or shard_of_process()
    jobs = find_jobs(args.inputs, args.output, compare=args.compare, shard=shard)
    if args.sheet:
        from restormixer_arch.inference.contact_sheet import check_sheet, write_sheet

        args.sheet = check_sheet(args.sheet, jobs, args.inputs, shard, overwrite=args.overwrite)
    todo = jobs.select(lambda job: args.overwrite or not all(map(output_exists, job.outputs)))
    counts, stopped = Counter({ALREADY_PRESENT: len(jobs) - len(todo)}), False
    left_out: dict[tuple[str, str], int] = defaultdict(int)
    options = FileOptions(args.max_pixels, args.video_quality, args.overwrite)
    if todo:
        restorer = restorer_of(args)
        make_folder(args.output)
        try:
            quiet = None if sys.stderr is not None else True
            with _stop_by_signals(), tqdm(todo, desc="restore", unit="file", disable=quiet, dynamic_ncols=True) as bar:
                for job in bar:
                    outcome = _restore_or_report(job, restorer, options, bar)
                    counts[outcome.counted_as] += 1
                    for text in dict.fromkeys(outcome.left_out):
                        left_out[outcome.kind, text] += 1
        except KeyboardInterrupt:
            stopped = True
    else:
        check_weights(args)
    for kind in sorted({kind for kind, _ in left_out}):
        texts = [f"{text} ({number} files)" for (of, text), number in left_out.items() if of == kind]
        note(f"{kind}: left out {', '.join(text.replace(' (1 files)', '') for text in texts)}", any_process=True)
    if stopped:
        hint = "" if args.overwrite else "; run the same command again for the rest"
        done = counts.total() - (len(jobs) - len(todo))
        print_error(f"stopped after {done} of {len(todo)} files{hint}")
        return 130
    whose = "perhaps made with other weights; " if args.task or args.weights else ""

    def again(state: str) -> str:
        return f" ({whose}--overwrite restores {'it' if counts[state] == 1 else 'them'} again)"

    hints = {ALREADY_PRESENT: again(ALREADY_PRESENT), COMPARED: f" with what was there{again(COMPARED)}"}
    hints = {} if args.overwrite else hints
    parts = [
        f"{counts[state]} {state}{hints.get(state, '')}"
        for state in (RESTORED, COPIED, COMPARED, ALREADY_PRESENT, FAILED)
        if counts[state]
    ]
    place = str(args.output) if shard.count == 1 else f"{args.output}, shard {shard.index}/{shard.count}"
    total = f"{place}: {', '.join(parts) or 'nothing to do'}"
    print_result(total) if is_first_process() else note(total, any_process=True)
    try:
        if args.sheet:
            write_sheet(args.sheet, jobs, overwrite=args.overwrite, max_pixels=args.max_pixels)
    finally:
        wait_for_all()
    return 2 if counts[FAILED] else 0


@contextmanager
def _stop_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP stop the run as Ctrl-C does, so no unfinished file remains."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.getsignal(number) for number in numbers}
    numbers = [number for number in numbers if before[number] == signal.SIG_DFL]  # keeps SIGHUP ignored under nohup
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def check_weights(args: argparse.Namespace) -> None:
    """Raise UserError if the weights of ``--weights`` or ``--task`` do not exist; the hub is not queried."""
    if args.weights is None:
        if args.task not in (None, AUTO):
            installed_weights(args.task)
    elif not args.weights.is_file():
        from restormixer_arch.hub import find_local_weights  # takes a second, since it imports torch

        find_local_weights(args.weights)


def restorer_of(args: argparse.Namespace, weights: str | Path | None = None) -> Restorer | AutoRestorer:
    """Load ``weights`` if given, else ``--weights`` or ``--task``, with the settings of the command line.

    Returns:
        The restorer; an AutoRestorer for ``--task auto``.

    Raises:
        UserError: if the device, the weights or a setting cannot be used.
    """
    from restormixer_arch.inference.restorer import check_settings, load_restorer, pick_device

    limit_threads()
    gpu = gpu_of_process() if args.device == "auto" else "cuda"
    device = pick_device(args.device, weights or args.weights or "", gpu=gpu)  # an unusable device is reported first
    if args.task == AUTO and weights is None:
        from restormixer_arch.inference.auto import AutoRestorer

        check_settings(tile=args.tile, overlap=args.overlap, strength=args.strength)
        return AutoRestorer(lambda chosen: restorer_of(args, chosen))
    path = weights or args.weights or installed_weights(DEFAULT_TASK if args.task is None else args.task)
    names = ("tile", "overlap", "blend", "precision", "self_ensemble", "max_memory", "strength")
    restorer = load_restorer(path, device, **{name: getattr(args, name) for name in names})
    if args.precision == "auto":
        note(f"precision: {restorer.precision}")
    return restorer


# --- one file --------------------------------------------------------------------------------------------------------


def _restore_or_report(job: Job, restorer: Restorer | AutoRestorer, options: FileOptions, bar: tqdm) -> Outcome:
    """Restore one file; report remarks and failures."""
    name, started = printable(job.source.name, sys.stderr), time.monotonic()

    def show(unit: str, done: int, total: int) -> None:
        text = f"{name}, {unit} {done}"
        if total:
            text += f"/{total}"
        if 0 < done < total:
            left = round((time.monotonic() - started) / done * (total - done))
            text += f", {tqdm.format_interval(left)} left"
        bar.set_postfix_str(text)

    bar.set_postfix_str(name)
    outcome = Outcome()
    try:
        outcome = restore_file(job, restorer, options=options, show=show)
    except UserError as error:
        outcome.failures.append(str(error))
    except BrokenPipeError:  # the reader of stderr has exited
        raise
    except Exception as error:  # noqa: BLE001 - one odd file must not end the run
        from restormixer_arch.memory import is_out_of_memory

        reason = f"unexpected error ({exception_text(error)})"
        outcome.failures.append(f"{job.source}: {'not enough memory' if is_out_of_memory(error) else reason}")
    with tqdm.external_write_mode() if sys.stderr is not None else open(os.devnull) as _:
        for failure in outcome.failures:
            print_error(f"error: {failure}")
        for remark in outcome.remarks:  # about this process's files, so any process prints them
            note(remark, any_process=True)
    return outcome
