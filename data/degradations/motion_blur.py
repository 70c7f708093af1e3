"""Motion blur of a camera that moves along a random path during the exposure.

The path follows Boracchi and Foi, "Modeling the Performance of Image Restoration From Motion Blur" (TIP 2012), in the
form of Kupyn et al., "DeblurGAN" (CVPR 2018): a particle whose velocity has inertia, is pushed randomly at each step,
pulled back towards the start, and occasionally turned abruptly. The kernel is the time spent at each position, with
sub-pixel accuracy. Its center of mass is in the middle, so the blurred image remains aligned with the sharp one.

The sensor integrates light, so the image is blurred in linear light and stored as sRGB again (``linear``). Bright
points then trace the path, as in GoPro datasets built from frames with inverted camera response (Nah et al., CVPR
2017). Some of the draws blur stored values, as most other generators do; a camera that lifts shadows and compresses
highlights is between the two. The complete image has the same kernel, as if the camera rotated in a static scene.
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

STEPS = 96  # number of steps of the path
POINTS_PER_PIXEL = 4  # sampling of the path when it is drawn into the kernel
PULL = 0.02  # pull towards the start per step and unit of distance, multiplied by `shake`
STRAIGHT = 0.3  # share of straight paths, as for short exposures and cameras on vehicles


@dataclass(frozen=True)
class MotionBlurParameters:
    """Parameters of the motion blur.

    Args:
        extent: longer side of the path's bounding box in pixels.
        shake: standard deviation of the random push at each step, in units of the speed.
        jerk: probability of an abrupt turn at each step, in [0, 1].
        linear: whether to blur linear light instead of stored values.
        seed: random seed of the path.

    Raises:
        ValueError: if a value is out of its range.
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
    """Draw blur from a slight tremble to a path of 36 pixels; 30 % of the paths are straight.

    Args:
        rng: the only source of randomness; it advances by the same amount for any ``strength``.
        strength: value from 0 (camera at rest) to 1 (longest paths); None draws it from [0, 1].

    Raises:
        ValueError: if ``strength`` is not in [0, 1].
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
    """Blur an image, mirrored at its edges, along the camera's path; ``extent`` 0 leaves it unchanged.

    Args:
        image: RGB image (H, W, 3) or gray image (H, W, 1), float32 in [0, 1].
        parameters: parameters drawn by :func:`draw_motion_blur`.

    Returns:
        Degraded image, float32 (H, W, C) in [0, 1].

    Raises:
        TypeError: if the image is not a float32 array.
        ValueError: if its shape or value range is invalid.
    """
    check_image(image)
    if parameters.extent == 0:
        return image.copy()
    return convolve(image, blur_kernel(parameters), linear=parameters.linear)


def blur_kernel(parameters: MotionBlurParameters) -> np.ndarray:
    """Return the image of a point, float32 (K, K) with K odd, sum 1 and the center of mass in the middle."""
    rows, columns = camera_path(parameters)
    half = int(np.ceil(max(np.abs(rows).max(), np.abs(columns).max())))
    drawn = splat((2 * half + 1, 2 * half + 1), rows + half, columns + half, np.ones(len(rows)))
    return drawn / drawn.sum()


def camera_path(parameters: MotionBlurParameters) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of the camera at equal time intervals, in pixels relative to their mean."""
    rng = np.random.default_rng(parameters.seed)
    velocity = np.exp(1j * rng.uniform(0, 2 * np.pi))  # points of the plane are complex numbers
    pushes = parameters.shake * (rng.standard_normal(STEPS) + 1j * rng.standard_normal(STEPS))
    jerks = rng.uniform(0, 1, STEPS) < parameters.jerk
    turns = np.exp(1j * rng.uniform(np.pi / 2, 3 * np.pi / 2, STEPS))
    path = np.zeros(STEPS + 1, complex)
    for step in range(STEPS):
        if jerks[step]:
            velocity *= turns[step]
        velocity += pushes[step] - PULL * path[step] * parameters.shake
        velocity /= max(abs(velocity), 1e-6)  # the speed is constant
        path[step + 1] = path[step] + velocity
    path *= parameters.extent / max(np.ptp(path.real), np.ptp(path.imag))
    way = np.abs(np.diff(path)).sum()
    times = np.linspace(0, STEPS, max(int(np.ceil(way * POINTS_PER_PIXEL)), STEPS) + 1)
    visited = np.interp(times, np.arange(STEPS + 1), path.real) + 1j * np.interp(times, np.arange(STEPS + 1), path.imag)
    visited -= visited.mean()
    return visited.real, visited.imag
