"""Motion blur: the camera moves on a random path during the exposure.

The path follows Boracchi and Foi, "Modeling the Performance of Image Restoration From Motion Blur" (TIP 2012), in the
form of Kupyn et al., "DeblurGAN" (CVPR 2018): a particle whose velocity has inertia, is pushed at random at each step,
pulled back towards the start, and now and then shaken abruptly. The kernel is the time spent at each place, with
sub-pixel accuracy, its center of mass in the middle, so that the blurred image stays in register with the sharp one.

The sensor adds up light, so the image is blurred in linear light and stored as sRGB again (``linear``); bright points
then draw their path, as in GoPro's sets made from frames with the camera's curve undone (Nah et al., CVPR 2017). A
part of the draws blurs stored values, as most other generators do: a camera that lifts shadows and compresses lights is
between the two. One kernel serves the whole image: the camera turns, the scene stands still.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from restormixer_arch.data.degradations.common import (
    LINEAR_SHARE,
    check_image,
    convolve,
    draw_seed,
    draw_strength,
    require_not_negative,
    require_unit,
    splat,
)

STEPS = 96  # of the path
POINTS_PER_PIXEL = 4  # of the path, when it is drawn into the kernel
PULL = 0.02  # towards the start, per step and unit of way
STRAIGHT = 0.3  # share of straight paths: short exposures, cameras on vehicles


@dataclass(frozen=True)
class MotionBlurParameters:
    """Everything that determines the blur.

    Args:
        extent: the longer side of the path, in pixels.
        shake: standard deviation of the random push at each step, in units of the speed.
        jerk: probability of an abrupt turn at each step, in [0, 1].
        linear: blur linear light instead of stored values.
        seed: of the path.

    Raises:
        ValueError: a value out of its range.
    """

    extent: float
    shake: float = 0.1
    jerk: float = 0.01
    linear: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        require_not_negative(self, "extent", "shake", "seed")
        require_unit(self, "jerk")


def draw_motion_blur(rng: np.random.Generator, strength: float | None = None) -> MotionBlurParameters:
    """Draw blur between a slight tremble and a path of 36 pixels; a part of the paths is straight.

    Args:
        rng: the only source of randomness; it advances by the same amount for any ``strength``.
        strength: from 0, a camera at rest, to 1; None draws it from [0, 1].

    Raises:
        ValueError: ``strength`` is not in [0, 1].
    """
    strong = draw_strength(rng, strength)
    extent, shake, jerk = strong * rng.uniform(4, 36), rng.uniform(0.02, 0.18), rng.uniform(0, 0.03)
    seed, linear, steady = draw_seed(rng), rng.uniform() < LINEAR_SHARE, rng.uniform() < STRAIGHT
    if steady:
        shake = jerk = 0.0
    return MotionBlurParameters(
        extent=float(extent), shake=float(shake), jerk=float(jerk), linear=bool(linear), seed=seed
    )


def add_motion_blur(image: np.ndarray, parameters: MotionBlurParameters) -> np.ndarray:
    """Return the image as a moving camera sees it, mirrored at its edges; with ``extent`` 0 it is unchanged.

    Args:
        image: (H, W, 3) RGB or (H, W, 1), float32 in [0, 1].
        parameters: what :func:`draw_motion_blur` drew.

    Returns:
        float32 (H, W, C) in [0, 1].

    Raises:
        TypeError: the image is not a float32 array.
        ValueError: its shape or value range is invalid.
    """
    check_image(image)
    if parameters.extent == 0:
        return image.copy()
    return convolve(image, blur_kernel(parameters), linear=parameters.linear)


def blur_kernel(parameters: MotionBlurParameters) -> np.ndarray:
    """Return the image of a point: float32 (K, K), K odd, sum 1, center of mass in the middle."""
    rows, columns = camera_path(parameters)
    half = int(np.ceil(max(np.abs(rows).max(), np.abs(columns).max())))
    drawn = splat((2 * half + 1, 2 * half + 1), rows + half, columns + half, np.ones(len(rows)))
    return drawn / drawn.sum()


def camera_path(parameters: MotionBlurParameters) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of places visited at equal intervals of time, in pixels around their mean."""
    rng = np.random.default_rng(parameters.seed)
    velocity = np.exp(1j * rng.uniform(0, 2 * np.pi))  # the plane's points as complex numbers
    pushes = parameters.shake * (rng.standard_normal(STEPS) + 1j * rng.standard_normal(STEPS))
    jerks = rng.uniform(0, 1, STEPS) < parameters.jerk
    turns = np.exp(1j * rng.uniform(np.pi / 2, 3 * np.pi / 2, STEPS))
    path = np.zeros(STEPS + 1, complex)
    for step in range(STEPS):
        if jerks[step]:
            velocity *= turns[step]
        velocity += pushes[step] - PULL * path[step] * parameters.shake
        velocity /= max(abs(velocity), 1e-6)  # the hand keeps its speed
        path[step + 1] = path[step] + velocity
    path *= parameters.extent / max(np.ptp(path.real), np.ptp(path.imag))
    way = np.abs(np.diff(path)).sum()
    times = np.linspace(0, STEPS, max(int(np.ceil(way * POINTS_PER_PIXEL)), STEPS) + 1)
    visited = np.interp(times, np.arange(STEPS + 1), path.real) + 1j * np.interp(times, np.arange(STEPS + 1), path.imag)
    visited -= visited.mean()
    return visited.real, visited.imag
