"""What a model, a network or a dataset may have beyond BasicSR's interface. All of it is optional.

Each protocol is one thing that this project does for whoever has the members: ``isinstance(model, KeepsState)`` asks.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

# --- models ----------------------------------------------------------------------------------------------------------


@runtime_checkable
class KeepsState(Protocol):
    """A model with more to save in a checkpoint than weights, optimizers and schedules."""

    def extra_state(self) -> dict[str, Any]:
        """Return it in tensors and plain values."""

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`extra_state` returned."""


@runtime_checkable
class ReportsGain(Protocol):
    """A model whose results show what was gained."""

    def gain(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Return dataset -> metric -> (mean of the inputs, mean of the restored images)."""


@runtime_checkable
class MeasuresInputs(ReportsGain, Protocol):
    """A model whose inputs are measured too in validation.

    :func:`restormixer_arch.models.validation.validate` fills the attributes, and shows pictures in tensorboard.

    Attributes:
        last_means: dataset -> metric -> mean over the restored images of its last validation.
        input_values: dataset -> for each image: metric -> value of the input. They are measured once.
        validating: True while the images of a validation are fed and restored.
    """

    last_means: dict[str, dict[str, float]]
    input_values: dict[str, list[dict[str, float]]]
    validating: bool


# --- networks --------------------------------------------------------------------------------------------------------


@runtime_checkable
class ExemptsFromWeightDecay(Protocol):
    """A network some of whose parameters take no weight decay."""

    def no_weight_decay(self) -> set[str]:
        """Return their names."""


@runtime_checkable
class Checkpointable(Protocol):
    """A network that chooses itself what is computed twice to save memory."""

    def set_checkpointing(self, on: bool) -> int:
        """Switch gradient checkpointing; return the number of blocks it applies to."""


@runtime_checkable
class DeeplySupervised(Protocol):
    """A network that returns outputs at lower resolutions too while training."""

    def set_deep_supervision(self, on: bool) -> None:
        """Switch them. Off, what only they use must not keep ``DistributedDataParallel`` waiting."""


@runtime_checkable
class Fusable(Protocol):
    """A network that runs faster once its BatchNorm is folded into the convolutions."""

    def fuse(self) -> Any:
        """Fold it, in place, for inference only."""
