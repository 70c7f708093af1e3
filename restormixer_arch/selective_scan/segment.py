"""One segment of the tokens of a selective scan: its inputs, its states, and the adjoint recurrence over them.

Inside a segment, S parts of T tokens advance side by side (:func:`_sweep`), so that a segment takes about 2 T + S
small tensor operations and not S T. The decay over a whole part is exp(A * sum of dt): nothing is divided by a decay
and no logarithm is taken, so that neither strong decays nor large time steps can overflow.

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

# Numbers that a buffer holds at most, and that one step should at least work on: (a cache, a vector loop) on the
# CPU; on other devices each step costs a kernel launch, so that fewer and larger steps win.
CPU_SEGMENT, CPU_STEP = 2**19, 2**14
DEVICE_SEGMENT, DEVICE_STEP = 2**24, 2**20


class Inputs(NamedTuple):
    """Of :func:`scan_tokens`; A, D, bias and constant B and C are in the dtype of the state already."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    bias: Tensor | None
    softplus: bool


def segments(length: int, states: int, per_token: int, device: torch.device) -> list[tuple[int, int, int]]:
    """Cut L tokens into segments: (first token, tokens of a part T, parts S) each, covering all without padding.

    A segment has at least N tokens, so that the kept states, B G N E numbers for each segment, stay within O(B D L).
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
    """In place, row_i += decay_i * row_(i-1) for S parts at once, where row_(-1) of a part is what enters it.

    Args:
        rows: T tensors (S, ...), in the order of the recurrence.
        decays: as ``rows``.
        entry: (...), what enters the first part.
        totals: (S, ...), the product of all decays of a part.
        order: the order in which the parts follow each other.
        entries: (S, ...), receives what enters each part.
    """
    entries[order[0]] = entry
    if len(order) > 1:
        ends = rows[0].clone()  # where each part would end if nothing entered it
        for row, decay in zip(rows[1:], decays[1:], strict=True):
            torch.addcmul(row, decay, ends, out=ends)
        for part, following in pairwise(order):
            torch.addcmul(ends[part], totals[part], entries[part], out=entries[following])
    previous = entries
    for row, decay in zip(rows, decays, strict=True):
        previous = row.addcmul_(decay, previous)


def _softplus(x: Tensor) -> Tensor:
    """F.softplus, linear above 20, as accurate and without log1p, which is ten times slower than log on the CPU."""
    power = x.exp()  # may overflow above 20, where it is not used
    rounded = power + 1
    # log(1 + p) = log(w) + (1 + p - w) / w for w near 1 + p: the second term gives back what rounding took.
    result = power.sub_(rounded - 1).div_(rounded).add_(rounded.log_())
    return torch.where(x > 20, x, result)


class Segment:
    """The inputs and states of one segment at a time; the two large buffers are shared by all segments."""

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
        """A flat buffer as (steps, S, B, G, N, E)."""
        return buffer[: steps * self.parts * self.per_token].view(steps, self.parts, *self.state_shape)

    def take(self, tensor: Tensor) -> Tensor:
        """This segment's tokens of (L, ...) as (T, S, ...) in the dtype of the state."""
        tokens = tensor[self.first : self.first + self.steps * self.parts].unflatten(0, (self.parts, self.steps))
        return tokens.transpose(0, 1).to(self.A.dtype).contiguous()  # the matrix products would copy it each time

    def put(self, tensor: Tensor, values: Tensor) -> None:
        """The reverse of :meth:`take`: write (T, S, ...) into (L, ...)."""
        tensor[self.first : self.first + self.steps * self.parts] = values.transpose(0, 1).flatten(0, 1)

    def scan(self, cut: tuple[int, int, int], start: Tensor) -> None:
        """Load a segment and compute its states from the one before it, ``start`` (B, G, N, E)."""
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
        """Gradient of every state, (T, S, B, G, N, E).

        Args:
            gradient: (T, S, B, G, E), of the output.
            entry: (B, G, N, E), the gradient of the state that follows the segment.
            next_dt: (B, G, E), the time step of that state.
            buffer: flat, memory for the result.
        """
        adjoint = self.shaped(buffer, self.steps)
        torch.mul(gradient.unsqueeze(-2), self.C, out=adjoint)
        # A state's gradient arrives through the decay of the token after it: that of the next part for a part's last.
        dt_after = torch.cat([self.dt[0, 1:], next_dt.unsqueeze(0)])  # (S, B, G, E)
        decay_after = torch.exp(dt_after.unsqueeze(-2) * self.A)
        totals = torch.exp((self.dt[1:].sum(0) + dt_after).unsqueeze(-2) * self.A)
        decays = (decay_after, *self.decay[1:].unbind(0)[::-1])
        backwards = range(self.parts - 1, -1, -1)
        _sweep(adjoint.unbind(0)[::-1], decays, entry, totals, backwards, torch.empty_like(decay_after))
        return adjoint
