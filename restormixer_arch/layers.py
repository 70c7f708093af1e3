"""Parts that more than one block uses: convolution with norm, MLP, padding to a multiple.

Shape letters: B batch, C channels, H x W size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution with an odd kernel, padded so that stride 1 keeps the size and stride 2 halves it."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=bias)


class ConvNorm(nn.Module):
    """Convolution without bias, then BatchNorm; while fused, for inference, one convolution with the norm folded in.

    Args:
        conv: an ``nn.Conv2d`` or ``nn.ConvTranspose2d`` without bias, since BatchNorm would cancel it.

    Shape:
        that of ``conv``
    """

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels)
        self.register_buffer("fused_weight", None, persistent=False)
        self.register_buffer("fused_bias", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused_weight is None:
            return self.norm(self.conv(x))
        convolve = F.conv_transpose2d if isinstance(self.conv, nn.ConvTranspose2d) else F.conv2d
        return convolve(x, self.fused_weight, self.fused_bias, self.conv.stride, self.conv.padding)

    @torch.no_grad()
    def fuse(self) -> None:
        """Fold the norm's running statistics into the convolution; :meth:`train` undoes it."""
        scale = self.norm.weight * torch.rsqrt(self.norm.running_var + self.norm.eps)
        transposed = isinstance(self.conv, nn.ConvTranspose2d)  # its weight is (in, out, k, k)
        self.fused_weight = self.conv.weight * scale.view((1, -1, 1, 1) if transposed else (-1, 1, 1, 1))
        self.fused_bias = self.norm.bias - self.norm.running_mean * scale

    def train(self, mode: bool = True) -> ConvNorm:
        if mode:
            self.fused_weight = self.fused_bias = None
        return super().train(mode)


class ConvNormAct(ConvNorm):
    """As :class:`ConvNorm`, then GELU.

    Shape:
        that of ``conv``
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(super().forward(x))


class Mlp(nn.Module):
    """Linear, GELU, Linear on the last dimension.

    Shape:
        (..., channels) -> (..., channels)
    """

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad right and bottom by reflection, and by replication where the image is too small to reflect.

    Reflection can add at most ``size - 1`` pixels, so a side shorter than that is replicated instead.

    Shape:
        (B, C, H, W) -> (B, C, H', W'), both multiples of ``multiple``; ``x`` itself where it already fits.
    """
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if bottom:
        x = F.pad(x, (0, 0, 0, bottom), mode="reflect" if bottom < height else "replicate")
    if right:
        x = F.pad(x, (0, right, 0, 0), mode="reflect" if right < width else "replicate")
    return x
