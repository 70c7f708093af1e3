"""Read and write image files, keeping bit depth, grayscale, alpha, color profile and metadata.

Pillow reads and writes 8-bit images. Additional code for PNG (``png.py``) and TIFF (``tiff.py``) copies metadata
unchanged, and keeps 16-bit pixels, which Pillow would reduce to 8 bits. The following is kept:

=====================  =====================================================================================
JPEG                   ICC profile, EXIF, XMP, IPTC, comment, resolution
PNG                    color chunks (ICC, gAMA, cHRM, sRGB, cICP, ...), EXIF, XMP, texts, resolution, of any size
TIFF                   ICC profile, tags, EXIF, GPS, XMP, IPTC, resolution; GeoTIFF coordinates, also when enlarged
WebP, AVIF, HEIF       ICC profile, EXIF, XMP; lossless compression of WebP; color space of HEIF (nclx)
BMP                    resolution
PGM, PPM               only pixels
=====================  =====================================================================================

:attr:`Picture.left_out` lists everything else in a file. EXIF is written without its thumbnail, which shows the
input, and with the size of the result. The orientation is applied to the pixels and reset.
Palettes become RGB, CMYK becomes 8-bit sRGB. JPEG, lossy WebP, AVIF and HEIF are written with quality 95. Animations
and multi-page files are rejected, since all images but one would be lost.

Shape letters: H x W size in pixels, C channels (1 gray, 3 RGB).
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from restormixer_arch.data.images import exif, pixel_problem, without_pillow_limit
from restormixer_arch.data.images.exif import UPRIGHT, exif_of_size, upright_info
from restormixer_arch.errors import UserError

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM", "AVIF", "HEIF")
MPO = "MPO"  # a JPEG followed by a preview or a second view; only the first image is read
MAX_SIDE = {"JPEG": 65500, "WEBP": 16383, "AVIF": 65536, "HEIF": 16384}  # longest side in pixels that can be written
ENCODER_ARGUMENTS = ("quality", "subsampling", "lossless", "exact", "chroma")  # of the writer, not metadata
DECODE_ERRORS = (*exif.DECODE_ERRORS, EOFError, zlib.error, RuntimeError)  # exceptions of decoders and encoders
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
COLOR_MAP = 320  # tag of a TIFF
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


@dataclass
class Picture:
    """A decoded, upright image.

    Attributes:
        pixels: array (H, W, C), RGB or gray, uint8 or uint16.
        alpha: array (H, W) of the same dtype, or None.
        format: Pillow's name of the format, such as ``JPEG``.
        metadata: arguments for the writer: those of Pillow's ``save``, for PNG also ``chunks``; for TIFF those of
            :func:`~restormixer_arch.data.images.tiff.write_tiff`.
        left_out: descriptions of what the file contains but a written image will not.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    format: str = "PNG"
    metadata: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def planes(self) -> np.ndarray:
        """Pixels and alpha in one array: (H, W, C), or (H, W, C + 1) with alpha."""
        return self.pixels if self.alpha is None else np.dstack([self.pixels, self.alpha])


def read_picture(path: str | Path, max_pixels: int | None = None) -> Picture:
    """Read an image file; its content determines the format, not its extension.

    Args:
        path: image file.
        max_pixels: maximum number of pixels; None means :func:`~restormixer_arch.data.images.pixel_limit`.

    Raises:
        UserError: if the file cannot be read, is damaged, has too many pixels, contains several images, or has samples
            that are neither 8- nor 16-bit integers.
    """
    path = Path(path)
    with _user_errors(path):
        with path.open("rb") as file:
            start = file.read(16)
        if not start:
            raise UserError(f"{path}: is empty")
        if start.startswith(b"\x89PNG"):
            return _read_png(path, max_pixels)
        if start.startswith(TIFF_MAGIC):
            return _read_tiff(path, max_pixels)
        with _open(path, start) as image:
            _check_size(image.size, max_pixels)
            _check_supported(image, path)
            if image.format == "PPM" and (white := _max_value_of_pnm(image)) > 255:
                from restormixer_arch.data.images import opencv

                pixels = opencv.decode_16_bit(path.read_bytes(), str(path)) * np.float64(65535 / white)
                return Picture(np.minimum(np.rint(pixels), 65535).astype(np.uint16), None, "PPM")
            from restormixer_arch.data.images.metadata import left_out, metadata_of

            image.load()
            orientation, info = upright_info(image)
            plain, metadata = to_rgb(image, metadata_of(image, info, path))
            pixels, alpha = _rotate(orientation, *split_alpha(np.array(plain)))
            format = "JPEG" if image.format == MPO else image.format
            return Picture(pixels, alpha, format, metadata, left_out(image, path))


def picture_size(path: str | Path) -> tuple[int, int]:
    """Return a header's (width, height) in pixels, not rotated. Raises UserError if unreadable or too large."""
    with _user_errors(path):
        with Path(path).open("rb") as file:
            start = file.read(33)
        if start.startswith(b"\x89PNG"):
            from restormixer_arch.data.images.png import PngFile

            png = PngFile(start, str(path))
            _check_size((png.width, png.height), None)
            return png.width, png.height
        if start.startswith(TIFF_MAGIC):  # also files that Pillow cannot read
            from restormixer_arch.data.images.tiff import read_structure

            size = read_structure(Path(path)).size
            _check_size(size, None)
            return size
        with _open(path, start) as image:
            _check_size(image.size, None)
            return image.size


def size_problem(format: str, width: int, height: int) -> str:
    """Return why an image of this size in pixels cannot be written in a format, "" if it can."""
    most = MAX_SIDE.get(format)
    if most is None or max(width, height) <= most:
        return ""
    return f"{width} x {height} pixels are more than {format} can hold ({most} on a side)"


def with_writable_metadata(picture: Picture, path: str | Path) -> Picture:
    """Return the image without metadata that the writer rejects, so that no finished result is lost because of it.

    Raises:
        UserError: if the image cannot be written at all.
    """
    corner = Picture(picture.pixels[:64, :64], None, picture.format, picture.metadata)
    reason: object = ""
    attempts = [(tuple(picture.metadata), ""), (ENCODER_ARGUMENTS, "all metadata")]
    if picture.metadata.get("icc_profile"):
        attempts.insert(1, ((*ENCODER_ARGUMENTS, "icc_profile"), "all metadata but the color profile"))
    for names, lost in attempts:
        metadata = {name: picture.metadata[name] for name in names if name in picture.metadata}
        try:
            encode_picture(replace(corner, metadata=metadata))
        except DECODE_ERRORS as error:
            reason = reason or error
            continue
        if not lost:
            return picture
        return replace(picture, metadata=metadata, left_out=(*picture.left_out, f"{lost} ({reason})"))
    raise UserError(f"{path}: the result cannot be written as {picture.format} ({reason})")


def as_png(picture: Picture) -> Picture:
    """Return the same image as PNG, with the metadata that PNG can contain."""
    from restormixer_arch.data.images.png import chunks_of

    if picture.format == "PNG":
        return picture
    metadata = {"chunks": chunks_of(picture.metadata), "icc_profile": picture.metadata.get("icc_profile")}
    return Picture(picture.pixels, picture.alpha, "PNG", metadata)


def write_picture(picture: Picture, path: str | Path) -> None:
    """Write an image in its format, regardless of the extension. Raises UserError if it cannot be written."""
    try:
        Path(path).write_bytes(encode_picture(picture))
    except (OSError, ValueError, struct.error) as error:
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error


def encode_picture(picture: Picture) -> bytes:
    """Encode an image in its format. Raises OSError or ValueError if that is not possible."""
    height, width = picture.pixels.shape[:2]
    if problem := size_problem(picture.format, width, height):
        raise ValueError(problem)
    if picture.format == "TIFF":
        from restormixer_arch.data.images.tiff import write_tiff

        return write_tiff(picture.planes, picture.metadata)
    if picture.format == "PNG":
        from restormixer_arch.data.images import png

        deep = picture.pixels.dtype == np.uint16
        content = png.encode_16_bit(picture.planes) if deep else _by_pillow(picture)
        chunks = picture.metadata.get("chunks")
        chunks = png.chunks_of(picture.metadata) if chunks is None else chunks
        return png.with_chunks(content, png.chunks_of_size(chunks, width, height))
    if picture.format == "BMP" and picture.alpha is not None:
        from restormixer_arch.data.images import opencv

        return opencv.encode_bmp(picture.planes, picture.metadata.get("dpi"))
    if picture.format == "PPM" and picture.pixels.dtype == np.uint16:
        from restormixer_arch.data.images import opencv

        return opencv.encode_rgb(".ppm" if picture.pixels.shape[2] == 3 else ".pgm", picture.pixels)
    if picture.format == "HEIF":
        _register_heif("HEIF")
    metadata = picture.metadata
    if isinstance(metadata.get("exif"), bytes):
        metadata = {**metadata, "exif": exif_of_size(metadata["exif"], width, height)}
    return _by_pillow(picture, **metadata)


def _by_pillow(picture: Picture, **metadata: Any) -> bytes:
    content = BytesIO()
    to_pillow(picture).save(content, format=picture.format, **metadata)
    return content.getvalue()


def to_pillow(picture: Picture) -> Image.Image:
    """Convert to a Pillow image of mode L, LA, RGB, RGBA, or I;16 for 16-bit gray; Pillow has no 16-bit colors."""
    return Image.fromarray(picture.planes[..., 0] if picture.planes.shape[2] == 1 else picture.planes)


def to_rgb(image: Image.Image, metadata: dict[str, Any]) -> tuple[Image.Image, dict[str, Any]]:
    """Convert any Pillow mode to L, LA, RGB or RGBA. Return the image and its metadata, which change for CMYK."""
    if image.mode == "CMYK":
        return _from_cmyk(image, metadata)
    if "transparency" in image.info or image.mode in ("PA", "RGBa", "La"):
        return image.convert("LA" if image.mode in ("1", "L", "La") else "RGBA"), metadata
    if image.mode.startswith("I;16"):  # gray HEIF of more than 8 bits per sample, scaled to 16; convert() clips it
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)), metadata
    mode = {"L": "L", "LA": "LA", "RGBA": "RGBA", "1": "L"}.get(image.mode, "RGB")
    return (image if image.mode == mode else image.convert(mode)), metadata


def split_alpha(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Split (H, W) or (H, W, 1 to 4) into pixels (H, W, 1 or 3) and alpha (H, W) or None."""
    planes = planes[..., None] if planes.ndim == 2 else planes
    if planes.shape[2] in (1, 3):
        return planes, None
    return planes[..., :-1], planes[..., -1]


def _rotate(orientation: int, *planes: np.ndarray | None) -> Iterator[np.ndarray | None]:
    """Yield the planes upright; an invalid orientation is treated as 1."""
    for plane in planes:
        yield plane if plane is None else np.ascontiguousarray(UPRIGHT.get(orientation, UPRIGHT[1])(plane))


@contextmanager
def _user_errors(path: str | Path) -> Iterator[None]:
    """Convert decoder exceptions to UserErrors, silence decoder warnings, and disable Pillow's own pixel limit."""
    try:
        with warnings.catch_warnings(), without_pillow_limit():
            warnings.simplefilter("ignore")  # such as broken EXIF
            yield
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: is not a readable image ({', '.join(FORMATS)})") from error
    except MemoryError as error:
        raise UserError(f"{path}: cannot be read as an image (not enough memory)") from error
    except DECODE_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path}: cannot be read as an image ({reason})") from error


def _open(path: str | Path, start: bytes) -> Image.Image:
    """Open a file with Pillow, which decodes nothing yet; ``start`` holds its first bytes."""
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS:
        _register_heif(path)
    return Image.open(path, formats=_formats(start))


def _formats(start: bytes) -> tuple[str, ...]:
    """Return the formats to try for a file that starts with these bytes, including GIF so that the error names it."""
    if start.startswith((b"\xff\xd8", b"BM", b"P", b"GIF")):
        return "JPEG", "BMP", "PPM", "GIF"  # Pillow loads its other plug-ins only for other formats
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF and HEIF may be missing


def _register_heif(source: str | Path) -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise UserError(f"{source}: HEIC images are read by pillow-heif: pip install 'restormixer[heif]'") from error
    if "HEIF" not in Image.OPEN:
        pillow_heif.register_heif_opener(thumbnails=False)


def _check_size(size: tuple[int, int], max_pixels: int | None) -> None:
    if problem := pixel_problem(*size, max_pixels):
        raise ValueError(problem)


def _check_supported(image: Image.Image, path: str | Path) -> None:
    if image.format not in (*FORMATS, MPO):
        raise UserError(f"{path}: {image.format} images are not supported, expected one of {', '.join(FORMATS)}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in (MPO, "HEIF", "TIFF"):
        raise UserError(f"{path}: holds {frames} images, expected one; write each to its own file")
    if image.mode in ("F", "LAB", "HSV") or (image.mode == "I" and image.format != "PPM"):
        raise UserError(f"{path}: has samples of mode {image.mode!r}, expected 8- or 16-bit gray or RGB")


def _from_cmyk(image: Image.Image, metadata: dict[str, Any]) -> tuple[Image.Image, dict[str, Any]]:
    """Convert to sRGB, with the color profile of the image if it has a valid one."""
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


def _max_value_of_pnm(image: Image.Image) -> int:
    """Return the maximum sample value of a PGM or PPM; Pillow has it in the decoder's arguments or the mode."""
    arguments = image.tile[0].args if image.tile else ()
    if image.mode == "I" and isinstance(arguments, str):
        return 65535
    return max((number for number in arguments if isinstance(number, int)), default=255)


def _read_png(path: Path, max_pixels: int | None) -> Picture:
    from restormixer_arch.data.images.png import PngFile, alpha_of_color, profile_of

    png = PngFile(path.read_bytes(), str(path))
    _check_size((png.width, png.height), max_pixels)
    if png.frames > 1:
        raise UserError(f"{path}: holds {png.frames} images, expected one; write each to its own file")
    with png.open() as image:
        orientation, info = upright_info(image)
        chunks = png.upright_chunks(orientation, info) if orientation != 1 else png.chunks
        if png.depth == 16:
            png.check_deep()
            from restormixer_arch.data.images import opencv

            pixels, alpha = split_alpha(opencv.decode_16_bit(png.pixels, str(path)))
            pixels = pixels[..., :1] if png.color in (0, 4) else pixels  # OpenCV decodes gray with alpha to RGBA
        else:
            image.load()
            if png.transparent:  # Pillow would not scale this color for less than 8 bits per sample
                image.info.pop("transparency", None)
            plain, _ = to_rgb(image, {})
            pixels, alpha = split_alpha(np.array(plain))
    if png.transparent:
        alpha = alpha_of_color(pixels, png.transparent)
    pixels, alpha = _rotate(orientation, pixels, alpha)
    metadata = {"chunks": chunks, "icc_profile": profile_of(chunks)}
    return Picture(pixels, alpha, "PNG", metadata, tuple(png.left_out))


def _read_tiff(path: Path, max_pixels: int | None) -> Picture:
    from restormixer_arch.data.images import tiff

    structure = tiff.read_structure(path)
    _check_size(structure.size, max_pixels)
    metadata, left_out = structure.metadata, list(structure.left_out)
    with path.open("rb") as file, _open_tiff(file) as image:
        if known := image.format == "TIFF":
            image.seek(structure.index)
        if not known or structure.deep:
            pixels, alpha, orientation = tiff.read_samples(path, structure.index)
            return Picture(*_rotate(orientation, pixels, alpha), "TIFF", metadata, tuple(left_out))
        _check_supported(image, path)
        associated = tiff.premultiplied(image)
        image.load()
        if image.mode == "P" and max(colors := image.tag_v2[COLOR_MAP]) < 256:  # 8-bit values, as libtiff reads them
            image.putpalette(bytes(colors), "RGB;L")  # all red values, then all green, then all blue
        if structure.cmyk and structure.bits == 16:
            left_out.append("8 of the 16 bits of CMYK")
        plain, metadata = to_rgb(image, metadata)
        pixels, alpha = split_alpha(np.array(plain))
        pixels = tiff.unpremultiply(pixels, alpha) if associated else pixels
    return Picture(pixels, alpha, "TIFF", metadata, tuple(left_out))


def _open_tiff(file: BinaryIO) -> Image.Image:
    """Open a TIFF file with Pillow. Return an empty image if Pillow does not support it.

    If Pillow gets a path, it memory-maps some files, with width and height swapped if they are rotated.
    """
    try:
        return Image.open(file, formats=["TIFF"])
    except UnidentifiedImageError:
        return Image.new("L", (1, 1))
