"""The network as ``torch.export`` can follow it where height and width are unknown.

Two parts cannot be followed: the selective scan, a loop over a number of tokens that is not known, and the windows of
the attention, since the padding to whole windows makes expressions of sizes that grow from block to block until they
cannot be simplified any more. Within :func:`exportable` both are single operators, of which the exporter knows the
results' shapes only; :mod:`restormixer_arch.export.onnx_operators` has their bodies in ONNX.

Shape letters: B batch, H x W size of the stage, C channels, w window side, G windows in the batch, K scan directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from restormixer_arch import emvm, mwsa
from restormixer_arch.selective_scan import operator  # noqa: F401  (registers restormixer::scan_2d)
from restormixer_arch.selective_scan.definition import ORDERS

_library = torch.library.Library("restormixer", "FRAGMENT")
_library.define("to_windows(Tensor x, int side) -> Tensor")
_library.define("from_windows(Tensor windows, Tensor like, int side) -> Tensor")

SCAN = torch.ops.restormixer.scan_2d.default
TO_WINDOWS = torch.ops.restormixer.to_windows.default
FROM_WINDOWS = torch.ops.restormixer.from_windows.default


@torch.library.register_fake("restormixer::to_windows", lib=_library)
def _windows_shape(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C) -> (G, w * w, C), G unknown"""
    return x.new_empty(torch.library.get_ctx().new_dynamic_size(), side**2, x.shape[-1])


@torch.library.register_fake("restormixer::from_windows", lib=_library)
def _features_shape(windows: Tensor, like: Tensor, side: int) -> Tensor:
    """(G, w * w, C) -> (B, H, W, C)"""
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    directions: tuple[str, ...],
) -> Tensor:
    """In the place of :func:`~restormixer_arch.selective_scan.selective_scan_2d`."""
    orders = [ORDERS[name] for name in directions]
    return SCAN(x, delta, A, B, C, D, delta_bias, orders, "torch", False)[0]


@contextmanager
def exportable() -> Iterator[None]:
    """Within, scans and windows are operators, which can be traced but not run."""
    before = emvm.selective_scan_2d, mwsa.to_windows, mwsa.from_windows
    emvm.selective_scan_2d, mwsa.to_windows, mwsa.from_windows = _scan, TO_WINDOWS, FROM_WINDOWS
    try:
        yield
    finally:
        emvm.selective_scan_2d, mwsa.to_windows, mwsa.from_windows = before
