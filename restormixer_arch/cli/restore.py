"""``basicsr restore``: restore your own images and videos, without ground truth or option file.

The files to read and write are settled before the first is read. Names are kept: ``photo.jpg`` goes to
``out/photo.jpg``, and ``holiday/sea/1.jpg`` of the folder ``holiday`` to ``out/sea/1.jpg``. An output is written under
a temporary name and renamed when it is complete.
"""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from restormixer_arch.atomic_write import PART, atomic_paths
from restormixer_arch.cli.parsing import Parser, positive_number, whole_number
from restormixer_arch.data.images import IMAGE_SUFFIXES, VIDEO_CODECS
from restormixer_arch.errors import UserError, not_found
from restormixer_arch.memory import parse_bytes
from restormixer_arch.output import complain, is_first_process, note, say

if TYPE_CHECKING:
    import numpy as np

    from restormixer_arch.inference.restorer import Restorer

DESCRIPTION = """Restore images and videos. Folders are read with their sub-folders; names are kept; files that exist
already are skipped. Depth, gray, alpha, color profile and metadata are kept, the EXIF orientation is applied; a video's
sound is not kept. Exit code 2 if a file could not be restored; the others are."""
SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_CODECS)
Show = Callable[[str, int, int], None]  # unit, number done, number of all or 0 if unknown


@dataclass(frozen=True)
class Job:
    """One file to restore.

    Attributes:
        source: the image or video.
        target: where its restoration goes.
        pair: where the image or video of before and after goes, or None.
    """

    source: Path
    target: Path
    pair: Path | None = None

    @property
    def is_video(self) -> bool:
        return self.source.suffix.lower() in VIDEO_CODECS

    @property
    def outputs(self) -> list[Path]:
        return [self.target] if self.pair is None else [self.target, self.pair]


def parser() -> Parser:
    parser = Parser("restore", DESCRIPTION)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="file, folder, or pattern in quotes")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write into")
    add_settings(parser)
    parser.add_argument("--overwrite", action="store_true", help="restore and replace files that exist already")
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
        help="average over 8 flips and turns, 8 times slower; not for rain, which always falls down",
    )
    parser.add_argument(
        "--strength",
        type=_share,
        default=1.0,
        metavar="S",
        help="from 0, the input, to 1, the restored image (default 1)",
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


def _memory(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def run(arguments: list[str]) -> int:
    """Restore the files. Returns the exit code: 0, 2 if a file could not be restored, 130 if stopped."""
    args = parser().parse_args(arguments)
    jobs = find_jobs(args.inputs, args.output, compare=args.compare)
    todo = [job for job in jobs if args.overwrite or not all(output.exists() for output in job.outputs)]
    restored, failed = 0, 0
    if todo:
        restorer = restorer_of(args)
        make_folder(args.output)
        try:
            with tqdm(todo, desc="restore", unit="file", disable=None, dynamic_ncols=True) as bar:
                for job in bar:
                    if _restore_or_report(job, restorer, args.overwrite, bar):
                        restored += 1
                    else:
                        failed += 1
        except KeyboardInterrupt:
            hint = "" if args.overwrite else "; run the same command again for the rest"
            complain(f"stopped after {restored + failed} of {len(todo)} files{hint}")
            return 130
    parts = [f"{restored} restored", f"{len(jobs) - len(todo)} already there", f"{failed} failed"]
    say(f"{args.output}: {', '.join(part for part in parts if not part.startswith('0 ')) or 'nothing to do'}")
    return 2 if failed else 0


def restorer_of(args: argparse.Namespace, weights: str | Path | None = None) -> Restorer:
    """Load ``weights``, or else ``--weights`` or ``--task``, with the settings of the command line.

    Raises:
        UserError: the device, the weights or a setting cannot be used.
    """
    from restormixer_arch.inference.restorer import load_restorer, pick_device
    from restormixer_arch.inference.weights import DEFAULT_TASK, shipped_weights

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
        strength=args.strength,
    )


# --- which files -----------------------------------------------------------------------------------------------------


def find_jobs(inputs: Sequence[str], out: Path, *, compare: bool = False) -> list[Job]:
    """Find the files to restore and where their results go.

    Args:
        inputs: files, folders (with their sub-folders), and patterns such as ``"holiday/**/*.jpg"``.
        out: the folder to write into; it is not read if it is inside an input folder.
        compare: also write ``<name>_compare.<suffix>``.

    Raises:
        UserError: an input does not exist, cannot be read, is not an image or video, or contains none; two outputs
            would have the same name; or an output would replace an input.
    """
    jobs: dict[Path, Job] = {}  # by source: an input may be given twice
    for text in inputs:
        found = _named_files(text, out)
        for source, name in found:
            target = out / name
            pair = target.with_name(f"{target.stem}_compare{target.suffix}") if compare else None
            jobs.setdefault(source.parent.resolve() / source.name, Job(source, target, pair))  # a link keeps its name
    sources = {source.resolve() for source in jobs}
    writers: dict[Path, Path] = {}
    for job in jobs.values():
        for output in job.outputs:
            place = output.resolve()
            if place in sources:
                raise UserError(f"-o: {output} is an input itself and would be replaced; give another folder")
            if place in writers:
                raise UserError(
                    f"{job.source}: would be written to {output}, and so would {writers[place]}; "
                    "restore them into different folders"
                )
            writers[place] = job.source
    return list(jobs.values())


def _named_files(text: str, out: Path) -> list[tuple[Path, Path]]:
    """Return the files of one argument, and their names below the output folder."""
    given = Path(text).expanduser()
    if given.is_dir():
        files = _files_below(given, out)
        if not files:
            raise UserError(f"{text}: no image or video in this folder ({' '.join(SUFFIXES)})")
        return [(file, file.relative_to(given)) for file in files]
    if given.exists():
        if given.suffix.lower() not in SUFFIXES:
            raise UserError(f"{text}: is not an image or video by its name, expected one of {' '.join(SUFFIXES)}")
        return [(given, Path(given.name))]
    if not glob.has_magic(text):
        raise UserError(f"{text}: {not_found(text)}")
    matches = sorted(Path(match) for match in glob.glob(str(given), recursive=True))
    files = [match for match in matches if match.suffix.lower() in SUFFIXES and match.is_file()]
    if not files:
        raise UserError(f"{text}: matches no image or video ({' '.join(SUFFIXES)})")
    return [(file, Path(file.name)) for file in files]


def _files_below(folder: Path, out: Path) -> list[Path]:
    def refuse(error: OSError) -> None:  # rglob would silently skip the folder
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error

    paths = [Path(place, name) for place, _, names in os.walk(folder, onerror=refuse) for name in names]
    results = None if out.resolve() == folder.resolve() else out.resolve()
    return [
        path
        for path in sorted(paths)
        if path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
        and (results is None or results not in path.resolve().parents)
    ]


def make_folder(folder: Path) -> None:
    """Make an output folder. Raises UserError if it cannot be made or written into."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o: {str(folder)!r} cannot be created ({error.strerror})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"-o: {str(folder)!r} cannot be written into (permission denied)")


# --- one file --------------------------------------------------------------------------------------------------------


def _restore_or_report(job: Job, restorer: Restorer, overwrite: bool, bar: tqdm) -> bool:
    """Restore one file; report a UserError and return False."""

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


def restore_file(job: Job, restorer: Restorer, *, overwrite: bool, show: Show) -> str:
    """Restore one file. Outputs that exist already are replaced only with ``overwrite``.

    Returns:
        What the user should know about the result, or "".

    Raises:
        UserError: the file cannot be read, or the result not written.
    """
    make_folder(job.target.parent)
    wanted = [output for output in job.outputs if overwrite or not output.exists()]
    try:
        with atomic_paths(wanted) as parts:
            places = dict(zip(wanted, parts, strict=True))
            restore = _restore_video if job.is_video else _restore_image
            return restore(job, places, restorer, show)
    except UserError as error:
        raise UserError(str(error).replace(f"{os.sep}{PART}", os.sep)) from error
    except OSError as error:  # of the file system: disk full, no permission
        raise UserError(f"{job.target}: cannot be written ({error.strerror or error})") from error


def _restore_image(job: Job, places: dict[Path, Path], restorer: Restorer, show: Show) -> str:
    from restormixer_arch.data.images.picture import Picture, read_picture, split_alpha, write_picture
    from restormixer_arch.inference.restore import restore_picture, side_by_side

    picture = read_picture(job.source)
    try:
        result = restore_picture(restorer, picture, lambda done, total: show("tile", done, total))
    except UserError as error:
        raise UserError(f"{job.source}: {error}") from error
    if job.target in places:
        write_picture(result, places[job.target])
    if job.pair in places:
        pixels, alpha = split_alpha(side_by_side(picture.planes, result.planes))
        write_picture(Picture(pixels, alpha, result.format, result.metadata), places[job.pair])
    return ""


def _restore_video(job: Job, places: dict[Path, Path], restorer: Restorer, show: Show) -> str:
    from restormixer_arch.data.images.picture import Picture
    from restormixer_arch.data.images.video import VideoFrames, transform_video
    from restormixer_arch.inference.restore import restore_picture, side_by_side

    frames = VideoFrames(job.source)
    kinds = {job.target: lambda before, after: after, job.pair: side_by_side}

    def restore(frame: np.ndarray) -> np.ndarray:
        return restore_picture(restorer, Picture(frame)).pixels

    number = transform_video(
        frames,
        {part: kinds[output] for output, part in places.items()},
        restore,
        lambda done: show("frame", done, frames.count),
    )
    if number < frames.count:
        return f"{job.source}: only {number} of its {frames.count} frames could be decoded"
    return ""
