"""Rain: streaks of falling drops from one or several directions, and the mist of drops too distant to be seen singly.

:func:`draw_rain` draws parameters from a random generator; :func:`add_rain` applies them and depends on nothing else.
Images are float32 RGB (H, W, 3) or gray (H, W, 1) in [0, 1].

The model of one shower (:class:`RainParameters`):

- A falling drop covers a pixel for a small fraction ``a`` of the exposure, so a streak mixes the scene with the drop's
  radiance, ``(1 - a) * scene + a * light``. A drop gathers light from a wide field of view, mostly sky, so ``light`` is
  bright and nearly the same for all drops (Garg and Nayar, "Vision and Rain", IJCV 2007).
- Drops lit from behind or by a lamp add light and hide nothing, ``scene + a * light``. Most public datasets are created
  this way (Yang et al., "Deep Joint Rain Detection and Removal from a Single Image", CVPR 2017; Zhang and Patel,
  "Density-aware Single Image De-raining", CVPR 2018).
- The image of a drop is smeared along its path during the exposure: its length is speed times exposure.
- Drop diameters D are exponentially distributed (Marshall and Palmer, "The distribution of raindrops with size", 1948).
  Speed, and thus the length of a streak, is about proportional to the square root of D. The time in which a drop falls
  by its own diameter, and thus ``a``, is proportional to D / sqrt(D). The width is constant within a layer.
- Drops at twice the distance are half as long and half as wide in the image, and their number in the field of view
  grows with the square of the distance. A streak narrower than a pixel covers only part of it. The streaks of far
  layers are therefore numerous, short and faint.
- Layers are independent: each mixes light into what the other layers let through.
- The camera focuses on the scene, so near streaks can be blurred by ``defocus``.
- Rain that is too distant for single streaks adds a veil over the complete image, ``(1 - v) * image + v * light``
  (Li, Cheong and Tan, "Heavy Rain Image Restoration", CVPR 2019, with one transmission for all pixels).

:class:`Rain` describes the rain of a photograph. It has one to four showers, since gusts deflect the drops within an
exposure and public datasets draw up to five directions, and behind them a mist that grows with the distance (Hu et al.,
"Depth-attentional Features for Single-image Rain Removal", CVPR 2019), see
:mod:`restormixer_arch.data.degradations.haze`.
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
    splat_chunks,
)
from restormixer_arch.data.degradations.haze import HazeParameters, add_haze

PIXELS_PER_DENSITY = 10_000  # area in which `density` counts streaks
DISTANCE_STEP = 1.6  # how much farther each layer is than the one before it
SHOWERS = (0.62, 0.2, 0.1, 0.08)  # probabilities of one, two, three and four showers
MIN_STREAK = 4  # shortest mean length of the streaks of a layer, in pixels
MODERATE = 0.25  # share of moderate rain from one direction, the commonest kind, which the wide ranges would make rare
MISTY = 0.2  # share of the remaining rain that has mist
VEILED = 0.25  # share of the showers of the remaining rain that have a veil
DIAMETERS = (0.3, 2.5)  # smallest and largest drop, relative to the mean diameter
MAX_POINTS = 2**20  # points drawn at a time, or an eighth of the image's pixels if that is more; 200 bytes per point
SOFT_END = 0.3  # fraction of a streak, at each end, over which it fades by default
TENT_VARIANCE = 1 / 6  # variance of a point distributed over four pixels, which is blur that is already applied
FWHM = 2 * np.sqrt(2 * np.log(2))  # full width at half maximum of a Gaussian of standard deviation 1


@dataclass(frozen=True)
class RainParameters:
    """Parameters of one shower; lengths are in pixels.

    Args:
        angle: mean direction of fall in degrees, 0 straight down, positive towards the right.
        angle_spread: standard deviation of the directions of single streaks in degrees.
        length: length of the nearest streaks of mean drop diameter.
        width: width of the nearest streaks at half their opacity.
        density: number of streaks per 10,000 pixels in the nearest layer.
        intensity: opacity of the nearest streaks of mean drop diameter, in [0, 1].
        layers: number of depth layers.
        light: radiance of drops and veil, in [0, 1].
        veil: opacity of the veil, in [0, 1].
        soft_end: fraction of a streak, at each end, over which it fades, in [0, 0.5]; 0 for sharp ends.
        defocus: standard deviation of a Gaussian blur of all streaks.
        additive: whether streaks add light to the scene instead of partly hiding it.
        seed: random seed of the positions, diameters and directions of the drops.

    Raises:
        ValueError: if a value is out of its range.
    """

    angle: float
    length: float
    width: float
    density: float
    intensity: float
    angle_spread: float = 1.0
    layers: int = 3
    light: float = 0.9
    veil: float = 0.0
    soft_end: float = SOFT_END
    defocus: float = 0.0
    additive: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require_unit(self, "intensity", "light", "veil")
        require_positive(self, "length", "width")
        require_not_negative(self, "density", "angle_spread", "defocus", "seed")
        if not 0 <= self.soft_end <= 0.5:
            raise ValueError(f"soft_end must be in [0, 0.5], got {self.soft_end}")
        if self.layers < 1:
            raise ValueError(f"layers must be at least 1, got {self.layers}")


@dataclass(frozen=True)
class Rain:
    """The ``showers`` of an image, the farthest first, and the ``mist`` behind them or None."""

    showers: tuple[RainParameters, ...]
    mist: HazeParameters | None = None


def draw_rain(rng: np.random.Generator, strength: float | None = None) -> Rain:
    """Draw rain from a drizzle to a downpour that covers the scene.

    Args:
        rng: the only source of randomness; it advances by the same amount for any ``strength``.
        strength: value from 0 (no rain) to 1 (heaviest rain); None draws it from [0, 1].

    Raises:
        ValueError: if ``strength`` is not in [0, 1].
    """
    strong = draw_strength(rng, strength)
    moderate, common = rng.uniform() < MODERATE, _draw_moderate_shower(rng, strong)
    count = int(rng.choice(len(SHOWERS), p=SHOWERS) + 1)
    showers = [_draw_wide_shower(rng, strong, count) for _ in range(len(SHOWERS))]
    misty, beta = rng.uniform() < MISTY, np.sqrt(strong) * rng.uniform(0.2, 2.2)
    tint = rng.uniform(-0.04, 0.04, 3)
    light = np.clip(rng.uniform(0.35, 0.95) + tint, 0, 1)
    mist = HazeParameters(
        beta=float(beta),
        airlight=tuple(float(value) for value in light),
        horizon=float(rng.uniform(-0.3, 0.6)),
        near=float(log_uniform(rng, 0.05, 1)),
        relief=float(rng.uniform(0, 0.4)),
        seed=draw_seed(rng),
    )
    return Rain((common,)) if moderate else Rain(tuple(showers[:count]), mist if misty else None)


def _draw_moderate_shower(rng: np.random.Generator, strength: float) -> RainParameters:
    """Draw a shower of bright streaks that partly hide the scene, with a thin veil."""
    return RainParameters(
        angle=float(np.clip(rng.normal(0, 18), -45, 45)),
        angle_spread=float(rng.uniform(0.5, 3)),
        length=float(rng.uniform(24, 48)),
        width=float(rng.uniform(1.2, 2.2)),
        density=float(strength * rng.uniform(8, 16)),
        intensity=float(rng.uniform(0.4, 0.65)),
        layers=int(rng.integers(2, 5)),
        light=float(rng.uniform(0.8, 1)),
        veil=float(strength * rng.uniform(0, 0.12)),
        seed=draw_seed(rng),
    )


def _draw_wide_shower(rng: np.random.Generator, strength: float, count: int) -> RainParameters:
    """Draw one of ``count`` showers; strength scales its coverage (streaks' area relative to the image) and veil."""
    length, width = log_uniform(rng, 6, 120), log_uniform(rng, 0.7, 4.5)
    length = max(length, 4 * width)  # a streak is longer than wide
    resolved = 1 + int(np.log(length / MIN_STREAK) / np.log(DISTANCE_STEP))  # streaks of farther layers are too short
    layers = min(int(rng.integers(1, 5)), resolved)
    coverage = strength * log_uniform(rng, 0.03, 2.2) / np.sqrt(count)
    intensity, additive = rng.uniform(0.12, 1), bool(rng.uniform() < 0.5)
    if additive:
        intensity /= np.sqrt(1 + coverage)  # keeps added light from saturating the image
    return RainParameters(
        angle=float(np.clip(rng.normal(0, 25), -75, 75)),
        angle_spread=float(log_uniform(rng, 0.2, 10)),
        length=float(length),
        width=float(width),
        density=float(coverage / layers * PIXELS_PER_DENSITY / (length * width)),  # all layers have the same coverage
        intensity=float(intensity),
        layers=layers,
        light=float(rng.uniform(0.65, 1) if rng.uniform() < 0.88 else rng.uniform(0.35, 0.65)),
        veil=float(strength * (rng.uniform() < VEILED) * rng.uniform(0, 0.25) / count),
        soft_end=float(rng.uniform(0, 0.5)),
        defocus=float((rng.uniform() < 0.3) * log_uniform(rng, 0.4, 3)),
        additive=additive,
        seed=draw_seed(rng),
    )


def add_rain(image: np.ndarray, parameters: RainParameters | Rain) -> np.ndarray:
    """Add rain to a copy of an image. The same image and parameters give the same bytes.

    Args:
        image: RGB image (H, W, 3) or gray image (H, W, 1), float32 in [0, 1].
        parameters: one shower, or several with their mist. The image is unchanged if every shower has ``intensity`` or
            ``density`` 0 and ``veil`` 0, and there is no mist.

    Returns:
        Degraded image, float32 (H, W, C) in [0, 1].

    Raises:
        TypeError: if the image is not a float32 array.
        ValueError: if its shape or value range is invalid.
    """
    check_image(image)
    rain = parameters if isinstance(parameters, Rain) else Rain((parameters,))
    result = image.copy() if rain.mist is None else add_haze(image, rain.mist)
    for shower in rain.showers:
        result = _add_shower(result, shower)
    return result


def _add_shower(image: np.ndarray, shower: RainParameters) -> np.ndarray:
    opacity = streak_opacity(image.shape[0], image.shape[1], shower)[..., None]
    light, clear = np.float32(shower.light), np.float32(1 - shower.veil)
    if shower.additive:
        return np.minimum((image + opacity * light) * clear + light * (1 - clear), 1)
    # Streaks and veil have the same light, so both are one mixture.
    transmission = (1 - opacity) * clear
    return image * transmission + light * (1 - transmission)


def streak_opacity(height: int, width: int, parameters: RainParameters) -> np.ndarray:
    """Return the fraction of each pixel's exposure that the drops cover, float32 (H, W) in [0, 1]."""
    rng = np.random.default_rng(parameters.seed)
    transmission = np.ones((height, width), np.float32)
    for layer in range(parameters.layers):
        transmission *= 1 - _layer_opacity(rng, height, width, parameters, DISTANCE_STEP**layer)
    opacity = 1 - transmission
    if parameters.defocus > 0:
        opacity = cv2.GaussianBlur(opacity, (0, 0), parameters.defocus, borderType=cv2.BORDER_REFLECT)
    return opacity


def _layer_opacity(
    rng: np.random.Generator, height: int, width: int, parameters: RainParameters, distance: float
) -> np.ndarray:
    length, streak_width = parameters.length / distance, parameters.width / distance
    margin = length * np.sqrt(DIAMETERS[1]) / 2  # streaks centered this far outside still reach into the image
    area = (height + 2 * margin) * (width + 2 * margin)
    count = rng.poisson(parameters.density * distance**2 * area / PIXELS_PER_DENSITY)
    centers = rng.uniform((-margin, -margin), (height + margin, width + margin), (count, 2))
    speeds = np.sqrt(np.clip(rng.exponential(1.0, count), *DIAMETERS))
    angles = np.radians(rng.normal(parameters.angle, parameters.angle_spread, count))

    deviation = streak_width / FWHM
    # Integral across a Gaussian with this peak opacity: the total that one pixel of streak length adds.
    across = np.minimum(parameters.intensity * speeds, 1) * deviation * np.sqrt(2 * np.pi)
    lines = _draw_lines((height, width), centers, length * speeds, angles, across, parameters.soft_end)
    blur = np.sqrt(max(deviation**2 - TENT_VARIANCE, 0.0))
    if blur > 0:
        lines = cv2.GaussianBlur(lines, (0, 0), blur)
    return np.minimum(lines, 1)


def _draw_lines(
    shape: tuple[int, int],
    centers: np.ndarray,
    lengths: np.ndarray,
    angles: np.ndarray,
    weights: np.ndarray,
    soft_end: float = SOFT_END,
) -> np.ndarray:
    """Sum fading line segments, each drawn as points that are distributed over four pixels.

    Args:
        shape: shape (H, W) of the result.
        centers: rows and columns (N, 2) of the line centers; the center of pixel (i, j) is (i, j).
        lengths, angles, weights: arrays (N,) of lengths in pixels, angles in radians with 0 for vertical lines, and
            sums per pixel of length.
        soft_end: fraction of a line, at each end, over which it fades.
    """
    points = max(int(np.ceil(lengths.max(initial=1))), 2)  # at most one pixel apart
    along = (np.arange(points) + 0.5) / points - 0.5  # (P,), relative to the length
    fade = np.clip((0.5 - np.abs(along)) / soft_end, 0, 1) if soft_end > 0 else np.ones(points)
    step = max(max(MAX_POINTS, shape[0] * shape[1] // 8) // points, 1)

    def some(first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        these = slice(first, first + step)
        steps = lengths[these, None] * along  # (n, P), in pixels
        rows = centers[these, :1] + np.cos(angles[these])[:, None] * steps
        columns = centers[these, 1:] + np.sin(angles[these])[:, None] * steps
        amounts = (weights[these] * lengths[these] / points)[:, None] * fade
        return rows.ravel(), columns.ravel(), amounts.ravel()

    return splat_chunks(shape, (some(first) for first in range(0, len(lengths), step)))
