"""Helpers of the degradations: checks, random draws, point splatting, smooth noise, linear light and convolution.

A degradation consists of two functions. ``draw_<name>(rng, strength)`` draws parameters into a frozen dataclass and is
the only source of randomness. ``add_<name>(image, parameters)`` is deterministic: noise and positions come from the
``seed`` in the parameters. Images are float32 RGB (H, W, 3) or gray (H, W, 1) in [0, 1], display-referred (sRGB).
Strength 0 is the identity.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np

# The transfer function of sRGB (IEC 61966-2-1:1999).
SRGB_THRESHOLD = np.float32(0.04045)  # stored value up to which the function is linear
SRGB_SLOPE = np.float32(12.92)
SRGB_OFFSET = np.float32(0.055)
SRGB_GAMMA = np.float32(2.4)
LINEAR_SHARE = 0.7  # share of the drawn blurs that act on linear light; the others act on stored values


def check_image(image: np.ndarray) -> None:
    """Raise TypeError or ValueError unless ``image`` is a float32 image (H, W, 3) or (H, W, 1) in [0, 1]."""
    if not isinstance(image, np.ndarray) or image.dtype != np.float32:
        raise TypeError(f"image must be a float32 array, got {getattr(image, 'dtype', type(image).__name__)}")
    if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"image must be (H, W, 3) or (H, W, 1), got {image.shape}")
    if not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(f"image must be in [0, 1], got [{image.min():g}, {image.max():g}]")


def check_scale(image: np.ndarray, scale: int) -> None:
    """Raise ValueError unless both sides of an image are multiples of the scale."""
    if image.shape[0] % scale or image.shape[1] % scale:
        raise ValueError(f"sides must be multiples of scale {scale}, got {image.shape[0]}x{image.shape[1]}")


def require_unit(parameters: Any, *names: str) -> None:
    """Raise ValueError unless the named attributes are in [0, 1]."""
    for name in names:
        if not 0 <= getattr(parameters, name) <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {getattr(parameters, name)}")


def require_not_negative(parameters: Any, *names: str) -> None:
    """Raise ValueError unless the named attributes are finite numbers of at least 0."""
    for name in names:
        if not 0 <= getattr(parameters, name) < np.inf:
            raise ValueError(f"{name} must not be negative, got {getattr(parameters, name)}")


def require_positive(parameters: Any, *names: str) -> None:
    """Raise ValueError unless the named attributes are finite numbers greater than 0."""
    for name in names:
        if not 0 < getattr(parameters, name) < np.inf:
            raise ValueError(f"{name} must be positive, got {getattr(parameters, name)}")


def draw_strength(rng: np.random.Generator, strength: float | None) -> float:
    """Return ``strength``, or a uniform draw from [0, 1] if it is None; ``rng`` advances by the same amount either way.

    Raises:
        ValueError: if ``strength`` is not in [0, 1].
    """
    drawn = float(rng.uniform(0, 1))
    if strength is None:
        return drawn
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    return float(strength)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number from [low, high] whose logarithm is uniformly distributed."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def draw_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**32))


def splat(shape: tuple[int, int], rows: np.ndarray, columns: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """Add points to an empty image, each distributed bilinearly over the four pixels around it.

    Args:
        shape: shape (H, W) of the result.
        rows, columns: coordinates (N,) of the points; the center of pixel (i, j) is (i, j). Points a pixel or more
            outside are ignored.
        amounts: values (N,) of the points.

    Returns:
        Sum of the points, float32 (H, W).
    """
    return splat_chunks(shape, [(rows, columns, amounts)])


def splat_chunks(shape: tuple[int, int], slices: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Do the same as :func:`splat` for slices (rows, columns, amounts) of the points, which needs less memory."""
    sums: np.ndarray | None = None
    for points in slices:
        added = _sums(shape, *points)
        sums = added if sums is None else np.add(sums, added, out=sums)
    return np.zeros(shape, np.float32) if sums is None else sums[1:-1, 1:-1].astype(np.float32)


def _sums(shape: tuple[int, int], rows: np.ndarray, columns: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """Return the sums as float64 (H + 2, W + 2), with a border of one pixel."""
    height, width = shape
    rows, columns = rows + 1, columns + 1  # before the test for points inside, since this addition rounds
    inside = (rows > 0) & (rows < height + 1) & (columns > 0) & (columns < width + 1)
    rows, columns, amounts = rows[inside], columns[inside], amounts[inside]
    top, left = rows.astype(np.intp), columns.astype(np.intp)
    down, right = rows - top, columns - left
    stride = width + 2
    corner = top * stride + left
    places = np.concatenate((corner, corner + 1, corner + stride, corner + stride + 1))
    upper, lower = amounts * (1 - down), amounts * down
    shares = np.concatenate((upper * (1 - right), upper * right, lower * (1 - right), lower * right))
    sums = np.bincount(places, shares, minlength=(height + 2) * stride)
    return sums.reshape(height + 2, stride)


def smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return low-frequency Gaussian noise, ``cells`` x ``cells`` values interpolated to float32 (H, W)."""
    coarse = rng.standard_normal((cells, cells), np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def srgb_to_linear(stored: np.ndarray) -> np.ndarray:
    """Convert stored (sRGB) values to linear light, which is proportional to photons. Float32 in and out."""
    powers = ((stored + SRGB_OFFSET) / (1 + SRGB_OFFSET)) ** SRGB_GAMMA
    return np.where(stored <= SRGB_THRESHOLD, stored / SRGB_SLOPE, powers)


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Convert linear light to stored (sRGB) values. Float32 in and out."""
    curve = (1 + SRGB_OFFSET) * np.maximum(linear, SRGB_THRESHOLD / SRGB_SLOPE) ** (1 / SRGB_GAMMA) - SRGB_OFFSET
    return np.where(linear <= SRGB_THRESHOLD / SRGB_SLOPE, linear * SRGB_SLOPE, curve)


def convolve(image: np.ndarray, kernel: np.ndarray, *, linear: bool = True) -> np.ndarray:
    """Convolve an image, mirrored at its edges, with a kernel.

    Args:
        image: image (H, W, C), float32 in [0, 1].
        kernel: kernel (K, K), float32, with K odd and sum 1.
        linear: whether to convolve linear light, which a sensor integrates, instead of stored values.

    Returns:
        Convolved image, float32 (H, W, C) in [0, 1].
    """
    turned = np.ascontiguousarray(kernel[::-1, ::-1])  # filter2D computes a correlation
    light = srgb_to_linear(image) if linear else image
    blurred = cv2.filter2D(light, -1, turned, borderType=cv2.BORDER_REFLECT)
    blurred = np.clip(blurred.reshape(image.shape), 0, 1)
    return np.clip(linear_to_srgb(blurred), 0, 1) if linear else blurred
