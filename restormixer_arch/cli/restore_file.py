"""Restore one file, a picture or a video, into files that appear when they are whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from restormixer_arch.data.pictures import Picture, read_picture, split_alpha, write_picture
from restormixer_arch.data.restore_jobs import Job, make_folder
from restormixer_arch.data.video import VideoFrames, transform_video
from restormixer_arch.errors import UserError
from restormixer_arch.models.restore import Restorer
from restormixer_arch.models.restore_image import restore_picture, side_by_side
from restormixer_arch.whole_files import PART, whole

Show = Callable[[str, int, int], None]  # unit, how many are done, how many there are or 0


def restore_file(job: Job, restorer: Restorer, *, overwrite: bool, show: Show) -> str:
    """Restore one file. What is there already is written anew only with ``overwrite``.

    Returns:
        What the user should know about the result, or "".

    Raises:
        UserError: the file cannot be read, or the result not written.
    """
    make_folder(job.target.parent)
    wanted = [output for output in job.outputs if overwrite or not output.exists()]
    try:
        with whole(wanted) as parts:
            places = dict(zip(wanted, parts, strict=True))
            work = _restore_video if job.is_video else _restore_picture
            return work(job, places, restorer, show)
    except UserError as error:
        raise UserError(str(error).replace(f"{os.sep}{PART}", os.sep)) from error
    except OSError as error:  # of the file system: disk full, no permission
        raise UserError(f"{job.target}: cannot be written ({error.strerror or error})") from error


def _restore_picture(job: Job, places: dict[Path, Path], restorer: Restorer, show: Show) -> str:
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
