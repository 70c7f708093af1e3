"""GELU and window attention of the compiled library, as torch operators with a gradient.

They compute the same as ``torch.nn.functional``, in float32 on a CPU, in one pass over memory each for forward and
backward: GELU includes the scale and shift of a BatchNorm with fixed statistics, and attention reads q, k and v in the
layout of the projection's output. If :func:`usable` returns False for a tensor, the layers call torch instead.

Shape letters: G windows, T tokens of a window, C channels.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from restormixer_arch.native import library

LANES = library.LANES
_ops = torch.library.Library("restormixer", "FRAGMENT")
_ops.define("gelu(Tensor x, Tensor? scale, Tensor? shift) -> Tensor")
_ops.define("gelu_(Tensor(a!) x) -> ()")
_ops.define("gelu_backward(Tensor grad_y, Tensor x, Tensor? scale, Tensor? shift) -> (Tensor, Tensor, Tensor)")
_ops.define("window_attention(Tensor qkv, int heads, bool keep_norms) -> (Tensor, Tensor)")
_ops.define("window_attention_backward(Tensor grad_y, Tensor qkv, Tensor y, Tensor norms, int heads) -> Tensor")


def on_cpu(x: Tensor) -> bool:
    """Return whether a tensor is a plain float32 tensor on a CPU, without tracing, compilation or autocast.

    Also return False in forward-mode differentiation, which the library's operators do not support.
    """
    return (
        x.dtype is torch.float32
        and x.device.type == "cpu"
        and type(x) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0
    )


def usable(x: Tensor) -> bool:
    """Return whether the operators support a tensor: :func:`on_cpu` is true and the library is loaded."""
    return not library.REASON and on_cpu(x)


def gelu(x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """Return the GELU of ``x``, or of ``x * scale + shift`` per channel.

    Args:
        x: input of any shape without a scale; (B, C, H, W) with one.
        scale: scale of each channel (C,), or None.
        shift: shift of each channel (C,), or None if ``scale`` is None.

    Returns:
        Output of the shape of ``x``: channels-last with a scale, else in the memory format of ``x`` if it is dense.
    """
    return torch.ops.restormixer.gelu.default(x, scale, shift)


def gelu_(x: Tensor) -> Tensor:
    """Apply GELU in place, without a gradient."""
    torch.ops.restormixer.gelu_.default(x)
    return x


def window_attention(qkv: Tensor, heads: int) -> Tensor:
    """Return the softmax attention within each window, (G, T, 3 C) -> (G, T, C).

    Args:
        qkv: queries, keys and values, each (heads, C / heads) for every token.
        heads: number of heads, a divisor of C.
    """
    keep = torch.is_grad_enabled() and qkv.requires_grad
    return torch.ops.restormixer.window_attention.default(qkv, heads, keep)[0]


class _GeluCall(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "scale", "shift", "y")),
        ("count", ctypes.c_int64),
        ("period", ctypes.c_int64),
        ("grad_y", ctypes.c_void_p),
        ("partial", ctypes.c_void_p),
    ]


class _AttentionCall(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("qkv", "y", "norms")),
        *((name, ctypes.c_int64) for name in ("windows", "tokens", "heads", "dim")),
        ("grad_y", ctypes.c_void_p),
        ("grad_qkv", ctypes.c_void_p),
    ]


def _dense(x: Tensor, scale: Tensor | None) -> Tensor:
    """Return ``x`` dense in memory, channels-last if there is a scale; copy it only if necessary."""
    if scale is not None:
        return x.contiguous(memory_format=torch.channels_last)
    dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    return x if dense else x.contiguous()


def _pattern(values: Tensor | None) -> Tensor | None:
    """Repeat per-channel values to a multiple of the kernel's vector length."""
    return None if values is None else values.contiguous().repeat(LANES // math.gcd(values.numel(), LANES))


def _run_gelu(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    y: Tensor,
    grad_y: Tensor | None = None,
    partial: Tensor | None = None,
) -> None:
    if scale is not None and (x.dim() != 4 or scale.numel() % x.shape[1]):
        raise ValueError(f"scale: a value for each of the channels of x {tuple(x.shape)} was expected")
    floats = {"x": x, "scale": scale, "shift": shift, "the output's gradient": grad_y}
    library.check_dtypes({}, floats)
    period = LANES if scale is None else scale.numel()
    first, last = (x, scale, shift, y), (grad_y, partial)
    addresses = ([None if t is None else t.data_ptr() for t in tensors] for tensors in (first, last))
    library.run("restormixer_gelu", _GeluCall(*next(addresses), x.numel(), period, *next(addresses)))


def _gelu(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    x = _dense(x, scale)
    y = torch.empty_like(x)
    _run_gelu(x, _pattern(scale), _pattern(shift), y)
    return y


def _gelu_in_place(x: Tensor) -> None:
    dense = _dense(x, None)
    _run_gelu(dense, None, None, dense)
    if dense is not x:
        x.copy_(dense)


def _gelu_backward(
    grad_y: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    x = _dense(x, scale)
    grad_y = torch.empty_like(x).copy_(grad_y) if grad_y.stride() != x.stride() else grad_y
    grad_x = torch.empty_like(x)
    if scale is None:
        _run_gelu(x, None, None, grad_x, grad_y)
        return grad_x, x.new_empty(0), x.new_empty(0)
    scales, shifts = _pattern(scale), _pattern(shift)
    partial = x.new_empty(library.gelu_tiles(x.numel(), scales.numel()), 2, scales.numel())
    _run_gelu(x, scales, shifts, grad_x, grad_y, partial)
    sums = partial.sum(0).view(2, -1, scale.numel()).sum(1)
    return grad_x, sums[0], sums[1]


def _attention(qkv: Tensor, heads: int, keep_norms: bool) -> tuple[Tensor, Tensor]:
    library.check_dtypes({}, {"qkv": qkv})
    if qkv.dim() != 3 or qkv.shape[2] % (3 * heads):
        raise ValueError(f"qkv: (G, T, 3 C) with C a multiple of {heads} heads was expected, got {tuple(qkv.shape)}")
    qkv = qkv.contiguous()
    windows, tokens, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    y = qkv.new_empty(windows, tokens, channels)
    norms = qkv.new_empty((windows, heads, 2, tokens) if keep_norms else 0)
    sizes = (windows, tokens, heads, channels // heads)
    call = _AttentionCall(qkv.data_ptr(), y.data_ptr(), norms.data_ptr() if keep_norms else None, *sizes, None, None)
    library.run("restormixer_attention", call)
    return y, norms


def _attention_backward(grad_y: Tensor, qkv: Tensor, y: Tensor, norms: Tensor, heads: int) -> Tensor:
    library.check_dtypes({}, {"qkv": qkv, "the output's gradient": grad_y})
    grad_y, qkv = grad_y.contiguous(), qkv.contiguous()
    grad_qkv = torch.empty_like(qkv)
    pointers = (tensor.data_ptr() for tensor in (qkv, y, norms))
    sizes = (y.shape[0], y.shape[1], heads, y.shape[2] // heads)
    library.run("restormixer_attention", _AttentionCall(*pointers, *sizes, grad_y.data_ptr(), grad_qkv.data_ptr()))
    return grad_qkv


def _gelu_context(ctx: Any, inputs: tuple[Tensor, Tensor | None, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gelu_gradient(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, shift = ctx.saved_tensors
    grad_x, grad_scale, grad_shift = torch.ops.restormixer.gelu_backward.default(grad_y, x, scale, shift)
    return (grad_x, None, None) if scale is None else (grad_x, grad_scale, grad_shift)


def _attention_context(ctx: Any, inputs: tuple[Tensor, int, bool], output: tuple[Tensor, Tensor]) -> None:
    ctx.heads = inputs[1]
    ctx.save_for_backward(inputs[0], *output)


def _attention_gradient(ctx: Any, grad_y: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.restormixer.window_attention_backward.default(grad_y, *ctx.saved_tensors, ctx.heads), None, None


def _no_second_gradient(*_: object) -> None:
    raise NotImplementedError(
        "GELU and window attention of the compiled library have no second derivative: compute it in float64"
    )


for _name, _function in (
    ("gelu", _gelu),
    ("gelu_", _gelu_in_place),
    ("gelu_backward", _gelu_backward),
    ("window_attention", _attention),
    ("window_attention_backward", _attention_backward),
):
    _ops.impl(_name, _function, "CPU")


@torch.library.register_fake("restormixer::gelu", lib=_ops)
def _fake_gelu(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return torch.empty_like(_dense(x, scale))


@torch.library.register_fake("restormixer::gelu_", lib=_ops)
def _fake_gelu_in_place(x: Tensor) -> None:
    return None


@torch.library.register_fake("restormixer::gelu_backward", lib=_ops)
def _fake_gelu_backward(
    grad_y: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    sums = (x.new_empty(0), x.new_empty(0)) if scale is None else (torch.empty_like(scale), torch.empty_like(shift))
    return torch.empty_like(_dense(x, scale)), *sums


@torch.library.register_fake("restormixer::window_attention", lib=_ops)
def _fake_attention(qkv: Tensor, heads: int, keep_norms: bool) -> tuple[Tensor, Tensor]:
    windows, tokens, channels = qkv.shape
    norms = qkv.new_empty((windows, heads, 2, tokens) if keep_norms else 0)
    return qkv.new_empty(windows, tokens, channels // 3), norms


@torch.library.register_fake("restormixer::window_attention_backward", lib=_ops)
def _fake_attention_backward(grad_y: Tensor, qkv: Tensor, y: Tensor, norms: Tensor, heads: int) -> Tensor:
    return torch.empty_like(qkv)


torch.library.register_autograd("restormixer::gelu", _gelu_gradient, setup_context=_gelu_context, lib=_ops)
torch.library.register_autograd(
    "restormixer::window_attention", _attention_gradient, setup_context=_attention_context, lib=_ops
)
torch.library.register_autograd("restormixer::gelu_backward", _no_second_gradient, lib=_ops)
torch.library.register_autograd("restormixer::window_attention_backward", _no_second_gradient, lib=_ops)


@register_flop_formula(torch.ops.restormixer.window_attention)
def _attention_flops(qkv: Any, *_: Any, **__: Any) -> int:
    """Return 4 G T^2 C: per window and head two matrix products of 2 T^2 d operations, d = C / heads."""
    windows, tokens, channels = qkv
    return 4 * windows * tokens**2 * channels // 3


@register_flop_formula(torch.ops.restormixer.window_attention_backward)
def _attention_backward_flops(grad_y: Any, qkv: Any, *_: Any, **__: Any) -> int:
    """Return 14 G T^2 C: seven such products, two of which compute others of the seven again, transposed."""
    windows, tokens, channels = qkv
    return 14 * windows * tokens**2 * channels // 3
