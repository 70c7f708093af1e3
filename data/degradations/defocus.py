"""Defocus blur: a lens focused at another distance spreads each point over a disc, the image of its aperture.

The disc of a thin lens has uniform brightness and sharp edges (Lee et al., "Iterative Filter Adaptive Network for
Single Image Defocus Deblurring", CVPR 2021). An iris of few blades makes it a polygon; aberrations and diffraction
soften it, which is modeled by blending it with a Gaussian of the same standard deviation. Since light adds up, linear
values are blurred; some of the draws blur stored values, as in ``motion_blur.py``. The complete image has the same
disc, as if the scene were distant or flat.
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

SUBPIXELS = 8  # sub-pixels along each side of a pixel, which antialias the disc


@dataclass(frozen=True)
class DefocusParameters:
    """Parameters of the defocus blur.

    Args:
        radius: radius of the disc in pixels.
        blades: number of blades of the iris, at least 3; 0 for a circle.
        turn: rotation of the iris in radians.
        soft: share of the Gaussian, in [0, 1].
        linear: whether to blur linear light instead of stored values.

    Raises:
        ValueError: if a value is out of its range.
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
    """Draw a disc with a radius of up to 6 pixels. If ``strength`` is None, it is drawn from [0, 1].

    Raises:
        ValueError: if ``strength`` is not in [0, 1].
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
    """Blur an image, mirrored at its edges, with the disc; ``radius`` 0 leaves it unchanged.

    Args:
        image: RGB image (H, W, 3) or gray image (H, W, 1), float32 in [0, 1].
        parameters: parameters drawn by :func:`draw_defocus`.

    Returns:
        Degraded image, float32 (H, W, C) in [0, 1].

    Raises:
        TypeError: if the image is not a float32 array.
        ValueError: if its shape or value range is invalid.
    """
    check_image(image)
    if parameters.radius == 0:
        return image.copy()
    return convolve(image, defocus_kernel(parameters), linear=parameters.linear)


def defocus_kernel(parameters: DefocusParameters) -> np.ndarray:
    """Return the image of a point, float32 (K, K) with K odd and sum 1."""
    radius = parameters.radius
    half = int(np.ceil(radius + 0.5))
    fine = (np.arange((2 * half + 1) * SUBPIXELS) + 0.5) / SUBPIXELS - half - 0.5  # centers of the sub-pixels
    rows, columns = fine[:, None], fine[None]
    distance = np.hypot(rows, columns)
    if parameters.blades:
        wedge = 2 * np.pi / parameters.blades
        around = np.mod(np.arctan2(rows, columns) + parameters.turn, wedge) - wedge / 2
        distance = distance * np.cos(around) / np.cos(wedge / 2)  # the corners of the polygon have the radius
    inside = (distance <= radius).astype(np.float64)
    disc = inside.reshape(2 * half + 1, SUBPIXELS, 2 * half + 1, SUBPIXELS).sum((1, 3))
    if disc.sum() == 0:
        disc[half, half] = 1.0
    places = np.arange(-half, half + 1)
    gaussian = np.exp(-2 * (places[:, None] ** 2 + places**2) / max(radius, 0.25) ** 2)  # standard deviation radius / 2
    kernel = (1 - parameters.soft) * disc / disc.sum() + parameters.soft * gaussian / gaussian.sum()
    return kernel.astype(np.float32)
