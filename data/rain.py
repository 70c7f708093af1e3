"""Rain: streaks of falling drops and the veil of those too far away to be seen singly.

Two functions: :func:`draw_rain` draws parameters from a generator, :func:`add_rain` applies them and draws nothing
that the parameters do not determine. Images are float32 RGB (H, W, 3), or gray (H, W, 1), in [0, 1].

The model:

- A falling drop crosses a pixel in a small part of the exposure, so a streak mixes the scene with the drop's own
  radiance, ``(1 - a) * scene + a * light`` with ``a`` the part of the exposure. A drop gathers light from a wide field
  of view, mostly sky, so ``light`` is bright and nearly the same for all drops
  (Garg and Nayar, "Vision and Rain", IJCV 2007).
- Its image is the drop, smeared along its path during the exposure: length is speed times exposure.
- Drop diameters D are exponentially distributed (Marshall and Palmer, "The distribution of raindrops with size", 1948).
  Speed grows about as the square root of D, and so does the length of the streak; the drop passes its own diameter in
  a time that grows as D / sqrt(D), and so does ``a``. The width is left the same within a layer.
- Drops at twice the distance are half as long and half as wide in the image, and their number in the field of view
  grows with the square of the distance. A streak narrower than a pixel covers it in part only. So far layers are
  many, short and faint (layers: Yang et al., "Deep Joint Rain Detection and Removal from a Single Image", CVPR 2017).
- Layers do not see each other: what one lets through, the next mixes with light.
- Rain that is too far for single streaks adds a veil over everything, ``(1 - v) * image + v * light``
  (Li, Cheong and Tan, "Heavy Rain Image Restoration", CVPR 2019, with one transmission for all pixels).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from restormixer_arch.data.degradation import check_image, splat

PIXELS_PER_DENSITY = 10_000  # the area that `density` counts streaks in
DISTANCE_STEP = 1.6  # how much farther each layer is than the one before it
DIAMETERS = (0.3, 2.5)  # smallest and largest drop, in mean diameters
SOFT_END = 0.3  # part of a streak, at each end, over which it fades
TENT_VARIANCE = 1 / 6  # of a point shared out among its four pixels; that much blur is there already
FWHM = 2 * np.sqrt(2 * np.log(2))  # full width at half maximum of a Gaussian of deviation 1


@dataclass(frozen=True)
class RainParameters:
    """Everything that determines the rain on an image; the lengths are in pixels.

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
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("intensity", "light", "veil"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("length", "width"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("density", "angle_spread", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.layers < 1:
            raise ValueError(f"layers must be at least 1, got {self.layers}")


def draw_rain(rng: np.random.Generator, heaviness: float | None = None) -> RainParameters:
    """Draw rain between a shower that leaves the scene clear and one that covers it.

    Args:
        rng: the only source of chance; it is advanced by the same number of draws whatever ``heaviness`` is.
        heaviness: from 0, no rain at all, to 1; None draws it uniformly from [0.25, 1].

    Raises:
        ValueError: ``heaviness`` is not in [0, 1].
    """
    drawn = rng.uniform(0.25, 1)
    heavy = drawn if heaviness is None else heaviness
    if not 0 <= heavy <= 1:
        raise ValueError(f"heaviness must be in [0, 1], got {heaviness}")
    return RainParameters(
        angle=float(np.clip(rng.normal(0, 18), -45, 45)),
        angle_spread=float(rng.uniform(0.5, 3)),
        length=float(rng.uniform(24, 48)),
        width=float(rng.uniform(1.2, 2.2)),
        density=float(heavy * rng.uniform(8, 16)),
        intensity=float(rng.uniform(0.4, 0.65)),
        layers=int(rng.integers(2, 5)),
        light=float(rng.uniform(0.8, 1)),
        veil=float(heavy * rng.uniform(0, 0.12)),
        seed=int(rng.integers(2**32)),
    )


def add_rain(image: np.ndarray, parameters: RainParameters) -> np.ndarray:
    """Return the image in rain. The same image and parameters give the same bytes; the image itself is kept.

    Args:
        image: (H, W, 3) RGB or (H, W, 1), float32 in [0, 1].
        parameters: with ``intensity`` or ``density`` 0 and ``veil`` 0 the image is returned unchanged.

    Returns:
        float32 (H, W, C) in [0, 1].

    Raises:
        TypeError: the image is not a float32 array.
        ValueError: its shape or range is another.
    """
    check_image(image)
    opacity = streak_opacity(image.shape[0], image.shape[1], parameters)
    # Streaks and veil are lit alike, so that both are one mixture.
    through = ((1 - opacity) * np.float32(1 - parameters.veil))[..., None]
    light = np.float32(parameters.light)
    return image * through + light * (1 - through)


def streak_opacity(height: int, width: int, parameters: RainParameters) -> np.ndarray:
    """Return how much of each pixel's exposure the drops take: float32 (H, W) in [0, 1]."""
    rng = np.random.default_rng(parameters.seed)
    through = np.ones((height, width), np.float32)
    for layer in range(parameters.layers):
        through *= 1 - _layer_opacity(rng, height, width, parameters, DISTANCE_STEP**layer)
    return 1 - through


def _layer_opacity(
    rng: np.random.Generator, height: int, width: int, parameters: RainParameters, distance: float
) -> np.ndarray:
    length, streak_width = parameters.length / distance, parameters.width / distance
    margin = length * np.sqrt(DIAMETERS[1]) / 2  # streaks centred up to here outside still reach in
    area = (height + 2 * margin) * (width + 2 * margin)
    count = rng.poisson(parameters.density * distance**2 * area / PIXELS_PER_DENSITY)
    centres = rng.uniform((-margin, -margin), (height + margin, width + margin), (count, 2))
    speeds = np.sqrt(np.clip(rng.exponential(1.0, count), *DIAMETERS))
    angles = np.radians(rng.normal(parameters.angle, parameters.angle_spread, count))

    deviation = streak_width / FWHM
    # Opacity summed over the width of a Gaussian of this height: what one pixel of streak length adds in total.
    across = np.minimum(parameters.intensity * speeds, 1) * deviation * np.sqrt(2 * np.pi)
    lines = _draw_lines((height, width), centres, length * speeds, angles, across)
    blur = np.sqrt(max(deviation**2 - TENT_VARIANCE, 0.0))
    if blur > 0:
        lines = cv2.GaussianBlur(lines, (0, 0), blur)
    return np.minimum(lines, 1)


def _draw_lines(
    shape: tuple[int, int], centres: np.ndarray, lengths: np.ndarray, angles: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Sum fading line segments, each of ``weight`` per pixel of length, as points shared out among four pixels.

    Args:
        shape: (H, W) of the result.
        centres: (N, 2) rows and columns, where pixel (i, j) has its centre at (i, j).
        lengths, angles, weights: (N,); angles in radians, 0 along the rows' axis.
    """
    points = max(int(np.ceil(lengths.max(initial=1))), 2)  # at most a pixel apart
    along = (np.arange(points) + 0.5) / points - 0.5  # (P,), in lengths
    fade = np.clip((0.5 - np.abs(along)) / SOFT_END, 0, 1)
    steps = lengths[:, None] * along  # (N, P), in pixels
    rows = centres[:, :1] + np.cos(angles)[:, None] * steps
    columns = centres[:, 1:] + np.sin(angles)[:, None] * steps
    amounts = (weights * lengths / points)[:, None] * fade
    return splat(shape, rows.ravel(), columns.ravel(), amounts.ravel())
