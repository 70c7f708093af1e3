"""Helpers for tests of the native scan: float64 references, inputs, and comparisons of results and gradients."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from restormixer_arch.native import library as native_library
from restormixer_arch.selective_scan import selective_scan, selective_scan_2d

HERE = Path(__file__).parent
KERNEL = HERE.parent / "restormixer_arch" / "native" / "kernel"
DIRECTIONS = ("row", "column", "row_reverse", "column_reverse")
INSTRUCTION_SETS = ("avx512", "avx2", "neon", "plain")
needs_kernel = pytest.mark.skipif(
    native_library.unusable_reason() is not None, reason=str(native_library.unusable_reason())
)
scan_1d = partial(selective_scan, backend="native")
scan_2d = partial(selective_scan_2d, backend="native")


def loop(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """Scan token by token, as mamba-ssm defines it. Returns y and the last state."""
    batch, channels, length = u.shape
    dt = delta if delta_bias is None else delta + delta_bias[:, None]
    dt = F.softplus(dt) if delta_softplus else dt

    def steps(t):  # -> L tensors that broadcast with (B, D, N)
        if t.dim() == 2:
            return [t] * length
        t = t.unsqueeze(1) if t.dim() == 3 else t
        return t.repeat_interleave(channels // t.shape[1], dim=1).unbind(-1)

    h = u.new_zeros(batch, channels, A.shape[1])
    ys = []
    for dt_t, u_t, b_t, c_t in zip(dt.unbind(-1), u.unbind(-1), steps(B), steps(C), strict=True):
        h = torch.exp(dt_t[..., None] * A) * h + (dt_t * u_t)[..., None] * b_t
        ys.append((h * c_t).sum(-1))
    y = torch.stack(ys, -1)
    y = y if D is None else y + D[:, None] * u
    return (y if z is None else y * F.silu(z)), h


def loop_2d(x, delta, A, B, C, D, delta_bias, directions):
    """Sum the scans of all directions, with transposes and flips instead of the kernel's indexing."""
    height, width = x.shape[1:3]

    def unroll(t, name):  # (B, H, W, lanes) -> (B, lanes, L)
        t = t.transpose(1, 2) if name.startswith("column") else t
        t = t.flatten(1, 2).transpose(1, 2)
        return t.flip(-1) if name.endswith("reverse") else t

    total = 0
    for k, name in enumerate(directions):
        tensors = (unroll(t, name) for t in (x, delta[:, :, :, k], B[:, :, :, k], C[:, :, :, k]))
        u, dt, b, c = tensors
        y, _ = loop(u, dt, A[k], b, c, D[k], None, delta_bias[k], True)
        y = (y.flip(-1) if name.endswith("reverse") else y).transpose(1, 2)
        columns = name.startswith("column")
        y = y.unflatten(1, (width, height)).transpose(1, 2) if columns else y.unflatten(1, (height, width))
        total = total + y
    return total


def inputs_1d(batch=2, channels=20, length=65, states=16, groups=None, seed=0, **without):
    """Return arguments of the scan by name; B and C are (B, N, L) if ``groups`` is None, constant if it is 0."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    shapes = {None: (batch, states, length), 0: (channels, states)}
    shape = shapes.get(groups, (batch, groups, states, length))
    args = {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length) - 1,
        "A": -8 * torch.rand(channels, states, generator=g),
        "B": normal(*shape),
        "C": normal(*shape),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": normal(channels),
    }
    return {name: value for name, value in args.items() if without.get(name, True)}


def inputs_2d(batch=1, height=5, width=7, channels=20, states=16, count=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    projected = torch.randn(batch, height, width, count, 3 + 2 * states, generator=g)
    return (
        torch.randn(batch, height, width, channels, generator=g),
        torch.randn(batch, height, width, count, channels, generator=g) - 1,
        -8 * torch.rand(count, channels, states, generator=g),
        projected[..., 3 : 3 + states],  # views, as in the network
        projected[..., 3 + states :],
        torch.randn(count, channels, generator=g),
        torch.randn(count, channels, generator=g),
    )


def leaves(tensors, dtype=None):
    return [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]


def assert_close(name, got, wanted, tolerance):
    """Check the largest error relative to the largest value, since gradients span orders of magnitude."""
    assert torch.isfinite(got).all(), f"{name} is not finite"
    scale = max(wanted.abs().max().item(), 1e-6) if wanted.numel() else 1.0
    error = (got.detach().double() - wanted.detach()).abs().max().item() / scale if wanted.numel() else 0.0
    assert error <= tolerance, f"{name}: relative error {error:.2e}"


def check_1d(args, tolerance=5e-6, softplus=True, last=True, transform=lambda t: t):
    """Compare values and all gradients with ``loop``; with ``last``, the loss includes the last state."""
    names = list(args)
    got_in, want_in = leaves(args.values()), leaves(args.values(), torch.float64)
    y, state = scan_1d(
        **{n: transform(t) for n, t in zip(names, got_in, strict=True)}, delta_softplus=softplus, return_last_state=True
    )
    y_want, state_want = loop(**dict(zip(names, want_in, strict=True)), delta_softplus=softplus)
    assert_close("y", y, y_want, tolerance)
    assert_close("last_state", state, state_want, tolerance)
    grads = [torch.randn_like(y), torch.randn_like(state)][: 1 + last]
    got = torch.autograd.grad([y, state][: 1 + last], got_in, grads)
    want = torch.autograd.grad([y_want, state_want][: 1 + last], want_in, [g.double() for g in grads])
    for name, a, b in zip(names, got, want, strict=True):
        assert_close(f"grad {name}", a, b, tolerance)


def check_2d(args, directions, tolerance=5e-6):
    got_in, want_in = leaves(args), leaves(args, torch.float64)
    y, y_want = scan_2d(*got_in, directions), loop_2d(*want_in, directions)
    assert_close("y", y, y_want, tolerance)
    grad = torch.randn_like(y)
    names = ("x", "delta", "A", "B", "C", "D", "delta_bias")
    got, want = torch.autograd.grad(y, got_in, grad), torch.autograd.grad(y_want, want_in, grad.double())
    for name, a, b in zip(names, got, want, strict=True):
        assert_close(f"grad {name}", a, b, tolerance)
