"""Snow: flakes at several distances, blurred by motion and defocus, and the veil of those too far to be seen singly.

The model, in the order of the light's way:

- A flake is an aggregate of crystals, drawn as a cloud of points around a few centers, which covers what is behind it
  by ``1 - exp(-thickness)``. It scatters daylight diffusely, so it is bright: snow mixes the scene with light,
  ``(1 - z) * scene + z * light`` (Liu et al., "DesnowNet", TIP 2018, the model of Snow100K).
- Diameters are exponentially distributed (Gunn and Marshall, "The distribution with size of aggregate snowflakes",
  1958).
- Flakes at twice the distance are half as large in the image, and their number grows with its square: large ones are
  few and near, small ones many and far.
- Flakes fall at about 1 m/s, one speed for all sizes, and drift with the wind; a streak is as long as the way in the
  exposure, and shorter with distance.
- The camera is focused on the scene. The circle of confusion of a thin lens grows with the difference of inverse
  distances, so that near flakes are out of focus.
- Snow that is too far for single flakes adds a veil, ``(1 - v) * image + v * light`` (Chen et al., "JSTASR", ECCV
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

PIXELS_PER_DENSITY = 10_000  # the area that `density` counts flakes in
SMALLEST = 1.2  # pixels, of the mean flakes of a layer that is drawn
DISTANCE_STEP = 1.7  # how much farther each layer is than the one before it
DIAMETERS = (0.4, 2.5)  # smallest and largest flake, in mean diameters
CRYSTALS = 4  # centers that the points of a flake lie around
SPREAD = 0.45  # of the centers around the middle, in radii
POINTS_PER_PIXEL = 1.2  # of a flake's area
THICKNESS = 2.5  # optical thickness in the middle of a flake


@dataclass(frozen=True)
class SnowParameters:
    """Everything that determines the snow on an image; the lengths are in pixels.

    Args:
        angle: of fall in degrees, 0 straight down, positive towards the right.
        size: diameter of the nearest flakes of mean size.
        density: flakes in the nearest layer for 10,000 pixels.
        opacity: largest opacity of a flake, in [0, 1].
        streak: way of the nearest flakes during the exposure.
        defocus: standard deviation of the blur of a flake at the distance of the nearest layer with the focus at
            infinity.
        layers: number of depth layers.
        light: radiance of flakes and veil, in [0, 1].
        veil: opacity of the veil, in [0, 1].
        seed: of the flakes' places and shapes.

    Raises:
        ValueError: a value out of its range.
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
    """Draw snow between a few flakes and a blizzard, fine or coarse, sharp or out of focus, with and without a veil.

    Args:
        rng: the only source of randomness; it advances by the same amount for any ``strength``.
        strength: from 0, no snow at all, to 1; None draws it from [0, 1].

    Raises:
        ValueError: ``strength`` is not in [0, 1].
    """
    strong = draw_strength(rng, strength)
    size = log_uniform(rng, 2, 18)
    resolved = 1 + int(np.log(size / SMALLEST) / np.log(DISTANCE_STEP))  # beyond them flakes are a veil
    layers = min(int(rng.integers(1, 6)), resolved)
    coverage = strong * log_uniform(rng, 0.01, 0.5)  # area of the flakes in parts of the picture's
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
    """Return the image in snow. The same image and parameters give the same bytes; the image itself is kept.

    Args:
        image: (H, W, 3) RGB or (H, W, 1), float32 in [0, 1].
        parameters: with ``opacity`` or ``density`` 0 and ``veil`` 0 the image is returned unchanged.

    Returns:
        float32 (H, W, C) in [0, 1].

    Raises:
        TypeError: the image is not a float32 array.
        ValueError: its shape or value range is invalid.
    """
    check_image(image)
    opacity = flake_opacity(image.shape[0], image.shape[1], parameters)
    # Flakes and veil are lit alike, so that both are one mixture.
    through = ((1 - opacity) * np.float32(1 - parameters.veil))[..., None]
    return image * through + np.float32(parameters.light) * (1 - through)


def flake_opacity(height: int, width: int, parameters: SnowParameters) -> np.ndarray:
    """Return how much of the scene's light the flakes keep away: float32 (H, W) in [0, 1]."""
    rng = np.random.default_rng(parameters.seed)
    through = np.ones((height, width), np.float32)
    for layer in range(parameters.layers):
        distance = DISTANCE_STEP**layer
        through *= 1 - _layer_opacity(rng, (height, width), parameters, distance)
    return 1 - through


def _layer_opacity(
    rng: np.random.Generator, shape: tuple[int, int], parameters: SnowParameters, distance: float
) -> np.ndarray:
    size, streak = parameters.size / distance, parameters.streak / distance
    defocus = parameters.defocus / distance
    margin = int(np.ceil(size * DIAMETERS[1] / 2 + streak / 2 + 2 * defocus))  # what lies outside and reaches in
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
    """Return rows, columns and thickness times area of the points that make up the flakes.

    Args:
        rng: of the flakes' shapes.
        centers: (N, 2) rows and columns.
        radii: (N,) in pixels.
    """
    areas = np.pi * radii**2
    counts = np.maximum(np.ceil(areas * POINTS_PER_PIXEL), CRYSTALS).astype(np.intp)
    flake = np.repeat(np.arange(len(radii)), counts)  # (P,) which flake a point belongs to
    crystals = rng.normal(0, SPREAD, (len(radii), CRYSTALS, 2))
    crystal = crystals[flake, rng.integers(0, CRYSTALS, len(flake))]  # (P, 2)
    reach = np.sqrt(rng.uniform(0, 1, len(flake))) * (1 - SPREAD)  # evenly over a disc
    turn = rng.uniform(0, 2 * np.pi, len(flake))
    offsets = crystal + reach[:, None] * np.stack((np.sin(turn), np.cos(turn)), axis=1)
    places = centers[flake] + radii[flake, None] * offsets
    return places[:, 0], places[:, 1], (THICKNESS * areas / counts)[flake]


def line_kernel(length: float, angle: float) -> np.ndarray:
    """Return a line through the middle that sums to 1: float32 (K, K), K odd; ``angle`` in radians from the rows."""
    half = int(np.ceil(length / 2))
    points = max(int(np.ceil(2 * length)), 1)
    along = ((np.arange(points) + 0.5) / points - 0.5) * length
    shape = (2 * half + 1, 2 * half + 1)
    drawn = splat(shape, half + np.cos(angle) * along, half + np.sin(angle) * along, np.ones(points))
    return drawn / drawn.sum()
