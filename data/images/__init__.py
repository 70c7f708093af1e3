"""Define the supported image and video formats and the pixel limit; importing this package loads no decoder."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from restormixer_arch.errors import UserError

T = TypeVar("T")

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")  # accepted in datasets
MORE_IMAGE_SUFFIXES = (".avif", ".heic", ".heif", ".hif", ".jfif", ".jpe")  # also accepted for restoring
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
VIDEO_FORMATS = {  # suffix -> FFmpeg's container name
    ".avi": "avi",
    ".m4v": "mp4",
    ".mkv": "matroska",
    ".mov": "mov",
    ".mp4": "mp4",
    ".webm": "webm",
}
OTHER_SUFFIXES = frozenset(  # images and videos that are not supported
    ".3gp .apng .arw .cr2 .cr3 .cur .dds .dng .exr .flv .gif .hdr .ico .j2k .jls .jp2 .jpf .jpx .jxl .m2ts .mpeg .mpg"
    " .mts .nef .ogv .orf .pam .pbm .pcx .pef .pfm .pnm .psb .psd .qoi .raf .rw2 .sgi .svg .tga .ts .wmv .xcf".split()
)

MAX_PIXELS = 178_956_970  # default limit for one image: 2**30 bytes / 6, above which Pillow raises an error
MAX_PIXELS_VARIABLE = "RESTORMIXER_MAX_PIXELS"  # environment variable that overrides the limit


def parse_pixels(text: str) -> int:
    """Parse a number of pixels such as ``200M``, ``0.5G`` or ``600``. Raises ValueError if it is invalid or 0."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d+)?)([kKmMgG]?)", text)
    number = int(float(found[1]) * {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}[found[2].lower()]) if found else 0
    if not number:
        raise ValueError(f"expected a number of pixels such as 200M, got {text!r}")
    return number


def pixel_limit() -> int:
    """Return the maximum number of pixels of an image in every command: a small file can claim to be huge.

    Raises:
        UserError: if the environment variable is set, but not to a number of pixels.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE, "")
    try:
        return parse_pixels(text) if text else MAX_PIXELS
    except ValueError as error:
        raise UserError(f"{MAX_PIXELS_VARIABLE}: {error}") from error


def override(exchange: Callable[[T], T], value: T) -> Callable[[], AbstractContextManager[None]]:
    """Return a context manager that overrides a process-wide setting; several threads may enter it at the same time.

    Args:
        exchange: function that sets the setting and returns its previous value.
        value: value of the setting until the last thread leaves.
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


# Pillow's own pixel limit is lower than what a user may allow. Check pixel_problem() before decoding.
without_pillow_limit = override(_exchange_pillow_limit, None)


def pixel_problem(width: int, height: int, limit: int | None = None) -> str:
    """Return why an image is too large, "" if it is not. ``limit`` is in pixels; None means :func:`pixel_limit`."""
    limit = limit or pixel_limit()
    if width * height <= limit:
        return ""
    return (
        f"Image size ({width * height} pixels) exceeds limit of {limit} pixels; if it is right, allow it by "
        f"the environment variable {MAX_PIXELS_VARIABLE}, or --max-pixels of 'basicsr restore'"
    )
