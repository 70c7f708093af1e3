"""The measures of published tables, each named after what it is, in BasicSR's METRIC_REGISTRY.

All take two images, uint8 in [0, 255], BGR (H, W, 3) or gray (H, W), as BasicSR's models hand them over; a gray image
is its own luma. ``crop_border`` pixels are cut off at each edge first. ``better`` is read by BasicSR's models and
changes nothing here.

Two identical images have an infinite PSNR, and a mean over pictures that include such a pair is infinite too, as
MATLAB's and numpy's means are: nothing is capped or left out.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from basicsr.utils.registry import METRIC_REGISTRY

from restormixer_arch.errors import UserError

PEAK = 255.0
K1, K2 = 0.01, 0.03  # Wang et al., Image quality assessment, IEEE TIP 13(4), 2004
GAUSSIAN_SIDE, GAUSSIAN_SIGMA = 11, 1.5
UNIFORM_SIDE = 7
POOLED_SIDE = 256


@METRIC_REGISTRY.register()
def calculate_psnr_y_matlab(img: np.ndarray, img2: np.ndarray, crop_border: int = 0, better: str = "higher") -> float:
    """PSNR in dB of the luma that MATLAB's rgb2ycbcr gives for uint8: rounded to 8 bits (deraining, SR).

    Raises:
        UserError: the images differ in size, are not uint8, or nothing is left between the borders.
    """
    return _psnr(*(luma(image) for image in _prepare(img, img2, crop_border)))


@METRIC_REGISTRY.register()
def calculate_ssim_y_matlab(img: np.ndarray, img2: np.ndarray, crop_border: int = 0, better: str = "higher") -> float:
    """SSIM of MATLAB's 8-bit luma as in Wang's ssim_index.m: 11x11 Gaussian of sigma 1.5, valid part, no reduction.

    Raises:
        UserError: as for the PSNR, or a side is below 11.
    """
    return _ssim_gaussian(*(luma(image) for image in _prepare(img, img2, crop_border)), PEAK)


@METRIC_REGISTRY.register()
def calculate_psnr_rgb(img: np.ndarray, img2: np.ndarray, crop_border: int = 0, better: str = "higher") -> float:
    """PSNR in dB of the mean square error over all pixels and channels (deblurring, desnowing, mixed).

    Raises:
        UserError: the images differ in size, are not uint8, or nothing is left between the borders.
    """
    return _psnr(*_prepare(img, img2, crop_border))


@METRIC_REGISTRY.register()
def calculate_ssim_skimage(img: np.ndarray, img2: np.ndarray, crop_border: int = 0, better: str = "higher") -> float:
    """SSIM as scikit-image's structural_similarity: 7x7 uniform window, sample covariance, mean over channels.

    Raises:
        UserError: as for the PSNR, or a side is below 7.
    """
    first, second = _prepare(img, img2, crop_border)
    _check_window(first, UNIFORM_SIDE)
    count = UNIFORM_SIDE**2
    return _ssim(first, second, PEAK, _box, count / (count - 1))


@METRIC_REGISTRY.register()
def calculate_ssim_pooled(img: np.ndarray, img2: np.ndarray, crop_border: int = 0, better: str = "higher") -> float:
    """SSIM of the desnowing papers: RGB averaged down to a short side of about 256, then 11x11 Gaussian windows.

    The reduction is by ``max(1, round(short side / 256))`` with adaptive average pooling, so that the values of large
    images are higher than those of the other SSIMs. The papers' code measures before rounding to 8 bits.

    Raises:
        UserError: as for the PSNR, or a side of what is left is below 11.
    """
    first, second = (np.atleast_3d(image) / PEAK for image in _prepare(img, img2, crop_border))
    height, width = first.shape[:2]
    ratio = max(1, round(min(height, width) / POOLED_SIDE))
    size = (int(height / ratio), int(width / ratio))
    return _ssim_gaussian(_pool(first, size), _pool(second, size), 1.0)


def luma(image: np.ndarray) -> np.ndarray:
    """Return MATLAB's luma of a uint8 image: BT.601 in studio range, 16 to 235, rounded half up, as float64 (H, W)."""
    if image.ndim == 2:
        return image
    exact = image @ np.array([24.966, 128.553, 65.481]) / PEAK + 16.0
    return np.floor(exact + 0.5)


def _prepare(img: np.ndarray, img2: np.ndarray, crop_border: int) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64, cropped; gray ones as (H, W)."""
    for image in (img, img2):
        if image.dtype != np.uint8:
            raise UserError(f"metric: images must be uint8, got {image.dtype}")
    first, second = (image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image for image in (img, img2))
    if first.shape != second.shape:
        raise UserError(f"metric: the restored image has shape {first.shape}, the true one {second.shape}")
    if crop_border < 0 or 2 * crop_border >= min(first.shape[:2]):
        raise UserError(f"metric: crop_border is {crop_border}, which leaves nothing of an image {first.shape[:2]}")
    inner = slice(crop_border, -crop_border or None)
    return first[inner, inner].astype(np.float64), second[inner, inner].astype(np.float64)


def _psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = float(np.mean((first - second) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(PEAK**2 / error))


def _ssim_gaussian(first: np.ndarray, second: np.ndarray, peak: float) -> float:
    _check_window(first, GAUSSIAN_SIDE)
    return _ssim(first, second, peak, _gaussian, 1.0)


def _ssim(
    first: np.ndarray,
    second: np.ndarray,
    peak: float,
    mean: Callable[[np.ndarray], np.ndarray],
    covariance_factor: float,
) -> float:
    """Return the mean of the SSIM map over windows that lie inside the image, averaged over channels."""
    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    mean_1, mean_2 = mean(first), mean(second)
    variance_1 = covariance_factor * (mean(first**2) - mean_1**2)
    variance_2 = covariance_factor * (mean(second**2) - mean_2**2)
    covariance = covariance_factor * (mean(first * second) - mean_1 * mean_2)
    similarity = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    similarity /= (mean_1**2 + mean_2**2 + c1) * (variance_1 + variance_2 + c2)
    return float(similarity.mean())


def _box(image: np.ndarray) -> np.ndarray:
    edge = UNIFORM_SIDE // 2
    return cv2.blur(image, (UNIFORM_SIDE, UNIFORM_SIDE))[edge:-edge, edge:-edge]


def _gaussian(image: np.ndarray) -> np.ndarray:
    edge, kernel = GAUSSIAN_SIDE // 2, cv2.getGaussianKernel(GAUSSIAN_SIDE, GAUSSIAN_SIGMA)
    return cv2.sepFilter2D(image, -1, kernel, kernel)[edge:-edge, edge:-edge]


def _pool(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    pooled = F.adaptive_avg_pool2d(torch.from_numpy(image).permute(2, 0, 1), size)  # (H, W, C) -> (C, h, w)
    return pooled.permute(1, 2, 0).contiguous().numpy()  # OpenCV wants channels last


def _check_window(image: np.ndarray, side: int) -> None:
    if min(image.shape[:2]) < side:
        raise UserError(f"metric: SSIM needs images of at least {side}x{side}, got {image.shape[0]}x{image.shape[1]}")
