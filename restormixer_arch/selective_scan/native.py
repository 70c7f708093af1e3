"""The selective scan on a CPU: the compiled kernel behind operators of torch.

Shape letters: B batch, D channels, L steps, N states, G groups of channels, H x W image, K scan directions.

The operators ``restormixer::scan_1d``, of the kernel alone, and ``restormixer::scan_2d``, of all backends, have fake
kernels and gradients, so torch.compile, torch.export and FLOP counters see them as operators. Streams are float32 or
bfloat16, states and sums float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from restormixer_arch.selective_scan import native_library as library
from restormixer_arch.selective_scan import native_scan_1d  # noqa: F401  (it registers restormixer::scan_1d)
from restormixer_arch.selective_scan.definition import DIRECTIONS
from restormixer_arch.selective_scan.operator import scan_2d


def unusable_reason() -> str | None:
    """Why the kernel cannot be used, with the cure, or None if it can."""
    return library.REASON or None


def instruction_set() -> str:
    """``avx512``, ``avx2``, ``neon`` or ``plain``: what the kernel runs on; ``""`` if there is no kernel."""
    return library.INSTRUCTION_SET


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
    """mamba-ssm's ``selective_scan_fn`` on a CPU; unlike there, the last state has a gradient too.

    Args:
        u: (B, D, L) input, float32, bfloat16 or float16 (computed as float32), any strides.
        delta: (B, D, L) time steps, before bias and softplus.
        A: (D, N), real; N <= 256.
        B: (D, N) constant, (B, N, L), or (B, G, N, L) where channel d uses group d // (D / G).
        C: as B.
        D: (D,) weight of the input in the output.
        z: (B, D, L) gate: the output is multiplied by silu(z).
        delta_bias: (D,) added to delta.
        delta_softplus: apply softplus to delta + delta_bias.
        return_last_state: also return the state after the last step.

    Returns:
        y (B, D, L) in u's dtype, or (y, last state (B, D, N) in float32).

    Raises:
        UserError: the kernel is missing; the message holds the cure.
        ValueError, TypeError: a shape or dtype that does not fit.
    """
    library.require()
    if B.dim() > 2 and C.dim() > 2:
        B, C = _same_groups(B, C)
    dense = [library.as_float32(t) for t in (A, D, delta_bias)]
    streams = [library.stream_dtype(t) for t in (u, delta, z)]
    b, c = (library.as_float32(t) if t.dim() == 2 else library.stream_dtype(t) for t in (B, C))
    keep = _needs_grad(u, delta, A, B, C, D, z, delta_bias)
    y, last_state, _ = torch.ops.restormixer.scan_1d.default(
        streams[0], streams[1], dense[0], b, c, dense[1], streams[2], dense[2], delta_softplus, keep
    )
    y = y.to(u.dtype)
    return (y, last_state) if return_last_state else y


def selective_scan_2d_native(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    directions: tuple[str, ...],
) -> Tensor:
    """Scans of an image along K directions, summed in place; softplus is always applied to delta.

    Directions are walked by index and rows of delta, B and C may lie apart: views of a projection are not copied.

    Args:
        x: (B, H, W, D) tokens, float32, bfloat16 or float16 (computed as float32).
        delta: (B, H, W, K, D) time steps, before bias and softplus.
        A: (K, D, N), N <= 256.
        B: (B, H, W, K, N).
        C: (B, H, W, K, N).
        D: (K, D) weight of the input in the output.
        delta_bias: (K, D).
        directions: K different names out of ``row``, ``column``, ``row_reverse``, ``column_reverse``.

    Returns:
        y (B, H, W, D) in x's dtype.

    Raises:
        UserError: the kernel is missing; the message holds the cure.
        ValueError, TypeError: a shape, dtype or name that does not fit.
    """
    library.require()
    if not directions or len(set(directions)) != len(directions) or not set(directions) <= set(DIRECTIONS):
        raise ValueError(f"directions must be different names out of {list(DIRECTIONS)}, got {directions}")
    return scan_2d(x, delta, A, B, C, D, delta_bias, directions, backend="native", keep_states=True)


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _same_groups(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, L) or (B, G, N, L) each: repeated to the same groups where they differ."""
    counts = [tensor.shape[1] if tensor.dim() == 4 else 1 for tensor in (B, C)]
    if counts[0] == counts[1]:
        return B, C
    groups = math.lcm(*counts)
    full = (tensor if tensor.dim() == 4 else tensor.unsqueeze(1) for tensor in (B, C))
    B, C = (t.repeat_interleave(groups // n, dim=1) for t, n in zip(full, counts, strict=True))
    return B, C
