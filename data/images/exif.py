"""EXIF of a result: that of the input, but for what would describe the input's pixels."""

from __future__ import annotations

import struct

DIRECTORY = 34665  # the tag that points to the directory of further tags
SIZES, FURTHER_SIZES = (256, 257), (40962, 40963)  # tags of width and height, in the first directory and in that one
THUMBNAIL = {513, 273}  # tags of its place, as JPEG or as plain pixels
NUMBERS = {3: "H", 4: "I"}  # kinds of whole numbers, which TIFF calls SHORT and LONG


def exif_of_size(exif: bytes, width: int, height: int) -> bytes:
    """Return EXIF without its thumbnail and with this size where it has one; all else stays byte for byte."""
    prefix = exif[:6] if exif.startswith(b"Exif\0\0") else b""
    content = bytearray(exif[len(prefix) :])
    order = {b"II": "<", b"MM": ">"}.get(bytes(content[:2]))
    if order is None:
        return exif
    try:
        tags, end = _directory(content, _number(content, 4, order), order)
        _set_size(content, tags, SIZES, (width, height), order)
        following = _number(content, end, order)
        if following and THUMBNAIL & _directory(content, following, order)[0].keys():
            struct.pack_into("I", content, end, 0)
        if DIRECTORY in tags:
            further, _ = _directory(content, _number(content, tags[DIRECTORY] + 8, order), order)
            _set_size(content, further, FURTHER_SIZES, (width, height), order)
    except struct.error:  # it is damaged
        pass
    return prefix + bytes(content)


def _number(content: bytearray, place: int, order: str, kind: str = "I") -> int:
    return struct.unpack_from(order + kind, content, place)[0]


def _directory(content: bytearray, place: int, order: str) -> tuple[dict[int, int], int]:
    """Return the places of a directory's tags, and of the number that points to the next directory."""
    end = place + 2 + 12 * _number(content, place, order, "H")
    return {_number(content, entry, order, "H"): entry for entry in range(place + 2, end, 12)}, end


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
