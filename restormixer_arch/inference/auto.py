"""Choose the weights for each file of ``basicsr restore --task auto``; ``choose_task.py`` describes the method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from restormixer_arch.data.images.picture import read_picture
from restormixer_arch.errors import UserError
from restormixer_arch.inference.installed import installed_weights
from restormixer_arch.inference.jobs import Job
from restormixer_arch.inference.restorer import WHITE, Progress, Restorer, no_progress

FRAMES, STEP = 5, 8  # number of frames that are examined in a video, and the distance between them in frames


class IdentityRestorer:
    """A stand-in for a restorer that only converts its images to [0, 1]."""

    scale = 1

    def __call__(self, images: Tensor, on_tile: Progress = no_progress) -> Tensor:
        """Return the images as float32: (B, C, H, W) -> (B, C, H, W)."""
        return images.to(torch.float32) / WHITE.get(images.dtype, 1)


class AutoRestorer:
    """Restorers by task, each loaded when a file first needs it.

    Args:
        load: function that returns the restorer of a weight file.
    """

    def __init__(self, load: Callable[[Path], Restorer]) -> None:
        self.load = load
        self._loaded: dict[str, Restorer] = {}

    def choose(self, job: Job, max_pixels: int | None) -> tuple[Restorer | IdentityRestorer, str]:
        """Return the restorer for a file, and a line for the user that explains the choice.

        Raises:
            UserError: if the file cannot be read or the weights cannot be loaded.
        """
        from restormixer_arch.inference.choose_task import CLEAN, MIN_PROBABILITY, choose_task

        choice = choose_task(_images(job, max_pixels))  # frees the images before load() records the memory in use
        text = f"{choice.task} ({choice.probability:.0%})"
        if choice.task == CLEAN:
            return IdentityRestorer(), f"{job.source}: {text}; copied unchanged"
        if choice.probability < MIN_PROBABILITY:
            return IdentityRestorer(), f"{job.source}: uncertain, perhaps {text}; copied unchanged"
        if choice.task not in self._loaded:
            try:
                self._loaded[choice.task] = self.load(installed_weights(choice.task))
            except UserError as error:
                raise UserError(f"{job.source}: {error}") from error
        return self._loaded[choice.task], f"{job.source}: {text}"


def _images(job: Job, max_pixels: int | None) -> list[np.ndarray]:
    """Return the pixels of an image, or a few frames from the beginning of a video."""
    if not job.is_video:
        return [read_picture(job.source, max_pixels).pixels]
    from restormixer_arch.data.images.picture import split_alpha
    from restormixer_arch.data.images.video import VideoFrame, VideoSource

    source = VideoSource(job.source, max_pixels)
    try:
        frames: Iterator[np.ndarray] = (item.planes for item in source.packets() if isinstance(item, VideoFrame))
        return [split_alpha(planes)[0] for planes in islice(frames, 0, FRAMES * STEP, STEP)]
    finally:
        source.close()
