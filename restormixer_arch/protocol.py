"""Optional interfaces of models and networks, in addition to BasicSR's.

Each protocol enables one feature for objects that have its members, as tested by ``isinstance(model, KeepsState)``.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

# --- models ----------------------------------------------------------------------------------------------------------


@runtime_checkable
class KeepsState(Protocol):
    """A model whose checkpoints contain more than weights, optimizers and schedules."""

    def extra_state(self) -> dict[str, Any]:
        """Return the additional state as tensors and plain values."""

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`extra_state` returned."""


@runtime_checkable
class ReportsGain(Protocol):
    """A model that reports metrics before and after restoration."""

    def gain(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Return dataset -> metric -> (mean of the inputs, mean of the restored images)."""


@runtime_checkable
class MeasuresInputs(ReportsGain, Protocol):
    """A model whose inputs are also measured in validation.

    :func:`restormixer_arch.models.validation.validate` sets the attributes and shows images in TensorBoard.

    Attributes:
        last_means: dataset -> metric -> mean over the restored images of the last validation.
        input_values: dataset -> list with metric -> value of each input, which is measured only once.
        validating: True while the images of a validation are loaded and restored.
    """

    last_means: dict[str, dict[str, float]]
    input_values: dict[str, list[dict[str, float]]]
    validating: bool


# --- networks --------------------------------------------------------------------------------------------------------


@runtime_checkable
class ExemptsFromWeightDecay(Protocol):
    """A network with parameters that are exempt from weight decay."""

    def no_weight_decay(self) -> set[str]:
        """Return the names of these parameters."""


@runtime_checkable
class Checkpointable(Protocol):
    """A network that chooses which of its blocks use gradient checkpointing."""

    def set_checkpointing(self, on: bool) -> int:
        """Switch gradient checkpointing on or off, and return the number of its blocks."""


@runtime_checkable
class DeeplySupervised(Protocol):
    """A network that also returns outputs at lower resolutions during training."""

    def set_deep_supervision(self, on: bool) -> None:
        """Switch these outputs on or off.

        If off, ``DistributedDataParallel`` must not wait for gradients of parameters that only they use.
        """


@runtime_checkable
class Fusable(Protocol):
    """A network that runs faster if its BatchNorm is folded into the convolutions."""

    def fuse(self) -> Any:
        """Fold BatchNorm in place, for inference only."""
