"""Variants of RestorMixer for an ablation study: fewer scans, another last norm.

Windows, the merge of the scans, deep supervision and blocks are arguments of the network itself.
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
SCANS = (0, 1, 2, 4)  # directions of an EMVM block: none, S1 alone, S1 and one or all three of S3
LAST_NORMS = ("zero", "one", "none")


class RestorMixerAblation(RestorMixer):
    """A :class:`~restormixer_arch.restormixer_arch.RestorMixer` with other scans or another last norm.

    Args:
        scans: directions of an EMVM block. 4: all, as in RestorMixer; 2: S1 by rows and the one of S3 by columns; 1:
            S1 alone; 0: S1 without its scan, that is, its depthwise convolution and gate. With 1 and 0, S3 is left out
            as a whole, its convolutions too.
        last_norm: norm of the last convolution. ``zero``: BatchNorm whose scale starts at 0, as in RestorMixer;
            ``one``: at 1, as in the released code; ``none``: no BatchNorm, and the convolution starts at 0.
        options: those of RestorMixer.

    Shape:
        those of RestorMixer

    Raises:
        ValueError: an argument out of range.
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
        """Raises NotImplementedError: the files in a folder cannot store ``scans`` and ``last_norm``."""
        raise NotImplementedError("variants of an ablation are kept as .pth only, with their option file")

    push_to_hub = save_pretrained


class _PlainConv(ConvNorm):
    """A :class:`ConvNorm` without its norm, whose convolution starts at 0. Shape: that of ``conv``"""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv)
        self.norm = nn.Identity()
        nn.init.zeros_(conv.weight)

    def fuse(self) -> None:
        """Does nothing: there is no norm."""


class _NoScan(nn.Module):
    """Takes the place of S3. (B, H, W, C) -> a scalar 0, which is added to (B, H, W, C)"""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


def _identity(tokens: Tensor) -> Tensor:
    """Takes the place of S1's scan. (B, H, W, D) -> (B, H, W, D)"""
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
