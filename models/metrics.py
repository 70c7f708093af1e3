"""The metrics of published tables, registered in BasicSR's METRIC_REGISTRY under names that state the exact variant.

All accept two uint8 images in [0, 255], BGR (H, W, 3) or gray (H, W), as BasicSR's models pass them; a gray image is
used as its own luma. First, ``crop_border`` pixels are removed at each edge. ``better`` has no effect here; BasicSR's
models read it.

LPIPS and DISTS come from torchmetrics (the extra ``metrics``); torchvision downloads the weights of their networks on
first use. NIQE is BasicSR's implementation.

The PSNR of two identical images is infinite, and so is a mean that includes such a pair, as in MATLAB and NumPy: no
value is capped or left out.
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
BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}  # LPIPS name -> torchvision name
NIQE_SIDE = 96  # side of BasicSR's blocks, of which NIQE needs at least two
DEEP_SIDE = 32  # smallest image side that all networks of LPIPS and DISTS accept
# Exceptions that metrics raise for an image they cannot measure; UserError is a ValueError.
MEASURE_ERRORS = (AssertionError, ValueError, RuntimeError, AttributeError, TypeError, cv2.error)


def measure(
    metrics: Mapping[str, Mapping[str, Any]], image: np.ndarray, truth: np.ndarray | None, name: str, dataset: str = ""
) -> dict[str, float]:
    """Compute the metrics of the option section ``val.metrics`` for one image.

    Args:
        metrics: metric name -> registered function (``type``) and its arguments.
        image: uint8 image, BGR (H, W, 3) or gray (H, W).
        truth: ground truth in the same format, or None.
        name: name of the image, for messages.
        dataset: name of its dataset, for messages.

    Returns:
        Metric name -> value; NaN with a warning if a metric is undefined for the image, such as NIQE of a flat image.

    Raises:
        UserError: if the image cannot be measured, for example because it is too small or its size differs from the
            ground truth.
    """
    data, values = {"img": image} if truth is None else {"img": image, "img2": truth}, {}
    place = f" of {dataset}" if dataset else ""
    for metric, options in metrics.items():
        try:
            _check_size(image.shape[:2], options)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's warning about NaN, which is reported below
                values[metric] = float(calculate_metric(data, dict(options)))
            reason = "the result is not a number (NaN)" if math.isnan(values[metric]) else ""
        except np.linalg.LinAlgError as error:
            values[metric], reason = math.nan, str(error)
        except MEASURE_ERRORS as error:
            reason = " ".join(str(error).split()) or type(error).__name__  # OpenCV's messages have several lines
            raise UserError(
                f"val.metrics.{metric}: cannot measure {name!r}{place} {image.shape[:2]}: {reason}"
            ) from error
        if reason:
            warn(f"val.metrics.{metric}: cannot measure {name!r}{place}: {reason}")
    return values


def enlarge(lq: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample an input to the size of its restoration with MATLAB's bicubic kernel, as in published tables.

    Without ``antialias``, torch's bicubic interpolation uses a different kernel (a = -0.75 instead of -0.5), and the
    PSNR on Set5 is 0.15 to 0.3 dB higher.

    Args:
        lq: float images in [0, 1], (B, C, h, w).
        size: (H, W) of the restoration.

    Returns:
        Images (B, C, H, W), not clamped; ``lq`` itself if it already has this size.
    """
    if lq.shape[-2:] == size:
        return lq
    return F.interpolate(lq, size=size, mode="bicubic", align_corners=False, antialias=True)


def _check_size(size: tuple[int, int], options: Mapping[str, Any]) -> None:
    """Raise UserError if too little of an image of ``size`` (height, width) remains after cropping, for any metric."""
    border = options.get("crop_border", 0)
    if border < 0 or 2 * border >= min(size):
        raise UserError(f"crop_border {border} leaves no pixels")
    inner = [side - 2 * border for side in size]
    if options["type"] == "calculate_niqe" and math.prod(side // NIQE_SIDE for side in inner) < 2:
        raise UserError(f"NIQE needs at least {NIQE_SIDE} x {2 * NIQE_SIDE} pixels, got {inner[0]} x {inner[1]}")


@METRIC_REGISTRY.register()
def calculate_psnr_y_matlab(img: np.ndarray, img2: np.ndarray, crop_border: int = 0, better: str = "higher") -> float:
    """Return the PSNR in dB of the 8-bit luma of MATLAB's rgb2ycbcr for uint8 images (deraining, SR).

    Raises:
        UserError: if the images differ in size, are not uint8, or ``crop_border`` leaves no pixels.
    """
    return _psnr(*(luma(image) for image in _prepare(img, img2, crop_border)))


@METRIC_REGISTRY.register()
def calculate_ssim_y_matlab(img: np.ndarray, img2: np.ndarray, crop_border: int = 0, better: str = "higher") -> float:
    """Return the SSIM of MATLAB's 8-bit luma as in Wang's ssim_index.m.

    Uses 11x11 Gaussian windows with sigma 1.5 that are fully inside the image, without downsampling.

    Raises:
        UserError: as for the PSNR, or if a side is below 11.
    """
    return _ssim_gaussian(*(luma(image) for image in _prepare(img, img2, crop_border)), PEAK)


@METRIC_REGISTRY.register()
def calculate_psnr_rgb(img: np.ndarray, img2: np.ndarray, crop_border: int = 0, better: str = "higher") -> float:
    """Return the PSNR in dB of the mean squared error over all pixels and channels (deblurring, desnowing, mixed).

    Raises:
        UserError: if the images differ in size, are not uint8, or ``crop_border`` leaves no pixels.
    """
    return _psnr(*_prepare(img, img2, crop_border))


@METRIC_REGISTRY.register()
def calculate_ssim_skimage(img: np.ndarray, img2: np.ndarray, crop_border: int = 0, better: str = "higher") -> float:
    """Return the SSIM of scikit-image's structural_similarity: 7x7 uniform window, sample covariance, channel mean.

    Raises:
        UserError: as for the PSNR, or if a side is below 7.
    """
    first, second = _prepare(img, img2, crop_border)
    _check_window(first, UNIFORM_SIDE)
    count = UNIFORM_SIDE**2
    return _ssim(first, second, PEAK, _box, count / (count - 1))


@METRIC_REGISTRY.register()
def calculate_ssim_pooled(img: np.ndarray, img2: np.ndarray, crop_border: int = 0, better: str = "higher") -> float:
    """Return the SSIM of the desnowing papers: RGB downsampled to a short side of about 256, 11x11 Gaussian windows.

    Images are downsampled by ``max(1, round(short side / 256))`` with adaptive average pooling, so large images get
    higher values than with the other SSIMs. The papers' code measures images before they are rounded to 8 bits.

    Raises:
        UserError: as for the PSNR, or if a side of the downsampled image is below 11.
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
    """Return LPIPS, a learned distance of deep features (Zhang et al., CVPR 2018), version 0.1; 0 for equal images.

    Args:
        net: network, one of ``alex`` (as in published tables), ``vgg`` and ``squeeze``.

    Raises:
        UserError: as for the PSNR, or if a side is below 32, ``net`` is unknown, torchmetrics is not installed or the
            network's weights cannot be downloaded.
    """
    first, second = _deep_inputs("LPIPS", img, img2, crop_border)
    metric = _load_lpips(net).to(first.device)
    with torch.no_grad():
        value = float(metric(first, second))
    metric.reset()
    return value


@METRIC_REGISTRY.register()
def calculate_dists(img: np.ndarray, img2: np.ndarray, crop_border: int = 0, better: str = "lower") -> float:
    """Return DISTS, a structure and texture distance of VGG features (Ding et al., TPAMI 2020); 0 for equal images.

    Images are measured at full size, while the authors' code first downsamples them to a short side of 256.

    Raises:
        UserError: as for the PSNR, or if a side is below 32, torchmetrics is not installed or the network's weights
            cannot be downloaded.
    """
    first, second = _deep_inputs("DISTS", img, img2, crop_border)
    with torch.no_grad():
        return float(_load_dists().to(first.device)(first, second))


def load_metric_networks(metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Load the networks of ``val.metrics``, so missing packages or weights are reported before training starts.

    Raises:
        UserError: if torchmetrics is not installed or weights cannot be downloaded.
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
        from torchmetrics.functional.image.dists import DISTSNetwork  # torchmetrics' class reloads it for every image
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
    """Return both images as RGB tensors (1, 3, H, W) in [0, 1], on the GPU if this process uses one."""
    images = [np.atleast_3d(image) for image in _prepare(img, img2, crop_border)]
    height, width = images[0].shape[:2]
    if min(height, width) < DEEP_SIDE:
        raise UserError(f"metric: {name} needs images of at least {DEEP_SIDE}x{DEEP_SIDE}, got {height}x{width}")
    device = "cuda" if torch.cuda.is_initialized() and _gpu_works() else "cpu"
    tensors = [torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).to(device) for image in images]
    return [(t.permute(2, 0, 1)[None] / PEAK).float().expand(1, 3, height, width) for t in tensors]


def luma(image: np.ndarray) -> np.ndarray:
    """Return MATLAB's luma as float64 (H, W): BT.601, range 16 to 235, rounded half up; gray images are unchanged."""
    if image.ndim == 2:
        return image
    exact = image @ np.array([24.966, 128.553, 65.481]) / PEAK + 16.0
    return np.floor(exact + 0.5)


def _prepare(img: np.ndarray, img2: np.ndarray, crop_border: int) -> tuple[np.ndarray, np.ndarray]:
    """Return both images cropped and as float64; gray images have shape (H, W)."""
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
    """Return the mean of the SSIM map over all windows inside the image and all channels."""
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
    return pooled.permute(1, 2, 0).contiguous().numpy()  # OpenCV needs channels last


def _check_window(image: np.ndarray, side: int) -> None:
    if min(image.shape[:2]) < side:
        raise UserError(f"metric: SSIM needs images of at least {side}x{side}, got {image.shape[0]}x{image.shape[1]}")
