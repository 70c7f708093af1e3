"""Compute one segment of the tokens of a selective scan: its inputs, its states, and the adjoint recurrence over them.

Inside a segment, S parts of T tokens advance in parallel (:func:`_sweep`), so a segment needs about 2 T + S small
tensor operations instead of S T. The decay over a complete part is exp(A * sum of dt): nothing is divided by a decay
and no logarithm is taken, so neither strong decays nor large time steps can overflow.

Letters: L tokens, B batch, G groups that share B and C, E channels of a group, N states. Tokens come first in memory
and channels last: u (L, B, G, E), states (T, S, B, G, N, E).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

# Target numbers of elements of a buffer and of one step. On the CPU a buffer fits a cache and a step fills a vector
# loop; on other devices each step costs a kernel launch, so fewer and larger steps are faster.
CPU_SEGMENT, CPU_STEP = 2**19, 2**14
DEVICE_SEGMENT, DEVICE_STEP = 2**24, 2**20


class Inputs(NamedTuple):
    """Inputs of :func:`scan_tokens`; A, D, bias and constant B and C are already in the dtype of the state."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    bias: Tensor | None
    softplus: bool


def segments(length: int, states: int, per_token: int, device: torch.device) -> list[tuple[int, int, int]]:
    """Divide L tokens into segments (first token, tokens of a part T, parts S) that cover all without padding.

    A segment has at least N tokens, so the kept states, B G N E numbers per segment, need at most O(B D L) memory.
    """
    segment, step = (CPU_SEGMENT, CPU_STEP) if device.type == "cpu" else (DEVICE_SEGMENT, DEVICE_STEP)
    tokens = min(length, max(states, segment // per_token))
    parts = max(1, min(math.isqrt(tokens), step // per_token))
    steps = tokens // parts
    result, first = [], 0
    while first < length:
        rest = length - first
        size = (steps, min(parts, rest // steps)) if rest >= steps else (rest, 1)
        result.append((first, *size))
        first += size[0] * size[1]
    return result


def _sweep(
    rows: Sequence[Tensor], decays: Sequence[Tensor], entry: Tensor, totals: Tensor, order: range, entries: Tensor
) -> None:
    """Compute in place row_i += decay_i * row_(i-1) for S parts in parallel; row_(-1) is the entry of a part.

    Args:
        rows: T tensors (S, ...), in the order of the recurrence.
        decays: T tensors of decays, in the order of ``rows``.
        entry: entry of the first part (...).
        totals: product of all decays of each part (S, ...).
        order: order in which the parts follow each other.
        entries: memory for the entry of each part (S, ...), which is written.
    """
    entries[order[0]] = entry
    if len(order) > 1:
        ends = rows[0].clone()  # last row of each part for an entry of 0
        for row, decay in zip(rows[1:], decays[1:], strict=True):
            torch.addcmul(row, decay, ends, out=ends)
        for part, following in pairwise(order):
            torch.addcmul(ends[part], totals[part], entries[part], out=entries[following])
    previous = entries
    for row, decay in zip(rows, decays, strict=True):
        previous = row.addcmul_(decay, previous)


def _softplus(x: Tensor) -> Tensor:
    """Compute F.softplus (linear above 20) as accurately, without log1p, which is ten times slower than log on CPUs."""
    power = x.exp()  # may overflow above 20, where it is not used
    rounded = power + 1
    # log(1 + p) = log(w) + (1 + p - w) / w for w near 1 + p: the second term corrects the rounding.
    result = power.sub_(rounded - 1).div_(rounded).add_(rounded.log_())
    return torch.where(x > 20, x, result)


class Segment:
    """The inputs and states of one segment at a time; all segments share the two large buffers."""

    def __init__(self, inputs: Inputs) -> None:
        u, self.A = inputs.u, inputs.A
        self.inputs = inputs
        self.state_shape = (*u.shape[1:3], *self.A.shape[1:])  # (B, G, N, E)
        self.per_token = math.prod(self.state_shape)
        self.cuts = segments(u.shape[0], self.A.shape[1], self.per_token, u.device)
        self.tokens = max(steps * parts for _, steps, parts in self.cuts)
        rows = max((steps + 1) * parts for _, steps, parts in self.cuts)
        self.decay_buffer = self.A.new_empty(self.tokens * self.per_token)
        self.state_buffer = self.A.new_empty(rows * self.per_token)

    def shaped(self, buffer: Tensor, steps: int) -> Tensor:
        """View a flat buffer as (steps, S, B, G, N, E)."""
        return buffer[: steps * self.parts * self.per_token].view(steps, self.parts, *self.state_shape)

    def take(self, tensor: Tensor) -> Tensor:
        """Return this segment's tokens of (L, ...) as (T, S, ...), in the dtype of the state."""
        tokens = tensor[self.first : self.first + self.steps * self.parts].unflatten(0, (self.parts, self.steps))
        return tokens.transpose(0, 1).to(self.A.dtype).contiguous()  # otherwise each matrix product would copy it

    def put(self, tensor: Tensor, values: Tensor) -> None:
        """Write (T, S, ...) into (L, ...), the inverse of :meth:`take`."""
        tensor[self.first : self.first + self.steps * self.parts] = values.transpose(0, 1).flatten(0, 1)

    def scan(self, cut: tuple[int, int, int], start: Tensor) -> None:
        """Load a segment and compute its states from ``start`` (B, G, N, E), the state before it."""
        self.first, self.steps, self.parts = cut
        inputs = self.inputs
        self.u, self.raw_dt = self.take(inputs.u), self.take(inputs.delta)  # (T, S, B, G, E)
        self.B, self.C = (w if w.dim() == 3 else self.take(w).unsqueeze(-1) for w in (inputs.B, inputs.C))
        if inputs.bias is not None:
            self.raw_dt = self.raw_dt + inputs.bias
        self.dt = _softplus(self.raw_dt) if inputs.softplus else self.raw_dt
        self.dt_u = self.dt * self.u
        self.decay = self.shaped(self.decay_buffer, self.steps)
        torch.mul(self.dt.unsqueeze(-2), self.A, out=self.decay).exp_()
        history = self.shaped(self.state_buffer, self.steps + 1)
        self.before, self.states = history[:-1], history[1:]  # the state before each token, and after it
        torch.mul(self.dt_u.unsqueeze(-2), self.B, out=self.states)
        totals = torch.exp(self.dt.sum(0).unsqueeze(-2) * self.A)  # (S, B, G, N, E)
        _sweep(self.states.unbind(0), self.decay.unbind(0), start, totals, range(self.parts), history[0])

    def scan_adjoint(self, gradient: Tensor, entry: Tensor, next_dt: Tensor, buffer: Tensor) -> Tensor:
        """Return the gradient of every state, (T, S, B, G, N, E).

        Args:
            gradient: gradient of the output (T, S, B, G, E).
            entry: gradient of the state that follows the segment (B, G, N, E).
            next_dt: time step of that state (B, G, E).
            buffer: flat memory for the result.
        """
        adjoint = self.shaped(buffer, self.steps)
        torch.mul(gradient.unsqueeze(-2), self.C, out=adjoint)
        # A state's gradient passes through the decay of the next token; for a part's last token, that of the next part.
        dt_after = torch.cat([self.dt[0, 1:], next_dt.unsqueeze(0)])  # (S, B, G, E)
        decay_after = torch.exp(dt_after.unsqueeze(-2) * self.A)
        totals = torch.exp((self.dt[1:].sum(0) + dt_after).unsqueeze(-2) * self.A)
        decays = (decay_after, *self.decay[1:].unbind(0)[::-1])
        backwards = range(self.parts - 1, -1, -1)
        _sweep(adjoint.unbind(0)[::-1], decays, entry, totals, backwards, torch.empty_like(decay_after))
        return adjoint
