"""Layers shared by several blocks: convolution with norm, MLP, padding, and computation in strips of rows.

Shape letters: B batch, C channels, H x W size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.flop_counter import register_flop_formula

from restormixer_arch.native import blocks as native_blocks

STRIP_ELEMENTS = 1 << 21  # 8 MiB of float32: fits into the last-level cache
GPU_STRIP_ELEMENTS = 1 << 25  # 128 MiB of float32: computation takes much longer than kernel launches


def by_rows(
    function: Callable[..., Tensor], *features: Tensor, dim: int = 1, multiple: int = 1, halo: int = 0
) -> Tensor:
    """Return ``function(*features)``, computed in strips of rows to save memory if gradients are off.

    Args:
        function: function that keeps the height of its inputs. A row of its output depends only on the rows in its
            group of ``multiple`` rows, and on ``halo`` rows above and below.
        features: one or more tensors with the same shape apart from the channels.
        dim: dimension of the height: 1 for (B, H, W, C), 2 for (B, C, H, W).
        multiple: number of rows in a group.
        halo: number of additional rows on each side that a row of the output depends on.

    Shape:
        same as ``function``
    """
    height = features[0].shape[dim]
    most = STRIP_ELEMENTS if features[0].device.type == "cpu" else GPU_STRIP_ELEMENTS
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or features[0].numel() <= most:
        return function(*features)
    rows = max(1, most // (features[0].numel() // height) // multiple) * multiple
    result = None
    for top in range(0, height, rows):
        first, bottom = max(0, top - halo), min(height, top + rows)
        size = min(height, bottom + halo) - first
        strip = function(*(feature.narrow(dim, first, size) for feature in features))
        if result is None:
            shape = (*strip.shape[:dim], height, *strip.shape[dim + 1 :])
            layout = torch.contiguous_format if dim == 1 else torch.channels_last
            result = torch.empty(shape, dtype=strip.dtype, device=strip.device, memory_format=layout)
        result.narrow(dim, top, bottom - top).copy_(strip.narrow(dim, top - first, bottom - top))
    return result


def rowwise(*, dim: int = 1, multiple: int | str = 1, halo: int = 0) -> Callable:
    """Return a decorator that runs a ``forward`` method with :func:`by_rows`.

    If the module or a submodule, such as a norm, is in training mode, complete images are used, as BatchNorm needs.

    Args:
        dim, halo: see :func:`by_rows`.
        multiple: see :func:`by_rows`; a string is the name of the module's attribute that holds the number.
    """

    def decorate(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(forward)
        def forward_by_rows(self: nn.Module, *features: Tensor) -> Tensor:
            if any(module.training for module in self.modules()):
                return forward(self, *features)
            rows = getattr(self, multiple) if isinstance(multiple, str) else multiple
            return by_rows(partial(forward, self), *features, dim=dim, multiple=rows, halo=halo)

        return forward_by_rows

    return decorate


def _has_hooks(layer: nn.Module) -> bool:
    every_module = nn.modules.module
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or every_module._global_forward_hooks
        or every_module._global_forward_pre_hooks
    )


def _overwrites(source: nn.Module | None) -> bool:
    """Return whether an activation may run in place.

    It may if gradients are off and ``source``, the layer that computed its input, has no hook that could keep it.
    """
    return not torch.is_grad_enabled() and (source is None or not _has_hooks(source))


def gelu(x: Tensor, source: nn.Module | None = None) -> Tensor:
    """Apply GELU, in place if :func:`_overwrites` allows it."""
    if native_blocks.usable(x):
        return native_blocks.gelu_(x) if _overwrites(source) else native_blocks.gelu(x)
    return torch.ops.aten.gelu_(x) if _overwrites(source) else F.gelu(x)


def silu(x: Tensor, source: nn.Module | None = None) -> Tensor:
    """Apply SiLU, in place if :func:`_overwrites` allows it."""
    return F.silu(x, inplace=_overwrites(source))


def _has_onednn() -> bool:
    try:
        return all(hasattr(torch.ops.mkldnn, name) for name in ("_convolution_pointwise", "_linear_pointwise"))
    except (AttributeError, RuntimeError):  # a torch without oneDNN
        return False


ONEDNN = _has_onednn()
ACTIVATIONS = {"none": lambda x, source=None: x, "gelu": gelu, "swish": silu}  # under oneDNN's names


def _is_plain(layer: nn.Module) -> bool:
    """Return whether a layer only applies its weight and bias, so a kernel may replace it.

    Its class must be torch's own, not that of an adapter or a quantized layer. It must not have hooks, which spectral
    norm, pruning and operation counters use, a replaced ``forward``, or padding other than zeros.
    """
    plain = type(layer) in (nn.Linear, nn.Conv2d, nn.BatchNorm2d) and "forward" not in layer.__dict__
    return plain and not _has_hooks(layer) and getattr(layer, "padding_mode", "zeros") == "zeros"


def _fuses(x: Tensor, layer: nn.Module | None = None) -> bool:
    """Return whether oneDNN can add a residual or apply an activation while it writes a result.

    It can if gradients are off, since these operators of torch have none, and the layer is plain. It is also used for
    products without either, which are up to 1.6 times as fast for odd numbers of channels.
    """
    allowed = ONEDNN and torch.backends.mkldnn.enabled and not torch.is_grad_enabled()
    return allowed and native_blocks.on_cpu(x) and (layer is None or _is_plain(layer))


def conv_act(
    conv: nn.Conv2d,
    x: Tensor,
    activation: str = "none",
    fused: tuple[Tensor, Tensor] | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Apply a convolution, add ``residual``, and apply an activation.

    Args:
        conv: convolution layer.
        x: input of the layer.
        activation: name in ACTIVATIONS.
        fused: weight and bias that replace those of the layer.
        residual: tensor with the shape of the output.

    Shape:
        same as ``conv``
    """
    weight, bias = fused or (conv.weight, conv.bias)
    if _fuses(x, conv):
        layer, sizes = torch.ops.mkldnn._convolution_pointwise, (conv.padding, conv.stride, conv.dilation, conv.groups)
        if residual is None:
            return layer(x, weight, bias, *sizes, activation, [], "none")
        y = layer.binary(x, residual, weight, bias, *sizes, "add", 1.0, None, [], None)
        return ACTIVATIONS[activation](y)
    y = conv(x) if fused is None else F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    if residual is not None:
        return ACTIVATIONS[activation](residual + y)
    return ACTIVATIONS[activation](y, conv if fused is None else None)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """Multiply by a weight (C', C) and apply an activation of ACTIVATIONS. (..., C) -> (..., C')"""
    if _fuses(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")
    return ACTIVATIONS[activation](F.linear(x, weight, bias))


def linear_act(layer: nn.Linear, x: Tensor, activation: str = "none") -> Tensor:
    """Apply a linear layer and an activation of ACTIVATIONS. (..., C) -> (..., C')"""
    if _fuses(x, layer):
        return linear(x, layer.weight, layer.bias, activation)
    return ACTIVATIONS[activation](layer(x), layer)


if ONEDNN:

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise)
    def _convolution_flops(x: Any, *shapes: Any, out_shape: Sequence[int], **_: Any) -> int:
        weight, bias = shapes[:2]
        if bias is not None and len(bias) == 4:  # the residual is passed before the weight
            weight = bias
        return 2 * math.prod(weight[1:]) * math.prod(out_shape)

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _linear_flops(x: Any, weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
        return 2 * weight[1] * math.prod(out_shape)


def channels_last(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer for (B, C, H, W) to (B, H, W, C) and return (B, H, W, C)."""
    return rearrange(layer(rearrange(x, "b h w c -> b c h w")), "b c h w -> b h w c")


def pad(x: Tensor, right: int, bottom: int) -> Tensor:
    """Pad an image at the right and bottom by reflection; beyond a full reflection, repeat the edge.

    Shape:
        (B, C, H, W) -> (B, C, H + bottom, W + right); ``x`` itself if no padding is needed
    """
    height, width = x.shape[-2:]
    reflected = (0, min(right, width - 1), 0, min(bottom, height - 1))
    repeated = (0, right - reflected[1], 0, bottom - reflected[3])
    if any(reflected):
        x = F.pad(x, reflected, mode="reflect")
    return F.pad(x, repeated, mode="replicate") if any(repeated) else x


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad height and width to multiples of ``multiple`` with :func:`pad`. (B, C, H, W) -> (B, C, H', W')"""
    height, width = x.shape[-2:]
    return pad(x, right=-width % multiple, bottom=-height % multiple)


def conv(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Return a convolution with an odd kernel, padded so that stride 1 keeps the size and stride 2 halves it."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=bias)


def _fuse_again(module: ConvNorm, keys: object) -> None:
    """Update the fused weights after weights were loaded, also through a parent module."""
    if module.fused_weight is not None:
        module.fuse()


class ConvNorm(nn.Module):
    """Convolution without bias, then BatchNorm; a single convolution after :meth:`fuse`.

    Args:
        conv: an ``nn.Conv2d`` or ``nn.ConvTranspose2d`` without bias, which BatchNorm would cancel.

    Shape:
        same as ``conv``; a ``residual`` with the shape of the output is added to the result
    """

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels)
        self.register_buffer("fused_weight", None, persistent=False)
        self.register_buffer("fused_bias", None, persistent=False)
        self.register_load_state_dict_post_hook(_fuse_again)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.fused_weight is None:
            y = self.norm(self.conv(x))
        elif isinstance(self.conv, nn.Conv2d):
            return conv_act(self.conv, x, fused=(self.fused_weight, self.fused_bias), residual=residual)
        else:
            y = F.conv_transpose2d(x, self.fused_weight, self.fused_bias, self.conv.stride, self.conv.padding)
        return y if residual is None else residual + y

    def fuse(self) -> None:
        """Fold the norm with its running statistics into the convolution for inference; ``train()`` undoes it."""
        norm, transposed = self.norm, isinstance(self.conv, nn.ConvTranspose2d)
        weight, bias = fuse_conv_bn_weights(
            self.conv.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias, transposed
        )
        self.fused_weight, self.fused_bias = weight.detach(), bias.detach()

    def train(self, mode: bool = True) -> ConvNorm:
        if mode:
            self.fused_weight = self.fused_bias = None
        return super().train(mode)


class ConvNormAct(ConvNorm):
    """:class:`ConvNorm` followed by GELU.

    Shape:
        same as ``conv``
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.fused_weight is not None:
            if isinstance(self.conv, nn.ConvTranspose2d):
                return gelu(super().forward(x))
            return conv_act(self.conv, x, "gelu", (self.fused_weight, self.fused_bias))
        y = self.conv(x)
        if self.norm.training or not native_blocks.usable(y) or not _is_plain(self.norm):
            return gelu(self.norm(y), source=self.norm)
        norm = self.norm  # with fixed statistics, it is a scale and a shift
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return native_blocks.gelu(y, scale, norm.bias - norm.running_mean * scale)


class Mlp(nn.Module):
    """Linear layer, GELU and linear layer on the last dimension.

    Shape:
        (..., channels) -> (..., channels)
    """

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return linear_act(self.fc2, linear_act(self.fc1, x, "gelu"))
