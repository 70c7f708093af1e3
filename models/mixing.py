"""Augmentations that mix pictures of a batch: mixup and CutBlur. Both are seeded, for exact resuming."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CUT_MEAN, CUT_DEVIATION = 0.7, 0.01  # of the rectangle's sides, as a share of the picture's: the paper's values


def mix_pairs(lq: Tensor, gt: Tensor, alpha: float, seed: str) -> tuple[Tensor, Tensor]:
    """Blend each pair of a batch with another one, by one weight for the whole batch: mixup (arXiv 1710.09412).

    Args:
        lq, gt: the batch, in [0, 1].
        alpha: of the weight's distribution Beta(alpha, alpha); small values seldom blend much.
        seed: the same seed gives the same blend.

    Shape:
        (B, C, h, w), (B, C, H, W) -> the same
    """
    rng = np.random.default_rng(list(seed.encode()))
    weight = float(rng.beta(alpha, alpha))
    shift = int(rng.integers(1, max(lq.shape[0], 2)))  # to another image than itself
    return torch.lerp(lq.roll(shift, 0), lq, weight), torch.lerp(gt.roll(shift, 0), gt, weight)


def cut_blur(lq: Tensor, gt: Tensor, probability: float, seed: str) -> Tensor:
    """Make a rectangle of the inputs clean, or everything but a rectangle: CutBlur (arXiv 2004.00448).

    The network learns where to restore, and to leave clean regions unchanged. In super-resolution, the clean part is
    the ground truth downsampled to the input size; it differs from the input only if that has other degradations too.

    Args:
        lq, gt: the batch, in [0, 1].
        probability: of each picture to be cut.
        seed: the same seed gives the same cuts.

    Returns:
        New inputs; the truth stays as it is.

    Shape:
        (B, C, h, w), (B, C, H, W) -> (B, C, h, w)
    """
    rng = np.random.default_rng(list(f"cutblur {seed}".encode()))
    height, width = lq.shape[-2:]
    clean = gt
    if gt.shape != lq.shape:
        clean = F.interpolate(gt, size=(height, width), mode="bicubic", antialias=True).clamp(0, 1)
    mixed = lq.clone()
    for number in range(lq.shape[0]):
        if rng.random() >= probability:
            continue
        share = min(max(rng.normal(CUT_MEAN, CUT_DEVIATION), 0.0), 1.0)
        rows, columns = int(height * share), int(width * share)
        top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
        inner, outer = (clean, lq) if rng.random() < 0.5 else (lq, clean)
        mixed[number] = outer[number]
        cut = (number, slice(None), slice(top, top + rows), slice(left, left + columns))
        mixed[cut] = inner[cut]
    return mixed
