"""BatchNorm's running statistics: preserved across a bad batch, frozen, or recomputed for averaged weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def norms_with_statistics(network: nn.Module) -> list[nn.Module]:
    """Return the norms of a network that keep running statistics."""
    norms = (module for module in network.modules() if isinstance(module, _NormBase))
    return [norm for norm in norms if norm.running_mean is not None]


def statistics_of(norms: list[nn.Module]) -> list[Tensor]:
    """Return the buffers of norms: running means and variances, and the counts of batches."""
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


class NormStatistics:
    """The running statistics of all norms of a network that keep some.

    Args:
        network: on its device, so that its buffers stay the same objects.
    """

    def __init__(self, network: nn.Module) -> None:
        self._norms = norms_with_statistics(network)
        self._buffers = statistics_of(self._norms)
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
            torch._foreach_copy_(self._buffers, statistics_of(norms_with_statistics(average)))


def frozen_after(share: float | None, total_iter: int) -> float:
    """Return the last iteration in which the norms use batch statistics; infinity if ``share`` is None."""
    return math.inf if share is None else round(share * total_iter)


def _joined(buffers: list[Tensor]) -> Tensor:
    return torch.cat([buffer.flatten() for buffer in buffers])
