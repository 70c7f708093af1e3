"""Copy the tags of a TIFF file as bytes, and adapt those that describe the size to the result.

A tag is a tuple of code, data type, count and content in the file's byte order, as tifffile's ``extratags`` are.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Any

import numpy as np
import tifffile
from tifffile import TiffFile

EXIF_TAGS = {34665: "EXIF", 34853: "GPS"}  # tags that point to a sub-directory
INTEROPERABILITY = 40965  # tag within EXIF that points to another directory
MAX_TAGS = 4096  # more tags in a directory mean that it is damaged
DESCRIPTION = 270
SHAPED = b'{"shape":'  # start of a description by tifffile
OME_PIXELS = re.compile(rb"<(?:\w+:)?Pixels\b[^>]*>")  # element of an OME description with the size of an image
PIXEL_SCALE, TIE_POINTS, TRANSFORMATION = 33550, 33922, 34264  # GeoTIFF tags that map pixels to coordinates
GEO_GROUP_SIZES = {PIXEL_SCALE: 3, TIE_POINTS: 6, TRANSFORMATION: 16}  # tag -> how many numbers form a group
GEO_KEYS, PIXEL_IS_POINT = 34735, (1025, 0, 1, 2)  # GeoTIFF's key tag, and its key for coordinates of pixel centers
DOUBLE = 12  # data type of a tag

Tag = tuple[int, int, int, bytes]


def read_at(tiff: TiffFile, offset: int, count: int) -> bytes:
    """Return ``count`` bytes of a file from ``offset`` on, fewer at its end."""
    tiff.filehandle.seek(offset)
    return tiff.filehandle.read(count)


def read_directories(tiff: TiffFile, place: int) -> tuple[dict[int, list[Tag]], list[str]]:
    """Read the EXIF and GPS tags of the page whose directory is at the offset ``place``.

    Returns:
        Code in :data:`EXIF_TAGS` -> tags, and descriptions of what is damaged.
    """
    found: dict[int, list[Tag]] = {}
    left_out, order = [], "little" if tiff.byteorder == "<" else "big"
    for code, kind, count, value in _entries(tiff, place):
        if code not in EXIF_TAGS:
            continue
        tags, damaged = [], False
        try:
            entries = _entries(tiff, int.from_bytes(_content(tiff, kind, count, value), order))
        except (ValueError, LookupError, struct.error):
            entries, damaged = [], True
        for tag, *entry in entries:
            try:
                tags += [] if tag == INTEROPERABILITY else [(tag, *entry[:2], _content(tiff, *entry))]
            except (ValueError, LookupError, struct.error):
                damaged = True
        if damaged:
            left_out.append(f"damaged {EXIF_TAGS[code]} tags")
        if tags:
            found[code] = tags
    return found, left_out


def _entries(tiff: TiffFile, place: int) -> list[tuple[int, int, int, bytes]]:
    """Return code, data type, count and value field of each tag of a directory.

    Raises:
        ValueError, struct.error: if it is damaged.
    """
    layout = tiff.tiff  # of classic or BigTIFF files
    if place >= tiff.filehandle.size:
        raise ValueError("a directory outside the file")
    [number] = struct.unpack(layout.tagnoformat, read_at(tiff, place, layout.tagnosize))
    if not 0 < number <= MAX_TAGS:
        raise ValueError(f"a directory of {number} tags")
    content = read_at(tiff, place + layout.tagnosize, number * layout.tagsize)
    if len(content) < number * layout.tagsize:
        raise ValueError("a truncated directory")
    return list(struct.iter_unpack(layout.tagheaderformat, content))


def _content(tiff: TiffFile, kind: int, count: int, value: bytes) -> bytes:
    """Return a tag's content. Raises ValueError if it is outside the file, LookupError if its type is unknown."""
    size = count * struct.calcsize(tifffile.TIFF.DATA_FORMATS[kind])
    if size <= len(value):
        return value[:size]
    [offset] = struct.unpack(tiff.tiff.offsetformat, value)
    if offset + size > tiff.filehandle.size:
        raise ValueError("a tag outside the file")
    return read_at(tiff, offset, size)


def with_directories(file: BytesIO, directories: dict[int, list[Tag]], order: str) -> bytes:
    """Append directories of tags to a TIFF file, and write their offsets into the tags that point to them."""
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        pointers = {code: tiff.pages[0].tags[code - 1] for code in directories}
    for code, tags in directories.items():
        start = file.seek(0, 2)
        start += file.write(bytes(start % 2))
        file.write(_packed(tags, start, order))
        file.seek(pointers[code].offset)
        file.write(struct.pack(f"{order}H", code))
        file.seek(pointers[code].valueoffset)
        file.write(struct.pack(f"{order}I", start))
    return file.getvalue()


def _packed(tags: list[Tag], start: int, order: str) -> bytes:
    """Return a directory of tags that will be at the offset ``start`` of a file."""
    place = start + 2 + 12 * len(tags) + 4
    entries, behind = b"", b""
    for code, kind, count, content in sorted(tags):
        value = content
        if len(content) > 4:
            value = struct.pack(f"{order}I", place + len(behind))
            behind += content + bytes(len(content) % 2)
        entries += struct.pack(f"{order}HHI4s", code, kind, count, value)
    return struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + behind


def adapted_tags(
    tags: Iterable[tuple[Any, ...]], shape: tuple[int, ...], scale: float, order: str
) -> Iterator[tuple[Any, ...]]:
    """Yield tags, with GeoTIFF's coordinates and the sizes in descriptions adapted to the result.

    Args:
        tags: code, data type, count, content and whether it is for one page only.
        shape: shape of the result: (H, W), or (H, W, C) with more than one channel.
        scale: how many times as long the sides of the result are.
        order: byte order, ``<`` or ``>``.
    """
    tags = list(tags)
    keys = b"".join(tag[3] for tag in tags if tag[0] == GEO_KEYS and isinstance(tag[3], bytes))
    keys = np.frombuffer(keys[: len(keys) // 8 * 8], f"{order}u2").reshape(-1, 4).tolist()
    corner = 0.5 if list(PIXEL_IS_POINT) in keys else 0.0  # distance of a pixel's coordinates from its corner
    for code, kind, count, content, once in tags:
        if scale != 1 and kind == DOUBLE and count % GEO_GROUP_SIZES.get(code, count + 1) == 0:
            content = _scaled_coordinates(code, content, scale, corner, order)
        elif code == DESCRIPTION and isinstance(content, bytes):
            content = _description_of_size(content, shape, scale)
            count = len(content)
        yield code, kind, count, content, once


def _scaled_coordinates(code: int, content: bytes, scale: float, corner: float, order: str) -> bytes:
    numbers = np.frombuffer(content, f"{order}f8").reshape(-1, GEO_GROUP_SIZES[code]).copy()
    if code == PIXEL_SCALE:
        numbers[:, :2] /= scale
    elif code == TIE_POINTS:
        numbers[:, :2] = (numbers[:, :2] + corner) * scale - corner
    else:
        rows = numbers.reshape(-1, 4)
        rows[:, 3] += rows[:, :2].sum(1) * (corner / scale - corner)
        rows[:, :2] /= scale
    return numbers.astype(f"{order}f8").tobytes()


def _description_of_size(content: bytes, shape: tuple[int, ...], scale: float) -> bytes:
    """Return a description with the shape that tifffile states, or the sizes that OME states, adapted to the result."""
    if content.startswith(SHAPED):
        try:
            described = json.loads(content.rstrip(b"\0"))
        except ValueError:
            return content
        if len(str(described.get("axes", ""))) != len(shape):
            described.pop("axes", None)
        return json.dumps({**described, "shape": shape}).encode() + b"\0"

    def adapt(found: re.Match[bytes]) -> bytes:
        element = found.group()
        for axis, side in ((b"X", shape[1]), (b"Y", shape[0])):
            element = re.sub(rb'(\bSize%s=")\d+' % axis, rb"\g<1>%d" % side, element)
            if scale != 1:
                size = re.compile(rb'(\bPhysicalSize%s=")(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)' % axis)
                element = size.sub(lambda number: number[1] + str(float(number[2]) / scale).encode(), element)
        return element

    return OME_PIXELS.sub(adapt, content, count=1)
