"""What is done about losses, gradients and outputs that are not finite: the step is left out, counted and explained."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from restormixer_arch.errors import UserError

DEFAULT_MAX_SKIPPED = 10


class Guard:
    """Counts skipped steps, and ends the training when too many of them come in a row.

    Args:
        limit: ``train.max_skipped``: so many consecutive skipped steps are borne, one more is an error.
        logger: takes a warning for each.
    """

    def __init__(self, limit: int, logger: logging.Logger) -> None:
        self.limit = limit
        self.logger = logger
        self.total = 0  # in the whole training
        self.consecutive = 0

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
                f"be skipped (train.max_skipped: {self.limit}); lower train.optim_g.lr, or look at what is named here"
            )
        self.logger.warning(
            f"Iteration {iteration}: {culprit}; the step is skipped ({self.consecutive} in a row, {self.total} in all)"
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


def norm_of(tensors: list[Tensor]) -> Tensor:
    """The Euclidean norm of all tensors together; unlike torch's clipping it leaves them as they are."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


@torch.no_grad()
def clip(tensors: list[Tensor], norm: Tensor, limit: float) -> None:
    """Scale the tensors, in place, so that their norm is at most ``limit``."""
    torch._foreach_mul_(tensors, (limit / (norm + 1e-6)).clamp(max=1.0))


def bad_gradient(network: nn.Module, norm: Tensor) -> str:
    """Name the first parameter whose gradient is not finite."""
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and not is_finite(parameter.grad):
            return f"the gradient of {name} is not finite"
    return f"the norm of the gradient is {norm.item()}"


def bad_forward(
    network: nn.Module,
    pictures: Mapping[str, Tensor],
    outputs: Iterable[Tensor],
    losses: Mapping[str, Tensor],
    paths: Iterable[str],
) -> str:
    """Name the first of inputs, weights, outputs and losses that is not finite, in the order they depend on another.

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
    if culprit is None:  # a sum of finite losses that overflows, or another process of a distributed training
        return "the loss of another process is not finite"
    return f"{culprit} is not finite" + (f" (images: {images})" if images else "")
