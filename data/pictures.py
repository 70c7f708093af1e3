"""Picture files of any kind, read and written as they were: depth, gray, alpha, colour profile and metadata.

Pillow reads and writes 8-bit pictures and all metadata. It makes 8 bits of 16-bit colours, so OpenCV reads those, and
OpenCV (PNG) or tifffile (TIFF) writes them. What is kept:

=====================  =====================================================================================
JPEG, PNG, WebP        ICC profile, EXIF, XMP, resolution; JPEG's comment; PNG's texts (not in 16-bit PNG)
TIFF                   ICC profile, resolution
BMP, PGM, PPM          nothing but pixels
=====================  =====================================================================================

The EXIF orientation is applied to the pixels and taken out. Palettes become RGB, CMYK becomes sRGB. JPEG and WebP
are written in quality 95. Animations and files of several pages are refused, since all but one would be lost.

Shape letters: H x W size in pixels, C channels (1 gray, 3 RGB).
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from restormixer_arch.data import pictures16
from restormixer_arch.errors import UserError

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM")
MPO = "MPO"  # a JPEG with a preview or a second eye's view behind it, of which the first picture is taken
LOSSY = {"quality": 95, "subsampling": "4:4:4"}
ORIENTATION = 0x0112  # the EXIF tag
DAMAGES = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, TypeError)


@dataclass
class Picture:
    """A decoded picture, upright.

    Attributes:
        pixels: (H, W, C), RGB or gray, uint8 or uint16.
        alpha: (H, W) of the same type, or None.
        format: as Pillow names it, such as ``JPEG``.
        metadata: what to hand on to the writer, under the names of Pillow's ``save``.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    format: str = "PNG"
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def planes(self) -> np.ndarray:
        """Pixels and alpha as one array, (H, W, C + 1) where there is an alpha."""
        return self.pixels if self.alpha is None else np.dstack([self.pixels, self.alpha])


def read_picture(path: str | Path) -> Picture:
    """Read a picture file, whatever its extension says.

    Raises:
        UserError: the file cannot be read, is damaged, too large to be honest (over 179 megapixels), holds several
            pictures, or has samples that are neither 8- nor 16-bit integers.
    """
    with _refusing(path):
        if Path(path).stat().st_size == 0:
            raise UserError(f"{path}: is empty")
        pictures16.refuse_other_samples(path)
        with Image.open(path, formats=(*FORMATS, "GIF")) as image:  # GIF only to be refused by its name
            _check(image, path)
            deep, gray = pictures16.is_16_bit(image), pictures16.is_gray(image)
            orientation = 1 if image.format == "TIFF" else image.getexif().get(ORIENTATION, 1)
            image.load()
            upright = ImageOps.exif_transpose(image)
            metadata = _metadata(upright, image)
            if deep:
                pixels, alpha = pictures16.read(path, gray=gray, orientation=orientation)
            else:
                upright, metadata = in_rgb(upright, metadata)
                pixels, alpha = split_alpha(np.array(upright))
    return Picture(pixels, alpha, "JPEG" if image.format == MPO else image.format, metadata)


def write_picture(picture: Picture, path: str | Path) -> None:
    """Write a picture in its own format, whatever the extension says. Raises UserError: it cannot be written."""
    try:
        if picture.pixels.dtype == np.uint16 and picture.format in pictures16.WRITERS:
            pictures16.WRITERS[picture.format](picture.planes, path, picture.metadata)
        else:
            to_pillow(picture).save(path, format=picture.format, **picture.metadata)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error


def to_pillow(picture: Picture) -> Image.Image:
    """Mode L, LA, RGB or RGBA, or I;16 of gray in 16 bits; Pillow has no 16-bit colours."""
    planes = picture.planes
    return Image.fromarray(planes[..., 0] if planes.shape[2] == 1 else planes)


def split_alpha(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W) or (H, W, 1 to 4) -> pixels (H, W, 1 or 3) and alpha (H, W) or None."""
    planes = planes[..., None] if planes.ndim == 2 else planes
    if planes.shape[2] in (1, 3):
        return planes, None
    return planes[..., :-1], planes[..., -1]


@contextmanager
def _refusing(path: str | Path) -> Iterator[None]:
    """Turn what decoders raise into UserErrors, and keep their warnings to themselves."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as Pillow's of a broken EXIF, or of pictures over 89 megapixels
            yield
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: is no picture that can be read ({', '.join(FORMATS)})") from error
    except (Image.DecompressionBombError, *DAMAGES) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{path}: cannot be read as a picture ({reason})") from error


def _check(image: Image.Image, path: str | Path) -> None:
    if image.format not in (*FORMATS, MPO):
        raise UserError(f"{path}: {image.format} pictures are not restored, expected one of {', '.join(FORMATS)}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != MPO:
        raise UserError(f"{path}: holds {frames} pictures, one was expected; write each to a file of its own")
    if image.format == "PPM" and any(isinstance(white, int) and white > 255 for white in image.tile[0].args):
        raise UserError(f"{path}: has 16-bit samples, which of its kind are not read; expected PNG or TIFF")
    if image.mode in ("F", "LAB", "HSV") or (image.mode == "I" and image.format != "PNG"):
        raise UserError(f"{path}: has samples of kind {image.mode!r}, expected 8- or 16-bit gray or RGB")


def in_rgb(image: Image.Image, metadata: dict[str, Any]) -> tuple[Image.Image, dict[str, Any]]:
    """The picture as L, LA, RGB or RGBA."""
    if image.mode == "CMYK":
        return _from_cmyk(image, metadata)
    if "transparency" in image.info or image.mode in ("PA", "RGBa", "La"):
        return image.convert("LA" if image.mode in ("1", "L", "La") else "RGBA"), metadata
    if image.mode == "1":
        return image.convert("L"), metadata
    return (image if image.mode in ("L", "LA", "RGB", "RGBA") else image.convert("RGB")), metadata


def _from_cmyk(image: Image.Image, metadata: dict[str, Any]) -> tuple[Image.Image, dict[str, Any]]:
    """To sRGB, by the picture's own profile where it has one that works."""
    profile, metadata = metadata.get("icc_profile"), {k: v for k, v in metadata.items() if k != "icc_profile"}
    if profile:
        try:
            target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
            converted = ImageCms.profileToProfile(image, BytesIO(profile), target, outputMode="RGB")
            return converted, {**metadata, "icc_profile": target.tobytes()}
        except ImageCms.PyCMSError:
            pass  # a broken profile says nothing about the colours
    return image.convert("RGB"), metadata


def _metadata(upright: Image.Image, image: Image.Image) -> dict[str, Any]:
    """What Pillow's ``save`` is to be given, from an upright copy and the picture as it was opened."""
    info, kind = upright.info, image.format
    kept = {name: info[name] for name in ("icc_profile", "dpi") if info.get(name)}
    if kind in ("JPEG", MPO, "PNG", "WEBP"):
        kept |= {"exif": info["exif"]} if info.get("exif") else {}  # the file's own bytes, where it was upright
    if kind in ("JPEG", MPO, "WEBP"):
        kept |= {name: info[name] for name in ("xmp", "comment") if info.get(name)}
        kept |= LOSSY if kind != "WEBP" else {"quality": LOSSY["quality"]}
    if kind == "PNG":
        kept["pnginfo"] = _texts(upright, image)
    if kind == "TIFF":
        kept["compression"] = "tiff_adobe_deflate"
    return kept


def _texts(upright: Image.Image, image: Image.Image) -> Any:
    """PNG's text chunks; XMP is one of them, without the orientation in the upright copy."""
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    for name, text in image.text.items():
        text = upright.info.get(name, text)
        texts.add_itxt(name, text, getattr(text, "lang", "") or "", getattr(text, "tkey", "") or "")
    return texts
