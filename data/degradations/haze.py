"""Haze: light from the scene is attenuated on its way to the camera, and daylight is scattered into it.

``I = J t + A (1 - t)`` with the transmission ``t = exp(-beta d)`` at distance ``d`` (Koschmieder, "Theorie der
horizontalen Sichtweite", 1924; Narasimhan and Nayar, "Vision and the Atmosphere", IJCV 2002). ``J`` is the scene, ``A``
the airlight, which is nearly white, and ``beta`` the scattering coefficient for distances in units of the farthest one.
The equation is applied to stored (sRGB) values, as in the public datasets (RESIDE: Li et al., TIP 2019; CDD-11: Guo et
al., "OneRestore", ECCV 2024).

A photograph has no depth map, so the distances are synthetic and unrelated to the objects in the image. They are those
of a ground plane, whose inverse distance grows linearly from the horizon downwards, multiplied by smooth noise that
represents objects standing on it.
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
    smooth_noise,
)

NEAREST = 0.01  # smallest distance, in units of the farthest


@dataclass(frozen=True)
class HazeParameters:
    """Parameters of the haze.

    Args:
        beta: scattering coefficient; ``exp(-beta)`` is the transmission of the farthest distance.
        airlight: airlight in red, green and blue, in [0, 1]; gray images use the mean.
        horizon: row of the horizon as a fraction of the height, less than 1; negative if above the image.
        near: distance at the lower edge in units of the farthest, in [0.01, 1]; 1 for the same distance everywhere.
        relief: standard deviation of the logarithm of the distances relative to the plane.
        seed: random seed of the relief.

    Raises:
        ValueError: if a value is out of its range.
    """

    beta: float
    airlight: tuple[float, float, float] = (0.9, 0.9, 0.9)
    horizon: float = 0.3
    near: float = 0.1
    relief: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_not_negative(self, "beta", "relief", "seed")
        require_unit(self, "near")
        if not self.near >= NEAREST:
            raise ValueError(f"near must be at least {NEAREST}, got {self.near}")
        if not self.horizon < 1:
            raise ValueError(f"horizon must be less than 1, got {self.horizon}")
        if len(self.airlight) != 3 or not all(0 <= value <= 1 for value in self.airlight):
            raise ValueError(f"airlight must be three values in [0, 1], got {self.airlight}")


def draw_haze(rng: np.random.Generator, strength: float | None = None) -> HazeParameters:
    """Draw haze from thin mist to fog that hides distant objects, under bright or gray light.

    Args:
        rng: the only source of randomness; it advances by the same amount for any ``strength``.
        strength: value from 0 (clear air) to 1 (densest haze); None draws it from [0, 1].

    Raises:
        ValueError: if ``strength`` is not in [0, 1].
    """
    strong = draw_strength(rng, strength)
    light = np.clip(rng.uniform(0.5, 1) + rng.uniform(-0.05, 0.05, 3), 0, 1)
    return HazeParameters(
        beta=float(strong * rng.uniform(0.8, 3.2)),
        airlight=tuple(float(value) for value in light),
        horizon=float(rng.uniform(-0.3, 0.6)),
        near=log_uniform(rng, 0.05, 1),
        relief=float(rng.uniform(0, 0.4)),
        seed=draw_seed(rng),
    )


def add_haze(image: np.ndarray, parameters: HazeParameters) -> np.ndarray:
    """Add haze to an image; ``beta`` 0 leaves it unchanged.

    Args:
        image: RGB image (H, W, 3) or gray image (H, W, 1), float32 in [0, 1].
        parameters: parameters drawn by :func:`draw_haze`.

    Returns:
        Degraded image, float32 (H, W, C) in [0, 1].

    Raises:
        TypeError: if the image is not a float32 array.
        ValueError: if its shape or value range is invalid.
    """
    check_image(image)
    transmission = np.exp(-np.float32(parameters.beta) * depth_map(image.shape[0], image.shape[1], parameters))
    airlight = np.asarray(parameters.airlight, np.float32)
    if image.shape[2] == 1:
        airlight = airlight.mean(keepdims=True)
    return scatter(image, transmission, airlight)


def scatter(image: np.ndarray, transmission: np.ndarray, airlight: np.ndarray) -> np.ndarray:
    """Return ``image * t + airlight * (1 - t)`` for image (H, W, C), transmission t (H, W) and airlight (C,)."""
    transmission = transmission[..., None]
    return np.clip(image * transmission + airlight * (1 - transmission), 0, 1)


def depth_map(height: int, width: int, parameters: HazeParameters) -> np.ndarray:
    """Return synthetic distances in units of the farthest, float32 (H, W) in [0.01, 1]."""
    rows = (np.arange(height, dtype=np.float32) + np.float32(0.5)) / np.float32(height)
    below = np.maximum(rows - np.float32(parameters.horizon), 0) / np.float32(1 - parameters.horizon)
    plane = 1 / (1 + below * np.float32(1 / parameters.near - 1))  # 1 at the horizon, `near` at the lower edge
    distance = np.broadcast_to(plane[:, None], (height, width))
    if parameters.relief > 0:
        rng = np.random.default_rng(parameters.seed)
        coarse, fine = (smooth_noise(rng, height, width, cells) for cells in (4, 9))
        distance = distance * np.exp(np.float32(parameters.relief) * (coarse + fine / 2))
    return np.clip(distance, NEAREST, 1)
