"""Low light: a darker scene, and the noise of a sensor that detects few photons.

In linear light (sRGB's transfer function, IEC 61966-2-1), a scene is reflectance times illumination (Land and McCann,
"Lightness and Retinex Theory", 1971). In the dark, the illumination is multiplied by ``2 ** -stops``, which varies
smoothly over the image. Lamps and flashes light their surroundings by the inverse square of the distance; a bright sky
behind a dark scene keeps its light. The sensor adds noise of variance ``photon * signal + read ** 2`` (Foi et al.,
"Practical Poissonian-Gaussian noise modeling and fitting for single-image raw-data", TIP 2008): Poisson noise of the
photons and Gaussian noise of the read-out. The image is clipped and stored as sRGB again; no gain compensates for the
darkness.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from restormixer_arch.data.degradations.common import (
    check_image,
    draw_seed,
    draw_strength,
    linear_to_srgb,
    log_uniform,
    require_not_negative,
    smooth_noise,
    srgb_to_linear,
)
from restormixer_arch.data.degradations.noise import poisson_signal

SKY_FROM, SKY_TO = 0.3, 0.6  # linear brightness above which a surface keeps some, and all, of its light
SKY_BLUR = 0.01  # standard deviation of the blur between dark and lit surfaces, relative to the shorter side


@dataclass(frozen=True)
class LowLightParameters:
    """Parameters of the low light.

    Args:
        stops: number of times that the light is halved.
        uneven: standard deviation of the illumination over the image, in stops.
        photon: signal of one photon in linear light with white at 1; 0 for no photon noise.
        read: standard deviation of the read-out noise in linear light with white at 1.
        lamps: number of lamps in the image or just outside.
        backlit: whether bright surfaces, such as the sky, keep their light.
        seed: random seed of illumination, lamps and noise.

    Raises:
        ValueError: if a value is negative.
    """

    stops: float
    uneven: float = 0.0
    photon: float = 0.0
    read: float = 0.0
    lamps: int = 0
    backlit: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require_not_negative(self, "stops", "uneven", "photon", "read", "lamps", "seed")


def draw_low_light(rng: np.random.Generator, strength: float | None = None) -> LowLightParameters:
    """Draw darkness from dusk to night; 60 % of the scenes have lamps, a bright sky or both.

    Args:
        rng: the only source of randomness; it advances by the same amount for any ``strength``.
        strength: value from 0 (unchanged image) to 1 (darkest scenes); None draws it from [0, 1].

    Raises:
        ValueError: if ``strength`` is not in [0, 1].
    """
    strong = draw_strength(rng, strength)
    return LowLightParameters(
        stops=float(strong * rng.uniform(2, 6)),
        uneven=float(strong * rng.uniform(0, 1.2)),
        photon=strong * log_uniform(rng, 1e-5, 1e-3),
        read=strong * log_uniform(rng, 1e-5, 2e-3),
        seed=draw_seed(rng),
        lamps=int(rng.choice([0, 0, 0, 1, 2, 3])),
        backlit=bool(rng.uniform() < 0.2),
    )


def add_low_light(image: np.ndarray, parameters: LowLightParameters) -> np.ndarray:
    """Darken an image and add noise; it is unchanged if ``stops``, ``uneven``, ``photon`` and ``read`` are 0.

    Args:
        image: RGB image (H, W, 3) or gray image (H, W, 1), float32 in [0, 1].
        parameters: parameters drawn by :func:`draw_low_light`.

    Returns:
        Degraded image, float32 (H, W, C) in [0, 1].

    Raises:
        TypeError: if the image is not a float32 array.
        ValueError: if its shape or value range is invalid.
    """
    check_image(image)
    if not (parameters.stops or parameters.uneven or parameters.photon or parameters.read):
        return image.copy()
    rng = np.random.default_rng(parameters.seed)
    signal = srgb_to_linear(image)
    signal = signal * illumination(rng, signal, parameters)[..., None]
    if parameters.photon > 0:
        signal = poisson_signal(rng, signal, parameters.photon)
    if parameters.read > 0:
        signal = signal + np.float32(parameters.read) * rng.standard_normal(signal.shape, np.float32)
    return np.clip(linear_to_srgb(np.clip(signal, 0, 1)), 0, 1)


def illumination(rng: np.random.Generator, scene: np.ndarray, parameters: LowLightParameters) -> np.ndarray:
    """Return the fraction of the light that remains, float32 (H, W) in (0, 1].

    Args:
        rng: random generator of the unevenness and the lamps.
        scene: fully lit scene in linear light, float32 (H, W, C).
        parameters: parameters drawn by :func:`draw_low_light`.
    """
    height, width = scene.shape[:2]
    stops = np.full((height, width), parameters.stops, np.float32)
    if parameters.uneven > 0:
        stops += np.float32(parameters.uneven) * smooth_noise(rng, height, width, cells=4)
    dark = np.exp2(-np.maximum(stops, 0))
    lit = np.zeros((height, width), np.float32)
    for _ in range(parameters.lamps):
        row, column = rng.uniform(-0.2, 1.2, 2) * (height, width)
        reach = rng.uniform(0.1, 0.5) * min(height, width)
        away = np.hypot(np.arange(height)[:, None] - row, np.arange(width) - column) / reach
        lit = np.maximum(lit, (rng.uniform(0.3, 1) / (1 + away**2)).astype(np.float32))
    if parameters.backlit:
        brightness = cv2.GaussianBlur(scene.mean(axis=2), (0, 0), SKY_BLUR * min(height, width))
        lit = np.maximum(lit, np.clip((brightness - SKY_FROM) / (SKY_TO - SKY_FROM), 0, 1))
    return dark + (1 - dark) * lit
