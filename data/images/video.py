"""Read and write video files frame by frame with OpenCV. Sound and subtitles are not kept.

OpenCV's writer drops the last row or column of an odd size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from restormixer_arch.data.images import VIDEO_CODECS
from restormixer_arch.errors import UserError

DEFAULT_RATE = 25.0  # frames per second, for files that do not say


class VideoFrames:
    """The frames of a video, upright.

    Attributes:
        count: number of frames according to the file, often an estimate; 0 if it does not say.
        rate: frames per second.

    Raises:
        UserError: OpenCV cannot open the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise UserError(f"{path}: cannot be read as a video")
        self.count = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.rate = self._capture.get(cv2.CAP_PROP_FPS) or DEFAULT_RATE

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield RGB uint8 (H, W, 3). Raises UserError if no frame can be decoded."""
        number = 0
        try:
            while True:
                read, frame = self._capture.read()
                if not read:
                    break
                number += 1
                yield np.ascontiguousarray(frame[..., ::-1])
        finally:
            self._capture.release()
        if number == 0:
            raise UserError(f"{self.path}: cannot be read as a video (no frame can be decoded)")


def transform_video(
    frames: VideoFrames,
    targets: dict[Path, Callable[[np.ndarray, np.ndarray], np.ndarray]],
    restore: Callable[[np.ndarray], np.ndarray],
    on_frame: Callable[[int], None],
) -> int:
    """Restore a video and write one or more videos from its frames and their restorations.

    Args:
        frames: the video to read.
        targets: file to write -> function of (frame, restored frame) that returns the frame to write; all are RGB
            uint8 (H, W, 3).
        restore: restores a frame.
        on_frame: called after each frame with its number, from 1.

    Returns:
        The number of frames.

    Raises:
        UserError: a file cannot be written, or no frame can be read.
    """
    writers: dict[Path, cv2.VideoWriter] = {}
    number = 0
    try:
        for number, frame in enumerate(frames, start=1):
            result = restore(frame)
            for path, compose in targets.items():
                picture = compose(frame, result)
                if path not in writers:
                    writers[path] = _writer(path, frames.rate, picture.shape[1], picture.shape[0])
                writers[path].write(np.ascontiguousarray(picture[..., ::-1]))
            on_frame(number)
    finally:
        for writer in writers.values():
            writer.release()
    for path in targets:
        _check_complete(path, number)
    return number


def _check_complete(path: Path, number: int) -> None:
    """Raise UserError if the file holds fewer than ``number`` frames: OpenCV's writers do not report a full disk."""
    capture = cv2.VideoCapture(str(path))
    held = 0
    while capture.grab():
        held += 1
    capture.release()
    if held < number:
        raise UserError(f"{path}: cannot be written (it holds {held} of {number} frames; is the disk full?)")


def _writer(path: Path, rate: float, width: int, height: int) -> cv2.VideoWriter:
    codec = VIDEO_CODECS[path.suffix.lower()]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, (width, height))
    if not writer.isOpened():
        raise UserError(f"{path}: cannot be written as a video of {width} x {height} pixels ({codec})")
    return writer
