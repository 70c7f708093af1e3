"""Rain: streaks of falling drops, from one or several directions, and the mist of those too far away to be seen singly.

Two functions: :func:`draw_rain` draws parameters from a generator, :func:`add_rain` applies them and draws nothing
that the parameters do not determine. Images are float32 RGB (H, W, 3), or gray (H, W, 1), in [0, 1].

The model of one shower (:class:`RainParameters`):

- A falling drop crosses a pixel in a small part of the exposure, so a streak mixes the scene with the drop's own
  radiance, ``(1 - a) * scene + a * light`` with ``a`` the part of the exposure. A drop gathers light from a wide field
  of view, mostly sky, so ``light`` is bright and nearly the same for all drops
  (Garg and Nayar, "Vision and Rain", IJCV 2007).
- Where drops are lit from behind or by a lamp they add light and hide nothing, ``scene + a * light``. Most public sets
  are made this way (Yang et al., "Deep Joint Rain Detection and Removal from a Single Image", CVPR 2017; Zhang and
  Patel, "Density-aware Single Image De-raining", CVPR 2018).
- The image of a drop is smeared along its path during the exposure: length is speed times exposure.
- Drop diameters D are exponentially distributed (Marshall and Palmer, "The distribution of raindrops with size", 1948).
  Speed grows about as the square root of D, and so does the length of the streak; the drop passes its own diameter in
  a time that grows as D / sqrt(D), and so does ``a``. The width is left the same within a layer.
- Drops at twice the distance are half as long and half as wide in the image, and their number in the field of view
  grows with the square of the distance. A streak narrower than a pixel covers it in part only. So far layers are
  many, short and faint.
- Layers do not see each other: what one lets through, the next mixes with light.
- The camera focuses on the scene, so near streaks can be blurred by ``defocus``.
- Rain that is too far for single streaks adds a veil over everything, ``(1 - v) * image + v * light``
  (Li, Cheong and Tan, "Heavy Rain Image Restoration", CVPR 2019, with one transmission for all pixels).

:class:`Rain` is what a photograph shows: one to four showers, since gusts turn the drops within an exposure and public
sets draw up to five directions, behind them a mist that grows with the distance (Hu et al., "Depth-attentional Features
for Single-image Rain Removal", CVPR 2019), see :mod:`restormixer_arch.data.degradations.haze`.
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
    splat_slices,
)
from restormixer_arch.data.degradations.haze import HazeParameters, add_haze

PIXELS_PER_DENSITY = 10_000  # the area that `density` counts streaks in
DISTANCE_STEP = 1.6  # how much farther each layer is than the one before it
SHOWERS = (0.62, 0.2, 0.1, 0.08)  # probability of one, two, three and four
MIN_STREAK = 4  # pixels, of the streaks of a layer that is drawn
MODERATE = 0.25  # share of moderate rain from one direction: the commonest, which wide ranges would make rare
MISTY = 0.2  # share of the other rain with mist
VEILED = 0.25  # share of its showers with a veil
DIAMETERS = (0.3, 2.5)  # smallest and largest drop, in mean diameters
MAX_POINTS = 2**20  # that are drawn at once, or an eighth of the pixels of a large image; each takes 200 bytes
SOFT_END = 0.3  # part of a streak, at each end, over which it fades, where the parameters give no other
TENT_VARIANCE = 1 / 6  # of a point shared out among its four pixels; that much blur is there already
FWHM = 2 * np.sqrt(2 * np.log(2))  # full width at half maximum of a Gaussian of standard deviation 1


@dataclass(frozen=True)
class RainParameters:
    """Everything that determines one shower; the lengths are in pixels.

    Args:
        angle: of fall in degrees, 0 straight down, positive towards the right.
        angle_spread: standard deviation of single streaks around it, in degrees.
        length: of the nearest streaks of mean diameter.
        width: of the nearest streaks at half their opacity.
        density: streaks in the nearest layer for 10,000 pixels.
        intensity: opacity of the nearest streaks of mean diameter, in [0, 1].
        layers: number of depth layers.
        light: radiance of drops and veil, in [0, 1].
        veil: opacity of the veil, in [0, 1].
        soft_end: part of a streak, at each end, over which it fades, in [0, 0.5]; 0 for sharp ends.
        defocus: standard deviation of a Gaussian blur of all streaks.
        additive: streaks add light to the scene instead of hiding it in part.
        seed: of the drops' places and diameters.

    Raises:
        ValueError: a value out of its range.
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
    """The ``showers`` on a photograph, the farthest first, and the ``mist`` behind them, or None."""

    showers: tuple[RainParameters, ...]
    mist: HazeParameters | None = None


def draw_rain(rng: np.random.Generator, strength: float | None = None) -> Rain:
    """Draw rain between a drizzle and a downpour that covers the scene.

    Args:
        rng: the only source of randomness; it advances by the same amount for any ``strength``.
        strength: from 0, no rain at all, to 1; None draws it from [0, 1].

    Raises:
        ValueError: ``strength`` is not in [0, 1].
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
    """Draw bright streaks that hide the scene in part, with a thin veil."""
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
    """Draw one of ``count`` showers; coverage, the streaks' area in parts of the picture's, is what strength scales."""
    length, width = log_uniform(rng, 6, 120), log_uniform(rng, 0.7, 4.5)
    length = max(length, 4 * width)  # a streak is longer than wide
    resolved = 1 + int(np.log(length / MIN_STREAK) / np.log(DISTANCE_STEP))  # beyond them, streaks are too short
    layers = min(int(rng.integers(1, 5)), resolved)
    coverage = strength * log_uniform(rng, 0.03, 2.2) / np.sqrt(count)
    intensity, additive = rng.uniform(0.12, 1), bool(rng.uniform() < 0.5)
    if additive:
        intensity /= np.sqrt(1 + coverage)  # light that is added up blinds the camera
    return RainParameters(
        angle=float(np.clip(rng.normal(0, 25), -75, 75)),
        angle_spread=float(log_uniform(rng, 0.2, 10)),
        length=float(length),
        width=float(width),
        density=float(coverage / layers * PIXELS_PER_DENSITY / (length * width)),  # each layer covers the same
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
    """Return the image in rain. The same image and parameters give the same bytes; the image itself is kept.

    Args:
        image: (H, W, 3) RGB or (H, W, 1), float32 in [0, 1].
        parameters: one shower or several with their mist. With every ``intensity`` or ``density`` 0, every ``veil`` 0
            and no mist the image is returned unchanged.

    Returns:
        float32 (H, W, C) in [0, 1].

    Raises:
        TypeError: the image is not a float32 array.
        ValueError: its shape or value range is invalid.
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
    # Streaks and veil are lit alike, so that both are one mixture.
    through = (1 - opacity) * clear
    return image * through + light * (1 - through)


def streak_opacity(height: int, width: int, parameters: RainParameters) -> np.ndarray:
    """Return how much of each pixel's exposure the drops take: float32 (H, W) in [0, 1]."""
    rng = np.random.default_rng(parameters.seed)
    through = np.ones((height, width), np.float32)
    for layer in range(parameters.layers):
        through *= 1 - _layer_opacity(rng, height, width, parameters, DISTANCE_STEP**layer)
    opacity = 1 - through
    if parameters.defocus > 0:
        opacity = cv2.GaussianBlur(opacity, (0, 0), parameters.defocus, borderType=cv2.BORDER_REFLECT)
    return opacity


def _layer_opacity(
    rng: np.random.Generator, height: int, width: int, parameters: RainParameters, distance: float
) -> np.ndarray:
    length, streak_width = parameters.length / distance, parameters.width / distance
    margin = length * np.sqrt(DIAMETERS[1]) / 2  # streaks centered up to here outside still reach in
    area = (height + 2 * margin) * (width + 2 * margin)
    count = rng.poisson(parameters.density * distance**2 * area / PIXELS_PER_DENSITY)
    centers = rng.uniform((-margin, -margin), (height + margin, width + margin), (count, 2))
    speeds = np.sqrt(np.clip(rng.exponential(1.0, count), *DIAMETERS))
    angles = np.radians(rng.normal(parameters.angle, parameters.angle_spread, count))

    deviation = streak_width / FWHM
    # Opacity summed over the width of a Gaussian of this height: what one pixel of streak length adds in total.
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
    """Sum fading line segments, each of ``weight`` per pixel of length, as points shared out among four pixels.

    Args:
        shape: (H, W) of the result.
        centers: (N, 2) rows and columns, where pixel (i, j) has its center at (i, j).
        lengths, angles, weights: (N,); angles in radians, 0 along the rows' axis.
        soft_end: part of a line, at each end, over which it fades.
    """
    points = max(int(np.ceil(lengths.max(initial=1))), 2)  # at most a pixel apart
    along = (np.arange(points) + 0.5) / points - 0.5  # (P,), in lengths
    fade = np.clip((0.5 - np.abs(along)) / soft_end, 0, 1) if soft_end > 0 else np.ones(points)
    step = max(max(MAX_POINTS, shape[0] * shape[1] // 8) // points, 1)

    def some(first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        these = slice(first, first + step)
        steps = lengths[these, None] * along  # (n, P), in pixels
        rows = centers[these, :1] + np.cos(angles[these])[:, None] * steps
        columns = centers[these, 1:] + np.sin(angles[these])[:, None] * steps
        amounts = (weights[these] * lengths[these] / points)[:, None] * fade
        return rows.ravel(), columns.ravel(), amounts.ravel()

    return splat_slices(shape, (some(first) for first in range(0, len(lengths), step)))
