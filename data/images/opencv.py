"""Decode and encode images with OpenCV, without its log messages and with a pixel limit."""

from __future__ import annotations

import struct
import warnings
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from restormixer_arch.data.images import override, pixel_problem, without_pillow_limit
from restormixer_arch.data.images.png import SIGNATURE, PngFile
from restormixer_arch.errors import UserError
from restormixer_arch.memory import is_out_of_memory
from restormixer_arch.output import atomic_paths

_without_log = override(cv2.utils.logging.setLogLevel, cv2.utils.logging.LOG_LEVEL_SILENT)


def decode(content: bytes, flags: int = cv2.IMREAD_UNCHANGED) -> np.ndarray | None:
    """Decode an image file to (H, W) or BGR (H, W, C). Return None if OpenCV cannot, or if it is a damaged PNG.

    Nothing is printed except libpng's warnings about chunks that are irrelevant here, such as an odd color profile.

    Raises:
        MemoryError: if there is not enough memory for the image.
    """
    if content[:8] == SIGNATURE and _is_damaged(content):
        return None  # libpng would print an error
    try:
        with _without_log():
            return cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    except cv2.error as error:
        if is_out_of_memory(error):
            raise MemoryError from error
        return None


def _is_damaged(content: bytes) -> bool:
    try:
        return bool(PngFile(content, "").damage)
    except UserError:  # truncated within the header
        return True


def decode_16_bit(content: bytes, source: str) -> np.ndarray:
    """Decode a 16-bit image file to uint16 (H, W, 1, 3 or 4), gray, RGB or RGBA. Raises UserError if it is not one."""
    image = decode(content)
    if image is None or image.dtype != np.uint16:
        raise UserError(f"{source}: cannot be decoded as a 16-bit image")
    image = image[..., None] if image.ndim == 2 else image
    channels = image.shape[2]
    return image if channels == 1 else image[..., [2, 1, 0, 3][:channels]]


def decode_color(content: bytes, source: str) -> np.ndarray:
    """Decode an image file to BGR uint8 (H, W, 3), as training does.

    Args:
        content: encoded image file.
        source: name of the image in error messages.

    Raises:
        UserError: if OpenCV cannot decode it, or it has more pixels than :func:`pixel_limit` allows.
    """
    image = decode(content, cv2.IMREAD_COLOR) if check_pixels(content, source) else None
    if image is None:
        raise UserError(f"{source}: cannot be decoded as an image ({len(content)} bytes)")
    return image


def check_pixels(content: bytes, source: str) -> bool:
    """Raise UserError if an image file claims too many pixels. Return False if its format is unknown."""
    size = claimed_size(content)
    if size and (problem := pixel_problem(*size)):
        raise UserError(f"{source}: cannot be decoded as an image ({problem})")
    return size is not None


def claimed_size(content: bytes) -> tuple[int, int] | None:
    """Return the (width, height) that the header of an image file claims, None if its format is unknown."""
    if content[:8] == SIGNATURE and len(content) >= 24:  # a shortcut: most training images are PNG
        return struct.unpack(">II", content[16:24])
    try:
        with warnings.catch_warnings(), without_pillow_limit():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(content)) as image:
                return image.size
    except Exception:  # noqa: BLE001, the header of any kind of damaged file
        return None


def encode(suffix: str, image: np.ndarray, flags: tuple[int, ...] = ()) -> bytes:
    """Encode (H, W) or BGR (H, W, C) in the format of a suffix such as ``.png``. Raises OSError if OpenCV cannot."""
    try:
        done, content = cv2.imencode(suffix, image, flags)
    except cv2.error as error:
        raise OSError(f"OpenCV cannot encode it: {error.err}") from error
    if not done:
        raise OSError("OpenCV cannot encode it")
    return content.tobytes()


def encode_rgb(suffix: str, planes: np.ndarray) -> bytes:
    """Encode gray, gray with alpha, RGB or RGBA (H, W, 1 to 4) by suffix. Raises OSError if OpenCV cannot."""
    order = {1: [0], 2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[planes.shape[2]]
    return encode(suffix, np.ascontiguousarray(planes[..., order]))


def encode_bmp(planes: np.ndarray, dpi: tuple[float, float] | None) -> bytes:
    """Encode uint8 (H, W, 1 to 4) as BMP, with a resolution in pixels per inch unless it is None."""
    content = encode_rgb(".bmp", planes)
    if dpi is None:
        return content
    per_meter = (round(number * 39.3701) for number in dpi)  # Pillow's factor, so that its values remain the same
    return content[:38] + struct.pack("<2I", *per_meter) + content[46:]


def write_png(path: Path, image: np.ndarray) -> None:
    """Write (H, W) or BGR (H, W, C) as PNG; ``cv2.imwrite`` would not notice a full disk.

    Raises:
        UserError: if it cannot be written; no partial file remains.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = encode(".png", image)
        with atomic_paths([path]) as [part]:
            part.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def enlarge(image: np.ndarray, size: int) -> np.ndarray:
    """Mirror an image (H, W, C) at its right and lower edges until both sides are at least ``size`` pixels.

    The edge pixels are repeated (abc|cba). Otherwise a clean image and its degraded one at another scale would not
    remain aligned.
    """
    down, right = max(size - image.shape[0], 0), max(size - image.shape[1], 0)
    if not (down or right):
        return image
    return cv2.copyMakeBorder(image, 0, down, 0, right, cv2.BORDER_REFLECT)
