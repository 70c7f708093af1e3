"""Read and write image files of any kind, keeping depth, gray, alpha, color profile and metadata.

Pillow reads and writes 8-bit images. Around it, PNG (``png.py``) and TIFF (``tiff.py``) have code of their own, which
copies metadata as it is, and 16-bit pixels, which Pillow would reduce to 8 bits. What is kept:

=====================  =====================================================================================
JPEG                   ICC profile, EXIF, XMP, IPTC, comment, resolution
PNG                    color chunks (ICC, gAMA, cHRM, sRGB, cICP, ...), EXIF, XMP, texts, resolution, of any size
TIFF                   ICC profile, tags, EXIF, GPS, XMP, IPTC, resolution; GeoTIFF's places, also of enlarged images
WebP, AVIF, HEIF       ICC profile, EXIF, XMP; a lossless WebP stays lossless; the color space of a HEIF (nclx)
BMP                    resolution
PGM, PPM               only pixels
=====================  =====================================================================================

What a file has beyond that is in :attr:`Picture.left_out`. EXIF is written without its thumbnail, which shows the
input, and with the size of the result. The orientation is applied to the pixels and removed.
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
from restormixer_arch.data.images.exif import UPRIGHT, exif_of_size, turn_info
from restormixer_arch.errors import UserError

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM", "AVIF", "HEIF")
MPO = "MPO"  # a JPEG with a preview or a second view behind it; the first image is read
MAX_SIDE = {"JPEG": 65500, "WEBP": 16383, "AVIF": 65536, "HEIF": 16384}  # pixels that can be written
CODING = ("quality", "subsampling", "lossless", "exact", "chroma")  # what is no metadata among a writer's arguments
DAMAGES = (*exif.DAMAGES, EOFError, zlib.error, RuntimeError)  # what decoders and encoders raise
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


@dataclass
class Picture:
    """A decoded image, upright.

    Attributes:
        pixels: (H, W, C), RGB or gray, uint8 or uint16.
        alpha: (H, W) of the same dtype, or None.
        format: Pillow's name for it, such as ``JPEG``.
        metadata: for the writer: keyword arguments as for Pillow's ``save``; for PNG also ``chunks``, for TIFF the
            arguments of :func:`~restormixer_arch.data.images.tiff.write_tiff`.
        left_out: what the file contains but a written image will not.
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
    """Read an image file; its content decides the format, not its extension.

    Args:
        path: the file.
        max_pixels: the most pixels that it may have; None for :func:`~restormixer_arch.data.images.pixel_limit`.

    Raises:
        UserError: the file cannot be read, is damaged, has too many pixels, holds several images, or has samples that
            are neither 8- nor 16-bit integers.
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
        if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS:
            _register_heif(path)
        with Image.open(path, formats=_formats(start)) as image:
            _check_size(image.size, max_pixels)
            _check_supported(image, path)
            if image.format == "PPM" and (white := _white_of_pnm(image)) > 255:
                from restormixer_arch.data.images import opencv

                pixels = opencv.decode_16_bit(path.read_bytes(), str(path)) * np.float64(65535 / white)
                return Picture(np.minimum(np.rint(pixels), 65535).astype(np.uint16), None, "PPM")
            from restormixer_arch.data.images.metadata import left_out, metadata_of

            image.load()
            orientation, info = turn_info(image)
            plain, metadata = to_rgb(image, metadata_of(image, info, path))
            pixels, alpha = _turned(orientation, *split_alpha(np.array(plain)))
            return Picture(
                pixels, alpha, "JPEG" if image.format == MPO else image.format, metadata, left_out(image, path)
            )


def picture_size(path: str | Path) -> tuple[int, int]:
    """Return (width, height) in pixels from the file's header. Raises UserError: it cannot be read, or has too many."""
    with _user_errors(path):
        with Path(path).open("rb") as file:
            start = file.read(33)
        if start.startswith(b"\x89PNG"):
            from restormixer_arch.data.images.png import PngFile

            png = PngFile(start, str(path))
            _check_size((png.width, png.height), None)
            return png.width, png.height
        if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):  # also those that Pillow cannot read
            from restormixer_arch.data.images.tiff import read_structure

            size = read_structure(Path(path)).size
            _check_size(size, None)
            return size
        if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS:
            _register_heif(path)
        with Image.open(path, formats=_formats(start)) as image:
            _check_size(image.size, None)
            return image.size


def size_problem(format: str, width: int, height: int) -> str:
    """Return why a picture of this size cannot be written in a format, "" if it can."""
    most = MAX_SIDE.get(format)
    if most is None or max(width, height) <= most:
        return ""
    return f"{width} x {height} pixels are more than {format} can hold ({most} on a side)"


def with_writable_metadata(picture: Picture, path: str | Path) -> Picture:
    """Return the picture without metadata that the writer refuses, so that no finished result is lost to them.

    Raises:
        UserError: the picture cannot be written at all.
    """
    corner = Picture(picture.pixels[:64, :64], None, picture.format, picture.metadata)
    reason: object = ""
    attempts = [(tuple(picture.metadata), ""), (CODING, "all metadata")]
    if picture.metadata.get("icc_profile"):
        attempts.insert(1, ((*CODING, "icc_profile"), "all metadata but the color profile"))
    for names, lost in attempts:
        metadata = {name: picture.metadata[name] for name in names if name in picture.metadata}
        try:
            encode_picture(replace(corner, metadata=metadata))
        except DAMAGES as error:
            reason = reason or error
            continue
        if not lost:
            return picture
        return replace(picture, metadata=metadata, left_out=(*picture.left_out, f"{lost} ({reason})"))
    raise UserError(f"{path}: the result cannot be written as {picture.format} ({reason})")


def as_png(picture: Picture) -> Picture:
    """Return the same picture as PNG, with the metadata that PNG can hold."""
    from restormixer_arch.data.images.png import chunks_of

    if picture.format == "PNG":
        return picture
    metadata = {"chunks": chunks_of(picture.metadata), "icc_profile": picture.metadata.get("icc_profile")}
    return Picture(picture.pixels, picture.alpha, "PNG", metadata)


def write_picture(picture: Picture, path: str | Path) -> None:
    """Write a picture in its own format, whatever the extension. Raises UserError if it cannot be written."""
    try:
        Path(path).write_bytes(encode_picture(picture))
    except (OSError, ValueError, struct.error) as error:
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error


def encode_picture(picture: Picture) -> bytes:
    """Return the file of a picture in its own format. Raises OSError or ValueError if it has none there."""
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


def _turned(orientation: int, *planes: np.ndarray | None) -> Iterator[np.ndarray | None]:
    """Yield the planes upright; an orientation that does not exist is 1."""
    for plane in planes:
        yield plane if plane is None else np.ascontiguousarray(UPRIGHT.get(orientation, UPRIGHT[1])(plane))


@contextmanager
def _user_errors(path: str | Path) -> Iterator[None]:
    """Turn the exceptions of the decoders into UserErrors, silence their warnings, and lift Pillow's own limit."""
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
    except DAMAGES as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path}: cannot be read as an image ({reason})") from error


def _formats(start: bytes) -> tuple[str, ...]:
    """Return the formats to try for a file that starts so, with GIF, so that the error names it."""
    if start.startswith((b"\xff\xd8", b"BM", b"P", b"GIF")):
        return "JPEG", "BMP", "PPM", "GIF"  # Pillow loads its other plug-ins for other formats only
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


def _white_of_pnm(image: Image.Image) -> int:
    """Return the value of white that a PGM or PPM states; Pillow names it for the decoder, or its mode."""
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
        orientation, info = turn_info(image)
        chunks = png.turned(info) if orientation != 1 else png.chunks
        if png.depth == 16:
            png.check_deep()
            from restormixer_arch.data.images import opencv

            pixels, alpha = split_alpha(opencv.decode_16_bit(png.pixels, str(path)))
            pixels = pixels[..., :1] if png.color in (0, 4) else pixels  # gray with alpha comes as RGBA
        else:
            image.load()
            if png.transparent:  # Pillow would not scale it with samples of less than 8 bits
                image.info.pop("transparency", None)
            plain, _ = to_rgb(image, {})
            pixels, alpha = split_alpha(np.array(plain))
    if png.transparent:
        alpha = alpha_of_color(pixels, png.transparent)
    pixels, alpha = _turned(orientation, pixels, alpha)
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
            metadata["directories"], damaged = tiff.directories_of(image)
            left_out += damaged
        if not known or structure.deep:
            pixels, alpha, orientation = tiff.read_samples(path, structure.index)
            return Picture(*_turned(orientation, pixels, alpha), "TIFF", metadata, tuple(left_out))
        _check_supported(image, path)
        image.load()
        if structure.cmyk and structure.bits == 16:
            left_out.append("8 of the 16 bits of CMYK")
        plain, metadata = to_rgb(image, metadata)
        pixels, alpha = split_alpha(np.array(plain))
    return Picture(pixels, alpha, "TIFF", metadata, tuple(left_out))


def _open_tiff(file: BinaryIO) -> Image.Image:
    """Return Pillow's image of an open file, or an empty one if Pillow does not know its kind.

    Of a path, Pillow maps some files into memory, with width and height swapped if they are turned.
    """
    try:
        return Image.open(file, formats=["TIFF"])
    except UnidentifiedImageError:
        return Image.new("L", (1, 1))
