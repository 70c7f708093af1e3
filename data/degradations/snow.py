"""Snow: flakes at several distances, blurred by motion and defocus, and the veil of flakes too distant to be resolved.

The model, along the path of the light:

- A flake is an aggregate of crystals, drawn as a cloud of points around a few centers, with an opacity of
  ``1 - exp(-thickness)``. It scatters daylight diffusely, so it is bright: snow mixes the scene with light,
  ``(1 - z) * scene + z * light`` (Liu et al., "DesnowNet", TIP 2018, the model of Snow100K).
- Diameters are exponentially distributed (Gunn and Marshall, "The distribution with size of aggregate snowflakes",
  1958).
- Flakes at twice the distance are half as large in the image, and their number grows with the square of the distance:
  large flakes are few and near, small ones numerous and far.
- Flakes of all sizes fall at about 1 m/s and drift with the wind. A streak is as long as the path during the exposure,
  and shorter with increasing distance.
- The camera is focused on the scene. The circle of confusion of a thin lens grows with the difference of the inverse
  distances, so near flakes are out of focus.
- Snow that is too distant for single flakes adds a veil, ``(1 - v) * image + v * light`` (Chen et al., "JSTASR", ECCV
  2020, the model of SRRS; Chen et al., "ALL Snow Removed", ICCV 2021, the model of CSD).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from restormixer_arch.data.degradations.common import (
    check_image,
    draw_seed,
    draw_strength,
    log_uniform,
    require_not_negative,
    require_positive,
    require_unit,
    splat,
)

PIXELS_PER_DENSITY = 10_000  # area in which `density` counts flakes
SMALLEST = 1.2  # smallest mean flake size of a layer, in pixels
DISTANCE_STEP = 1.7  # how much farther each layer is than the one before it
DIAMETERS = (0.4, 2.5)  # smallest and largest flake, relative to the mean diameter
CRYSTALS = 4  # number of centers of the point cloud of a flake
SPREAD = 0.45  # standard deviation of the centers around the middle, in radii
POINTS_PER_PIXEL = 1.2  # number of points per pixel of a flake's area
THICKNESS = 2.5  # optical thickness in the middle of a flake


@dataclass(frozen=True)
class SnowParameters:
    """Parameters of the snow; lengths are in pixels.

    Args:
        angle: direction of fall in degrees, 0 straight down, positive towards the right.
        size: mean diameter of the nearest flakes.
        density: number of flakes per 10,000 pixels in the nearest layer.
        opacity: largest opacity of a flake, in [0, 1].
        streak: distance that the nearest flakes move during the exposure.
        defocus: standard deviation of the defocus blur of the nearest layer, with the focus at infinity.
        layers: number of depth layers.
        light: radiance of flakes and veil, in [0, 1].
        veil: opacity of the veil, in [0, 1].
        seed: random seed of the positions, shapes and directions of the flakes.

    Raises:
        ValueError: if a value is out of its range.
    """

    angle: float
    size: float
    density: float
    opacity: float
    streak: float = 0.0
    defocus: float = 1.0
    layers: int = 4
    light: float = 0.95
    veil: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_unit(self, "opacity", "light", "veil")
        require_positive(self, "size")
        require_not_negative(self, "density", "streak", "defocus", "seed")
        if self.layers < 1:
            raise ValueError(f"layers must be at least 1, got {self.layers}")


def draw_snow(rng: np.random.Generator, strength: float | None = None) -> SnowParameters:
    """Draw snow from a few flakes to a blizzard, fine or coarse, sharp or out of focus, with or without a veil.

    Args:
        rng: the only source of randomness; it advances by the same amount for any ``strength``.
        strength: value from 0 (no snow) to 1 (heaviest snow); None draws it from [0, 1].

    Raises:
        ValueError: if ``strength`` is not in [0, 1].
    """
    strong = draw_strength(rng, strength)
    size = log_uniform(rng, 2, 18)
    resolved = 1 + int(np.log(size / SMALLEST) / np.log(DISTANCE_STEP))  # flakes of farther layers are too small
    layers = min(int(rng.integers(1, 6)), resolved)
    coverage = strong * log_uniform(rng, 0.01, 0.5)  # area of the flakes relative to the image
    return SnowParameters(
        angle=float(np.clip(rng.normal(0, 30), -80, 80)),
        size=size,
        density=float(coverage / layers * PIXELS_PER_DENSITY / size**2),
        opacity=float(rng.uniform(0.35, 1)),
        streak=float(size * rng.uniform(0, 2.5)),
        defocus=float(size * rng.uniform(0, 0.35)),
        layers=layers,
        light=float(rng.uniform(0.7, 1)),
        veil=float(strong * (rng.uniform() < 0.5) * rng.uniform(0, 0.3)),
        seed=draw_seed(rng),
    )


def add_snow(image: np.ndarray, parameters: SnowParameters) -> np.ndarray:
    """Add snow to a copy of an image. The same image and parameters give the same bytes.

    Args:
        image: RGB image (H, W, 3) or gray image (H, W, 1), float32 in [0, 1].
        parameters: parameters of the snow; ``opacity`` or ``density`` 0 and ``veil`` 0 leave the image unchanged.

    Returns:
        Degraded image, float32 (H, W, C) in [0, 1].

    Raises:
        TypeError: if the image is not a float32 array.
        ValueError: if its shape or value range is invalid.
    """
    check_image(image)
    opacity = flake_opacity(image.shape[0], image.shape[1], parameters)
    # Flakes and veil have the same light, so both are one mixture.
    transmission = ((1 - opacity) * np.float32(1 - parameters.veil))[..., None]
    return image * transmission + np.float32(parameters.light) * (1 - transmission)


def flake_opacity(height: int, width: int, parameters: SnowParameters) -> np.ndarray:
    """Return the fraction of the scene's light that the flakes block, float32 (H, W) in [0, 1]."""
    rng = np.random.default_rng(parameters.seed)
    transmission = np.ones((height, width), np.float32)
    for layer in range(parameters.layers):
        distance = DISTANCE_STEP**layer
        transmission *= 1 - _layer_opacity(rng, (height, width), parameters, distance)
    return 1 - transmission


def _layer_opacity(
    rng: np.random.Generator, shape: tuple[int, int], parameters: SnowParameters, distance: float
) -> np.ndarray:
    size, streak = parameters.size / distance, parameters.streak / distance
    defocus = parameters.defocus / distance
    margin = int(np.ceil(size * DIAMETERS[1] / 2 + streak / 2 + 2 * defocus))  # for flakes that reach into the image
    height, width = shape[0] + 2 * margin, shape[1] + 2 * margin
    count = rng.poisson(parameters.density * distance**2 * height * width / PIXELS_PER_DENSITY)
    centers = rng.uniform((0, 0), (height, width), (count, 2))
    radii = size / 2 * np.clip(rng.exponential(1.0, count), *DIAMETERS)
    rows, columns, amounts = _flake_points(rng, centers, radii)
    thickness = splat((height, width), rows, columns, amounts)
    thickness = cv2.GaussianBlur(thickness, (0, 0), min(1.0, 0.2 + size / 8))
    opacity = np.float32(parameters.opacity) * (1 - np.exp(-thickness))
    if streak > 0:
        angle = np.radians(rng.normal(parameters.angle, 4))
        opacity = cv2.filter2D(opacity, -1, line_kernel(streak, angle), borderType=cv2.BORDER_REFLECT)
    if defocus > 0:
        opacity = cv2.GaussianBlur(opacity, (0, 0), defocus)
    return np.clip(opacity[margin : margin + shape[0], margin : margin + shape[1]], 0, 1)


def _flake_points(
    rng: np.random.Generator, centers: np.ndarray, radii: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the row, the column and the product of thickness and area for each point of the flakes.

    Args:
        rng: random generator of the flakes' shapes.
        centers: rows and columns (N, 2) of the flakes.
        radii: radii (N,) of the flakes in pixels.
    """
    areas = np.pi * radii**2
    counts = np.maximum(np.ceil(areas * POINTS_PER_PIXEL), CRYSTALS).astype(np.intp)
    flake = np.repeat(np.arange(len(radii)), counts)  # (P,) index of the flake of each point
    crystals = rng.normal(0, SPREAD, (len(radii), CRYSTALS, 2))
    crystal = crystals[flake, rng.integers(0, CRYSTALS, len(flake))]  # (P, 2)
    reach = np.sqrt(rng.uniform(0, 1, len(flake))) * (1 - SPREAD)  # uniform on a disc
    turn = rng.uniform(0, 2 * np.pi, len(flake))
    offsets = crystal + reach[:, None] * np.stack((np.sin(turn), np.cos(turn)), axis=1)
    places = centers[flake] + radii[flake, None] * offsets
    return places[:, 0], places[:, 1], (THICKNESS * areas / counts)[flake]


def line_kernel(length: float, angle: float) -> np.ndarray:
    """Return a centered line, float32 (K, K) with K odd and sum 1; ``angle`` is in radians, 0 for a vertical line."""
    half = int(np.ceil(length / 2))
    points = max(int(np.ceil(2 * length)), 1)
    along = ((np.arange(points) + 0.5) / points - 0.5) * length
    shape = (2 * half + 1, 2 * half + 1)
    drawn = splat(shape, half + np.cos(angle) * along, half + np.sin(angle) * along, np.ones(points))
    return drawn / drawn.sum()
