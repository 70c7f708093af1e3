"""Second-order blind degradation: an image that is resized, compressed and shared twice.

The model of Wang et al. ("Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data", ICCVW
2021), with the ranges of BasicSR's ``options/train/RealESRGAN``: blur, resizing, noise and JPEG, all applied twice, and
a final sinc filter, which rings like sharpening, before or after the second JPEG. The kernels are BasicSR's.
Unlike in BasicSR, the ground truth is not sharpened, kernels are always 21 pixels wide (there 7 to 21, which truncates
wide kernels), and the shape ``beta`` of generalized and plateau kernels is uniform (there half of the values are at
most 1).

Strength scales all parts together. The standard deviations of blur and noise are proportional to it; resizing and JPEG
compression vanish as it approaches 0. The cut-off of sinc filters then approaches pi, where they still remove the
highest diagonal frequencies; at exactly 0, there are none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.data.degradations.common import (
    check_image,
    check_scale,
    convolve,
    draw_seed,
    draw_strength,
    require_not_negative,
    require_positive,
)
from restormixer_arch.data.degradations.jpeg import JpegParameters, add_jpeg
from restormixer_arch.data.degradations.noise import poisson_signal

KERNEL_SIZE = 21
KERNELS = {"gaussian": 0.7, "generalized": 0.15, "plateau": 0.15}  # name -> probability
ISOTROPIC = {"gaussian": 0.45 / 0.7, "generalized": 0.8, "plateau": 0.8}  # name -> probability of an isotropic kernel
INTERPOLATIONS = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
MIN_SIGMA = 0.05  # standard deviation in pixels below which a blur has no effect


def _check_interpolation(name: str) -> None:
    if name not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {name!r}")


@dataclass(frozen=True)
class Order:
    """One round of blur, resizing, noise and compression.

    Args:
        kernel: blur kernel, ``gaussian``, ``generalized``, ``plateau`` or ``sinc``.
        sigma: standard deviations along the two axes of the kernel in pixels; no blur if both are below 0.05.
        angle: angle of the first axis in radians.
        beta: shape of the generalized and plateau kernels; 1 is the exponent of a Gaussian.
        cutoff: cut-off frequency of the sinc filter in radians per pixel.
        factor: resize factor, relative to the input for the first order and to the output size for the second.
        interpolation: interpolation of the resizing, ``area``, ``bilinear`` or ``bicubic``.
        noise: standard deviation of Gaussian noise, for images in [0, 1].
        photon: variance of Poisson noise per unit of signal.
        gray: whether the noise is the same in all channels.
        quality: JPEG quality, None for no compression.
        seed: random seed of the noise.

    Raises:
        ValueError: if a value is out of its range, or a name is unknown.
    """

    kernel: str = "gaussian"
    sigma: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    beta: float = 1.0
    cutoff: float = np.pi
    factor: float = 1.0
    interpolation: str = "bicubic"
    noise: float = 0.0
    photon: float = 0.0
    gray: bool = False
    quality: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_not_negative(self, "noise", "photon", "seed")
        require_positive(self, "beta", "cutoff", "factor")
        if self.kernel not in (*KERNELS, "sinc"):
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, sinc, got {self.kernel!r}")
        _check_interpolation(self.interpolation)
        if min(self.sigma) < 0:
            raise ValueError(f"sigma must not be negative, got {self.sigma}")


@dataclass(frozen=True)
class BlindParameters:
    """Parameters of the second-order degradation.

    Args:
        first, second: parameters of the two orders.
        scale: factor by which the output is smaller than the input along each side.
        interpolation: interpolation of the final resizing.
        cutoff: cut-off frequency of the final sinc filter in radians per pixel, None for no filter.
        sinc_first: whether the final resizing and the sinc filter come before the second JPEG.

    Raises:
        ValueError: if the scale is less than 1, or the interpolation is unknown.
    """

    first: Order
    second: Order
    scale: int = 1
    interpolation: str = "bicubic"
    cutoff: float | None = None
    sinc_first: bool = True

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise ValueError(f"scale must be at least 1, got {self.scale}")
        _check_interpolation(self.interpolation)


def draw_blind(rng: np.random.Generator, strength: float | None = None, scale: int = 1) -> BlindParameters:
    """Draw the parameters of both orders.

    Args:
        rng: the only source of randomness; it advances by the same amount for any ``strength``.
        strength: value from 0 (only the size changes) to 1 (the ranges of Real-ESRGAN); None draws it from [0, 1].
        scale: scale of the task.

    Raises:
        ValueError: if ``strength`` is not in [0, 1], or ``scale`` is less than 1.
    """
    strong = draw_strength(rng, strength)
    first = _draw_order(rng, strong, widest=3.0, blurred=1.0, sizes=(0.15, 1.5), enlarged=0.2, reduced=0.7, noise=30)
    second = _draw_order(rng, strong, widest=1.5, blurred=0.8, sizes=(0.3, 1.2), enlarged=0.3, reduced=0.4, noise=25)
    interpolation = str(rng.choice(list(INTERPOLATIONS)))
    ringing, cutoff = rng.uniform() < 0.8, _scaled_cutoff(strong, rng.uniform(np.pi / 3, np.pi))
    return BlindParameters(
        first=first,
        second=second,
        scale=scale,
        interpolation=interpolation if strong > 0 else "area",
        cutoff=cutoff if ringing and strong > 0 else None,
        sinc_first=bool(rng.integers(2)),
    )


def _scaled_cutoff(strong: float, cutoff: float) -> float:
    return float(np.pi - strong * (np.pi - cutoff))


def _draw_order(
    rng: np.random.Generator,
    strong: float,
    *,
    widest: float,
    blurred: float,
    sizes: tuple[float, float],
    enlarged: float,
    reduced: float,
    noise: float,
) -> Order:
    """Draw the parameters of one order.

    The cut-off of the sinc filter has the range of Real-ESRGAN's kernels of 13 pixels or more.

    Args:
        rng: random generator.
        strong: strength in [0, 1].
        widest: largest standard deviation of the blur in pixels.
        blurred, enlarged, reduced: probabilities of blurring, enlarging and reducing.
        sizes: smallest and largest resize factor.
        noise: largest standard deviation of the Gaussian noise, in units of 1/255.
    """
    sinc, cutoff = rng.uniform() < 0.1, rng.uniform(np.pi / 5, np.pi)
    kernel = str(rng.choice(list(KERNELS), p=list(KERNELS.values())))
    isotropic, blurs = rng.uniform() < ISOTROPIC[kernel], rng.uniform() < blurred
    along, across, angle = rng.uniform(0.2, widest), rng.uniform(0.2, widest), rng.uniform(-np.pi, np.pi)
    beta = rng.uniform(1, 2) if kernel == "plateau" else rng.uniform(0.5, 4)
    way, up, down = rng.uniform(), rng.uniform(1, sizes[1]), rng.uniform(sizes[0], 1)
    factor = up if way < enlarged else down if way < enlarged + reduced else 1.0
    interpolation, gaussian = str(rng.choice(list(INTERPOLATIONS))), rng.uniform() < 0.5
    sigma, photon = rng.uniform(1, noise) / 255, (rng.uniform(0.05, noise / 10) / 16) ** 2
    gray, quality, seed = bool(rng.uniform() < 0.4), rng.uniform(30, 95), draw_seed(rng)
    blur = strong if blurs else 0.0
    return Order(
        kernel="sinc" if sinc and blur > 0 else kernel,
        sigma=(float(blur * along), float(blur * (along if isotropic else across))),
        angle=float(angle),
        beta=float(beta),
        cutoff=_scaled_cutoff(strong, cutoff),
        factor=float(factor**strong),
        interpolation=interpolation,
        noise=float(strong * sigma) if gaussian else 0.0,
        photon=0.0 if gaussian else float(strong**2 * photon),
        gray=gray,
        quality=round(100 - strong * (100 - quality)) if strong > 0 else None,
        seed=seed,
    )


def add_blind(image: np.ndarray, parameters: BlindParameters) -> np.ndarray:
    """Return the image after both orders, downsampled by ``scale``.

    Args:
        image: RGB image (H, W, 3) or gray image (H, W, 1), float32 in [0, 1].
        parameters: parameters drawn by :func:`draw_blind`.

    Returns:
        Degraded image, float32 (H / scale, W / scale, C) in [0, 1].

    Raises:
        TypeError: if the image is not a float32 array.
        ValueError: if its shape or value range is invalid, or a side is not a multiple of ``scale``.
    """
    check_image(image)
    (height, width), scale = image.shape[:2], parameters.scale
    check_scale(image, scale)
    first, second = parameters.first, parameters.second
    size = (height // scale, width // scale)
    result = _blur(image, first)
    result = _resize(result, (height * first.factor, width * first.factor), first.interpolation)
    result = _compress(_add_noise(result, first), first)
    result = _blur(result, second)
    result = _resize(result, (size[0] * second.factor, size[1] * second.factor), second.interpolation)
    result = _add_noise(result, second)
    if not parameters.sinc_first:
        result = _compress(result, second)
    result = _resize(result, size, parameters.interpolation)
    if parameters.cutoff is not None:
        result = convolve(result, _sinc_kernel(parameters.cutoff), linear=False)
    return _compress(result, second) if parameters.sinc_first else result


def _blur(image: np.ndarray, order: Order) -> np.ndarray:
    if order.kernel == "sinc":
        return convolve(image, _sinc_kernel(order.cutoff), linear=False)
    if max(order.sigma) < MIN_SIGMA:
        return image
    return convolve(image, blur_kernel(order), linear=False)


def blur_kernel(order: Order) -> np.ndarray:
    """Return BasicSR's kernel for an order other than ``sinc``, float32 (21, 21) with sum 1."""
    along, across = (max(deviation, MIN_SIGMA) for deviation in order.sigma)
    names = {"gaussian": "Gaussian", "generalized": "generalized_Gaussian", "plateau": "plateau"}
    make = getattr(_kernels(), f"bivariate_{names[order.kernel]}")
    shape = () if order.kernel == "gaussian" else (order.beta,)
    return make(KERNEL_SIZE, along, across, order.angle, *shape, isotropic=False).astype(np.float32)


def _sinc_kernel(cutoff: float) -> np.ndarray:
    return _kernels().circular_lowpass_kernel(cutoff, KERNEL_SIZE).astype(np.float32)


@lru_cache(maxsize=1)
def _kernels():  # noqa: ANN202
    """Return BasicSR's module of kernels, which is imported only here since it loads torchvision."""
    compat.apply()
    from basicsr.data import degradations

    return degradations


def _resize(image: np.ndarray, size: tuple[float, float], interpolation: str) -> np.ndarray:
    height, width = (max(1, round(side)) for side in size)
    if (height, width) == image.shape[:2]:
        return image
    resized = cv2.resize(image, (width, height), interpolation=INTERPOLATIONS[interpolation])
    return np.clip(resized.reshape(height, width, image.shape[2]), 0, 1)


def _add_noise(image: np.ndarray, order: Order) -> np.ndarray:
    rng = np.random.default_rng(order.seed)
    signal = image.mean(-1, keepdims=True) if order.gray else image
    if order.noise > 0:
        noise = np.float32(order.noise) * rng.standard_normal(signal.shape, np.float32)
    elif order.photon > 0:
        noise = poisson_signal(rng, signal, order.photon) - signal
    else:
        return image
    return np.clip(image + noise, 0, 1)


def _compress(image: np.ndarray, order: Order) -> np.ndarray:
    return add_jpeg(image, JpegParameters(order.quality))
