"""Losses in BasicSR's LOSS_REGISTRY.

Shape letters: B batch, C channels, H x W size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from restormixer_arch.errors import UserError

# Wang, Simoncelli and Bovik, Multi-scale structural similarity, Asilomar 2003: scale weights, finest first.
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
MIN_SIMILARITY = 1e-6  # lower bound of a scale's similarity, since the slope of x^0.04 is infinite at 0


def dual_domain_loss(output: Tensor, target: Tensor, fft_weight: float) -> Tensor:
    """Return the L1 distance of two images plus ``fft_weight`` times the L1 distance of their spectra.

    The spectra are full, unnormalized 2-D FFTs, and their distance is the mean over real and imaginary parts, as in
    MIMO-UNet (arXiv 2108.05054) and its successors. The loss is always computed in float32, even under autocast.

    Shape:
        (B, C, H, W), (B, C, H, W) -> ()
    """
    with torch.autocast(output.device.type, enabled=False):
        difference = output.float() - target.float()
        loss = difference.abs().mean()
        if fft_weight:
            spectrum = torch.view_as_real(torch.fft.fft2(difference))
            loss = loss + fft_weight * spectrum.abs().mean()
        return loss


@LOSS_REGISTRY.register()
class MultiScaleDualDomainLoss(nn.Module):
    """The dual-domain loss summed over the outputs at 1/4, 1/2 and full resolution with equal weights.

    The target is downsampled to each output by bilinear interpolation without antialiasing. RestorMixer's use of this
    loss is inferred: the paper mentions a "multi-scale, dual-domain loss", and all related networks use this one.

    Args:
        loss_weight: factor of the total loss.
        fft_weight: factor of the distance of the spectra; 0 gives plain L1.

    Shape:
        list of (B, C, H_k, W_k) or one (B, C, H, W), target (B, C, H, W) -> ()

    Raises:
        ValueError: if a weight is negative.
    """

    def __init__(self, loss_weight: float = 1.0, fft_weight: float = 0.1) -> None:
        super().__init__()
        _refuse_negative(loss_weight=loss_weight, fft_weight=fft_weight)
        self.loss_weight = loss_weight
        self.fft_weight = fft_weight

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        losses = [dual_domain_loss(o, _reduce(target, o), self.fft_weight) for o in outputs]
        return self.loss_weight * torch.stack(losses).sum()


@LOSS_REGISTRY.register()
class PSNRLoss(nn.Module):
    """The negative mean PSNR of the images in dB; each image has the same weight regardless of its error.

    Published tables report PSNR, and NAFNet (arXiv 2204.04676) uses this loss. With an L1 loss, images with large
    errors dominate those with small errors, such as clean images.

    Args:
        loss_weight: factor of the loss.
        eps: constant added to each image's mean squared error. The gradient is largest for images with a PSNR of about
            -10 * log10(eps) dB; if ``eps`` is small, clean images outweigh all others.

    Shape:
        (B, C, H, W), (B, C, H, W) in [0, 1] -> ()

    Raises:
        ValueError: if the weight is negative or ``eps`` is not positive.
    """

    def __init__(self, loss_weight: float = 1.0, eps: float = 1e-8) -> None:
        super().__init__()
        _refuse_negative(loss_weight=loss_weight)
        if not eps > 0:
            raise ValueError(f"eps must be above 0, got {eps}")
        self.loss_weight, self.eps = loss_weight, eps

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(output.device.type, enabled=False):
            errors = (output.float() - target.float()).square().mean(dim=(1, 2, 3))
            return self.loss_weight * 10 * torch.log10(errors + self.eps).mean()


def ms_ssim(output: Tensor, target: Tensor, scales: int = 5) -> Tensor:
    """Return the multi-scale structural similarity of images in [0, 1], averaged over the batch; 1 for equal images.

    Uses 11x11 Gaussian windows (sigma 1.5) that are fully inside the image, and 2x2 mean pooling between scales. With
    fewer than five scales, the weights of the first ones are rescaled to sum to 1. Always computed in float32, even
    under autocast.

    Shape:
        (B, C, H, W), (B, C, H, W) -> ()

    Raises:
        UserError: if the images are too small for this number of scales.
    """
    least, sides = WINDOW << (scales - 1), output.shape[-2:]
    if min(sides) < least:
        raise UserError(
            f"MS-SSIM: {scales} scales need patches of at least {least}x{least}, got {sides[0]}x{sides[1]}; "
            "raise gt_size or lower scales"
        )
    with torch.autocast(output.device.type, enabled=False):
        first, second = output.float(), target.float()
        weights = torch.tensor(SCALE_WEIGHTS[:scales], device=first.device)
        similarities = []
        for scale in range(scales):
            if scale:
                first, second = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
            structure, luminance = _similarity(first, second)
            similarities.append((structure * luminance if scale == scales - 1 else structure).mean((1, 2, 3)))
        stacked = torch.stack(similarities, dim=1).clamp(min=MIN_SIMILARITY)
        return (stacked ** (weights / weights.sum())).prod(dim=1).mean()


@LOSS_REGISTRY.register()
class MSSSIMLoss(nn.Module):
    """1 - MS-SSIM (see :func:`ms_ssim`) plus an L1 distance, without which colors may drift.

    Zhao et al. (arXiv 1511.08861) weight MS-SSIM by 0.84 and L1 by 0.16, which corresponds to ``l1_weight: 0.19``.

    Args:
        loss_weight: factor of the total loss.
        l1_weight: factor of the L1 distance.
        scales: number of scales, 1 to 5; patch sides must be at least 11, 22, 44, 88 or 176 pixels, respectively.

    Shape:
        (B, C, H, W), (B, C, H, W) in [0, 1] -> ()

    Raises:
        ValueError: if a weight is negative or the number of scales is out of range.
        UserError: in ``forward``, if the patches are too small.
    """

    def __init__(self, loss_weight: float = 1.0, l1_weight: float = 0.0, scales: int = 5) -> None:
        super().__init__()
        _refuse_negative(loss_weight=loss_weight, l1_weight=l1_weight)
        if not 1 <= scales <= len(SCALE_WEIGHTS):
            raise ValueError(f"scales must be from 1 to {len(SCALE_WEIGHTS)}, got {scales}")
        self.loss_weight, self.l1_weight, self.scales = loss_weight, l1_weight, scales

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        loss = 1 - ms_ssim(output, target, self.scales)
        if self.l1_weight:
            loss = loss + self.l1_weight * F.l1_loss(output, target)
        return self.loss_weight * loss


def _refuse_negative(**weights: float) -> None:
    for name, value in weights.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")


def _similarity(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return contrast-structure and luminance of each window. (B, C, H, W) twice -> (B, C, H - 10, W - 10) twice"""
    # In one convolution, which is depthwise for gray images too: cuDNN's others may compute in TF32.
    products = torch.cat([first, second, first**2 + second**2, first * second], dim=1)
    mean_1, mean_2, squares, product = _window_mean(products).chunk(4, dim=1)
    variances = squares - mean_1**2 - mean_2**2
    covariance = product - mean_1 * mean_2
    structure = (2 * covariance + C2) / (variances + C2)
    return structure, (2 * mean_1 * mean_2 + C1) / (mean_1**2 + mean_2**2 + C1)


def _window_mean(x: Tensor) -> Tensor:
    """Return Gaussian means of all windows inside the image. (B, C, H, W) -> (B, C, H - 10, W - 10)"""
    channels = x.shape[1]
    offsets = torch.arange(WINDOW, device=x.device, dtype=x.dtype) - WINDOW // 2
    kernel = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    kernel = (kernel / kernel.sum()).expand(channels, 1, WINDOW)
    x = F.conv2d(x, kernel[:, :, None, :], groups=channels)
    return F.conv2d(x, kernel[..., None], groups=channels)


def _reduce(target: Tensor, output: Tensor) -> Tensor:
    """Downsample the target to the size of the output. (B, C, H, W) -> (B, C, H_k, W_k)"""
    if output.shape[-2:] == target.shape[-2:]:
        return target
    return F.interpolate(target, size=output.shape[-2:], mode="bilinear", align_corners=False)
