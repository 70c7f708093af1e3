"""Handling of non-finite losses, gradients and outputs: the step is skipped, counted and explained.

On the CPU the loss is read before the backward pass and the norm of the gradient before the step. On a GPU that would
make the queue of kernels run empty twice an iteration. There the optimizer's own kernels leave the step out where a
flag on the GPU says so, and the flags are read an iteration later (:class:`Flags`): a step that is left out changes
nothing in either way, and is reported one iteration later.
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
    """Flags of a GPU that are read without waiting for the work that was queued after them.

    Args:
        flags: booleans, which are copied at once.
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
    """A step that is queued on a GPU.

    Attributes:
        iteration: its number.
        flags: whether its loss and its gradient are finite.
        bad_forward, bad_gradient: name what is not.
    """

    iteration: int
    flags: Flags
    bad_forward: Callable[[], str]
    bad_gradient: Callable[[], str]


class Guard:
    """Counts skipped steps, and ends the training when too many of them come in a row.

    Args:
        limit: ``train.max_skipped``: so many consecutive skipped steps are tolerated, one more is an error.
        logger: takes a warning for each.
        overflowing_scale: see :meth:`.precision.Precision.overflowing_scale`.
    """

    def __init__(
        self, limit: int, logger: logging.Logger, overflowing_scale: Callable[[], float | None] = lambda: None
    ) -> None:
        self.limit = limit
        self.logger = logger
        self.overflowing_scale = overflowing_scale
        self.total = 0  # in the whole training
        self.consecutive = 0
        self._queued: Step | None = None

    def queue(self, step: Step) -> None:
        """Take a step whose flags will be read after the next one is queued; count the one before."""
        before, self._queued = self._queued, step
        self._count(before)

    def count_queued(self) -> None:
        """Wait for the step that is queued, if there is one, and count it."""
        before, self._queued = self._queued, None
        self._count(before)

    def _count(self, step: Step | None) -> None:
        if step is None:
            return
        finite_loss, finite_gradient = step.flags.read()
        if not finite_loss:
            self.skip(step.iteration, step.bad_forward())
        elif not finite_gradient:
            self.count_overflow(step.iteration, step.bad_gradient)
        else:
            self.passed()

    def count_overflow(self, iteration: int, culprit: Callable[[], str]) -> None:
        """Count a skipped step whose gradient is not finite, unless float16's loss scale explains it."""
        scale = self.overflowing_scale()
        if scale is None:
            self.skip(iteration, culprit())
        else:
            self.logger.info(
                f"Iteration {iteration}: the gradients overflow in float16; the step is skipped and the loss scale "
                f"is halved to {scale:g}; this is normal and is not counted"
            )

    def skip(self, iteration: int, culprit: str) -> None:
        """Count a skipped step.

        Raises:
            UserError: more than ``limit`` in a row.
        """
        self.total += 1
        self.consecutive += 1
        if self.consecutive > self.limit:
            raise UserError(
                f"training stopped at iteration {iteration}: {culprit}, and {self.consecutive} steps in a row had to "
                f"be skipped (train.max_skipped: {self.limit}); lower train.optim_g.lr, or check what is named here"
            )
        self.logger.warning(
            f"Iteration {iteration}: {culprit}; the step is skipped ({self.consecutive} in a row, {self.total} overall)"
        )

    def passed(self) -> None:
        """A step was done."""
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
    """The Euclidean norm of each tensor; the norm of these is that of all tensors together."""
    return torch.stack(torch._foreach_norm(tensors))


@torch.no_grad()
def clip(tensors: list[Tensor], norm: Tensor, limit: float) -> None:
    """Scale the tensors, in place, so that their norm is at most ``limit``."""
    torch._foreach_mul_(tensors, (limit / (norm + 1e-6)).clamp(max=1.0))


def bad_gradient(names: Sequence[str], norms: Tensor) -> str:
    """Name the first parameter whose gradient has a norm that is not finite.

    Args:
        names: of the parameters with a gradient.
        norms: of their gradients.
    """
    for name, finite in zip(names, torch.isfinite(norms).tolist(), strict=True):
        if not finite:
            return f"the gradient of {name} is not finite"
    return f"the norm of the gradient is {torch.linalg.vector_norm(norms).item()}"


def bad_forward(
    network: nn.Module,
    pictures: Mapping[str, Tensor],
    outputs: Iterable[Tensor],
    losses: Mapping[str, Tensor],
    paths: Iterable[str],
) -> str:
    """Name the first of inputs, weights, outputs and losses that is not finite, in the order they are computed.

    Args:
        network: the network that was trained.
        pictures: ``lq`` and ``gt``, (B, C, H, W).
        outputs: of the network.
        losses: by name.
        paths: of the images of the batch.
    """
    named: dict[str, Any] = {f"the input {name}": tensor for name, tensor in pictures.items()}
    named |= {f"the parameter {name}": parameter for name, parameter in network.named_parameters()}
    named |= {f"output {number} of the network": output for number, output in enumerate(outputs)}
    named |= {f"the loss {name}": loss for name, loss in losses.items()}
    culprit = next((name for name, tensor in named.items() if not is_finite(tensor)), None)
    images = ", ".join(paths)
    if culprit is None:
        return "the sum of the losses, or the loss of another process, is not finite"
    return f"{culprit} is not finite" + (f" (images: {images})" if images else "")
