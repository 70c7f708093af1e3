"""Bicubic downsampling with antialiasing as in MATLAB's ``imresize``, the standard degradation for super-resolution.

The weights are BasicSR's, but they are applied to complete images instead of row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.data.degradations.common import check_image, check_scale

KERNEL_WIDTH = 4  # width of the cubic kernel in pixels, at scale 1


@dataclass(frozen=True)
class DownsampleParameters:
    """Downsampling factor ``scale`` along each side. Raises ValueError if it is less than 1."""

    scale: int

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise ValueError(f"scale must be at least 1, got {self.scale}")


def add_downsample(image: np.ndarray, parameters: DownsampleParameters) -> np.ndarray:
    """Downsample an image by ``scale`` and clip it to [0, 1]; ``scale`` 1 leaves it unchanged.

    Args:
        image: RGB image (H, W, 3) or gray image (H, W, 1), float32 in [0, 1].
        parameters: downsampling factor.

    Returns:
        Degraded image, float32 (H / scale, W / scale, C) in [0, 1].

    Raises:
        TypeError: if the image is not a float32 array.
        ValueError: if its shape or value range is invalid, or a side is not a multiple of ``scale``.
    """
    check_image(image)
    scale = parameters.scale
    check_scale(image, scale)
    if scale == 1:
        return image.copy()
    low = _reduce_rows(image, scale)
    narrow = _reduce_rows(np.ascontiguousarray(low.transpose(1, 0, 2)), scale)
    return np.clip(narrow.transpose(1, 0, 2), 0, 1)


def _reduce_rows(image: np.ndarray, scale: int) -> np.ndarray:
    """Downsample (H, W, C) to (H / scale, W, C), float32, one kernel tap at a time."""
    weights, places = taps(image.shape[0], scale)
    reduced = np.zeros((len(places), *image.shape[1:]), np.float32)
    for weight, place in zip(weights.T, places.T, strict=True):
        reduced += weight[:, None, None] * image[place]
    return reduced


@lru_cache(maxsize=32)
def taps(length: int, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and indices, both (length / scale, n), of the n pixels that form each pixel of a downsampled line.

    The weights are float32. Indices beyond the ends of the line are mirrored.
    """
    compat.apply()
    from basicsr.utils.matlab_functions import calculate_weights_indices  # imported here, since it loads torch

    weights, indices, before, _ = calculate_weights_indices(
        length, length // scale, 1 / scale, "cubic", KERNEL_WIDTH, True
    )
    weights = weights.numpy()
    places = np.mod(indices.numpy().astype(np.intp) - before, 2 * length)  # mirroring has a period of two lengths
    return weights.astype(np.float32), np.where(places < length, places, 2 * length - 1 - places)
