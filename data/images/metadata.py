"""Keep the metadata of the formats that Pillow both reads and writes: JPEG, WebP, AVIF, HEIF and BMP."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from restormixer_arch.data.images.exif import DECODE_ERRORS

QUALITY = 95
IPTC = b"Photoshop 3.0\0"
LONG_XMP = b"http://ns.adobe.com/xmp/extension/\0"
KNOWN = {  # JPEG segments that Pillow keeps, or that belong to the pixels
    "APP0": (b"JFIF\0",),
    "APP1": (b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0"),
    "APP2": (b"ICC_PROFILE\0", b"MPF\0"),  # MPF lists further images, which _left_out() reports
    "APP14": (b"Adobe",),
}
COPIED = {"APP1": (LONG_XMP,), "APP13": (IPTC,)}  # segments that are copied unchanged
SRGB = ((b"\0\1", b"\0\r"), (b"\0\2", b"\0\2"), (b"\0\1", b"\0\1"))  # (primaries, transfer) that are not reported
NCLX = ("color_primaries", "transfer_characteristics", "matrix_coefficients")  # fields of a HEIF file's color space
HEAD = 2**16  # bytes at the start of an AVIF file that contain its properties
MARKER = re.compile(rb"\xff[^\0\xff\xd0-\xd7]")  # marker of a JPEG segment; the others occur within the pixels
START, END = 0xD8, 0xD9  # JPEG markers without a length field
PADDING = 4  # maximum bytes after an image that are ignored, not counting filler such as zeros and line ends
TRAILING_DATA = "data behind the image, such as a motion photo's video"


def metadata_of(image: Image.Image, info: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the arguments for Pillow's ``save``, given an image as opened and the ``info`` of the upright image."""
    kind = image.format
    kept = {name: info[name] for name in ("icc_profile", "dpi") if info.get(name)}
    if kind == "BMP":
        return {name: value for name, value in kept.items() if name == "dpi"}
    if kind == "PPM":
        return {}
    kept |= {name: info[name] for name in ("exif", "xmp") if info.get(name)}  # original bytes if it was upright
    if kind == "WEBP":
        return {**kept, **({"lossless": True, "exact": True} if is_lossless(path) else {"quality": QUALITY})}
    if kind == "HEIF":
        colors = info.get("nclx_profile") or {}
        kept |= {name: colors[name] for name in NCLX if name in colors}
        return {**kept, "quality": QUALITY, "chroma": 444}
    if kind == "AVIF" and image.mode == "L":
        return {**kept, "quality": QUALITY}  # any subsampling but 4:0:0 would make it a color image
    kept |= {"quality": QUALITY, "subsampling": "4:4:4"}
    if kind == "AVIF":
        return kept
    kept |= {"comment": info["comment"]} if info.get("comment") else {}
    extra = b"".join(
        struct.pack(">BBH", 0xFF, 0xE0 + int(name[3:]), 2 + len(data)) + data
        for name, data in image.applist
        if data.startswith(COPIED.get(name, ())) and len(data) < 65534
    )
    return {**kept, **({"extra": extra} if extra else {})}


def left_out(image: Image.Image, path: Path) -> tuple[str, ...]:
    """Return descriptions of what a file contains and :func:`metadata_of` cannot keep."""
    return tuple(dict.fromkeys(_left_out(image, path)))


def _left_out(image: Image.Image, path: Path) -> Iterator[str]:
    kind = image.format
    if kind in ("JPEG", "MPO"):
        for name, data in image.applist:
            if not data.startswith((*KNOWN.get(name, ()), *COPIED.get(name, ()))) and name != "COM":
                yield f"{name} {_label(data)}".strip()
        if [name for name, _ in image.applist].count("COM") > 1:
            yield "comments but the last one"
    if kind == "JPEG" and is_data(after_jpeg(path.read_bytes())):
        yield TRAILING_DATA
    others = getattr(image, "n_frames", 1) - 1
    if kind == "MPO" and is_data(_after_last_image(image, path)):
        yield TRAILING_DATA
    if others > 0:
        yield "the other images in the file, such as a preview, gain map or second view"
    if kind == "HEIF":
        if image.info.get("bit_depth", 8) > 8:
            yield f"{image.info['bit_depth'] - 8} of {image.info['bit_depth']} bits per sample"
        if image.info.get("depth_images"):
            yield "the depth map"
        if image.info.get("aux"):
            yield "auxiliary images, such as a gain map"
    if kind == "AVIF":
        with path.open("rb") as file:
            head = file.read(HEAD)
        deep = re.search(rb"av1C\x81.(.)", head, re.DOTALL)
        if deep and deep.group(1)[0] & 0x40:
            yield "the bits per sample beyond 8"
        color = re.search(rb"colrnclx(..)(..)", head, re.DOTALL)
        if color and color.groups() not in SRGB:
            yield "the color space (nclx)"
    if kind == "BMP":
        with path.open("rb") as file:
            head = file.read(74)
        if int.from_bytes(head[14:18], "little") >= 108 and head[70:74] in (b"DEBM", b"KNIL", b"\0\0\0\0"):
            yield "the color space or profile"


def after_jpeg(content: bytes) -> bytes:
    """Return the bytes after the image in a JPEG file."""
    place = 0
    while found := MARKER.search(content, place):
        marker, place = content[found.start() + 1], found.end()
        if marker == END:
            return content[place:]
        if marker != START:
            place += int.from_bytes(content[place : place + 2], "big")
    return b""


def _after_last_image(image: Image.Image, path: Path) -> bytes:
    """Return the bytes after the last image of an MPO file, none if its list of images is damaged."""
    try:
        image.seek(image.n_frames - 1)
        return after_jpeg(path.read_bytes()[image.offset :])
    except DECODE_ERRORS:
        return b""


def is_data(rest: bytes) -> bool:
    """Return whether the bytes after an image are more than padding."""
    return len(rest.strip(b"\0\xff\r\n ")) > PADDING


def _label(data: bytes) -> str:
    """Return the readable text at the start of a segment."""
    return re.match(rb"[\w .:/-]{0,30}", data).group().decode("ascii")


def is_lossless(path: Path) -> bool:
    """Return whether the image of a WebP file is compressed losslessly."""
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            kind, length = struct.unpack("<4sI", head)
            if kind in (b"VP8L", b"VP8 "):
                return kind == b"VP8L"
            file.seek(length + length % 2, 1)
    return False
