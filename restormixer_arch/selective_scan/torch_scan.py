"""Run the selective scan in plain torch, for every device and dtype, with a hand-written backward pass.

Automatic differentiation of the loop would keep the states of all L tokens, (B, D, L, N). Here the tokens are divided
into segments, and only the states of one segment exist at a time, in buffers that are reused for the next. The forward
pass keeps the state at the start of each segment. The backward pass, from the last segment to the first, computes the
segment's states again and then runs the adjoint recurrence. Memory: O(B D L) plus one segment; time: linear in L for
both passes.

Letters: as in :mod:`restormixer_arch.selective_scan.segment`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from restormixer_arch.selective_scan.definition import state_dtype
from restormixer_arch.selective_scan.segment import Inputs, Segment


def _sum_over_states(states: Tensor, weights: Tensor) -> Tensor:
    """Sum over N: (T, S, B, G, N, E) and weights (T, S, B, G, N, 1) or (G, N, E) -> (T, S, B, G, E)"""
    if weights.dim() == 3:
        return (states * weights).sum(-2)
    return torch.matmul(weights.transpose(-1, -2), states).squeeze(-2)


def _sum_over_channels(states: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """Gradient of ``weights``: states (T, S, B, G, N, E), values (T, S, B, G, E) -> (T, S, B, G, N) or (G, N, E)"""
    if weights.dim() == 3:
        return (states * values.unsqueeze(-2)).sum((0, 1, 2))
    # With the vector on the left, this is eight times as fast as on the right.
    return torch.matmul(values.unsqueeze(-2), states.transpose(-1, -2)).squeeze(-2)


def run_tokens(inputs: Inputs, *, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return output (L, B, G, E), last state (B, G, N, E) and, if ``keep``, the states that enter the segments."""
    segment = Segment(inputs)
    y = torch.empty_like(inputs.u, dtype=inputs.A.dtype)
    state = inputs.A.new_zeros(segment.state_shape)
    starts = inputs.A.new_empty(len(segment.cuts), *segment.state_shape) if keep else None
    for index, cut in enumerate(segment.cuts):
        if starts is not None:
            starts[index] = state
        segment.scan(cut, state)
        state = segment.states[-1, -1].clone()  # the buffer will be overwritten
        out = _sum_over_states(segment.states, segment.C)
        segment.put(y, out if inputs.D is None else out.addcmul_(segment.u, inputs.D))
    return y, state, starts


class _Scan(torch.autograd.Function):
    """:func:`run_tokens` with its gradient."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        y, state, starts = run_tokens(Inputs(*inputs), keep=True)
        *tensors, ctx.softplus = inputs
        ctx.save_for_backward(*tensors, starts)
        return y, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, starts = ctx.saved_tensors
        with torch.autocast(grad_y.device.type, enabled=False):
            return *token_gradients(Inputs(*tensors, ctx.softplus), starts, grad_y, grad_state), None


def token_gradients(inputs: Inputs, starts: Tensor, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of all tensors of ``inputs``, in their order, going from the last segment to the first."""
    segment = Segment(inputs)
    u, _, A, _, _, D, bias, softplus = inputs
    buffer = A.new_empty(segment.tokens * segment.per_token)
    gradients = [None if t is None else torch.zeros_like(t) for t in inputs[:-1]]
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias = gradients
    entry, next_dt = grad_state, A.new_zeros(u.shape[1:])
    for cut, start in zip(reversed(segment.cuts), reversed(starts.unbind(0)), strict=True):
        segment.scan(cut, start)
        gradient = segment.take(grad_y)
        adjoint = segment.scan_adjoint(gradient, entry, next_dt, buffer)
        entry, next_dt = adjoint[0, 0].clone(), segment.dt[0, 0]
        for total, weights, states, values in (
            (grad_B, segment.B, adjoint, segment.dt_u),
            (grad_C, segment.C, segment.states, gradient),
        ):
            part = _sum_over_channels(states, values, weights)
            if weights.dim() == 3:
                total += part
            else:
                segment.put(total, part)
        drive = _sum_over_states(adjoint, segment.B)  # gradient of dt * u
        # d h_t / d (dt_t A) = decay_t h_(t-1)
        exponent = segment.decay.mul_(segment.before).mul_(adjoint)
        part_u, part_dt = drive * segment.dt, drive * segment.u
        part_dt += torch.mul(exponent, A, out=adjoint).sum(-2)
        grad_A += exponent.mul_(segment.dt.unsqueeze(-2)).sum((0, 1, 2))
        if D is not None:
            part_u.addcmul_(gradient, D)
            grad_D += (gradient * segment.u).sum((0, 1, 2))
        if softplus:
            part_dt = torch.where(segment.raw_dt > 20, part_dt, part_dt * torch.sigmoid(segment.raw_dt))
        if bias is not None:
            grad_bias += part_dt.sum((0, 1, 2))
        segment.put(grad_u, part_u)
        segment.put(grad_delta, part_dt)
    return tuple(gradients)


def scan_tokens(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None, softplus: bool
) -> tuple[Tensor, Tensor]:
    """Run a selective scan in the tokens-first layout; the arithmetic is in the dtype of the state.

    Shape:
        u, delta (L, B, G, E); A (G, N, E); B, C (L, B, G, N), or constant (G, N, E); D, bias (G, E)
        -> out (L, B, G, E) and last state (B, G, N, E), both in the dtype of the state
    """
    dtype = state_dtype(u)
    with torch.autocast(u.device.type, enabled=False):
        A = A.to(dtype).contiguous()
        B, C = (w.to(dtype).contiguous() if w.dim() == 3 else w for w in (B, C))
        D, bias = (None if t is None else t.to(dtype) for t in (D, bias))
        inputs = Inputs(u, delta, A, B, C, D, bias, softplus)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs[:-1]):
            return _Scan.apply(*inputs)
        return run_tokens(inputs, keep=False)[:2]
