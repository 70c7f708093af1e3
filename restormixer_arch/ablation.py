"""Variants of RestorMixer for an ablation study: fewer scans or a different last norm.

Windows, the merge of the scans, deep supervision and block counts are arguments of RestorMixer itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from restormixer_arch.emvm import EMVM, StridedScan
from restormixer_arch.layers import ConvNorm
from restormixer_arch.restormixer_arch import RestorMixer

PER_DIRECTION = ("x_proj", "dt_proj", "dt_bias", "A_log", "D_skip")
SCANS = (0, 1, 2, 4)  # scan directions of an EMVM block: none; S1 only; S1 and one of S3; S1 and all three of S3
LAST_NORMS = ("zero", "one", "none")


class RestorMixerAblation(RestorMixer):
    """A :class:`~restormixer_arch.restormixer_arch.RestorMixer` with fewer scans or a different last norm.

    Args:
        scans: number of scan directions in an EMVM block. 4: all, as in RestorMixer; 2: S1 (by rows) and one of S3 (by
            columns); 1: S1 only; 0: S1 without its scan, only its depthwise convolution and gate. With 1 and 0, S3 is
            removed completely, including its convolutions.
        last_norm: norm of the last convolution. ``zero``: BatchNorm with an initial scale of 0, as in RestorMixer;
            ``one``: initial scale of 1, as in the released code; ``none``: no BatchNorm, and convolution weights that
            are initially 0.
        options: arguments of RestorMixer.

    Shape:
        same as RestorMixer

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, *, scans: int = 4, last_norm: str = "zero", **options: Any) -> None:
        super().__init__(**options)
        if scans not in SCANS:
            raise ValueError(f"scans must be one of {SCANS}, got {scans!r}")
        if last_norm not in LAST_NORMS:
            raise ValueError(f"last_norm must be one of {LAST_NORMS}, got {last_norm!r}")
        if scans < 4:
            for module in self.modules():
                if isinstance(module, EMVM):
                    _remove_scans(module, scans)
        if last_norm == "one":
            nn.init.ones_(self.decoder.head_full.norm.weight)
        elif last_norm == "none":
            self.decoder.head_full = _PlainConv(self.decoder.head_full.conv)

    def save_pretrained(self, *arguments: Any, **options: Any) -> Path:
        """Raise NotImplementedError, since the files in a folder cannot store ``scans`` and ``last_norm``."""
        raise NotImplementedError("variants of an ablation are kept as .pth only, with their option file")

    push_to_hub = save_pretrained


class _PlainConv(ConvNorm):
    """A :class:`ConvNorm` without norm and with weights that are initially 0. Shape: same as ``conv``"""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv)
        self.norm = nn.Identity()
        nn.init.zeros_(conv.weight)

    def fuse(self) -> None:
        """Do nothing, since there is no norm to fuse."""


class _NoScan(nn.Module):
    """Replacement of S3 that returns a scalar 0. (B, H, W, C) -> ()"""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


def _identity(tokens: Tensor) -> Tensor:
    """Return the tokens unchanged, as a replacement of S1's scan. (B, H, W, D) -> (B, H, W, D)"""
    return tokens


def _remove_scans(block: EMVM, scans: int) -> None:
    if scans == 2:
        _keep_first(block.scan3)
    else:
        block.scan3 = _NoScan()
    if scans == 0:
        block.scan1.merge_scans = _identity
        for name in PER_DIRECTION:
            delattr(block.scan1, name)


def _keep_first(scan: StridedScan) -> None:
    scan.directions = scan.directions[:1]
    for name in PER_DIRECTION:
        setattr(scan, name, nn.Parameter(getattr(scan, name).detach()[:1].clone(memory_format=torch.contiguous_format)))
