"""Noise on stored (sRGB) values: additive Gaussian noise, and the Poisson noise of counted photons.

Gaussian noise of one deviation for all pixels and channels is the denoising literature's benchmark (sigma 15, 25 and
50 of 255: Zhang et al., "Beyond a Gaussian Denoiser", TIP 2017). Poisson noise has the variance ``photon * value``, the
signal-dependent part of Foi et al. (TIP 2008). Noise of a sensor in the dark, in linear light, is in
:mod:`restormixer_arch.data.low_light`. Results are clipped to [0, 1], which lessens the variance near both ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from restormixer_arch.data.degradation import check_image, draw_seed, draw_strength, require_not_negative

STRONGEST_SIGMA = 50 / 255
STRONGEST_PHOTON = 1 / 20
MANY = 50  # photons, from which on their number is as good as Gaussian


@dataclass(frozen=True)
class GaussianNoiseParameters:
    """Deviation ``sigma`` in units of the range [0, 1], and the ``seed``. Raises ValueError: one is negative."""

    sigma: float
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


def draw_gaussian_noise(rng: np.random.Generator, strength: float | None = None) -> GaussianNoiseParameters:
    """Draw Gaussian noise of deviation ``strength * 50 / 255``; None draws the strength from [0.25, 1].

    Raises:
        ValueError: ``strength`` is not in [0, 1].
    """
    return GaussianNoiseParameters(sigma=draw_strength(rng, strength) * STRONGEST_SIGMA, seed=draw_seed(rng))


def draw_poisson_noise(rng: np.random.Generator, strength: float | None = None) -> PoissonNoiseParameters:
    """Draw Poisson noise, at strength 1 that of 20 photons for white; None draws the strength from [0.25, 1].

    The deviation is proportional to the strength.

    Raises:
        ValueError: ``strength`` is not in [0, 1].
    """
    return PoissonNoiseParameters(photon=draw_strength(rng, strength) ** 2 * STRONGEST_PHOTON, seed=draw_seed(rng))


def add_gaussian_noise(image: np.ndarray, parameters: GaussianNoiseParameters) -> np.ndarray:
    """Return the image with Gaussian noise; with ``sigma`` 0 it is unchanged.

    Args:
        image: (H, W, 3) RGB or (H, W, 1), float32 in [0, 1].
        parameters: what :func:`draw_gaussian_noise` drew.

    Returns:
        float32 (H, W, C) in [0, 1].

    Raises:
        TypeError: the image is not a float32 array.
        ValueError: its shape or range is another.
    """
    check_image(image)
    noise = np.random.default_rng(parameters.seed).standard_normal(image.shape, np.float32)
    return np.clip(image + np.float32(parameters.sigma) * noise, 0, 1)


def add_poisson_noise(image: np.ndarray, parameters: PoissonNoiseParameters) -> np.ndarray:
    """Return the image with Poisson noise; with ``photon`` 0 it is unchanged.

    Args:
        image: (H, W, 3) RGB or (H, W, 1), float32 in [0, 1].
        parameters: what :func:`draw_poisson_noise` drew.

    Returns:
        float32 (H, W, C) in [0, 1].

    Raises:
        TypeError: the image is not a float32 array.
        ValueError: its shape or range is another.
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
    few = expected < MANY
    counts = np.round(expected + np.sqrt(expected) * rng.standard_normal(signal.shape, np.float32))
    counts[few] = rng.poisson(expected[few])
    return counts * np.float32(photon)
