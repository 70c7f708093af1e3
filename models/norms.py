"""The running statistics of BatchNorm while training: put back after a bad batch, and kept as they are at the end.

While it trains BatchNorm normalizes by the mean and variance of a batch, and when it is used by their running averages,
which fit the less the fewer and the more different the pictures of a batch are. With frozen statistics the last part of
a training runs as the network will be used.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class NormStatistics:
    """The running statistics of all norms of a network that keep some.

    Args:
        network: on its device, so that its buffers stay the same objects.
    """

    def __init__(self, network: nn.Module) -> None:
        self._norms = _norms(network)
        self._buffers = _buffers(self._norms)
        self._groups = [  # of one dtype each: the statistics, and the counts of batches
            group
            for floating in (True, False)
            if (group := [b for b in self._buffers if b.is_floating_point() == floating])
        ]
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the statistics."""
        self._kept = [_joined(group) for group in self._groups]

    @torch.no_grad()
    def restore(self, unless: Tensor | None = None) -> None:
        """Put back what :meth:`keep` remembered.

        Args:
            unless: a flag on the network's device; where it is true nothing changes. It is not read by the CPU.
        """
        for group, kept in zip(self._groups, self._kept, strict=True):
            if unless is not None:
                kept = torch.where(unless, _joined(group), kept)
            parts = kept.split([buffer.numel() for buffer in group])
            torch._foreach_copy_(group, [part.view_as(buffer) for part, buffer in zip(parts, group, strict=True)])

    @torch.no_grad()
    def freeze(self, average: nn.Module | None = None) -> None:
        """Normalize by the running statistics and leave them alone, until the network's ``train()`` is called.

        Args:
            average: the same network with averaged weights (EMA), whose statistics are taken: they were gathered over
                more batches than the network's own, and are those that it is tested with.
        """
        if not any(norm.training for norm in self._norms):
            return  # they are frozen, and the averages with them
        for norm in self._norms:
            norm.eval()
        if average is not None:
            torch._foreach_copy_(self._buffers, _buffers(_norms(average)))


def frozen_after(share: float | None, total_iter: int) -> float:
    """The last iteration whose norms use the batch: a share of the training, or never ending if there is none."""
    return math.inf if share is None else round(share * total_iter)


def _joined(buffers: list[Tensor]) -> Tensor:
    return torch.cat([buffer.flatten() for buffer in buffers])


def _norms(network: nn.Module) -> list[nn.Module]:
    norms = (module for module in network.modules() if isinstance(module, _NormBase))
    return [norm for norm in norms if norm.running_mean is not None]


def _buffers(norms: list[nn.Module]) -> list[Tensor]:
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
