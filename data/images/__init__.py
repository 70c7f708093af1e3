"""Image and video files. Importing this package loads no decoder."""

from __future__ import annotations

import os

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")  # of data sets
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

MOST_PIXELS = 178_956_970  # of an image, unless the user allows more: 2**30 bytes / 6, where Pillow has its limit
MOST_PIXELS_VARIABLE = "RESTORMIXER_MAX_PIXELS"  # the environment variable that allows more


def pixel_limit() -> int:
    """Return the most pixels that an image may have, in every command: a small file can claim to be huge."""
    text = os.environ.get(MOST_PIXELS_VARIABLE, "")
    return int(text) if text.isdigit() and int(text) > 0 else MOST_PIXELS


def pixel_problem(width: int, height: int, limit: int | None = None) -> str:
    """Return what is wrong with the size of an image, "" if nothing is. ``limit`` is in pixels; None for the usual."""
    limit = limit or pixel_limit()
    if width * height <= limit:
        return ""
    return (
        f"Image size ({width * height} pixels) exceeds limit of {limit} pixels; if it is right, allow it by "
        f"the environment variable {MOST_PIXELS_VARIABLE}, or --max-pixels of 'basicsr restore'"
    )
