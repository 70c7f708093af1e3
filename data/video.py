"""Video files frame by frame through OpenCV. Only the pictures are carried over: sound and subtitles are not.

OpenCV's writer drops the last row or column of an odd size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from restormixer_arch.errors import UserError

# Containers and what OpenCV's wheels encode into them everywhere, without a licensed or a machine's own encoder.
CODECS = {".avi": "MJPG", ".m4v": "mp4v", ".mkv": "mp4v", ".mov": "mp4v", ".mp4": "mp4v", ".webm": "VP80"}
DEFAULT_RATE = 25.0  # frames a second, where the file tells none


class VideoFrames:
    """The frames of a video, upright.

    Attributes:
        count: of the frames by the file's own account, often an estimate; 0 where it tells none.
        rate: frames a second.

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
        """Yield RGB uint8 (H, W, 3). Raises UserError: not even one frame can be decoded."""
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
    """Write one or more videos, each of a picture made from a frame and its restoration.

    Args:
        frames: the video to read.
        targets: file to write -> function of (frame, restored frame), all RGB uint8 (H, W, 3).
        restore: a frame -> its restoration.
        on_frame: called after each frame with its number, from 1.

    Returns:
        How many frames there were.

    Raises:
        UserError: a file cannot be written, or not even one frame can be read.
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
    return number


def _writer(path: Path, rate: float, width: int, height: int) -> cv2.VideoWriter:
    codec = CODECS[path.suffix.lower()]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, (width, height))
    if not writer.isOpened():
        raise UserError(f"{path}: cannot be written as a video of {width} x {height} pixels ({codec})")
    return writer
