"""Noise on stored (sRGB) values: additive Gaussian noise, the Poisson noise of counted photons, and a camera's noise.

Gaussian noise of one standard deviation for all pixels and channels is the denoising literature's benchmark (sigma 15,
25 and 50 of 255: Zhang et al., "Beyond a Gaussian Denoiser", TIP 2017). Poisson noise has the variance ``photon *
value``, the signal-dependent part of Foi et al. (TIP 2008). Noise of a sensor in the dark, in linear light, is in
:mod:`restormixer_arch.data.degradations.low_light`. Results are clipped to [0, 1], which lessens the variance near both
ends, unless Gaussian noise is asked for as the benchmark has it, unclipped.

A camera's noise depends on the signal, and is no longer white in the file: demosaicking and the camera's own denoising
spread it over neighboring pixels, and much of it is common to the three channels (Brooks et al., "Unprocessing Images
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
GAUSSIAN_FROM = 50  # photons, from which on their number is as good as Gaussian


@dataclass(frozen=True)
class GaussianNoiseParameters:
    """Everything that determines white Gaussian noise.

    Args:
        sigma: standard deviation in units of the range [0, 1].
        clip: keep the result in [0, 1]; False leaves it as the denoising benchmarks define it.
        seed: of the noise.

    Raises:
        ValueError: a value is negative.
    """

    sigma: float
    clip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        require_not_negative(self, "sigma", "seed")


@dataclass(frozen=True)
class PoissonNoiseParameters:
    """What one ``photon`` adds, so that white is 1 / photon of them, and the ``seed``. Raises ValueError: negative."""

    photon: float
    seed: int = 0

    def __post_init__(self) -> None:
        require_not_negative(self, "photon", "seed")


@dataclass(frozen=True)
class CameraNoiseParameters:
    """Everything that determines a camera's noise.

    Args:
        photon: variance for each unit of signal.
        read: standard deviation of the part that does not depend on the signal.
        spread: standard deviation in pixels of the Gaussian that correlates neighbors; that of the noise is kept.
        common: share of the variance that the three channels have in common, in [0, 1].
        seed: of the noise.

    Raises:
        ValueError: a value out of its range.
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
    """Draw Gaussian noise of standard deviation ``strength * 55 / 255``; None draws the strength from [0, 1].

    Raises:
        ValueError: ``strength`` is not in [0, 1].
    """
    return GaussianNoiseParameters(sigma=draw_strength(rng, strength) * STRONGEST_SIGMA, seed=draw_seed(rng))


def draw_poisson_noise(rng: np.random.Generator, strength: float | None = None) -> PoissonNoiseParameters:
    """Draw Poisson noise, at strength 1 that of 20 photons for white; None draws the strength from [0, 1].

    The standard deviation is proportional to the strength.

    Raises:
        ValueError: ``strength`` is not in [0, 1].
    """
    return PoissonNoiseParameters(photon=draw_strength(rng, strength) ** 2 * STRONGEST_PHOTON, seed=draw_seed(rng))


def draw_camera_noise(rng: np.random.Generator, strength: float | None = None) -> CameraNoiseParameters:
    """Draw a camera's noise; its standard deviations are proportional to the strength, None draws that from [0, 1].

    Raises:
        ValueError: ``strength`` is not in [0, 1].
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
    """Return the image with Gaussian noise; with ``sigma`` 0 it is unchanged. Unclipped noise leaves [0, 1].

    Args:
        image: (H, W, 3) RGB or (H, W, 1), float32 in [0, 1].
        parameters: what :func:`draw_gaussian_noise` drew.

    Returns:
        float32 (H, W, C), in [0, 1] unless ``clip`` is False.

    Raises:
        TypeError: the image is not a float32 array.
        ValueError: its shape or value range is invalid.
    """
    check_image(image)
    noise = np.random.default_rng(parameters.seed).standard_normal(image.shape, np.float32)
    noisy = image + np.float32(parameters.sigma) * noise
    return np.clip(noisy, 0, 1) if parameters.clip else noisy


def add_camera_noise(image: np.ndarray, parameters: CameraNoiseParameters) -> np.ndarray:
    """Return the image with a camera's noise; with ``photon`` and ``read`` 0 it is unchanged.

    Args:
        image: (H, W, 3) RGB or (H, W, 1), float32 in [0, 1].
        parameters: what :func:`draw_camera_noise` drew.

    Returns:
        float32 (H, W, C) in [0, 1].

    Raises:
        TypeError: the image is not a float32 array.
        ValueError: its shape or value range is invalid.
    """
    check_image(image)
    rng = np.random.default_rng(parameters.seed)
    noise = np.sqrt(1 - parameters.common) * rng.standard_normal(image.shape, np.float32)
    noise += np.sqrt(parameters.common) * rng.standard_normal((*image.shape[:2], 1), np.float32)
    if parameters.spread > 0:
        # A circular filter keeps the statistics the same up to the edges.
        rows, columns = (np.fft.fftfreq(side) for side in image.shape[:2])
        response = np.exp(-2 * (np.pi * parameters.spread) ** 2 * (rows[:, None] ** 2 + columns**2))[..., None]
        response /= np.sqrt(np.mean(response**2))  # white noise of standard deviation 1 keeps it
        noise = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) * response, axes=(0, 1)).real
    deviation = np.sqrt(np.float32(parameters.photon) * image + np.float32(parameters.read) ** 2)
    return np.clip(image + deviation * noise.astype(np.float32), 0, 1)


def add_poisson_noise(image: np.ndarray, parameters: PoissonNoiseParameters) -> np.ndarray:
    """Return the image with Poisson noise; with ``photon`` 0 it is unchanged.

    Args:
        image: (H, W, 3) RGB or (H, W, 1), float32 in [0, 1].
        parameters: what :func:`draw_poisson_noise` drew.

    Returns:
        float32 (H, W, C) in [0, 1].

    Raises:
        TypeError: the image is not a float32 array.
        ValueError: its shape or value range is invalid.
    """
    check_image(image)
    if parameters.photon == 0:
        return image.copy()
    signal = poisson_signal(np.random.default_rng(parameters.seed), image, parameters.photon)
    return np.clip(signal, 0, 1)


def poisson_signal(rng: np.random.Generator, signal: np.ndarray, photon: float) -> np.ndarray:
    """Return ``photon`` times the photons counted where ``signal / photon`` are expected, float32.

    From 50 expected photons on, the count is a rounded Gaussian of the same mean and variance, which is faster drawn.
    """
    expected = signal / np.float32(photon)
    few = expected < GAUSSIAN_FROM
    counts = np.round(expected + np.sqrt(expected) * rng.standard_normal(signal.shape, np.float32))
    counts[few] = rng.poisson(expected[few])
    return counts * np.float32(photon)
