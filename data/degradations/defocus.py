"""Defocus: a lens focused at another distance spreads each point over a disc, the image of its aperture.

The disc of a thin lens has one brightness and sharp edges (Lee et al., "Iterative Filter Adaptive Network for Single
Image Defocus Deblurring", CVPR 2021). An iris of few blades makes it a polygon; aberrations and diffraction soften it,
which a blend with a Gaussian of the same standard deviation stands for. Light is added up, so linear values are
blurred; a part of the draws blurs stored values, as in ``motion_blur.py``. One disc serves the whole image: the scene
is far, or flat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from restormixer_arch.data.degradations.common import (
    LINEAR_SHARE,
    check_image,
    convolve,
    draw_strength,
    require_not_negative,
    require_unit,
)

SUBPIXELS = 8  # along each side of a pixel, by which the disc's edge is drawn


@dataclass(frozen=True)
class DefocusParameters:
    """Everything that determines the blur.

    Args:
        radius: of the disc, in pixels.
        blades: of the iris, at least 3; 0 for a circle.
        turn: of the iris, in radians.
        soft: share of the Gaussian, in [0, 1].
        linear: blur linear light instead of stored values.

    Raises:
        ValueError: a value out of its range.
    """

    radius: float
    blades: int = 0
    turn: float = 0.0
    soft: float = 0.0
    linear: bool = True

    def __post_init__(self) -> None:
        require_not_negative(self, "radius", "turn")
        require_unit(self, "soft")
        if self.blades != 0 and self.blades < 3:
            raise ValueError(f"blades must be 0 or at least 3, got {self.blades}")


def draw_defocus(rng: np.random.Generator, strength: float | None = None) -> DefocusParameters:
    """Draw a disc of up to 6 pixels; None draws the strength from [0, 1].

    Raises:
        ValueError: ``strength`` is not in [0, 1].
    """
    strong = draw_strength(rng, strength)
    return DefocusParameters(
        radius=float(strong * rng.uniform(1.5, 6)),
        blades=int(rng.choice([0, 0, 5, 6, 7, 8])),
        turn=float(rng.uniform(0, 2 * np.pi)),
        soft=float(rng.uniform(0, 1)),
        linear=bool(rng.uniform() < LINEAR_SHARE),
    )


def add_defocus(image: np.ndarray, parameters: DefocusParameters) -> np.ndarray:
    """Return the image out of focus, mirrored at its edges; with ``radius`` 0 it is unchanged.

    Args:
        image: (H, W, 3) RGB or (H, W, 1), float32 in [0, 1].
        parameters: what :func:`draw_defocus` drew.

    Returns:
        float32 (H, W, C) in [0, 1].

    Raises:
        TypeError: the image is not a float32 array.
        ValueError: its shape or value range is invalid.
    """
    check_image(image)
    if parameters.radius == 0:
        return image.copy()
    return convolve(image, defocus_kernel(parameters), linear=parameters.linear)


def defocus_kernel(parameters: DefocusParameters) -> np.ndarray:
    """Return the image of a point: float32 (K, K), K odd, sum 1."""
    radius = parameters.radius
    half = int(np.ceil(radius + 0.5))
    fine = (np.arange((2 * half + 1) * SUBPIXELS) + 0.5) / SUBPIXELS - half - 0.5  # sub-pixels' centers
    rows, columns = fine[:, None], fine[None]
    distance = np.hypot(rows, columns)
    if parameters.blades:
        wedge = 2 * np.pi / parameters.blades
        around = np.mod(np.arctan2(rows, columns) + parameters.turn, wedge) - wedge / 2
        distance = distance * np.cos(around) / np.cos(wedge / 2)  # the radius is that of the corners
    inside = (distance <= radius).astype(np.float64)
    disc = inside.reshape(2 * half + 1, SUBPIXELS, 2 * half + 1, SUBPIXELS).sum((1, 3))
    if disc.sum() == 0:
        disc[half, half] = 1.0
    places = np.arange(-half, half + 1)
    gaussian = np.exp(-2 * (places[:, None] ** 2 + places**2) / max(radius, 0.25) ** 2)  # standard deviation radius / 2
    kernel = (1 - parameters.soft) * disc / disc.sum() + parameters.soft * gaussian / gaussian.sum()
    return kernel.astype(np.float32)
