"""Parts that more than one block uses: convolution with norm, MLP, padding to a multiple, work in strips.

Shape letters: B batch, C channels, H x W size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIP_ELEMENTS = 1 << 21  # 8 MB of float32: within a processor's last cache


def gelu(x: Tensor) -> Tensor:
    """GELU, written over ``x`` where no gradient is wanted: a picture's features are too large to copy for nothing."""
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


def silu(x: Tensor) -> Tensor:
    """SiLU, written over ``x`` where no gradient is wanted."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def by_rows(
    function: Callable[..., Tensor], *features: Tensor, dim: int = 1, multiple: int = 1, halo: int = 0
) -> Tensor:
    """``function(*features)``, in strips of rows where no gradient is wanted, to keep its temporaries small.

    Args:
        function: of features of one height, keeps that height, and each row of its result needs only the rows of its
            group of ``multiple`` and ``halo`` more above and below.
        features: one or more, alike in all but the channels.
        dim: where their height is: 1 for (B, H, W, C), 2 for (B, C, H, W).
        multiple: rows that belong together.
        halo: rows on each side that the result of a row also depends on.

    Shape:
        that of ``function``
    """
    height = features[0].shape[dim]
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or features[0].numel() <= STRIP_ELEMENTS:
        return function(*features)
    rows = max(1, STRIP_ELEMENTS // (features[0].numel() // height) // multiple) * multiple
    result = None
    for top in range(0, height, rows):
        first, bottom = max(0, top - halo), min(height, top + rows)
        seen = min(height, bottom + halo) - first
        strip = function(*(feature.narrow(dim, first, seen) for feature in features))
        if result is None:
            shape = (*strip.shape[:dim], height, *strip.shape[dim + 1 :])
            layout = torch.contiguous_format if dim == 1 else torch.channels_last
            result = torch.empty(shape, dtype=strip.dtype, device=strip.device, memory_format=layout)
        result.narrow(dim, top, bottom - top).copy_(strip.narrow(dim, top - first, bottom - top))
    return result


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
        return gelu(super().forward(x))


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
        return self.fc2(gelu(self.fc1(x)))


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
