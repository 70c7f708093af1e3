"""Restore one image or video file, and optionally write an image or video of before and after next to the result.

An output is written under a temporary name and renamed when it is complete.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from restormixer_arch.data.images import VIDEO_FORMATS
from restormixer_arch.errors import UserError
from restormixer_arch.inference.jobs import Job, make_folder
from restormixer_arch.output import PART, atomic_paths

if TYPE_CHECKING:
    import numpy as np

    from restormixer_arch.data.images.picture import Picture
    from restormixer_arch.inference.auto import AutoRestorer
    from restormixer_arch.inference.restorer import Restorer

MAX_SCALE = 8  # maximum upscale factor of a network
MAX_VIDEO_SIDE = 16384  # longest side in pixels that the encoders accept
RESTORED, COPIED, COMPARED = "restored", "copied unchanged", "compared"
ALREADY_PRESENT, FAILED = "already there", "failed"
Show = Callable[[str, int, int], None]  # (unit, number done, total number or 0 if unknown)


@dataclass(frozen=True)
class FileOptions:
    """Options for reading and writing files: ``--max-pixels``, ``--video-quality`` and ``--overwrite``."""

    max_pixels: int | None = None
    video_quality: int | None = None
    overwrite: bool = False


@dataclass
class Outcome:
    """The result of processing a file, to report to the user.

    Attributes:
        kind: kind of the file that was written, such as PNG.
        left_out: content of the input that the written file does not contain.
        remarks: notes for the user.
        failures: error messages about outputs that could not be written.
        done: ``RESTORED``; ``COPIED``; ``COMPARED`` if ``pair`` was created from an existing result; or
            ``ALREADY_PRESENT`` if all outputs existed.
    """

    kind: str = ""
    left_out: tuple[str, ...] = ()
    remarks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    done: str = RESTORED

    @property
    def counted_as(self) -> str:
        return FAILED if self.failures else self.done


def output_exists(output: Path) -> bool:
    """Return whether an output exists and is not a folder."""
    return os.path.exists(output) and not os.path.isdir(output)


def restore_file(job: Job, restorer: Restorer | AutoRestorer, *, options: FileOptions, show: Show) -> Outcome:
    """Restore one file. Existing outputs are replaced only with ``options.overwrite``.

    Another process may have written them since the files were listed. If only ``job.pair`` is missing, it is created
    from the existing result, which may come from other weights.

    Raises:
        UserError: if the file cannot be read or the result cannot be written.
    """
    make_folder(job.target.parent)
    for output in filter(os.path.isdir, job.outputs):
        raise UserError(f"{output}: is a folder, so the result of {job.source} cannot be written there")
    wanted = [output for output in job.outputs if options.overwrite or not output_exists(output)]
    if not wanted:
        return Outcome(done=ALREADY_PRESENT)
    restore = _restore_video if job.is_video else _restore_image
    with _errors_of_writing(job.target):
        from restormixer_arch.inference.auto import AutoRestorer, IdentityRestorer

        if job.target not in wanted:
            return _pair_of_result(job, options)
        if not isinstance(restorer, AutoRestorer):
            return restore(job, wanted, restorer, options, show)
        chosen, remark = restorer.choose(job, options.max_pixels)
        copied = isinstance(chosen, IdentityRestorer)
        if copied:
            wanted.remove(job.target)
            with atomic_paths([job.target]) as [part]:
                shutil.copyfile(job.source, part)
        outcome = restore(job, wanted, chosen, options, show) if wanted else Outcome()
        return replace(outcome, remarks=[remark, *outcome.remarks], done=COPIED if copied else RESTORED)


@contextmanager
def _errors_of_writing(target: Path) -> Iterator[None]:
    """Turn file system errors into UserErrors, and replace temporary file names in messages by the final ones."""
    try:
        yield
    except UserError as error:
        raise UserError(PART.sub("", str(error))) from error
    except OSError as error:  # such as a full disk or missing permission
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error


def _restore_image(job: Job, wanted: list[Path], restorer: Restorer, options: FileOptions, show: Show) -> Outcome:
    from restormixer_arch.data.images.picture import read_picture, size_problem, with_writable_metadata
    from restormixer_arch.inference.restore import restore_picture

    picture = with_writable_metadata(read_picture(job.source, options.max_pixels), job.source)
    outcome = Outcome(picture.format, picture.left_out)
    height, width = (restorer.scale * side for side in picture.pixels.shape[:2])
    if problem := size_problem(picture.format, width, height):
        raise UserError(f"{job.source}: the result cannot be written: {problem}")
    if job.pair in wanted and (problem := size_problem(picture.format, 2 * width, height)):
        outcome.failures.append(f"{job.pair}: cannot be written: {problem}")
        wanted = [output for output in wanted if output != job.pair]
    if not wanted:
        return outcome
    try:
        result = restore_picture(restorer, picture, lambda done, total: show("tile", done, total))
    except UserError as error:
        raise UserError(f"{job.source}: {error}") from error
    if job.target in wanted:
        _write(result, job.target)
    if job.pair in wanted:
        try:
            _write_pair(picture, result, job.pair)
        except UserError as error:  # the result itself exists
            outcome.failures.append(str(error))
    return outcome


def _pair_of_result(job: Job, options: FileOptions) -> Outcome:
    """Write the image of before and after for an existing result.

    Raises:
        UserError: if the result cannot be read, does not belong to this input, or is a video.
    """
    from restormixer_arch.data.images.picture import read_picture, size_problem, with_writable_metadata

    if job.is_video:
        raise UserError(f"{job.pair}: is made together with {job.target}, which exists already; --overwrite makes both")
    before = read_picture(job.source, options.max_pixels)
    try:
        result = with_writable_metadata(read_result(job.target, options.max_pixels), job.target)
    except UserError as error:
        if isinstance(error.__cause__, MemoryError):  # the result may be intact
            raise
        raise UserError(f"{error}; --overwrite replaces it") from error
    (height, width, *channels), (tall, wide, *others) = before.planes.shape, result.planes.shape
    if (tall * width, channels, before.planes.dtype) != (wide * height, others, result.planes.dtype):
        raise UserError(f"{job.target}: already exists and was not restored from {job.source}; --overwrite replaces it")
    if problem := size_problem(result.format, 2 * wide, tall):
        raise UserError(f"{job.pair}: cannot be written: {problem}")
    _write_pair(before, result, job.pair)
    return Outcome(result.format, result.left_out, done=COMPARED)


def read_result(path: Path, max_pixels: int | None) -> Picture:
    """Read a result, which may exceed the pixel limit of inputs. Raises UserError if it cannot be read."""
    from restormixer_arch.data.images import pixel_limit
    from restormixer_arch.data.images.picture import read_picture

    return read_picture(path, MAX_SCALE**2 * (max_pixels or pixel_limit()))


def _write_pair(before: Picture, result: Picture, path: Path) -> None:
    from restormixer_arch.data.images.picture import Picture, split_alpha
    from restormixer_arch.inference.restore import side_by_side

    pixels, alpha = split_alpha(side_by_side(before.planes, result.planes))
    _write(Picture(pixels, alpha, result.format, result.metadata), path)


def _write(picture: Picture, path: Path) -> None:
    from restormixer_arch.data.images import picture as pictures

    with _errors_of_writing(path), atomic_paths([path]) as [part]:
        pictures.write_picture(picture, part)


def _restore_video(job: Job, wanted: list[Path], restorer: Restorer, options: FileOptions, show: Show) -> Outcome:
    from restormixer_arch.data.images.picture import Picture, split_alpha
    from restormixer_arch.data.images.video import VideoSource
    from restormixer_arch.data.images.video_writer import QUALITY, transform_video
    from restormixer_arch.inference.restore import restore_picture, side_by_side

    source = VideoSource(job.source, options.max_pixels)
    outcome = Outcome(f"videos in {VIDEO_FORMATS[job.target.suffix.lower()]}")
    try:
        longest = restorer.scale * max(source.stream.width, source.stream.height)
        if longest > MAX_VIDEO_SIDE:
            raise UserError(f"{job.source}: a result of {longest} pixels on a side is more than videos hold")
        if job.pair in wanted and 2 * longest > MAX_VIDEO_SIDE:
            outcome.failures.append(f"{job.pair}: cannot be written: it would have {2 * longest} pixels on a side")
            wanted = [output for output in wanted if output != job.pair]
        if not wanted:
            return outcome
        kinds = {job.target: lambda before, after: after, job.pair: side_by_side}

        def restore(frame: np.ndarray) -> np.ndarray:
            try:
                return restore_picture(restorer, Picture(*split_alpha(frame))).planes
            except UserError as error:
                raise UserError(f"{job.source}: {error}") from error

        with atomic_paths(wanted) as parts:
            transform_video(
                source,
                {part: kinds[output] for output, part in zip(wanted, parts, strict=True)},
                restore,
                lambda done: show("frame", done, source.expected),
                QUALITY if options.video_quality is None else options.video_quality,
            )
    finally:
        source.close()
    outcome.left_out = tuple(sorted(source.left_out))
    outcome.remarks += [f"{job.source}: {problem}" for problem in source.problems]
    return outcome
