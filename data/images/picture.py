"""Read and write image files of any kind, keeping depth, gray, alpha, color profile and metadata.

Pillow reads and writes 8-bit images and all metadata. It reduces 16-bit colors to 8 bits, so OpenCV reads those, and
OpenCV (PNG) or tifffile (TIFF) writes them. What is kept:

=====================  =====================================================================================
JPEG, PNG, WebP        ICC profile, EXIF, XMP, resolution; JPEG's comment; PNG's texts (not in 16-bit PNG)
TIFF                   ICC profile, resolution
BMP, PGM, PPM          nothing but pixels
=====================  =====================================================================================

The EXIF orientation is applied to the pixels and removed. Palettes become RGB, CMYK becomes sRGB. JPEG and WebP are
written with quality 95. Animations and files with several pages are refused, since all but one would be lost.

Shape letters: H x W size in pixels, C channels (1 gray, 3 RGB).
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from restormixer_arch.errors import UserError

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM")
MPO = "MPO"  # a JPEG with a preview or a second view behind it; the first image is read
LOSSY = {"quality": 95, "subsampling": "4:4:4"}
ORIENTATION = 0x0112  # the EXIF tag
DAMAGES = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, TypeError)
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF orientation -> what turns the image upright
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image, 1),
}


@dataclass
class Picture:
    """A decoded image, upright.

    Attributes:
        pixels: (H, W, C), RGB or gray, uint8 or uint16.
        alpha: (H, W) of the same dtype, or None.
        format: Pillow's name for it, such as ``JPEG``.
        metadata: keyword arguments for the writer, as for Pillow's ``save``.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    format: str = "PNG"
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def planes(self) -> np.ndarray:
        """Pixels and alpha in one array: (H, W, C), or (H, W, C + 1) with alpha."""
        return self.pixels if self.alpha is None else np.dstack([self.pixels, self.alpha])


def read_picture(path: str | Path) -> Picture:
    """Read an image file; its content decides the format, not its extension.

    Raises:
        UserError: the file cannot be read, is damaged, has more than 179 megapixels, holds several images, or has
            samples that are neither 8- nor 16-bit integers.
    """
    with _user_errors(path):
        if Path(path).stat().st_size == 0:
            raise UserError(f"{path}: is empty")
        _refuse_other_samples(path)
        with Image.open(path, formats=(*FORMATS, "GIF")) as image:  # GIF: to name it in the error
            _check_supported(image, path)
            deep, gray = _is_16_bit(image), _is_gray(image)
            orientation = 1 if image.format == "TIFF" else image.getexif().get(ORIENTATION, 1)
            image.load()
            upright = ImageOps.exif_transpose(image)
            metadata = _metadata(upright, image)
            if deep:
                pixels, alpha = _read_16_bit(path, gray=gray, orientation=orientation)
            else:
                upright, metadata = to_rgb(upright, metadata)
                pixels, alpha = split_alpha(np.array(upright))
    return Picture(pixels, alpha, "JPEG" if image.format == MPO else image.format, metadata)


def picture_size(path: str | Path) -> tuple[int, int]:
    """Return (width, height) in pixels from the file's header. Raises UserError if it cannot be read."""
    with _user_errors(path), Image.open(path, formats=(*FORMATS, "GIF")) as image:
        return image.size


def as_png(picture: Picture) -> Picture:
    """Return the same picture as PNG, with the metadata that PNG can hold."""
    from PIL.PngImagePlugin import PngInfo

    kept = {name: value for name, value in picture.metadata.items() if name in ("icc_profile", "dpi", "exif")}
    texts = picture.metadata.get("pnginfo") or PngInfo()
    for name, key in (("xmp", "XML:com.adobe.xmp"), ("comment", "Comment")):
        if name in picture.metadata:
            texts.add_itxt(key, picture.metadata[name].decode("utf-8", "replace"))
    return Picture(picture.pixels, picture.alpha, "PNG", {**kept, "pnginfo": texts})


def write_picture(picture: Picture, path: str | Path) -> None:
    """Write a picture in its own format, whatever the extension. Raises UserError if it cannot be written."""
    try:
        if picture.pixels.dtype == np.uint16 and picture.format in _WRITERS_16_BIT:
            _WRITERS_16_BIT[picture.format](picture.planes, path, picture.metadata)
        else:
            content = BytesIO()  # Pillow does not notice a full disk
            to_pillow(picture).save(content, format=picture.format, **picture.metadata)
            Path(path).write_bytes(content.getvalue())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error


def to_pillow(picture: Picture) -> Image.Image:
    """Convert to mode L, LA, RGB or RGBA, or to I;16 for 16-bit gray; Pillow has no 16-bit colors."""
    planes = picture.planes
    return Image.fromarray(planes[..., 0] if planes.shape[2] == 1 else planes)


def to_rgb(image: Image.Image, metadata: dict[str, Any]) -> tuple[Image.Image, dict[str, Any]]:
    """Convert any mode of Pillow to L, LA, RGB or RGBA; return the image and its metadata, changed for CMYK."""
    if image.mode == "CMYK":
        return _from_cmyk(image, metadata)
    if "transparency" in image.info or image.mode in ("PA", "RGBa", "La"):
        return image.convert("LA" if image.mode in ("1", "L", "La") else "RGBA"), metadata
    if image.mode == "1":
        return image.convert("L"), metadata
    return (image if image.mode in ("L", "LA", "RGB", "RGBA") else image.convert("RGB")), metadata


def split_alpha(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Split (H, W) or (H, W, 1 to 4) into pixels (H, W, 1 or 3) and alpha (H, W) or None."""
    planes = planes[..., None] if planes.ndim == 2 else planes
    if planes.shape[2] in (1, 3):
        return planes, None
    return planes[..., :-1], planes[..., -1]


@contextmanager
def _user_errors(path: str | Path) -> Iterator[None]:
    """Turn the exceptions of the decoders into UserErrors, and silence their warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF, more than 89 megapixels
            yield
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: is not an image that can be read ({', '.join(FORMATS)})") from error
    except (Image.DecompressionBombError, *DAMAGES) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{path}: cannot be read as an image ({reason})") from error


def _check_supported(image: Image.Image, path: str | Path) -> None:
    if image.format not in (*FORMATS, MPO):
        raise UserError(f"{path}: {image.format} images are not supported, expected one of {', '.join(FORMATS)}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != MPO:
        raise UserError(f"{path}: holds {frames} images, expected one; write each to its own file")
    if image.format == "PPM" and any(isinstance(white, int) and white > 255 for white in image.tile[0].args):
        raise UserError(f"{path}: has 16-bit samples, which are read from PNG and TIFF only")
    if image.mode in ("F", "LAB", "HSV") or (image.mode == "I" and image.format != "PNG"):
        raise UserError(f"{path}: has samples of mode {image.mode!r}, expected 8- or 16-bit gray or RGB")


def _from_cmyk(image: Image.Image, metadata: dict[str, Any]) -> tuple[Image.Image, dict[str, Any]]:
    """Convert to sRGB, by the image's own profile if it has a valid one."""
    from PIL import ImageCms

    profile, metadata = metadata.get("icc_profile"), {k: v for k, v in metadata.items() if k != "icc_profile"}
    if profile:
        try:
            target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
            converted = ImageCms.profileToProfile(image, BytesIO(profile), target, outputMode="RGB")
            return converted, {**metadata, "icc_profile": target.tobytes()}
        except ImageCms.PyCMSError:
            pass  # a broken profile: convert without one
    return image.convert("RGB"), metadata


def _metadata(upright: Image.Image, image: Image.Image) -> dict[str, Any]:
    """Return the arguments for Pillow's ``save``, from an upright copy and the image as it was opened."""
    info, kind = upright.info, image.format
    kept = {name: info[name] for name in ("icc_profile", "dpi") if info.get(name)}
    if kind in ("JPEG", MPO, "PNG", "WEBP"):
        kept |= {"exif": info["exif"]} if info.get("exif") else {}  # the file's own bytes if it was upright
    if kind in ("JPEG", MPO, "WEBP"):
        kept |= {name: info[name] for name in ("xmp", "comment") if info.get(name)}
        kept |= LOSSY if kind != "WEBP" else {"quality": LOSSY["quality"]}
    if kind == "PNG":
        kept["pnginfo"] = _texts(upright, image)
    if kind == "TIFF":
        kept["compression"] = "tiff_adobe_deflate"
    return kept


def _texts(upright: Image.Image, image: Image.Image) -> Any:
    """Return PNG's text chunks; XMP is one of them, without the orientation in the upright copy."""
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    for name, text in image.text.items():
        text = upright.info.get(name, text)
        texts.add_itxt(name, text, getattr(text, "lang", "") or "", getattr(text, "tkey", "") or "")
    return texts


def _refuse_other_samples(path: str | Path) -> None:
    """Raise UserError for a TIFF whose samples are not 8- or 16-bit integers; Pillow does not know all of them."""
    with Path(path).open("rb") as file:
        if file.read(4) not in TIFF_MAGIC:
            return
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        if page.dtype is not None and page.dtype not in (np.bool_, np.uint8, np.uint16):
            raise UserError(f"{path}: has samples of type {page.dtype}, expected 8- or 16-bit integers")


def _is_16_bit(image: Image.Image) -> bool:
    """Return whether a file that Pillow has opened, but not loaded, has 16 bits per sample."""
    if image.mode.startswith("I"):
        return True
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,))) == 16  # BitsPerSample
    return image.format == "PNG" and any(";16" in str(tile.args) for tile in image.tile)


def _is_gray(image: Image.Image) -> bool:
    """Return whether a 16-bit file that Pillow has opened, but not loaded, is gray. Pillow turns LA into RGBA."""
    return image.mode.startswith("I") or any("LA;16" in str(tile.args) for tile in image.tile)


def _read_16_bit(path: str | Path, *, gray: bool, orientation: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Read uint16 pixels (H, W, 1 or 3), RGB, and alpha (H, W) or None.

    Args:
        path: the file.
        gray: the file is gray; OpenCV makes three channels of gray with alpha.
        orientation: the EXIF orientation to apply; 1 for TIFF, where OpenCV applies it.

    Raises:
        UserError: OpenCV cannot decode it to 16 bits.
    """
    import cv2

    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16:
        raise UserError(f"{path}: cannot be decoded as a 16-bit image")
    image = UPRIGHT.get(orientation, UPRIGHT[1])(image[..., None] if image.ndim == 2 else image)
    alpha = np.ascontiguousarray(image[..., 3]) if image.shape[2] == 4 else None
    pixels = image[..., :1] if gray else image[..., 2::-1]
    return np.ascontiguousarray(pixels), alpha


def _write_png_16_bit(planes: np.ndarray, path: str | Path, metadata: dict[str, Any]) -> None:
    """Write uint16 (H, W, 1 to 4), gray or RGB with or without alpha, with ICC profile and EXIF."""
    import cv2

    if planes.shape[2] == 2:  # OpenCV's PNG has no gray with alpha
        planes = planes[..., [0, 0, 0, 1]]
    bgr = planes if planes.shape[2] == 1 else planes[..., [2, 1, 0, 3][: planes.shape[2]]]
    kinds = {"exif": cv2.IMAGE_METADATA_EXIF, "icc_profile": cv2.IMAGE_METADATA_ICCP}
    kept = {kinds[name]: np.frombuffer(metadata[name], np.uint8) for name in kinds if name in metadata}
    done, content = cv2.imencodeWithMetadata(".png", np.ascontiguousarray(bgr), list(kept), list(kept.values()))
    if not done:
        raise OSError("OpenCV could not encode it")
    Path(path).write_bytes(content.tobytes())


def _write_tiff_16_bit(planes: np.ndarray, path: str | Path, metadata: dict[str, Any]) -> None:
    """Write uint16 (H, W, 1, 3 or 4), gray, RGB or RGBA, with ICC profile and resolution."""
    import tifffile

    channels = planes.shape[2]
    options: dict[str, Any] = {"photometric": "rgb" if channels >= 3 else "minisblack", "compression": "zlib"}
    if channels == 4:
        options["extrasamples"] = ["unassalpha"]
    if "icc_profile" in metadata:
        options["iccprofile"] = metadata["icc_profile"]
    if "dpi" in metadata:
        options |= {"resolution": tuple(float(d) for d in metadata["dpi"]), "resolutionunit": "INCH"}
    tifffile.imwrite(path, planes[..., 0] if channels == 1 else planes, metadata=None, **options)


_WRITERS_16_BIT = {"PNG": _write_png_16_bit, "TIFF": _write_tiff_16_bit}
