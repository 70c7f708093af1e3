"""Adapt the input's EXIF to the result: its size, orientation and thumbnail change, all other bytes are kept.

Pillow would rewrite the complete EXIF. That moves maker notes, whose tables contain offsets within the EXIF.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 274  # tag
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # orientation -> function that makes the image upright
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image, 1),
}
QUARTER_TURNS = (5, 6, 7, 8)  # orientations that swap width and height
RESOLUTIONS = (282, 283)  # tags of the horizontal and the vertical resolution
RAW_EXIF = "Raw profile type exif"  # text of a PNG file with EXIF as hexadecimal digits, after two lines and a length
EXIF_PREFIX = re.compile(rb"(Exif\0\0)*")
XMP_ORIENTATION = r'(tiff:Orientation(?:="|>))[2-8]'
DECODE_ERRORS = (OSError, SyntaxError, ValueError, struct.error, LookupError, TypeError, ArithmeticError)
DIRECTORY = 34665  # tag that points to the EXIF sub-directory
SIZES, FURTHER_SIZES = (256, 257), (40962, 40963)  # width and height tags in the main directory and in the EXIF one
THUMBNAIL = {513, 273}  # tags with the thumbnail's offset, as JPEG or as uncompressed pixels
NUMBERS = {3: "H", 4: "I"}  # integer types SHORT and LONG of TIFF -> struct format


def exif_of_size(exif: bytes, width: int, height: int) -> bytes:
    """Return the EXIF without its thumbnail, and with its size tags, if any, set to this size in pixels."""

    def change(content: bytearray, order: str) -> None:
        tags, end = _directory(content, _number(content, 4, order), order)
        _set_size(content, tags, SIZES, (width, height), order)
        following = _number(content, end, order)
        if following and THUMBNAIL & _directory(content, following, order)[0].keys():
            struct.pack_into("I", content, end, 0)
        if DIRECTORY in tags:
            further, _ = _directory(content, _number(content, tags[DIRECTORY] + 8, order), order)
            _set_size(content, further, FURTHER_SIZES, (width, height), order)

    return _changed(exif, change)


def upright_exif(exif: bytes, orientation: int = 1) -> bytes:
    """Return the EXIF with its orientation tag, if any, set to 1.

    Args:
        exif: EXIF of an image.
        orientation: orientation by which the pixels were made upright; quarter turns swap the two resolutions.
    """

    def change(content: bytearray, order: str) -> None:
        tags, _ = _directory(content, _number(content, 4, order), order)
        if orientation in QUARTER_TURNS and tags.keys() >= set(RESOLUTIONS):
            first, second = (slice(tags[tag] + 2, tags[tag] + 12) for tag in RESOLUTIONS)
            content[first], content[second] = content[second], content[first]
        if ORIENTATION in tags:
            struct.pack_into(f"{order}HIHH", content, tags[ORIENTATION] + 2, 3, 1, 1, 0)

    return _changed(exif, change)


def upright_info(image: Image.Image) -> tuple[int, dict[str, Any]]:
    """Return the orientation of a Pillow image (1 if missing or damaged), and the ``info`` of the upright image.

    Pillow reads the orientation from EXIF, or else from XMP. EXIF that would still rotate the image is removed.
    """
    info = dict(image.info)
    orientation = _orientation(image.getexif)
    if orientation == 1:
        return 1, info
    if orientation in QUARTER_TURNS and "dpi" in info:
        info["dpi"] = info["dpi"][::-1]
    if RAW_EXIF in info and "exif" not in info:
        info["exif"] = bytes.fromhex("".join(info[RAW_EXIF].split("\n")[3:]))  # as getexif() does
    if info.get("exif"):
        info["exif"] = upright_exif(info["exif"], orientation)
        if _orientation(partial(_load, info["exif"])) != 1:
            del info["exif"]
    for name in ("xmp", "XML:com.adobe.xmp"):
        if isinstance(info.get(name), bytes):
            info[name] = re.sub(XMP_ORIENTATION.encode(), rb"\g<1>1", info[name])
        elif info.get(name):
            info[name] = re.sub(XMP_ORIENTATION, r"\g<1>1", info[name])
    return orientation, info


def _load(exif: bytes) -> Image.Exif:
    loaded = Image.Exif()
    loaded.load(exif)
    return loaded


def _orientation(read: Callable[[], Image.Exif]) -> int:
    """Return the orientation in the EXIF that ``read`` returns, 1 if it is missing or damaged."""
    try:
        orientation = read().get(ORIENTATION, 1)
    except DECODE_ERRORS:
        return 1
    return orientation if orientation in UPRIGHT else 1


def _changed(exif: bytes, change: Callable[[bytearray, str], None]) -> bytes:
    """Apply ``change`` to the TIFF within the EXIF and its byte order; damaged parts are left unchanged."""
    prefix = EXIF_PREFIX.match(exif).group()
    content = bytearray(exif[len(prefix) :])
    order = {b"II": "<", b"MM": ">"}.get(bytes(content[:2]))
    if order is None:
        return exif
    try:
        change(content, order)
    except struct.error:
        pass
    return prefix + bytes(content)


def _number(content: bytearray, place: int, order: str, kind: str = "I") -> int:
    return struct.unpack_from(order + kind, content, place)[0]


def _directory(content: bytearray, place: int, order: str) -> tuple[dict[int, int], int]:
    """Return tag -> offset of each complete entry of a directory, and the offset of the pointer to the next one."""
    end = place + 2 + 12 * _number(content, place, order, "H")
    whole = range(place + 2, min(end, len(content) - 11), 12)
    return {_number(content, entry, order, "H"): entry for entry in whole}, end


def _set_size(
    content: bytearray, tags: dict[int, int], names: tuple[int, int], size: tuple[int, int], order: str
) -> None:
    for name, side in zip(names, size, strict=True):
        if name not in tags:
            continue
        entry = tags[name]
        kind, count = struct.unpack_from(f"{order}HI", content, entry + 2)
        if kind in NUMBERS and count == 1 and _number(content, entry + 8, order, NUMBERS[kind]) != side:
            if kind == 3 and side < 2**16:
                struct.pack_into(f"{order}HH", content, entry + 8, side, 0)
            else:
                struct.pack_into(f"{order}HII", content, entry + 2, 4, 1, side)
