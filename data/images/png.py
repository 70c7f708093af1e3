"""Read and write PNG files chunk by chunk, so that metadata of any size and kind is copied unchanged.

Pillow and OpenCV read the pixels from a copy of the file that contains only the pixel chunks. They reject large texts
and profiles, and lose the color chunks; OpenCV also has no 16-bit gray with alpha.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from restormixer_arch.data.images.exif import QUARTER_TURNS, exif_of_size
from restormixer_arch.data.images.metadata import TRAILING_DATA, is_data
from restormixer_arch.errors import UserError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
COLORS = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"mDCV", b"cLLI", b"sBIT")
KEPT = (*COLORS, b"bKGD")  # in addition to chunks marked as safe to copy: texts, EXIF, pHYs, ...
INVALIDATED_CHUNKS = (b"PLTE", b"tRNS", b"hIST", b"tIME", b"acTL", b"fcTL", b"fdAT")  # not valid for the new pixels
MAX_EXIF_BYTES = 2**20  # maximum size of a chunk from which an orientation or a profile is read
CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # color type -> channels; a palette becomes RGB
SCALE_TO_8_BIT = {1: 255, 2: 85, 4: 17}  # bit depth -> factor that converts a gray sample to 8 bits
COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}

Chunk = tuple[bytes, bytes]  # type, content


class PngFile:
    """A PNG file, split into its parts.

    Attributes:
        width, height: size in pixels.
        depth: bits per sample.
        color: PNG's color type: 0 gray, 2 RGB, 3 palette, 4 gray with alpha, 6 RGBA.
        frames: number of images, more than one in an animation.
        pixels: PNG file with only the pixel chunks.
        damage: description of damage to the pixel chunks, "" if there is none.
        transparent: transparent color as 8- or 16-bit samples, or None; not set for palettes.
        chunks: all chunks that can be kept, in the file's order.
        left_out: types of the other chunks, and a description of any data after the image.

    Raises:
        UserError: if the content does not start like a PNG file.
    """

    def __init__(self, content: bytes, source: str) -> None:
        if content[:8] != SIGNATURE or content[12:16] != b"IHDR" or len(content) < 33:
            raise UserError(f"{source}: cannot be read as an image (it does not start as a PNG does)")
        self.width, self.height, self.depth, self.color = struct.unpack(">IIBB", content[16:26])
        self.frames, self.chunks, self.left_out, self.damage = 1, [], [], "it is truncated"
        self.transparent: tuple[int, ...] | None = None
        pixels, place, damaged = [SIGNATURE], 8, False
        while place + 8 <= len(content):
            length, kind = struct.unpack(">I4s", content[place : place + 8])
            end = place + 12 + length
            data = content[place + 8 : end - 4]
            sound = zlib.crc32(data, zlib.crc32(kind)) == int.from_bytes(content[end - 4 : end], "big")
            if kind in PIXELS:
                pixels.append(content[place:end])  # also of a truncated file: Pillow reports it
                damaged = damaged or not sound
            elif kind == b"acTL" and length == 8:
                self.frames = int.from_bytes(data[:4], "big")
            elif end <= len(content) and sound:
                self._sort((kind, data))
            elif kind not in INVALIDATED_CHUNKS:
                self.left_out.append(kind.decode("latin-1"))
            if kind == b"tRNS" and self.color in (0, 2) and length == 2 * CHANNELS[self.color] and end <= len(content):
                samples = struct.unpack(f">{length // 2}H", data)
                self.transparent = tuple(map(self._scale_sample, samples))
            if kind == b"IEND":
                self.damage = "a checksum is wrong" if damaged else ""
                self.left_out += [TRAILING_DATA] if is_data(content[end:]) else []
                break
            place = end
        self.pixels = b"".join(pixels)
        planes = CHANNELS.get(self.color, 0) + any(part[4:8] == b"tRNS" for part in pixels)
        for chunk in [chunk for chunk in self.chunks if chunk[0] == b"sBIT" and len(chunk[1]) != planes]:
            self.chunks.remove(chunk)  # it describes the samples before transparency became a separate channel
            self.left_out.append("sBIT")

    def check_deep(self) -> None:
        """Raise ValueError if the 16-bit pixels are damaged: OpenCV's libpng would print a message for them."""
        if self.damage:
            raise ValueError(self.damage)
        unpack, place, size = zlib.decompressobj(), 8, 0
        while place + 8 <= len(self.pixels):
            length, kind = struct.unpack(">I4s", self.pixels[place : place + 8])
            if kind == b"IDAT":
                waiting = self.pixels[place + 8 : place + 8 + length]
                while waiting and not unpack.eof:
                    size += len(unpack.decompress(waiting, 2**20))
                    waiting = unpack.unconsumed_tail
            place += 12 + length
        if not unpack.eof or size < self.height * (1 + 2 * self.width * CHANNELS.get(self.color, 1)):
            raise ValueError("pixels are missing")

    def _sort(self, chunk: Chunk) -> None:
        kind, data = chunk
        fits = kind != b"bKGD" or self.color != 3
        safe = kind[3:4].islower() and kind not in INVALIDATED_CHUNKS
        if kind == b"bKGD" and self.color == 0 and len(data) == 2:
            data = self._scale_sample(int.from_bytes(data, "big")).to_bytes(2, "big")
        if (kind in KEPT or safe) and fits:
            self.chunks.append((kind, data))
        elif kind not in INVALIDATED_CHUNKS:
            self.left_out.append(kind.decode("latin-1"))

    def _scale_sample(self, sample: int) -> int:
        """Scale a sample to the 8 or 16 bits of the pixels that are written."""
        return min(sample * SCALE_TO_8_BIT.get(self.depth, 1), 65535)

    def open(self) -> Image.Image:
        """Open the pixels with Pillow, together with the EXIF or XMP chunks that state the orientation."""
        turning = [chunk for chunk in self.chunks if _has_orientation(chunk) and len(chunk[1]) <= MAX_EXIF_BYTES]
        for added in (turning, []):
            try:
                return Image.open(BytesIO(with_chunks(self.pixels, added)), formats=("PNG",))
            except ValueError:  # a text chunk that is too large to decompress
                if not added:
                    raise
        raise AssertionError

    def upright_chunks(self, orientation: int, info: Mapping[str, Any]) -> list[Chunk]:
        """Return the chunks for upright pixels, given the orientation, and the ``info`` of the upright Pillow image."""
        others = [chunk for chunk in self.chunks if not _has_orientation(chunk)]
        if orientation in QUARTER_TURNS:  # the resolutions of both axes are swapped
            others = [(kind, data[4:8] + data[:4] + data[8:] if kind == b"pHYs" else data) for kind, data in others]
        kept = {"exif": info.get("exif"), "xmp": info.get("xmp") or info.get("XML:com.adobe.xmp")}
        return others + chunks_of({name: value for name, value in kept.items() if value})


def chunks_of(metadata: Mapping[str, Any]) -> list[Chunk]:
    """Return PNG chunks for Pillow's ``icc_profile``, ``dpi``, ``exif``, ``xmp`` and ``comment``."""
    chunks = []
    if metadata.get("icc_profile"):
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(metadata["icc_profile"])))
    if "dpi" in metadata:
        chunks.append((b"pHYs", struct.pack(">IIB", *(round(float(dpi) / 0.0254) for dpi in metadata["dpi"][:2]), 1)))
    if "exif" in metadata:
        chunks.append((b"eXIf", metadata["exif"].removeprefix(b"Exif\0\0")))
    for name, key in (("xmp", b"XML:com.adobe.xmp"), ("comment", b"Comment")):
        if name in metadata:
            text = metadata[name]
            text = text.encode() if isinstance(text, str) else text.decode("utf-8", "replace").encode()
            chunks.append((b"iTXt", key + b"\0\0\0\0\0" + text))
    return chunks


def chunks_of_size(chunks: Iterable[Chunk], width: int, height: int) -> list[Chunk]:
    """Return the chunks, with EXIF adapted to a result of this size in pixels."""
    return [(kind, exif_of_size(data, width, height) if kind == b"eXIf" else data) for kind, data in chunks]


def with_chunks(content: bytes, chunks: Iterable[Chunk]) -> bytes:
    """Return a PNG file with chunks inserted after its header."""
    return content[:33] + b"".join(_chunk(kind, data) for kind, data in chunks) + content[33:]


def encode_16_bit(planes: np.ndarray) -> bytes:
    """Encode uint16 (H, W, 1 to 4), gray or RGB with or without alpha, as PNG."""
    height, width, channels = planes.shape
    rows = planes.astype(">u2").view(np.uint8).reshape(height, -1)
    step = 2 * channels
    coded = np.empty((height, 1 + rows.shape[1]), np.uint8)
    coded[:, 0] = 1  # filter type: differences to the pixel on the left
    coded[:, 1 : 1 + step] = rows[:, :step]
    coded[:, 1 + step :] = rows[:, step:] - rows[:, :-step]
    header = struct.pack(">IIBBBBB", width, height, 16, COLOR_TYPES[channels], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(coded.tobytes(), 6)), (b"IEND", b""))
    return SIGNATURE + b"".join(_chunk(kind, data) for kind, data in parts)


def profile_of(chunks: Iterable[Chunk]) -> bytes | None:
    """Return the ICC profile in PNG chunks, None if it is missing, damaged or larger than 1 MiB."""
    for kind, data in chunks:
        if kind == b"iCCP":
            try:
                unpack = zlib.decompressobj()
                profile = unpack.decompress(data[data.index(b"\0") + 2 :], MAX_EXIF_BYTES)
            except (ValueError, zlib.error):
                return None
            return profile if unpack.eof else None
    return None


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _has_orientation(chunk: Chunk) -> bool:
    kind, data = chunk
    return kind == b"eXIf" or (
        kind in (b"iTXt", b"zTXt", b"tEXt") and bool(re.match(rb"XML:com\.adobe\.xmp\0|Raw profile type exif\0", data))
    )


def alpha_of_color(pixels: np.ndarray, transparent: tuple[int, ...]) -> np.ndarray:
    """Return the alpha (H, W) of pixels (H, W, C) with one transparent color."""
    white = np.iinfo(pixels.dtype).max
    return np.where((pixels == np.array(transparent)).all(axis=2), 0, white).astype(pixels.dtype)
