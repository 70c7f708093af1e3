"""Implement ``restormixer::scan_2d`` by the compiled kernel; see :mod:`restormixer_arch.selective_scan.operator`.

The kernel reads each direction by index, and rows of delta, B and C need not be adjacent in memory, so views of a
projection are not copied.

Shape letters: B batch, H x W image, K scan directions, D channels, N states.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from restormixer_arch.native import library


def _pixels(tensor: Tensor) -> tuple[Tensor, library.Stream]:
    """Return a tensor (B, H, W, [K,] lanes) and its strides; copy it only if its pixels are not evenly spaced."""
    height, width = tensor.shape[1:3]
    if height > 1 and width > 1 and tensor.stride(1) != width * tensor.stride(2):
        tensor = tensor.contiguous()
    step = tensor.stride(1 if width == 1 else 2)
    part = tensor.stride(3) if tensor.dim() == 5 else 0
    return tensor, library.stream(tensor, tensor.stride(0), part, step, tensor.stride(-1))


def _for_kernel(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Convert the seven inputs of the operator to the kernel's dtypes; make parameters dense."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            raise ValueError(f"the native scan needs CPU tensors, got one on {tensor.device}")
    x, delta, A, B, C, D, delta_bias = tensors
    x, delta, B, C = (library.float16_to_float32(tensor) for tensor in (x, delta, B, C))
    A, D, delta_bias = (library.low_precision_to_float32(tensor).contiguous() for tensor in (A, D, delta_bias))
    library.check_dtypes({"x": x, "delta": delta, "B": B, "C": C}, {"A": A, "D": D, "delta_bias": delta_bias})
    return [x, delta, A, B, C, D, delta_bias]


def kept_states(x: Tensor, A: Tensor) -> Tensor:
    """Return uninitialized memory for one state per chunk of tokens: flat, float32."""
    blocks = -(-x.shape[3] // library.LANES)
    count = x.shape[0] * A.shape[0] * library.chunks(x.shape[1] * x.shape[2]) * blocks * A.shape[2] * library.LANES
    return x.new_empty(count, dtype=torch.float32)


def _sizes(x: Tensor, A: Tensor) -> tuple[int, int, int, int, int, int]:
    return x.shape[0], A.shape[0], x.shape[1], x.shape[2], x.shape[3], A.shape[2]


def _orders(directions: Sequence[int]) -> tuple[int, ...]:
    return (*directions, *(0,) * (4 - len(directions)))


def scan_2d_forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    directions: Sequence[int],
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the sum over the directions (B, H, W, D) in the dtype of x, and the states for the backward pass."""
    library.require()
    dtype = x.dtype
    x, delta, A, B, C, D, delta_bias = _for_kernel((x, delta, A, B, C, D, delta_bias))
    inputs = [_pixels(tensor) for tensor in (x, delta, B, C)]
    # A sum over directions is accumulated in float32 and rounded once.
    y = torch.empty(x.shape, dtype=x.dtype if len(directions) == 1 else torch.float32)
    states = kept_states(x, A) if keep else None
    library.call(
        backward=False,
        sizes=_sizes(x, A),
        flags=(True, True, False, False),
        orders=_orders(directions),
        dense=(A.data_ptr(), D.data_ptr(), delta_bias.data_ptr(), library.address(states), 0),
        streams=(inputs[0][1], inputs[1][1], library.NO_STREAM, inputs[2][1], inputs[3][1], _pixels(y)[1]),
    )
    return y.to(dtype), states


def scan_2d_backward(
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
    """Return the gradients of the seven inputs, each in the dtype of its input."""
    library.require()
    dtypes = [tensor.dtype for tensor in (x, delta, A, B, C, D, delta_bias)]
    x, delta, A, B, C, D, delta_bias = _for_kernel((x, delta, A, B, C, D, delta_bias))
    if states.numel() == 0:
        states = scan_2d_forward(x, delta, A, B, C, D, delta_bias, directions, True)[1]
    grad_y = library.float16_to_float32(grad_y)
    library.check_grad(grad_y, x)
    inputs = [_pixels(tensor) for tensor in (x, delta, B, C, grad_y)]
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
    gradients = (grad_x, grad_delta, grad_a, grad_b, grad_c, grad_d, grad_bias)
    return tuple(gradient.to(dtype) for gradient, dtype in zip(gradients, dtypes, strict=True))
