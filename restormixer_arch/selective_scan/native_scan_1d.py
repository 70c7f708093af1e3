"""Run the 1-D selective scan by the compiled kernel, as the torch operator ``restormixer::scan_1d``.

Streams are float32 or bfloat16; states and sums are float32.
Shape letters: B batch, D channels, L steps, N states, G groups of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from restormixer_arch.native import library
from restormixer_arch.selective_scan.checks import check_scan
from restormixer_arch.selective_scan.operator import backward_flops, forward_flops, no_second_gradient, refuse_tangents

_ops = torch.library.Library("restormixer", "FRAGMENT")
_ops.define(
    "scan_1d(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "bool delta_softplus, bool keep_states) -> (Tensor, Tensor, Tensor)"
)
_ops.define(
    "scan_1d_backward(Tensor? grad_y, Tensor? grad_last_state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, "
    "Tensor? D, Tensor? z, Tensor? delta_bias, Tensor states, bool delta_softplus) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_ROW = (0, 0, 0, 0)
INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def _groups(B: Tensor, C: Tensor) -> int:
    """Return G; a tensor without a group axis has one group."""
    return next((tensor.shape[1] for tensor in (B, C) if tensor.dim() == 4), 1)


def _check(*tensors: Tensor | None) -> None:
    given = {name: tensor for name, tensor in zip(INPUTS, tensors, strict=True) if tensor is not None}
    check_scan(given)
    if given["A"].shape[1] > library.MAX_STATES:
        raise ValueError(f"A must have 1 to {library.MAX_STATES} states, got {given['A'].shape[1]}")
    dense = {n: t for n, t in given.items() if n in ("A", "D", "delta_bias") or (n in "BC" and t.dim() == 2)}
    library.check_dtypes({name: tensor for name, tensor in given.items() if name not in dense}, dense)


def _channel_stream(tensor: Tensor | None, groups: int) -> library.Stream:
    """Describe a tensor (B, D, L) with its channels divided into groups."""
    if tensor is None:
        return library.NO_STREAM
    batch, channel, step = tensor.stride()
    return library.stream(tensor, batch, channel * (tensor.shape[1] // groups), step, channel)


def _state_stream(tensor: Tensor) -> library.Stream:
    """Describe a tensor (D, N), which must be dense, (B, N, L) or (B, G, N, L)."""
    if tensor.dim() == 2:
        return library.stream(tensor, 0, 0, 0, 0)
    group = tensor.stride(1) if tensor.dim() == 4 else 0
    return library.stream(tensor, tensor.stride(0), group, tensor.stride(-1), tensor.stride(-2))


def _dense(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _states(u: Tensor, A: Tensor, groups: int, keep: bool) -> Tensor:
    blocks = -(-(u.shape[1] // groups) // library.LANES)
    count = u.shape[0] * groups * library.chunks(u.shape[2]) * blocks * A.shape[1] * library.LANES
    return u.new_empty(count if keep else 0, dtype=torch.float32)


def _sizes(u: Tensor, A: Tensor, groups: int) -> tuple[int, int, int, int, int, int]:
    return u.shape[0], groups, 1, u.shape[2], u.shape[1] // groups, A.shape[1]


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(u, delta, A, B, C, D, z, delta_bias)
    groups, constant = _groups(B, C), (B.dim() == 2, C.dim() == 2)
    B, C = (t.contiguous() if t.dim() == 2 else t for t in (B, C))
    A, D, delta_bias = _dense(A, D, delta_bias)
    y, last_state, states = _fake_forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, keep_states)
    library.call(
        backward=False,
        sizes=_sizes(u, A, groups),
        flags=(delta_softplus, False, *constant),
        orders=_ROW,
        dense=tuple(library.address(t) for t in (A, D, delta_bias, states, last_state)),
        streams=(
            *(_channel_stream(t, groups) for t in (u, delta, z)),
            *(_state_stream(t) for t in (B, C)),
            _channel_stream(y, groups),
        ),
    )
    return y, last_state, states


def _backward(
    grad_y: Tensor | None,
    grad_last_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    states: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor, ...]:
    _check(u, delta, A, B, C, D, z, delta_bias)
    groups, constant = _groups(B, C), (B.dim() == 2, C.dim() == 2)
    if states.numel() != _states(u, A, groups, True).numel():  # the forward pass expected no gradient
        states = _forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, True)[2]
    grad_y = torch.zeros_like(u) if grad_y is None else grad_y
    library.check_grad(grad_y, u)
    B, C = (t.contiguous() if t.dim() == 2 else t for t in (B, C))
    A, D, delta_bias, grad_last_state = _dense(A, D, delta_bias, grad_last_state)
    grad_u, grad_delta = torch.empty_like(u), torch.empty_like(delta)
    grad_z = None if z is None else torch.empty_like(z)
    grad_b, grad_c = (t.new_empty(u.shape[0], *t.shape) if t.dim() == 2 else torch.empty_like(t) for t in (B, C))
    grad_a, grad_d, grad_bias = (None if t is None else t.new_empty(u.shape[0], *t.shape) for t in (A, D, delta_bias))
    library.call(
        backward=True,
        sizes=_sizes(u, A, groups),
        flags=(delta_softplus, False, *constant),
        orders=_ROW,
        dense=tuple(library.address(t) for t in (A, D, delta_bias, states, None)),
        streams=(
            *(_channel_stream(t, groups) for t in (u, delta, z)),
            *(_state_stream(t) for t in (B, C)),
            library.NO_STREAM,
        ),
        grad_streams=(
            *(_channel_stream(t, groups) for t in (grad_y, grad_u, grad_delta, grad_z)),
            *(_state_stream(t[0] if flat else t) for t, flat in zip((grad_b, grad_c), constant, strict=True)),
        ),
        grad_dense=tuple(library.address(t) for t in (grad_a, grad_d, grad_bias, grad_last_state)),
    )
    grad_b, grad_c = (library.batch_sum(t) if flat else t for t, flat in zip((grad_b, grad_c), constant, strict=True))
    grad_d, grad_bias = (u.new_empty(0) if t is None else library.batch_sum(t) for t in (grad_d, grad_bias))
    grad_z = u.new_empty(0) if grad_z is None else grad_z
    return grad_u, grad_delta, library.batch_sum(grad_a), grad_b, grad_c, grad_d, grad_z, grad_bias


def _fake_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(u, delta, A, B, C, D, z, delta_bias)
    last_state = A.new_empty(u.shape[0], *A.shape)
    return torch.empty_like(u), last_state, _states(u, A, _groups(B, C), keep_states)


def _fake_backward(grad_y: Tensor | None, grad_last_state: Tensor | None, *inputs: Any) -> tuple[Tensor, ...]:
    u, delta, A, B, C, D, z, delta_bias = inputs[:8]
    like = [torch.empty_like(u), torch.empty_like(delta), A.new_empty(A.shape)]
    like += [t.new_empty(t.shape) if t.dim() == 2 else torch.empty_like(t) for t in (B, C)]
    like += [u.new_empty(0) if D is None else D.new_empty(D.shape)]
    like += [u.new_empty(0) if z is None else torch.empty_like(z)]
    return *like, u.new_empty(0) if delta_bias is None else delta_bias.new_empty(delta_bias.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, softplus, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.softplus = softplus
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    grads = torch.ops.restormixer.scan_1d_backward.default(grad_y, grad_last, *saved, ctx.softplus)
    given = (grad if tensor is not None else None for grad, tensor in zip(grads, saved[:8], strict=True))
    return *given, None, None


torch.library.impl(_ops, "scan_1d", "CPU")(_forward)
torch.library.impl(_ops, "scan_1d_backward", "CPU")(_backward)
torch.library.register_fake("restormixer::scan_1d", _fake_forward, lib=_ops)
torch.library.register_fake("restormixer::scan_1d_backward", _fake_backward, lib=_ops)
torch.library.register_autograd("restormixer::scan_1d", _gradient, setup_context=_setup_context, lib=_ops)
torch.library.register_autograd("restormixer::scan_1d_backward", no_second_gradient, lib=_ops)


@register_flop_formula(torch.ops.restormixer.scan_1d)
def _flops(u: Sequence[int], delta: Any, A: Sequence[int], *_: Any, **__: Any) -> int:  # from shapes
    return forward_flops(u[0] * u[2], A)


@register_flop_formula(torch.ops.restormixer.scan_1d_backward)
def _backward_flops(
    grad_y: Any, grad_last: Any, u: Sequence[int], delta: Any, A: Sequence[int], *_: Any, **__: Any
) -> int:
    return backward_flops(u[0] * u[2], A)


def selective_scan_native(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute the same as :func:`restormixer_arch.selective_scan.selective_scan`; float16 as float32, N <= 256.

    Raises:
        UserError: if the kernel cannot be used; the message states the fix.
    """
    library.require()
    dense = [library.low_precision_to_float32(t) for t in (A, D, delta_bias)]
    streams = [library.float16_to_float32(t) for t in (u, delta, z)]
    b, c = (library.low_precision_to_float32(t) if t.dim() == 2 else library.float16_to_float32(t) for t in (B, C))
    given = [t for t in (u, delta, A, B, C, D, z, delta_bias) if t is not None]
    refuse_tangents(given)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    y, last_state, _ = torch.ops.restormixer.scan_1d.default(
        streams[0], streams[1], dense[0], b, c, dense[1], streams[2], dense[2], delta_softplus, keep
    )
    y = y.to(u.dtype)
    return (y, last_state) if return_last_state else y
