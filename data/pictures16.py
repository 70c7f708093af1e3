"""16-bit PNG and TIFF pictures, whose colours Pillow would cut to 8 bits: OpenCV reads them, tifffile writes TIFF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image

from restormixer_arch.errors import UserError

ICC_TAG = 34675
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF orientation -> what puts the picture right
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image, 1),
}


def refuse_other_samples(path: str | Path) -> None:
    """Raise UserError for a TIFF whose samples are no 8- or 16-bit integers; Pillow does not know all of them."""
    with Path(path).open("rb") as file:
        if file.read(4) not in TIFF_MAGIC:
            return
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        if page.dtype is not None and page.dtype not in (np.bool_, np.uint8, np.uint16):
            raise UserError(f"{path}: has samples of type {page.dtype}, expected 8- or 16-bit integers")


def is_16_bit(image: Image.Image) -> bool:
    """Whether a file that Pillow has opened, but not loaded, has 16 bits for each sample."""
    if image.mode.startswith("I"):
        return True
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,))) == 16  # BitsPerSample
    return image.format == "PNG" and any(";16" in str(tile.args) for tile in image.tile)


def is_gray(image: Image.Image) -> bool:
    """Whether a 16-bit file that Pillow has opened, but not loaded, is gray; it makes RGBA of gray with alpha."""
    return image.mode.startswith("I") or any("LA;16" in str(tile.args) for tile in image.tile)


def read(path: str | Path, *, gray: bool, orientation: int) -> tuple[np.ndarray, np.ndarray | None]:
    """uint16 pixels (H, W, 1 or 3), RGB, and alpha (H, W) or None.

    Args:
        path: the file.
        gray: the file's colours are gray; OpenCV makes three channels of gray with alpha.
        orientation: EXIF's, to be applied; 1 for TIFF, where OpenCV does it.

    Raises:
        UserError: OpenCV cannot decode it to 16 bits.
    """
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16:
        raise UserError(f"{path}: cannot be decoded as a 16-bit picture")
    image = UPRIGHT.get(orientation, UPRIGHT[1])(image[..., None] if image.ndim == 2 else image)
    alpha = np.ascontiguousarray(image[..., 3]) if image.shape[2] == 4 else None
    colours = image[..., :1] if gray else image[..., 2::-1]
    return np.ascontiguousarray(colours), alpha


def write_png(planes: np.ndarray, path: str | Path, metadata: dict[str, Any]) -> None:
    """Write uint16 (H, W, 1 to 4), gray or RGB, last an alpha, with ICC profile and EXIF."""
    if planes.shape[2] == 2:  # OpenCV's PNG has no gray with alpha
        planes = planes[..., [0, 0, 0, 1]]
    bgr = planes if planes.shape[2] == 1 else planes[..., [2, 1, 0, 3][: planes.shape[2]]]
    kinds = {"exif": cv2.IMAGE_METADATA_EXIF, "icc_profile": cv2.IMAGE_METADATA_ICCP}
    kept = {kinds[name]: np.frombuffer(metadata[name], np.uint8) for name in kinds if name in metadata}
    done, content = cv2.imencodeWithMetadata(".png", np.ascontiguousarray(bgr), list(kept), list(kept.values()))
    if not done:
        raise OSError("OpenCV could not encode it")
    Path(path).write_bytes(content.tobytes())


def write_tiff(planes: np.ndarray, path: str | Path, metadata: dict[str, Any]) -> None:
    """Write uint16 (H, W, 1, 3 or 4), gray or RGB, the fourth an alpha, with ICC profile and resolution."""
    channels = planes.shape[2]
    options: dict[str, Any] = {"photometric": "rgb" if channels >= 3 else "minisblack", "compression": "zlib"}
    if channels == 4:
        options["extrasamples"] = ["unassalpha"]
    if "icc_profile" in metadata:
        options["iccprofile"] = metadata["icc_profile"]
    if "dpi" in metadata:
        options |= {"resolution": tuple(float(d) for d in metadata["dpi"]), "resolutionunit": "INCH"}
    tifffile.imwrite(path, planes[..., 0] if channels == 1 else planes, metadata=None, **options)


WRITERS: dict[str, Callable[[np.ndarray, str | Path, dict[str, Any]], None]] = {"PNG": write_png, "TIFF": write_tiff}
