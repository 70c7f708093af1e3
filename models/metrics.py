"""The measures of published tables, each named after what it is, in BasicSR's METRIC_REGISTRY.

All take two images, uint8 in [0, 255], BGR (H, W, 3) or gray (H, W), as BasicSR's models hand them over; a gray image
is its own luma. ``crop_border`` pixels are cut off at each edge first. ``better`` is read by BasicSR's models and
changes nothing here.

LPIPS and DISTS are torchmetrics' (the extra ``metrics``), by networks whose weights torchvision fetches when they are
first needed. NIQE is BasicSR's own.

Two identical images have an infinite PSNR, and a mean over pictures that include such a pair is infinite too, as
MATLAB's and numpy's means are: nothing is capped or left out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from basicsr.metrics import calculate_metric
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor, nn

from restormixer_arch.basicsr_adapter.torchvision_weights import explain_missing_weights
from restormixer_arch.errors import UserError, did_you_mean
from restormixer_arch.inference.restorer import unusable_reason
from restormixer_arch.output import warn

PEAK = 255.0
K1, K2 = 0.01, 0.03  # Wang et al., Image quality assessment, IEEE TIP 13(4), 2004
GAUSSIAN_SIDE, GAUSSIAN_SIGMA = 11, 1.5
UNIFORM_SIDE = 7
POOLED_SIDE = 256
BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}  # of LPIPS -> torchvision's names
NIQE_SIDE = 96  # of BasicSR's blocks, of which it compares at least two
DEEP_SIDE = 32  # the smallest image that all of these take
# What a metric raises where it cannot take an image; UserError is a ValueError.
REFUSALS = (AssertionError, ValueError, RuntimeError, AttributeError, TypeError, cv2.error)


def measure(
    metrics: Mapping[str, Mapping[str, Any]], image: np.ndarray, truth: np.ndarray | None, name: str, dataset: str = ""
) -> dict[str, float]:
    """Measure an image by the section ``val.metrics``.

    Args:
        metrics: name -> the registered function as ``type``, and its arguments.
        image: uint8 BGR (H, W, 3), or gray (H, W).
        truth: of the same kind, None where there is none.
        name: of the image, for messages.
        dataset: its dataset, for messages.

    Returns:
        Name -> value; NaN, with a warning, where a metric has none for this image, as NIQE for a flat one.

    Raises:
        UserError: the image cannot be measured, such as one that is too small or of another size than the truth.
    """
    data, values = {"img": image} if truth is None else {"img": image, "img2": truth}, {}
    place = f" of {dataset}" if dataset else ""
    for metric, options in metrics.items():
        try:
            _check_size(image.shape[:2], options)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # numpy's of a NaN, which is reported below
                values[metric] = float(calculate_metric(data, dict(options)))
            reason = "the result is not a number (NaN)" if math.isnan(values[metric]) else ""
        except np.linalg.LinAlgError as error:
            values[metric], reason = math.nan, str(error)
        except REFUSALS as error:
            reason = " ".join(str(error).split()) or type(error).__name__  # OpenCV's has several lines
            raise UserError(
                f"val.metrics.{metric}: cannot measure {name!r}{place} {image.shape[:2]}: {reason}"
            ) from error
        if reason:
            warn(f"val.metrics.{metric}: cannot measure {name!r}{place}: {reason}")
    return values


def enlarge(lq: Tensor, size: tuple[int, int]) -> Tensor:
    """Return an input at the size of its restoration, by MATLAB's bicubic kernel, as in published tables.

    torch's bicubic interpolation without ``antialias`` has another kernel (a = -0.75 in place of -0.5), and a PSNR that
    is 0.15 to 0.3 dB higher on Set5.

    Args:
        lq: (B, C, h, w) float in [0, 1].
        size: (H, W) of the restoration.

    Returns:
        (B, C, H, W), not clamped; ``lq`` itself where it has that size.
    """
    if lq.shape[-2:] == size:
        return lq
    return F.interpolate(lq, size=size, mode="bicubic", align_corners=False, antialias=True)


def _check_size(size: tuple[int, int], options: Mapping[str, Any]) -> None:
    """Refuse images of (height, width) of which too little is left between the borders, by whatever metric."""
    border = options.get("crop_border", 0)
    if border < 0 or 2 * border >= min(size):
        raise UserError(f"crop_border {border} leaves no pixels")
    inner = [side - 2 * border for side in size]
    if options["type"] == "calculate_niqe" and math.prod(side // NIQE_SIDE for side in inner) < 2:
        raise UserError(f"NIQE needs at least {NIQE_SIDE} x {2 * NIQE_SIDE} pixels, got {inner[0]} x {inner[1]}")


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


@METRIC_REGISTRY.register()
def calculate_lpips(
    img: np.ndarray, img2: np.ndarray, crop_border: int = 0, net: str = "alex", better: str = "lower"
) -> float:
    """LPIPS, the learned distance of deep features (Zhang et al., CVPR 2018), version 0.1; 0 for equal images.

    Args:
        net: ``alex``, as published tables have it, ``vgg`` or ``squeeze``.

    Raises:
        UserError: as for the PSNR, a side is below 32, an unknown ``net``, torchmetrics is not installed, or the
            network's weights cannot be fetched.
    """
    first, second = _deep_inputs("LPIPS", img, img2, crop_border)
    metric = _load_lpips(net).to(first.device)
    with torch.no_grad():
        value = float(metric(first, second))
    metric.reset()
    return value


@METRIC_REGISTRY.register()
def calculate_dists(img: np.ndarray, img2: np.ndarray, crop_border: int = 0, better: str = "lower") -> float:
    """DISTS, a distance of structure and texture of VGG features (Ding et al., TPAMI 2020); 0 for equal images.

    The image is measured at its own size, while the authors' code reduces it to a short side of 256 first.

    Raises:
        UserError: as for the PSNR, a side is below 32, torchmetrics is not installed, or the network's weights cannot
            be fetched.
    """
    first, second = _deep_inputs("DISTS", img, img2, crop_border)
    with torch.no_grad():
        return float(_load_dists().to(first.device)(first, second))


def load_metric_networks(metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Load the networks of ``val.metrics``, so missing packages or weights are reported before training starts.

    Raises:
        UserError: torchmetrics is not installed, or weights cannot be fetched.
    """
    for options in metrics.values():
        if options["type"] == "calculate_lpips":
            _load_lpips(options.get("net", "alex"))
        if options["type"] == "calculate_dists":
            _load_dists()


@lru_cache
def _load_lpips(net: str) -> nn.Module:
    if net not in BACKBONES:
        hint = did_you_mean(net, BACKBONES)
        raise UserError(f"metric: net of LPIPS is {net!r}, expected {', '.join(BACKBONES)}.{hint}")
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    except ImportError as error:
        raise _not_installed("LPIPS") from error
    with explain_missing_weights("LPIPS", BACKBONES[net]):
        return LearnedPerceptualImagePatchSimilarity(net_type=net, normalize=True)


@lru_cache
def _load_dists() -> nn.Module:
    try:
        from torchmetrics.functional.image.dists import DISTSNetwork  # torchmetrics' class loads it for every image
    except ImportError as error:
        raise _not_installed("DISTS") from error
    with explain_missing_weights("DISTS", "vgg16"):
        return DISTSNetwork().eval()


def _not_installed(name: str) -> UserError:
    return UserError(f"{name}: needs torchmetrics; pip install 'restormixer[metrics]'")


@lru_cache
def _gpu_works() -> bool:
    return unusable_reason("cuda") is None


def _deep_inputs(name: str, img: np.ndarray, img2: np.ndarray, crop_border: int) -> list[Tensor]:
    """Return both as (1, 3, H, W), RGB in [0, 1], on the GPU if this process uses one."""
    images = [np.atleast_3d(image) for image in _prepare(img, img2, crop_border)]
    height, width = images[0].shape[:2]
    if min(height, width) < DEEP_SIDE:
        raise UserError(f"metric: {name} needs images of at least {DEEP_SIDE}x{DEEP_SIDE}, got {height}x{width}")
    device = "cuda" if torch.cuda.is_initialized() and _gpu_works() else "cpu"
    tensors = [torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).to(device) for image in images]
    return [(t.permute(2, 0, 1)[None] / PEAK).float().expand(1, 3, height, width) for t in tensors]


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
        raise UserError(f"metric: the restored image has shape {first.shape}, the ground truth {second.shape}")
    if crop_border < 0 or 2 * crop_border >= min(first.shape[:2]):
        raise UserError(f"metric: crop_border is {crop_border}, which leaves no pixels of an image {first.shape[:2]}")
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
