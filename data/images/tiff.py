"""Read and write TIFF: choose the page to restore, read 16-bit pixels, and copy tags unchanged.

tifffile reads the structure and writes files. Pillow decodes pixels of up to 8 bits; tifffile decodes 16-bit pixels, or
OpenCV does if tifffile does not support the compression.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from tifffile import TiffPage

from restormixer_arch.errors import UserError

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # problems are reported as UserErrors instead

EXIF_TAGS = {34665: "EXIF", 34853: "GPS"}  # tags that point to a sub-directory
RESOLUTION = (282, 283, 296)
PROFILE = 34675
# Tags that describe how pixels are stored, or that point into the file: the new file gets new ones.
STRUCTURE = frozenset(
    [*range(254, 269), 273, 274, *range(277, 282), *RESOLUTION, 284, *range(288, 294), 297, 317, 320, 321]
    + [*range(322, 326), 330, *range(332, 348), 351, *range(400, 406), *range(512, 522), *range(529, 533), 559, PROFILE]
    + [*EXIF_TAGS, 40965, 32995, 32996, 32997, 32998, 37724, 50784, 50838, 50839]
)
REPORTED_TAGS = {
    330: "sub-images, such as a pyramid",
    37724: "Photoshop layers",
}  # tags in STRUCTURE whose loss is reported
BITS = (1, 2, 4, 8, 16)
MAX_TAG_BYTES = 2**26  # larger tags are not copied
PIXEL_SCALE, TIE_POINTS, TRANSFORMATION = 33550, 33922, 34264  # GeoTIFF tags that map pixels to coordinates
GEO_GROUP_SIZES = {PIXEL_SCALE: 3, TIE_POINTS: 6, TRANSFORMATION: 16}  # tag -> how many numbers form a group
GEO_KEYS, PIXEL_IS_POINT = 34735, (1025, 0, 1, 2)  # GeoTIFF's key tag, and its key for coordinates of pixel centers
DOUBLE = 12  # data type of a tag
ASSOCIATED, UNASSOCIATED = 1, 2  # values of ExtraSamples: premultiplied and straight alpha


@dataclass
class TiffStructure:
    """The structure and metadata of a TIFF file.

    Attributes:
        index: index of the page to restore among the file's pages.
        bits: bits per sample.
        cmyk: whether the colors are CMYK.
        size: width and height in pixels.
        deep: whether :func:`read_samples` must read the pixels: 16-bit gray or RGB, or planar 8-bit pixels with alpha,
            which Pillow mixes up.
        metadata: arguments for :func:`write_tiff`.
        left_out: descriptions of what cannot be kept.
    """

    index: int
    bits: int
    cmyk: bool
    size: tuple[int, int]
    deep: bool
    metadata: dict[str, Any]
    left_out: list[str]


def read_structure(path: Path) -> TiffStructure:
    """Read everything but the pixels.

    Raises:
        UserError: if the file contains several images, is not flat or is incomplete, or if its samples are not integers
            of 1, 2, 4, 8 or 16 bits.
    """
    with path.open("rb") as file, tifffile.TiffFile(file) as tiff:
        pages = list(tiff.pages)
        main = [page for page in pages if not _is_extra(page)] or pages[:1]
        if len(main) > 1:
            raise UserError(f"{path}: holds {len(main)} images, expected one; write each to its own file")
        page = main[0]
        size = page.imagewidth, page.imagelength
        if not all(isinstance(side, int) and side > 0 for side in size):  # a tuple if the file contains several
            raise UserError(f"{path}: cannot be read as an image (its width or height is not one number above 0)")
        if page.imagedepth != 1:  # depth would multiply the number of rows
            raise UserError(f"{path}: cannot be read as an image (it has layers of depth, expected a flat image)")
        if page.dtype is None or page.dtype not in (np.bool_, np.uint8, np.uint16):
            raise UserError(f"{path}: has samples of type {page.dtype}, expected 8- or 16-bit integers")
        bits = page.bitspersample
        if bits not in BITS:
            raise UserError(f"{path}: has {bits} bits per sample, expected one of {', '.join(map(str, BITS))}")
        stored, segments = min(len(page.dataoffsets), len(page.databytecounts)), math.prod(page.chunked)
        if stored < segments:  # decoders would leave the rest black
            kind = "tiles" if page.is_tiled else "strips"
            raise UserError(f"{path}: cannot be read as an image (it has {stored} of {segments} {kind} of pixels)")
        metadata, left_out = _metadata(page, tiff.byteorder)
        if len(pages) > 1:
            left_out.append("smaller pages, such as a thumbnail")
        left_out += [name for code, name in REPORTED_TAGS.items() if code in page.tags]
        _, extra = _channels(page)
        left_out += ["channels beyond color and alpha"] if extra else []
        gray_or_rgb = page.photometric in (0, 1, 2)
        planes = bits == 8 and _is_planar(page) and gray_or_rgb and page.samplesperpixel > _colors(page)
        cmyk = page.photometric == 5
        deep = planes or (bits == 16 and not cmyk)
        return TiffStructure(pages.index(page), bits, cmyk, size, deep, metadata, left_out)


def _is_extra(page: TiffPage) -> bool:
    """Return whether a page is a reduced copy or a mask of another page."""
    kind, old = (np.atleast_1d(page.tags.valueof(code, 0))[0] for code in (254, 255))  # some files contain several
    return bool(int(kind) & 0b101) or old == 2


def read_samples(path: Path, index: int) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Read the pixels of an 8- or 16-bit gray or RGB page.

    Returns:
        The pixels (H, W, 1 or 3), alpha (H, W) or None, and the EXIF orientation.

    Raises:
        UserError: if the colors are not gray or RGB, or the compression is not supported.
        ValueError: if the pixels are damaged.
    """
    with path.open("rb") as file, tifffile.TiffFile(file) as tiff:
        page = tiff.pages[index]
        if page.photometric not in (0, 1, 2):
            kind = getattr(page.photometric, "name", page.photometric)
            raise UserError(f"{path}: has {page.bitspersample}-bit colors of type {kind}, expected gray or RGB")
        try:
            planes = page.asarray(maxworkers=1)
        except MemoryError:
            raise
        except Exception as error:  # tifffile supports few compressions without imagecodecs and Zstandard
            if not isinstance(error, ImportError) and "imagecodecs" not in str(error):
                raise ValueError(str(error) or type(error).__name__) from error  # LZMA raises its own exceptions
            planes = _by_opencv(page, path)
        samples, shape = page.samplesperpixel, (page.imagelength, page.imagewidth)
        planes = planes.reshape(samples, *shape).transpose(1, 2, 0) if _is_planar(page) else planes
        planes = planes.reshape(*shape, samples)
        orientation = page.tags.valueof(274, 1)
        alpha_at, _ = _channels(page)
        alpha_kind = page.extrasamples[alpha_at - _colors(page)] if alpha_at and page.extrasamples else UNASSOCIATED
        white = np.iinfo(planes.dtype).max
        pixels, alpha = planes[..., : _colors(page)], planes[..., alpha_at] if alpha_at else None
        if page.photometric == 0:
            pixels = white - pixels
        if alpha is not None and alpha_kind == ASSOCIATED:
            pixels = _unpremultiply(pixels, alpha, white)
        return pixels, alpha, int(orientation)


def _unpremultiply(pixels: np.ndarray, alpha: np.ndarray, white: int) -> np.ndarray:
    """Divide premultiplied pixels by alpha; where it is 0, the color is lost and becomes black."""
    divisor = np.maximum(alpha, 1).astype(np.float32)[..., None]
    return np.minimum(np.rint(pixels * (white / divisor)), white).astype(pixels.dtype)


def _colors(page: TiffPage) -> int:
    return 3 if page.photometric == 2 else 1


def _channels(page: TiffPage) -> tuple[int | None, int]:
    """Return the index of the alpha channel, or None, and the number of other extra channels."""
    colors = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}.get(page.photometric, page.samplesperpixel)
    extra = page.samplesperpixel - colors
    if extra > 0 and not page.extrasamples:  # not specified: treated as alpha, as in other programs
        return colors, extra - 1
    for number, kind in enumerate(page.extrasamples[: max(extra, 0)]):
        if kind in (ASSOCIATED, UNASSOCIATED):
            return colors + number, extra - 1
    return None, max(extra, 0)


def _is_planar(page: TiffPage) -> bool:
    return page.planarconfig == 2 and page.samplesperpixel > 1


def _by_opencv(page: TiffPage, path: Path) -> np.ndarray:
    """Decode a page, or each of its planes, from a minimal TIFF with OpenCV, which would mix up several planes."""
    from restormixer_arch.data.images import opencv

    planes = page.samplesperpixel if _is_planar(page) else 1
    samples = page.samplesperpixel // planes
    count = len(page.dataoffsets) // planes
    results = []
    for first in range(0, planes * count, count):
        segments = [
            _read_at(page, page.dataoffsets[number], page.databytecounts[number])
            for number in range(first, first + count)
        ]
        image = opencv.decode(_stored_pixels(page, segments, samples)) if samples != 2 else None
        if image is None or image.dtype != page.dtype or image.size != samples * page.imagelength * page.imagewidth:
            name = getattr(page.compression, "name", page.compression)
            raise UserError(f"{path}: {name} compression of such a TIFF cannot be read; store it uncompressed")
        image = image.reshape(page.imagelength, page.imagewidth, samples)
        results.append(image[..., [2, 1, 0, 3][:samples]] if samples > 1 else image)
    return np.stack([result[..., 0] for result in results]) if planes > 1 else results[0]


def _stored_pixels(page: TiffPage, segments: list[bytes], samples: int) -> bytes:
    """Return a minimal TIFF with these segments (strips or tiles) of a page and ``samples`` interleaved channels."""
    order = page.parent.byteorder
    tags = ImageFileDirectory_v2((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    for code in (256, 257, 259, 266, 278, 317, 322, 323):
        if code in page.tags:
            tags[code] = int(page.tags[code].value)
    tags[258], tags[262], tags[277] = (page.bitspersample,) * samples, 2 if samples > 1 else 1, samples
    if samples == 4:
        tags[338] = 2
    offsets, counts = (324, 325) if page.is_tiled else (273, 279)
    tags[counts] = tuple(map(len, segments))
    tags[offsets] = (2**20,) * len(segments)  # placeholders, so that the directory has its final length
    places = [8 + len(tags.tobytes(8)) if page.is_tiled else 0]  # Pillow counts strip offsets from the directory's end
    for segment in segments[:-1]:
        places.append(places[-1] + len(segment))
    tags[offsets] = tuple(places)
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return header + tags.tobytes(8) + b"".join(segments)


def _read_at(page: TiffPage, offset: int, count: int) -> bytes:
    file = page.parent.filehandle
    file.seek(offset)
    return file.read(count)


def _metadata(page: TiffPage, order: str) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments for :func:`write_tiff`, and descriptions of what cannot be kept."""
    tags, left_out = [], []
    for tag in page.tags:
        size = tag.valuebytecount
        if tag.code in STRUCTURE:
            continue
        if size > MAX_TAG_BYTES:
            left_out.append(f"tag {tag.code}")
            continue
        tags.append((tag.code, int(tag.dtype), tag.count, _read_at(page, tag.valueoffset, size), True))
    metadata: dict[str, Any] = {"byteorder": order, "extratags": tags}
    if page.tags.valueof(274, 1) == 1:
        metadata["height"] = page.imagelength
    if PROFILE in page.tags:
        profile = page.tags[PROFILE]
        metadata["icc_profile"] = _read_at(page, profile.valueoffset, min(profile.valuebytecount, MAX_TAG_BYTES))
    if 282 in page.tags and 283 in page.tags:
        try:
            unit = int(page.tags.valueof(296, 2))
            resolution = tuple(_ratio(page.tags[code].value) for code in (282, 283))
        except (TypeError, ValueError, ArithmeticError):  # such as 0 / 0
            left_out.append("the resolution, which is not a number")
        else:
            metadata |= {"resolution": resolution, "resolutionunit": unit}
            metadata |= {"dpi": tuple(number / divisor for number, divisor in resolution)} if unit == 2 else {}
    if 274 in page.tags:  # the pixels will be upright, whatever XMP states
        tags.append((274, 3, 1, 1, True))
    return metadata, left_out


def _ratio(value: Any) -> tuple[int, int]:
    """Return a fraction from one or two TIFF numbers. Raises ValueError, TypeError, ZeroDivisionError if invalid."""
    numbers = value if isinstance(value, tuple) else (value,)
    number, divisor = Fraction(numbers[0]).limit_denominator(10**6).as_integer_ratio() if len(numbers) == 1 else numbers
    if divisor == 0:
        raise ZeroDivisionError
    return int(number), int(divisor)


def directories_of(image: Image.Image) -> tuple[dict[int, dict[int, Any]], list[str]]:
    """Return code of the pointing tag -> EXIF or GPS tags of a Pillow image, and descriptions of damaged ones."""
    found, left_out = {}, []
    for code, name in EXIF_TAGS.items():
        exif = image.getexif()
        try:
            content = exif.get_ifd(code)
            if code in exif and not content:  # what Pillow returns for an unreadable directory
                raise ValueError
            tags = {tag: value for tag, value in content.items() if tag != 40965}
            _directory(tags, "<").tobytes(8)
        except (OSError, ValueError, TypeError, LookupError, ArithmeticError, struct.error):
            left_out.append(f"damaged {name} tags")
            continue
        if tags:
            found[code] = tags
    return found, left_out


def _directory(content: dict[int, Any], order: str) -> ImageFileDirectory_v2:
    tags = ImageFileDirectory_v2((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    for tag, value in content.items():
        tags[tag] = value
    return tags


def write_tiff(planes: np.ndarray, metadata: dict[str, Any]) -> bytes:
    """Encode uint8 or uint16 (H, W, 1 to 4), gray or RGB with or without alpha, as TIFF with its tags.

    Args:
        planes: pixels and alpha.
        metadata: ``extratags``, ``byteorder``, ``icc_profile``, ``resolution`` and ``resolutionunit``, or ``dpi``;
            ``directories``: code in :data:`EXIF_TAGS` -> tags of that directory; ``height``: height in pixels of the
            image that the tags describe.
    """
    scale = planes.shape[0] / metadata.get("height", planes.shape[0])
    channels = planes.shape[2]
    size = {40962: planes.shape[1], 40963: planes.shape[0]}  # width and height in EXIF
    directories = {
        code: {tag: size.get(tag, value) for tag, value in tags.items()}
        for code, tags in metadata.get("directories", {}).items()
    }
    options: dict[str, Any] = {"photometric": "rgb" if channels >= 3 else "minisblack", "compression": "zlib"}
    options["planarconfig"] = "contig" if channels > 1 else None
    if channels in (2, 4):
        options["extrasamples"] = ["unassalpha"]
    if "icc_profile" in metadata:
        options["iccprofile"] = metadata["icc_profile"]
    if "resolution" in metadata:
        options |= {name: metadata[name] for name in ("resolution", "resolutionunit")}
    elif "dpi" in metadata:
        options |= {"resolution": tuple(float(dpi) for dpi in metadata["dpi"]), "resolutionunit": "INCH"}
    pointers = [(code - 1, 4, 1, 0, True) for code in directories]  # placeholders: tifffile does not write these tags
    file, order = BytesIO(), metadata.get("byteorder", "<")
    with tifffile.TiffWriter(file, byteorder=order, bigtiff=planes.nbytes > 2**32 - 2**25) as writer:
        writer.write(
            planes[..., 0] if channels == 1 else planes,
            metadata=None,
            software=False,
            extratags=[*_scale_geo_tags(metadata.get("extratags", ()), scale, order), *pointers],
            **options,
        )
    return _with_directories(file, directories, order) if directories else file.getvalue()


def _scale_geo_tags(tags: Iterable[tuple[Any, ...]], scale: float, order: str) -> Iterator[tuple[Any, ...]]:
    """Yield the tags, with those of GeoTIFF adapted to an image whose sides are ``scale`` times as long."""
    tags = list(tags)
    keys = b"".join(tag[3] for tag in tags if tag[0] == GEO_KEYS and isinstance(tag[3], bytes))
    keys = np.frombuffer(keys[: len(keys) // 8 * 8], f"{order}u2").reshape(-1, 4).tolist()
    corner = 0.5 if list(PIXEL_IS_POINT) in keys else 0.0  # distance of a pixel's coordinates from its corner
    for code, kind, count, content, once in tags:
        if scale != 1 and kind == DOUBLE and count % GEO_GROUP_SIZES.get(code, count + 1) == 0:
            numbers = np.frombuffer(content, f"{order}f8").reshape(-1, GEO_GROUP_SIZES[code]).copy()
            if code == PIXEL_SCALE:
                numbers[:, :2] /= scale
            elif code == TIE_POINTS:
                numbers[:, :2] = (numbers[:, :2] + corner) * scale - corner
            else:
                rows = numbers.reshape(-1, 4)
                rows[:, 3] += rows[:, :2].sum(1) * (corner / scale - corner)
                rows[:, :2] /= scale
            content = numbers.astype(f"{order}f8").tobytes()
        yield code, kind, count, content, once


def _with_directories(file: BytesIO, directories: dict[int, dict[int, Any]], order: str) -> bytes:
    """Append directories of tags to a TIFF file, and write their offsets into the tags that point to them."""
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        pointers = {code: tiff.pages[0].tags[code - 1] for code in directories}
    for code, content in directories.items():
        start = file.seek(0, 2)
        start += file.write(bytes(start % 2))
        file.write(_directory(content, order).tobytes(start))
        file.seek(pointers[code].offset)
        file.write(struct.pack(f"{order}H", code))
        file.seek(pointers[code].valueoffset)
        file.write(struct.pack(f"{order}I", start))
    return file.getvalue()
