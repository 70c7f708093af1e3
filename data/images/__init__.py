"""Image and video files. Importing this package loads no decoder."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from restormixer_arch.errors import UserError

T = TypeVar("T")

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")  # of datasets
MORE_IMAGE_SUFFIXES = (".avif", ".heic", ".heif", ".hif", ".jfif", ".jpe")  # that can be restored
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
VIDEO_FORMATS = {  # suffix -> FFmpeg's name of the container
    ".avi": "avi",
    ".m4v": "mp4",
    ".mkv": "matroska",
    ".mov": "mov",
    ".mp4": "mp4",
    ".webm": "webm",
}
OTHER_SUFFIXES = frozenset(  # images and videos that are not read
    ".3gp .apng .arw .cr2 .cr3 .cur .dds .dng .exr .flv .gif .hdr .ico .j2k .jls .jp2 .jpf .jpx .jxl .m2ts .mpeg .mpg"
    " .mts .nef .ogv .orf .pam .pbm .pcx .pef .pfm .pnm .psb .psd .qoi .raf .rw2 .sgi .svg .tga .ts .wmv .xcf".split()
)

MAX_PIXELS = 178_956_970  # of an image, unless the user allows more: 2**30 bytes / 6, where Pillow has its limit
MAX_PIXELS_VARIABLE = "RESTORMIXER_MAX_PIXELS"  # the environment variable that allows more


def parse_pixels(text: str) -> int:
    """Return a number of pixels such as ``200M``, ``0.5G`` or ``600``. Raises ValueError if it is not one, or 0."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d+)?)([kKmMgG]?)", text)
    number = int(float(found[1]) * {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}[found[2].lower()]) if found else 0
    if not number:
        raise ValueError(f"expected a number of pixels such as 200M, got {text!r}")
    return number


def pixel_limit() -> int:
    """Return the most pixels that an image may have, in every command: a small file can claim to be huge.

    Raises:
        UserError: the environment variable is set, but not to a number of pixels.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE, "")
    try:
        return parse_pixels(text) if text else MAX_PIXELS
    except ValueError as error:
        raise UserError(f"{MAX_PIXELS_VARIABLE}: {error}") from error


def override(exchange: Callable[[T], T], value: T) -> Callable[[], AbstractContextManager[None]]:
    """Return a context manager that overrides a setting of the whole process; several threads may be inside at once.

    Args:
        exchange: sets the setting and returns its previous value.
        value: of the setting, until the last thread leaves.
    """
    previous: list[T] = []
    lock = threading.Lock()

    @contextmanager
    def overridden() -> Iterator[None]:
        with lock:
            previous.append(exchange(value))
        try:
            yield
        finally:
            with lock:
                exchange(previous.pop())

    return overridden


def _exchange_pillow_limit(limit: int | None) -> int | None:
    from PIL import Image

    previous, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limit
    return previous


# Pillow's own limit of pixels is lower than what a user may allow. Check with pixel_problem() before decoding.
without_pillow_limit = override(_exchange_pillow_limit, None)


def pixel_problem(width: int, height: int, limit: int | None = None) -> str:
    """Return what is wrong with the size of an image, "" if nothing is. ``limit`` is in pixels; None for the usual."""
    limit = limit or pixel_limit()
    if width * height <= limit:
        return ""
    return (
        f"Image size ({width * height} pixels) exceeds limit of {limit} pixels; if it is right, allow it by "
        f"the environment variable {MAX_PIXELS_VARIABLE}, or --max-pixels of 'basicsr restore'"
    )
