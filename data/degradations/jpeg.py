"""JPEG compression (ITU-T T.81) by OpenCV's libjpeg, with chroma at half resolution (4:2:0) and rounding to 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from restormixer_arch.data.degradations.common import check_image, draw_strength

BEST, WORST = 100, 10  # qualities at strength 0 and 1


@dataclass(frozen=True)
class JpegParameters:
    """JPEG ``quality`` from 1 to 100, or None for no compression. Raises ValueError for other values."""

    quality: int | None

    def __post_init__(self) -> None:
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be from 1 to 100, got {self.quality}")


def draw_jpeg(rng: np.random.Generator, strength: float | None = None) -> JpegParameters:
    """Return quality ``100 - 90 * strength``, or None at strength 0. A ``strength`` of None is drawn from [0, 1].

    Raises:
        ValueError: if ``strength`` is not in [0, 1].
    """
    strong = draw_strength(rng, strength)
    return JpegParameters(quality=round(BEST - (BEST - WORST) * strong) if strong > 0 else None)


def add_jpeg(image: np.ndarray, parameters: JpegParameters) -> np.ndarray:
    """Compress an image as JPEG and decode it; ``quality`` None leaves it unchanged.

    Args:
        image: RGB image (H, W, 3) or gray image (H, W, 1), float32 in [0, 1].
        parameters: parameters drawn by :func:`draw_jpeg`.

    Returns:
        Degraded image, float32 (H, W, C) in [0, 1], multiples of 1/255.

    Raises:
        TypeError: if the image is not a float32 array.
        ValueError: if its shape or value range is invalid.
    """
    check_image(image)
    if parameters.quality is None:
        return image.copy()
    stored = np.round(image[..., ::-1] * 255).astype(np.uint8)  # OpenCV's channel order is BGR
    flags = [cv2.IMWRITE_JPEG_QUALITY, parameters.quality]
    if image.shape[2] == 3:
        flags += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    _, content = cv2.imencode(".jpg", stored, flags)
    read = cv2.imdecode(content, cv2.IMREAD_COLOR if image.shape[2] == 3 else cv2.IMREAD_GRAYSCALE)
    return read.reshape(image.shape)[..., ::-1].astype(np.float32) / 255
