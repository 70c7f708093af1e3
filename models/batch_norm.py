"""BatchNorm's running statistics: keep them through a bad batch, freeze them, or copy those of averaged weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def norms_with_running_statistics(network: nn.Module) -> list[nn.Module]:
    """Return the normalization layers of a network that keep running statistics."""
    norms = (module for module in network.modules() if isinstance(module, _NormBase))
    return [norm for norm in norms if norm.running_mean is not None]


def running_statistics(norms: list[nn.Module]) -> list[Tensor]:
    """Return the buffers of normalization layers: running means, running variances and batch counts."""
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


class NormStatistics:
    """The running statistics of all normalization layers of a network that keep them.

    Args:
        network: network that is already on its device, since moving it replaces its buffers.
    """

    def __init__(self, network: nn.Module) -> None:
        self._norms = norms_with_running_statistics(network)
        self._buffers = running_statistics(self._norms)
        self._groups = [  # one group per dtype: the statistics, and the batch counts
            group
            for floating in (True, False)
            if (group := [b for b in self._buffers if b.is_floating_point() == floating])
        ]
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Store a copy of the statistics."""
        self._kept = [_joined(group) for group in self._groups]

    @torch.no_grad()
    def restore(self, unless: Tensor | None = None) -> None:
        """Restore the statistics that :meth:`keep` stored.

        Args:
            unless: flag on the network's device; if it is true, nothing changes. The CPU does not read it.
        """
        for group, kept in zip(self._groups, self._kept, strict=True):
            if unless is not None:
                kept = torch.where(unless, _joined(group), kept)
            parts = kept.split([buffer.numel() for buffer in group])
            torch._foreach_copy_(group, [part.view_as(buffer) for part, buffer in zip(parts, group, strict=True)])

    @torch.no_grad()
    def freeze(self, average: nn.Module | None = None) -> None:
        """Normalize with the running statistics and stop updating them until the network's ``train()`` is called.

        Args:
            average: the same network with EMA weights. Its statistics are copied, since they cover more batches than
                the network's own and are the ones used for testing.
        """
        if not any(norm.training for norm in self._norms):
            return  # already frozen, and so are the averages
        for norm in self._norms:
            norm.eval()
        if average is not None:
            torch._foreach_copy_(self._buffers, running_statistics(norms_with_running_statistics(average)))


def last_unfrozen_iteration(share: float | None, total_iter: int) -> float:
    """Return the last iteration that normalizes with batch statistics, or infinity if ``share`` is None."""
    return math.inf if share is None else round(share * total_iter)


def _joined(buffers: list[Tensor]) -> Tensor:
    return torch.cat([buffer.flatten() for buffer in buffers])
