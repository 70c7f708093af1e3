"""Read and write TIFF: choose the page to restore, read 16-bit pixels, and copy tags unchanged.

tifffile reads the structure and writes files. Pillow decodes pixels of up to 8 bits; tifffile decodes 16-bit pixels, or
OpenCV does if tifffile does not support the compression.
"""

from __future__ import annotations

import logging
import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from tifffile import TiffFile, TiffPage

from restormixer_arch.data.images.exif import DECODE_ERRORS, ORIENTATION, QUARTER_TURNS
from restormixer_arch.data.images.tiff_tags import EXIF_TAGS, adapted_tags, read_at, read_directories, with_directories
from restormixer_arch.errors import UserError

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # problems are reported as UserErrors instead

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
        page = main[0]
        size = page.imagewidth, page.imagelength
        if not all(isinstance(side, int) and side > 0 for side in size):  # a tuple if the file contains several
            raise UserError(f"{path}: cannot be read as an image (its width or height is not one number above 0)")
        number = len(main) if len(main) > 1 else _stacked(tiff, page)
        if number > 1:
            raise UserError(f"{path}: holds {number} images, expected one; write each to its own file")
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
        metadata, left_out = _metadata(page)
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


def _stacked(tiff: TiffFile, page: TiffPage) -> int:
    """Return the number of images that follow each other with one page, as ImageJ and tifffile store large stacks."""
    if not (tiff.is_imagej or tiff.is_shaped) or not page.is_contiguous:
        return 1
    try:
        number = tiff.series[0].size // page.size
    except (*DECODE_ERRORS, AttributeError):  # a damaged description
        return 1
    end = page.dataoffsets[0] + number * page.nbytes
    return number if end <= tiff.filehandle.size else 1  # a description may be older than the pixels


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
        orientation = page.tags.valueof(ORIENTATION, 1)
        alpha_at, _ = _channels(page)
        alpha_kind = page.extrasamples[alpha_at - _colors(page)] if alpha_at and page.extrasamples else UNASSOCIATED
        white = np.iinfo(planes.dtype).max
        pixels, alpha = planes[..., : _colors(page)], planes[..., alpha_at] if alpha_at else None
        if page.photometric == 0:
            pixels = white - pixels
        if alpha is not None and alpha_kind == ASSOCIATED:
            pixels = unpremultiply(pixels, alpha)
        return pixels, alpha, int(orientation)


def premultiplied(image: Image.Image) -> bool:
    """Return whether a Pillow image has premultiplied pixels, and let Pillow load them as they are: it rounds down."""
    stored = any("RGBa" in tile.args[0] for tile in image.tile)
    image.tile = [tile._replace(args=(tile.args[0].replace("RGBa", "RGBA"), *tile.args[1:])) for tile in image.tile]
    return stored


def unpremultiply(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Divide premultiplied pixels (H, W, C) by alpha (H, W); where it is 0, the color is lost and becomes black."""
    white = np.iinfo(pixels.dtype).max
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
            read_at(page.parent, page.dataoffsets[number], page.databytecounts[number])
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


def _metadata(page: TiffPage) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments for :func:`write_tiff`, and descriptions of what cannot be kept."""
    directories, left_out = read_directories(page.parent, page.offset)
    tags, orientation = [], page.tags.valueof(ORIENTATION, 1)
    for tag in page.tags:
        size = tag.valuebytecount
        if tag.code in STRUCTURE:
            continue
        if size > MAX_TAG_BYTES:
            left_out.append(f"tag {tag.code}")
            continue
        tags.append((tag.code, int(tag.dtype), tag.count, read_at(page.parent, tag.valueoffset, size), True))
    metadata: dict[str, Any] = {"byteorder": page.parent.byteorder, "extratags": tags, "directories": directories}
    if orientation == 1:
        metadata["height"] = page.imagelength
    if PROFILE in page.tags:
        profile = page.tags[PROFILE]
        metadata["icc_profile"] = read_at(page.parent, profile.valueoffset, min(profile.valuebytecount, MAX_TAG_BYTES))
    if 282 in page.tags and 283 in page.tags:
        try:
            unit = int(page.tags.valueof(296, 2))
            resolution = tuple(_ratio(page.tags[code].value) for code in (282, 283))
            resolution = resolution[::-1] if orientation in QUARTER_TURNS else resolution
        except (TypeError, ValueError, ArithmeticError):  # such as 0 / 0
            left_out.append("the resolution, which is not a number")
        else:
            metadata |= {"resolution": resolution, "resolutionunit": unit}
            metadata |= {"dpi": tuple(number / divisor for number, divisor in resolution)} if unit == 2 else {}
    if ORIENTATION in page.tags:  # the pixels will be upright, whatever XMP states
        tags.append((ORIENTATION, 3, 1, 1, True))
    return metadata, left_out


def _ratio(value: Any) -> tuple[int, int]:
    """Return a fraction from one or two TIFF numbers. Raises ValueError, TypeError, ZeroDivisionError if invalid."""
    numbers = value if isinstance(value, tuple) else (value,)
    number, divisor = Fraction(numbers[0]).limit_denominator(10**6).as_integer_ratio() if len(numbers) == 1 else numbers
    if divisor == 0:
        raise ZeroDivisionError
    return int(number), int(divisor)


def write_tiff(planes: np.ndarray, metadata: dict[str, Any]) -> bytes:
    """Encode uint8 or uint16 (H, W, 1 to 4), gray or RGB with or without alpha, as TIFF with its tags.

    Args:
        planes: pixels and alpha.
        metadata: ``extratags``, ``byteorder``, ``icc_profile``, ``resolution`` and ``resolutionunit``, or ``dpi``;
            ``directories``: code in :data:`EXIF_TAGS` -> tags of that directory, see
            :func:`~restormixer_arch.data.images.tiff_tags.read_directories`; ``height``: height in pixels of the image
            that the tags describe.
    """
    order = metadata.get("byteorder", "<")
    height, width, channels = planes.shape
    scale = height / metadata.get("height", height)
    image = planes[..., 0] if channels == 1 else planes
    size = {40962: struct.pack(f"{order}I", width), 40963: struct.pack(f"{order}I", height)}  # in EXIF
    directories = {
        code: [(tag, 4, 1, size[tag]) if tag in size else (tag, *others) for tag, *others in tags]
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
    file = BytesIO()
    with tifffile.TiffWriter(file, byteorder=order, bigtiff=planes.nbytes > 2**32 - 2**25) as writer:
        writer.write(
            image,
            metadata=None,
            software=False,
            extratags=[*adapted_tags(metadata.get("extratags", ()), image.shape, scale, order), *pointers],
            **options,
        )
    return with_directories(file, directories, order) if directories else file.getvalue()
