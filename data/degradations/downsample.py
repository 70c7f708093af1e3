"""Bicubic down-sampling as MATLAB's ``imresize`` does it, with antialiasing: the field's degradation for
super-resolution. The weights are BasicSR's; they are applied to a whole image at once instead of row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.data.degradations.common import check_image, check_scale

compat.apply()  # basicsr can be imported from here on

from basicsr.utils.matlab_functions import calculate_weights_indices  # noqa: E402

KERNEL_WIDTH = 4  # of the cubic kernel, at scale 1


@dataclass(frozen=True)
class DownsampleParameters:
    """``scale``, how many pixels become one along each side. Raises ValueError: less than 1."""

    scale: int

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise ValueError(f"scale must be at least 1, got {self.scale}")


def add_downsample(image: np.ndarray, parameters: DownsampleParameters) -> np.ndarray:
    """Return the image reduced by ``scale``, clipped to [0, 1]; with ``scale`` 1 it is unchanged.

    Args:
        image: (H, W, 3) RGB or (H, W, 1), float32 in [0, 1].
        parameters: the scale.

    Returns:
        float32 (H / scale, W / scale, C) in [0, 1].

    Raises:
        TypeError: the image is not a float32 array.
        ValueError: its shape or range is another, or a side is no multiple of ``scale``.
    """
    check_image(image)
    scale = parameters.scale
    check_scale(image, scale)
    if scale == 1:
        return image.copy()
    rows, columns = reduction(image.shape[0], scale), reduction(image.shape[1], scale)
    narrow = np.einsum("hwc,jw->hjc", image, columns, optimize=True)
    return np.clip(np.einsum("ih,hjc->ijc", rows, narrow, optimize=True), 0, 1)


@lru_cache(maxsize=32)
def reduction(length: int, scale: int) -> np.ndarray:
    """Return the matrix (length / scale, length), float32, that reduces a line; pixels beyond its ends are mirrored."""
    weights, indices, before, _ = calculate_weights_indices(
        length, length // scale, 1 / scale, "cubic", KERNEL_WIDTH, True
    )
    weights = weights.numpy()
    places = np.mod(indices.numpy().astype(np.intp) - before, 2 * length)  # mirroring repeats after two lengths
    places = np.where(places < length, places, 2 * length - 1 - places)
    matrix = np.zeros((length // scale, length), np.float64)
    np.add.at(matrix, (np.arange(length // scale)[:, None], places), weights)
    return matrix.astype(np.float32)
