"""The definition of the selective scan: a plain loop over the tokens, the reference for all faster implementations.

Per channel d and state n, with h = 0 before the first token:

    dt_t = softplus(delta_t + delta_bias)           (softplus only if delta_softplus)
    h_t  = exp(dt_t * A) * h_(t-1) + dt_t * B_t * u_t
    y_t  = <C_t, h_t> + D * u_t,  then multiplied by silu(z_t) if z is given

Source: Mamba (arXiv 2312.00752), as implemented by ``selective_scan_fn`` of mamba-ssm.
Letters: B batch, D channels, L tokens, N states, G groups that share B and C, H x W image, K scan directions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DIRECTIONS = ("row", "column", "row_reverse", "column_reverse")
ORDERS = {name: number for number, name in enumerate(DIRECTIONS)}  # bit 0: by columns, bit 1: from the end


def state_dtype(u: Tensor) -> torch.dtype:
    """Return the dtype of the state and of all arithmetic: float64 for float64 tokens, else float32."""
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def _per_channel(weights: Tensor, batch: int, channels: int, length: int) -> Tensor:
    """(D, N), (B, N, L) or (B, G, N, L) -> (B, D, N, L); channel d reads group d // (D / G)."""
    if weights.dim() == 2:
        return weights[None, :, :, None].expand(batch, -1, -1, length)
    if weights.dim() == 3:
        weights = weights.unsqueeze(1)
    return weights.repeat_interleave(channels // weights.shape[1], dim=1)


def selective_scan_loop(
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
    """Run a selective scan by readable code; see :func:`restormixer_arch.selective_scan.selective_scan`.

    None of its operations runs in lower precision under autocast.

    Shape:
        u, delta, z (B, D, L); A (D, N); B, C (D, N), (B, N, L) or (B, G, N, L); D, delta_bias (D,)
        -> out (B, D, L) in the dtype of u, and the last state (B, D, N) if requested
    """
    dtype = state_dtype(u)
    batch, channels, length = u.shape
    tokens, dt, A = u.to(dtype), delta.to(dtype), A.to(dtype)
    B = _per_channel(B.to(dtype), batch, channels, length)
    C = _per_channel(C.to(dtype), batch, channels, length)
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        dt = F.softplus(dt)  # linear above 20
    state = tokens.new_zeros(batch, channels, A.shape[1])
    outputs = []
    for u_t, dt_t, B_t, C_t in zip(tokens.unbind(-1), dt.unbind(-1), B.unbind(-1), C.unbind(-1), strict=True):
        decay = torch.exp(dt_t[:, :, None] * A)  # (B, D, N)
        state = decay * state + (dt_t * u_t)[:, :, None] * B_t
        outputs.append((state * C_t).sum(-1))
    y = torch.stack(outputs, dim=-1)  # (B, D, L)
    if D is not None:
        y = y + D.to(dtype)[:, None] * tokens
    if z is not None:
        y = y * F.silu(z.to(dtype))
    y = y.to(u.dtype)
    return (y, state) if return_last_state else y


def token_order(direction: str, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return row-major indices h * W + w (L,) of an image's tokens, in the order in which ``direction`` visits them."""
    order = torch.arange(height * width, device=device).view(height, width)
    if direction.startswith("column"):
        order = order.t()  # h varies fastest
    order = order.flatten()
    return order.flip(0) if direction.endswith("_reverse") else order


def selective_scan_2d_loop(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    directions: tuple[str, ...],
) -> Tensor:
    """Return the sum of one scan per direction; see :func:`restormixer_arch.selective_scan.selective_scan_2d`.

    Shape:
        x (B, H, W, D); delta (B, H, W, K, D); A (K, D, N); B, C (B, H, W, K, N); D, delta_bias (K, D)
        -> (B, H, W, D) in the dtype of x
    """
    height, width = x.shape[1:3]
    total = torch.zeros(x.shape, dtype=state_dtype(x), device=x.device)
    for k, direction in enumerate(directions):
        order = token_order(direction, height, width, x.device)
        # (B, H, W, E) -> (B, E, L), the tokens in this direction's order
        u, dt, B_k, C_k = (
            t.flatten(1, 2)[:, order].transpose(1, 2)
            for t in (x.to(total.dtype), delta[:, :, :, k], B[:, :, :, k], C[:, :, :, k])
        )
        y = selective_scan_loop(u, dt, A[k], B_k, C_k, D[k], delta_bias=delta_bias[k], delta_softplus=True)
        back = torch.argsort(order)
        total = total + y.transpose(1, 2)[:, back].unflatten(1, (height, width))
    return total.to(x.dtype)
