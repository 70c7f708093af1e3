"""Make the network traceable by ``torch.export`` for unknown batch size, height and width.

Two parts cannot be traced: the selective scans, which loop over an unknown number of tokens, and the attention windows,
because padding to complete windows creates size expressions that grow from block to block until they can no longer be
simplified. Within :func:`exportable` both are single operators of which the exporter knows only the output shapes;
:mod:`restormixer_arch.export.onnx_operators` implements them in ONNX.

Shape letters: B batch, H x W size of the stage, C channels, w window side, G windows in the batch, K scan directions,
D inner channels of a scan, N states, R rank of dt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from restormixer_arch import mwsa
from restormixer_arch.emvm import DirectionalScan
from restormixer_arch.selective_scan.definition import ORDERS

_library = torch.library.Library("restormixer", "FRAGMENT")
_library.define(
    "directions(Tensor x, Tensor projected, Tensor dt_proj, Tensor dt_bias, Tensor A, int[] orders) -> Tensor"
)
_library.define("to_windows(Tensor x, int side) -> Tensor")
_library.define("from_windows(Tensor windows, Tensor like, int side) -> Tensor")

DIRECTIONS = torch.ops.restormixer.directions.default
TO_WINDOWS = torch.ops.restormixer.to_windows.default
FROM_WINDOWS = torch.ops.restormixer.from_windows.default


@torch.library.register_fake("restormixer::directions", lib=_library)
def _scanned_shape(
    x: Tensor, projected: Tensor, dt_proj: Tensor, dt_bias: Tensor, A: Tensor, orders: list[int]
) -> Tensor:
    """(B, H, W, D), (B, H, W, K * (R + 2N)), (K, R, D), (K, D), (K, N, D) -> (B, H, W, D)"""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("restormixer::to_windows", lib=_library)
def _windows_shape(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C) -> (G, w * w, C), G unknown"""
    return x.new_empty(torch.library.get_ctx().new_dynamic_size(), side**2, x.shape[-1])


@torch.library.register_fake("restormixer::from_windows", lib=_library)
def _features_shape(windows: Tensor, like: Tensor, side: int) -> Tensor:
    """(G, w * w, C) -> (B, H, W, C)"""
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _scan(self: DirectionalScan, tokens: Tensor, chosen: slice = slice(None)) -> Tensor:
    """Replace :meth:`DirectionalScan.scan`: order dt, B and C by direction before dt expands from R to D channels."""
    projected = F.linear(tokens, rearrange(self.x_proj[chosen], "k e d -> (k e) d"))
    dt_proj, A = (
        rearrange(t, "k d e -> k e d") for t in (self.dt_proj[chosen], -torch.exp(self.A_log[chosen].float()))
    )
    orders = [ORDERS[name] for name in self.directions[chosen]]
    scanned = DIRECTIONS(tokens, projected, dt_proj, self.dt_bias[chosen], A, orders)
    return scanned + tokens * self.D_skip[chosen].sum(0)


@contextmanager
def exportable() -> Iterator[None]:
    """Within this context, scans and windows are operators that can be traced but not run."""
    before = DirectionalScan.scan, mwsa.to_windows, mwsa.from_windows
    DirectionalScan.scan, mwsa.to_windows, mwsa.from_windows = _scan, TO_WINDOWS, FROM_WINDOWS
    try:
        yield
    finally:
        DirectionalScan.scan, mwsa.to_windows, mwsa.from_windows = before
