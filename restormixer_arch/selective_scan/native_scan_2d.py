"""``restormixer::scan_2d``, the selective scan of an image in K directions, as an operator of torch.

Shape letters: B batch, H x W image, K scan directions, D channels, N states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from restormixer_arch.selective_scan import native_library as library

_ops = torch.library.Library("restormixer", "FRAGMENT")
_ops.define(
    "scan_2d(Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor delta_bias, int[] directions, "
    "bool keep_states) -> (Tensor, Tensor)"
)
_ops.define(
    "scan_2d_backward(Tensor grad_y, Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, "
    "Tensor delta_bias, Tensor states, int[] directions) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _check(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, directions: Sequence[int]
) -> None:
    if x.dim() != 4:
        raise ValueError(f"x must be (B, H, W, D), got shape {tuple(x.shape)}")
    (batch, height, width, channels), count, states = x.shape, len(directions), A.shape[-1]
    wanted = {
        "delta": (delta, (batch, height, width, count, channels)),
        "A": (A, (count, channels, states)),
        "B": (B, (batch, height, width, count, states)),
        "C": (C, (batch, height, width, count, states)),
        "D": (D, (count, channels)),
        "delta_bias": (bias, (count, channels)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if not 1 <= states <= library.MAX_STATES:
        raise ValueError(f"A must have 1 to {library.MAX_STATES} states, got {states}")
    if not set(directions) <= set(library.ORDERS.values()) or not 1 <= count <= len(library.ORDERS):
        raise ValueError(f"directions must be 1 to 4 numbers from 0 to 3, got {list(directions)}")
    library.check_dtypes({"x": x, "delta": delta, "B": B, "C": C}, {"A": A, "D": D, "delta_bias": bias})


def _pixels(tensor: Tensor) -> tuple[Tensor, library.Stream]:
    """(B, H, W, [K,] lanes) and its strides; copied only if its pixels are not evenly spaced in memory."""
    height, width = tensor.shape[1:3]
    if height > 1 and width > 1 and tensor.stride(1) != width * tensor.stride(2):
        tensor = tensor.contiguous()
    step = tensor.stride(1 if width == 1 else 2)
    part = tensor.stride(3) if tensor.dim() == 5 else 0
    return tensor, library.stream(tensor, tensor.stride(0), part, step, tensor.stride(-1))


def _states(x: Tensor, A: Tensor, keep: bool) -> Tensor:
    blocks = -(-x.shape[3] // library.LANES)
    count = x.shape[0] * A.shape[0] * library.chunks(x.shape[1] * x.shape[2]) * blocks * A.shape[2] * library.LANES
    return x.new_empty(count if keep else 0, dtype=torch.float32)


def _sizes(x: Tensor, A: Tensor) -> tuple[int, int, int, int, int, int]:
    return x.shape[0], A.shape[0], x.shape[1], x.shape[2], x.shape[3], A.shape[2]


def _orders(directions: Sequence[int]) -> tuple[int, ...]:
    return (*directions, *(0,) * (4 - len(directions)))


def _forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    directions: Sequence[int],
    keep_states: bool,
) -> tuple[Tensor, Tensor]:
    _check(x, delta, A, B, C, D, delta_bias, directions)
    inputs = [_pixels(tensor) for tensor in (x, delta, B, C)]
    A, D, delta_bias = A.contiguous(), D.contiguous(), delta_bias.contiguous()
    # A sum over directions is kept in float32 and rounded once.
    y = torch.empty(x.shape, dtype=x.dtype if len(directions) == 1 else torch.float32)
    states = _states(x, A, keep_states)
    library.call(
        backward=False,
        sizes=_sizes(x, A),
        flags=(True, True, False, False),
        orders=_orders(directions),
        dense=(A.data_ptr(), D.data_ptr(), delta_bias.data_ptr(), states.data_ptr(), 0),
        streams=(inputs[0][1], inputs[1][1], library.NO_STREAM, inputs[2][1], inputs[3][1], _pixels(y)[1]),
    )
    return y.to(x.dtype), states


def _backward(
    grad_y: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    states: Tensor,
    directions: Sequence[int],
) -> tuple[Tensor, ...]:
    _check(x, delta, A, B, C, D, delta_bias, directions)
    if states.numel() != _states(x, A, True).numel():  # the forward pass ran without the promise of a gradient
        states = _forward(x, delta, A, B, C, D, delta_bias, directions, True)[1]
    library.check_grad(grad_y, x)
    inputs = [_pixels(tensor) for tensor in (x, delta, B, C, grad_y)]
    A, D, delta_bias = A.contiguous(), D.contiguous(), delta_bias.contiguous()
    grad_x = torch.empty(x.shape, dtype=x.dtype if len(directions) == 1 else torch.float32)
    grad_delta, grad_b, grad_c = (torch.empty(t.shape, dtype=t.dtype) for t in (delta, B, C))
    grad_a, grad_d, grad_bias = (A.new_empty(x.shape[0], *t.shape) for t in (A, D, delta_bias))
    library.call(
        backward=True,
        sizes=_sizes(x, A),
        flags=(True, True, False, False),
        orders=_orders(directions),
        dense=(A.data_ptr(), D.data_ptr(), delta_bias.data_ptr(), states.data_ptr(), 0),
        streams=(inputs[0][1], inputs[1][1], library.NO_STREAM, inputs[2][1], inputs[3][1], library.NO_STREAM),
        grad_streams=(
            inputs[4][1],
            _pixels(grad_x)[1],
            _pixels(grad_delta)[1],
            library.NO_STREAM,
            _pixels(grad_b)[1],
            _pixels(grad_c)[1],
        ),
        grad_dense=(grad_a.data_ptr(), grad_d.data_ptr(), grad_bias.data_ptr(), 0),
    )
    grad_a, grad_d, grad_bias = (library.batch_sum(t) for t in (grad_a, grad_d, grad_bias))
    return grad_x.to(x.dtype), grad_delta, grad_a, grad_b, grad_c, grad_d, grad_bias


def _fake_forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    directions: Sequence[int],
    keep_states: bool,
) -> tuple[Tensor, Tensor]:
    _check(x, delta, A, B, C, D, delta_bias, directions)
    return x.new_empty(x.shape), _states(x, A, keep_states)


def _fake_backward(
    grad_y: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    states: Tensor,
    directions: Sequence[int],
) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, delta, A, B, C, D, delta_bias))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, directions, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.directions = directions


def _gradient(ctx: Any, grad_y: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.restormixer.scan_2d_backward.default(grad_y, *ctx.saved_tensors, ctx.directions)
    return *grads, None, None


torch.library.impl(_ops, "scan_2d", "CPU")(_forward)
torch.library.impl(_ops, "scan_2d_backward", "CPU")(_backward)
torch.library.register_fake("restormixer::scan_2d", _fake_forward, lib=_ops)
torch.library.register_fake("restormixer::scan_2d_backward", _fake_backward, lib=_ops)
torch.library.register_autograd("restormixer::scan_2d", _gradient, setup_context=_setup_context, lib=_ops)
torch.library.register_autograd("restormixer::scan_2d_backward", library.no_second_gradient, lib=_ops)


@register_flop_formula(torch.ops.restormixer.scan_2d)
def _flops(x: Sequence[int], delta: Any, A: Sequence[int], *_: Any, **__: Any) -> int:  # from shapes
    return library.forward_flops(x[0] * x[1] * x[2], A)


@register_flop_formula(torch.ops.restormixer.scan_2d_backward)
def _backward_flops(grad_y: Any, x: Sequence[int], delta: Any, A: Sequence[int], *_: Any, **__: Any) -> int:
    return library.backward_flops(x[0] * x[1] * x[2], A)
