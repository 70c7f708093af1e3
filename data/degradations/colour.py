"""The transfer function of sRGB (IEC 61966-2-1:1999): between stored values and linear light, both in [0, 1]."""

from __future__ import annotations

import numpy as np

CUT = np.float32(0.04045)  # the stored value below which the function is a straight line
SLOPE = np.float32(12.92)
OFFSET = np.float32(0.055)
POWER = np.float32(2.4)


def to_linear(stored: np.ndarray) -> np.ndarray:
    """Return the light, proportional to photons, that stored values stand for. Float32 in and out."""
    return np.where(stored <= CUT, stored / SLOPE, ((stored + OFFSET) / (1 + OFFSET)) ** POWER)


def to_stored(linear: np.ndarray) -> np.ndarray:
    """Return the stored values of linear light. Float32 in and out."""
    curve = (1 + OFFSET) * np.maximum(linear, CUT / SLOPE) ** (1 / POWER) - OFFSET
    return np.where(linear <= CUT / SLOPE, linear * SLOPE, curve)
