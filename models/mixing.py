"""Augmentations that mix images: mixup and CutBlur. Both are seeded, so resumed training repeats them exactly."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CUT_MEAN, CUT_DEVIATION = 0.7, 0.01  # ratio of rectangle side to image side; values of the paper


def mix_pairs(lq: Tensor, gt: Tensor, alpha: float, seed: str) -> tuple[Tensor, Tensor]:
    """Apply mixup (arXiv 1710.09412): blend each pair of a batch with another one, with one weight for the batch.

    Args:
        lq, gt: batch of inputs and ground truths in [0, 1].
        alpha: parameter of the weight's distribution Beta(alpha, alpha); with small values, most blends are weak.
        seed: random seed.

    Shape:
        (B, C, h, w), (B, C, H, W) -> same shapes
    """
    rng = np.random.default_rng(list(seed.encode()))
    weight = float(rng.beta(alpha, alpha))
    shift = int(rng.integers(1, max(lq.shape[0], 2)))  # not 0: blends with another image unless the batch has one
    return torch.lerp(lq.roll(shift, 0), lq, weight), torch.lerp(gt.roll(shift, 0), gt, weight)


def cut_blur(lq: Tensor, gt: Tensor, probability: float, seed: str) -> Tensor:
    """Apply CutBlur (arXiv 2004.00448): replace the inside or outside of a rectangle in the inputs by clean pixels.

    The network learns where to restore, and to leave clean regions unchanged. In super-resolution, the clean part is
    the ground truth downsampled to the input size; it differs from the input only if that has other degradations too.

    Args:
        lq, gt: batch of inputs and ground truths in [0, 1]; neither is modified.
        probability: probability that an image is changed.
        seed: random seed.

    Returns:
        New inputs.

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
