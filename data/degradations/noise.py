"""Noise on stored (sRGB) values: additive Gaussian noise, the Poisson noise of photons, and the noise of a camera.

Gaussian noise with the same standard deviation for all pixels and channels is the standard denoising benchmark (sigma
15, 25 and 50 of 255: Zhang et al., "Beyond a Gaussian Denoiser", TIP 2017). Poisson noise has the variance ``photon *
value``, the signal-dependent part of Foi et al. (TIP 2008). For the noise of a sensor in the dark, in linear light, see
:mod:`restormixer_arch.data.degradations.low_light`. Results are clipped to [0, 1], which reduces the variance near both
ends; only Gaussian noise can be left unclipped, as the benchmarks define it.

A camera's noise depends on the signal and is not white in the file: demosaicking and the camera's denoising spread it
over neighboring pixels, and much of it is common to the three channels (Brooks et al., "Unprocessing Images
for Learned Raw Denoising", CVPR 2019; Guo et al., "CBDNet", CVPR 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from restormixer_arch.data.degradations.common import (
    check_image,
    draw_seed,
    draw_strength,
    log_uniform,
    require_not_negative,
    require_unit,
)

STRONGEST_SIGMA = 55 / 255
STRONGEST_PHOTON = 1 / 20
GAUSSIAN_MIN_COUNT = 50  # expected photons from which on their count is approximated by a Gaussian


@dataclass(frozen=True)
class GaussianNoiseParameters:
    """Parameters of white Gaussian noise.

    Args:
        sigma: standard deviation, for images in [0, 1].
        clip: whether to clip the result to [0, 1]; the denoising benchmarks do not clip it.
        seed: random seed.

    Raises:
        ValueError: if a value is negative.
    """

    sigma: float
    clip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        require_not_negative(self, "sigma", "seed")


@dataclass(frozen=True)
class PoissonNoiseParameters:
    """Parameters of Poisson noise.

    Args:
        photon: signal of one photon; white is ``1 / photon`` photons.
        seed: random seed.

    Raises:
        ValueError: if a value is negative.
    """

    photon: float
    seed: int = 0

    def __post_init__(self) -> None:
        require_not_negative(self, "photon", "seed")


@dataclass(frozen=True)
class CameraNoiseParameters:
    """Parameters of a camera's noise.

    Args:
        photon: variance per unit of signal.
        read: standard deviation of the part that does not depend on the signal.
        spread: standard deviation in pixels of the Gaussian filter that correlates neighboring pixels; it does not
            change the variance of the noise.
        common: share of the variance that the three channels have in common, in [0, 1].
        seed: random seed.

    Raises:
        ValueError: if a value is out of its range.
    """

    photon: float
    read: float
    spread: float = 0.0
    common: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_not_negative(self, "photon", "read", "spread", "seed")
        require_unit(self, "common")


def draw_gaussian_noise(rng: np.random.Generator, strength: float | None = None) -> GaussianNoiseParameters:
    """Draw Gaussian noise of standard deviation ``strength * 55 / 255``; a ``strength`` of None is drawn from [0, 1].

    Raises:
        ValueError: if ``strength`` is not in [0, 1].
    """
    return GaussianNoiseParameters(sigma=draw_strength(rng, strength) * STRONGEST_SIGMA, seed=draw_seed(rng))


def draw_poisson_noise(rng: np.random.Generator, strength: float | None = None) -> PoissonNoiseParameters:
    """Draw Poisson noise, with 20 photons for white at strength 1. If ``strength`` is None, it is drawn from [0, 1].

    The standard deviation is proportional to the strength.

    Raises:
        ValueError: if ``strength`` is not in [0, 1].
    """
    return PoissonNoiseParameters(photon=draw_strength(rng, strength) ** 2 * STRONGEST_PHOTON, seed=draw_seed(rng))


def draw_camera_noise(rng: np.random.Generator, strength: float | None = None) -> CameraNoiseParameters:
    """Draw a camera's noise. If ``strength`` is None, it is drawn from [0, 1].

    The standard deviations are proportional to the strength.

    Raises:
        ValueError: if ``strength`` is not in [0, 1].
    """
    strong = draw_strength(rng, strength)
    return CameraNoiseParameters(
        photon=(strong * log_uniform(rng, 0.02, 0.2)) ** 2,
        read=strong * log_uniform(rng, 0.005, 0.1),
        spread=float(rng.choice([0, 1])) * log_uniform(rng, 0.3, 1.2),
        common=float(rng.uniform(0, 0.8)),
        seed=draw_seed(rng),
    )


def add_gaussian_noise(image: np.ndarray, parameters: GaussianNoiseParameters) -> np.ndarray:
    """Add Gaussian noise to an image; ``sigma`` 0 leaves it unchanged.

    Args:
        image: RGB image (H, W, 3) or gray image (H, W, 1), float32 in [0, 1].
        parameters: parameters drawn by :func:`draw_gaussian_noise`.

    Returns:
        Degraded image, float32 (H, W, C), in [0, 1] unless ``clip`` is False.

    Raises:
        TypeError: if the image is not a float32 array.
        ValueError: if its shape or value range is invalid.
    """
    check_image(image)
    noise = np.random.default_rng(parameters.seed).standard_normal(image.shape, np.float32)
    noisy = image + np.float32(parameters.sigma) * noise
    return np.clip(noisy, 0, 1) if parameters.clip else noisy


def add_camera_noise(image: np.ndarray, parameters: CameraNoiseParameters) -> np.ndarray:
    """Add a camera's noise to an image; ``photon`` and ``read`` 0 leave it unchanged.

    Args:
        image: RGB image (H, W, 3) or gray image (H, W, 1), float32 in [0, 1].
        parameters: parameters drawn by :func:`draw_camera_noise`.

    Returns:
        Degraded image, float32 (H, W, C) in [0, 1].

    Raises:
        TypeError: if the image is not a float32 array.
        ValueError: if its shape or value range is invalid.
    """
    check_image(image)
    rng = np.random.default_rng(parameters.seed)
    noise = np.sqrt(1 - parameters.common) * rng.standard_normal(image.shape, np.float32)
    noise += np.sqrt(parameters.common) * rng.standard_normal((*image.shape[:2], 1), np.float32)
    if parameters.spread > 0:
        # A circular filter has the same statistics at the edges.
        rows, columns = (np.fft.fftfreq(side) for side in image.shape[:2])
        response = np.exp(-2 * (np.pi * parameters.spread) ** 2 * (rows[:, None] ** 2 + columns**2))[..., None]
        response /= np.sqrt(np.mean(response**2))  # the filter preserves the variance of white noise
        noise = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) * response, axes=(0, 1)).real
    deviation = np.sqrt(np.float32(parameters.photon) * image + np.float32(parameters.read) ** 2)
    return np.clip(image + deviation * noise.astype(np.float32), 0, 1)


def add_poisson_noise(image: np.ndarray, parameters: PoissonNoiseParameters) -> np.ndarray:
    """Apply Poisson noise to an image; ``photon`` 0 leaves it unchanged.

    Args:
        image: RGB image (H, W, 3) or gray image (H, W, 1), float32 in [0, 1].
        parameters: parameters drawn by :func:`draw_poisson_noise`.

    Returns:
        Degraded image, float32 (H, W, C) in [0, 1].

    Raises:
        TypeError: if the image is not a float32 array.
        ValueError: if its shape or value range is invalid.
    """
    check_image(image)
    if parameters.photon == 0:
        return image.copy()
    signal = poisson_signal(np.random.default_rng(parameters.seed), image, parameters.photon)
    return np.clip(signal, 0, 1)


def poisson_signal(rng: np.random.Generator, signal: np.ndarray, photon: float) -> np.ndarray:
    """Return ``photon`` times a Poisson count with mean ``signal / photon``, float32.

    From 50 expected photons on, the count is a rounded Gaussian of the same mean and variance, which is faster to draw.
    """
    expected = signal / np.float32(photon)
    few = expected < GAUSSIAN_MIN_COUNT
    counts = np.round(expected + np.sqrt(expected) * rng.standard_normal(signal.shape, np.float32))
    counts[few] = rng.poisson(expected[few])
    return counts * np.float32(photon)
