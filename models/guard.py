"""Handling of non-finite losses, gradients and outputs: the step is skipped, counted and explained.

On the CPU, the loss is read before the backward pass, and the gradient norm before the step. On a GPU, this would drain
the kernel queue twice per iteration. Instead, the optimizer's kernels skip the step if a flag on the GPU is set, and
the flags are read one iteration later (:class:`Flags`). A skipped step leaves the weights unchanged in either case.
On a GPU it is reported one iteration later, and averages (``ema_decay``) move one step closer to the same weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from restormixer_arch.errors import UserError

DEFAULT_MAX_SKIPPED = 10


class Flags:
    """Flags on a GPU that can be read without waiting for work that was queued after them.

    Args:
        flags: boolean tensor; its copy to the CPU is queued immediately.
    """

    def __init__(self, flags: Tensor) -> None:
        self._copy = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=flags.is_cuda)
        self._copy.copy_(flags, non_blocking=True)
        self._done = torch.cuda.Event() if flags.is_cuda else None
        if self._done:
            self._done.record(torch.cuda.current_stream(flags.device))

    def read(self) -> list[bool]:
        if self._done:
            self._done.synchronize()
        return self._copy.tolist()


@dataclass(frozen=True)
class Step:
    """A training step that is queued on a GPU.

    Attributes:
        iteration: number of the iteration.
        flags: two flags: whether the loss and the gradient are finite.
        describe_non_finite, describe_non_finite_gradient: functions that return which tensor or gradient is not finite.
    """

    iteration: int
    flags: Flags
    describe_non_finite: Callable[[], str]
    describe_non_finite_gradient: Callable[[], str]


class Guard:
    """Counts skipped steps and stops training if too many are skipped in a row.

    Args:
        limit: largest number of consecutive skipped steps (``train.max_skipped``); one more is an error.
        logger: logger that receives a warning for each skipped step.
        overflowing_scale: function such as :meth:`.precision.Precision.overflowing_scale`.
    """

    def __init__(
        self, limit: int, logger: logging.Logger, overflowing_scale: Callable[[], float | None] = lambda: None
    ) -> None:
        self.limit = limit
        self.logger = logger
        self.overflowing_scale = overflowing_scale
        self.total = 0  # over the complete training run
        self.consecutive = 0
        self._queued: Step | None = None

    def queue(self, step: Step) -> None:
        """Add a step, whose flags are read once the next step is queued, and count the previous step."""
        before, self._queued = self._queued, step
        self._count(before)

    def count_queued(self) -> None:
        """Wait for the queued step, if any, and count it."""
        before, self._queued = self._queued, None
        self._count(before)

    def _count(self, step: Step | None) -> None:
        if step is None:
            return
        finite_loss, finite_gradient = step.flags.read()
        if not finite_loss:
            self.skip(step.iteration, step.describe_non_finite())
        elif not finite_gradient:
            self.count_overflow(step.iteration, step.describe_non_finite_gradient)
        else:
            self.passed()

    def count_overflow(self, iteration: int, cause: Callable[[], str]) -> None:
        """Count a skipped step with a non-finite gradient, unless the loss scale of float16 explains it."""
        scale = self.overflowing_scale()
        if scale is None:
            self.skip(iteration, cause())
        else:
            self.logger.info(
                f"Iteration {iteration}: the gradients overflow in float16; the step is skipped and the loss scale "
                f"is halved to {scale:g}; this is normal and is not counted"
            )

    def skip(self, iteration: int, cause: str) -> None:
        """Count a skipped step.

        Raises:
            UserError: if more than ``limit`` steps in a row were skipped.
        """
        self.total += 1
        self.consecutive += 1
        if self.consecutive > self.limit:
            raise UserError(
                f"training stopped at iteration {iteration}: {cause}, and {self.consecutive} steps in a row had to "
                f"be skipped (train.max_skipped: {self.limit}); lower train.optim_g.lr, or check what is named here"
            )
        self.logger.warning(
            f"Iteration {iteration}: {cause}; the step is skipped ({self.consecutive} in a row, {self.total} overall)"
        )

    def passed(self) -> None:
        """Record that a step was completed."""
        self.consecutive = 0

    def extra_state(self) -> dict[str, int]:
        return {"total": self.total, "consecutive": self.consecutive}

    def load_extra_state(self, state: dict[str, int]) -> None:
        self.total, self.consecutive = state["total"], state["consecutive"]


def is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def gradients(network: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def norms_of(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of each tensor; the norm of the result is the norm of all tensors together."""
    return torch.stack(torch._foreach_norm(tensors))


@torch.no_grad()
def clip(tensors: list[Tensor], norm: Tensor, limit: float) -> None:
    """Scale tensors in place so that their common norm ``norm`` becomes at most ``limit``."""
    torch._foreach_mul_(tensors, (limit / (norm + 1e-6)).clamp(max=1.0))


def describe_non_finite_gradient(names: Sequence[str], norms: Tensor) -> str:
    """Return a message that names the first parameter whose gradient norm is not finite.

    Args:
        names: names of the parameters that have a gradient.
        norms: norms of their gradients.
    """
    for name, finite in zip(names, torch.isfinite(norms).tolist(), strict=True):
        if not finite:
            return f"the gradient of {name} is not finite"
    return f"the norm of the gradient is {torch.linalg.vector_norm(norms).item()}"


def describe_non_finite(
    network: nn.Module,
    pictures: Mapping[str, Tensor],
    outputs: Iterable[Tensor],
    losses: Mapping[str, Tensor],
    paths: Iterable[str],
) -> str:
    """Return a message that names the first non-finite tensor among inputs, weights, outputs and losses, in this order.

    Args:
        network: network that is trained.
        pictures: input images ``lq`` and ``gt``, (B, C, H, W).
        outputs: outputs of the network.
        losses: loss name -> value.
        paths: paths of the images in the batch.
    """
    named: dict[str, Any] = {f"the input {name}": tensor for name, tensor in pictures.items()}
    named |= {f"the parameter {name}": parameter for name, parameter in network.named_parameters()}
    named |= {f"output {number} of the network": output for number, output in enumerate(outputs)}
    named |= {f"the loss {name}": loss for name, loss in losses.items()}
    cause = next((name for name, tensor in named.items() if not is_finite(tensor)), None)
    images = ", ".join(paths)
    if cause is None:
        return "the sum of the losses, or the loss of another process, is not finite"
    return f"{cause} is not finite" + (f" (images: {images})" if images else "")
