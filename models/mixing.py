"""Mixup (arXiv 1710.09412) for restoration: two pairs of a batch are blended, input and truth alike."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def mixed(lq: Tensor, gt: Tensor, alpha: float, seed: str) -> tuple[Tensor, Tensor]:
    """Blend each pair of a batch with another one, with one weight for the whole batch.

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
