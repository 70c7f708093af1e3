"""Losses in BasicSR's LOSS_REGISTRY.

Shape letters: B batch, C channels, H x W size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn


def dual_domain_loss(output: Tensor, target: Tensor, fft_weight: float) -> Tensor:
    """L1 distance of two images plus ``fft_weight`` times the L1 distance of their spectra.

    The spectra are full, unnormalised 2-D FFTs, and the distance is the mean over real and imaginary parts, as in
    MIMO-UNet (arXiv 2108.05054) and its successors. Computed in float32 whatever autocast is on.

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
    """The dual-domain loss summed over the outputs at 1/4, 1/2 and full resolution, equally weighted.

    The target is reduced to each output by bilinear interpolation without antialiasing. That this is RestorMixer's
    loss is inferred: the paper names a "multi-scale, dual-domain loss", and this is the one of all its siblings.

    Args:
        loss_weight: factor of the whole.
        fft_weight: factor of the spectra's distance, 0 for plain L1.

    Shape:
        list of (B, C, H_k, W_k) or one (B, C, H, W), target (B, C, H, W) -> ()

    Raises:
        ValueError: a negative weight.
    """

    def __init__(self, loss_weight: float = 1.0, fft_weight: float = 0.1) -> None:
        super().__init__()
        for name, value in (("loss_weight", loss_weight), ("fft_weight", fft_weight)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        self.loss_weight = loss_weight
        self.fft_weight = fft_weight

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        losses = [dual_domain_loss(o, _reduce(target, o), self.fft_weight) for o in outputs]
        return self.loss_weight * torch.stack(losses).sum()


def _reduce(target: Tensor, output: Tensor) -> Tensor:
    """The target at the output's size. (B, C, H, W) -> (B, C, H_k, W_k)"""
    if output.shape[-2:] == target.shape[-2:]:
        return target
    return F.interpolate(target, size=output.shape[-2:], mode="bilinear", align_corners=False)
