"""Mixed precision: the forward pass in 16 bits where that is safe, and what float16 needs besides.

Under ``train.amp: bf16`` or ``fp16`` convolutions, linear layers and attention run in 16 bits. Weights, optimizer,
LayerNorm, GroupNorm, the state of the selective scan, and all losses stay in float32; so do the statistics and the
arithmetic of BatchNorm, which reads its input as it comes. Validation runs in float32 throughout.

On NVIDIA GPUs since Ampere, float32 products may round their factors to TF32, 10 bits of mantissa. Torch does so in
convolutions and not in matrix products; ``train.tf32`` sets both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from restormixer_arch.errors import UserError, did_you_mean

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast, and for float16 a loss scale that keeps small gradients from vanishing.

    Args:
        amp: ``off``, ``bf16`` or ``fp16``.
        device: where the network is.

    Raises:
        UserError: an unknown name.
    """

    def __init__(self, amp: str, device: torch.device) -> None:
        if amp not in AMP:
            raise UserError(f"train.amp: {amp!r} is none of {', '.join(AMP)}.{did_you_mean(amp, AMP)}")
        self.dtype = AMP[amp]
        self.device_type = device.type
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def autocast(self) -> AbstractContextManager[None]:
        """The context of the forward pass."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def prepare(self, network: nn.Module) -> None:
        """Have LayerNorm and GroupNorm compute in float32, which autocast does by itself on CUDA only."""
        if self.dtype is not None:
            for module in network.modules():
                if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                    module.register_forward_pre_hook(_float32)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Undo the loss scale in the gradients, in place."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, finite: Tensor | None = None) -> None:
        """Take a step.

        Args:
            finite: a flag on the GPU: where it is false, the kernels of a fused optimizer change nothing.
        """
        if finite is None:
            self.scaler.step(optimizer)
        else:
            optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
        self.scaler.update()

    def skip(self) -> None:
        """Lower the loss scale instead of a step, if it was what made the unscaled gradients overflow."""
        self.scaler.update()

    def overflowing_scale(self) -> float | None:
        """The loss scale, halved after an overflow that it explains, or None if it does not: it is below 1 or off."""
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else 0.0
        return scale if scale >= 1.0 else None

    @property
    def loss_scale(self) -> float:
        """What gradients are multiplied by until :meth:`unscale`; 1 without a loss scale. It is a power of two."""
        return self.scaler.get_scale()

    def extra_state(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Load a saved loss scale; a state saved without one leaves it at its initial value."""
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)


def read_amp(options: dict[str, Any], device: torch.device) -> str:
    """Return ``train.amp``, ``off`` by default.

    Raises:
        UserError: fp16 without a GPU.
    """
    amp = options.get("amp") or "off"  # YAML 1.1 reads a bare off as false
    if amp == "fp16" and device.type != "cuda":
        raise UserError(f"train.amp: 'fp16' needs a CUDA device, this is {device.type}; use 'bf16' or 'off'")
    return amp


def set_tf32(wanted: bool | None) -> str:
    """Allow or forbid TF32 in this process, or leave it as it is, and return a line for the log."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    if wanted is not None:
        convolutions.allow_tf32 = products.allow_tf32 = wanted
    state = [f"{'on' if place.allow_tf32 else 'off'}" for place in (convolutions, products)]
    return "TF32: {} in convolutions, {} in matrix products (train.tf32).".format(*state)


@contextmanager
def varying_sizes() -> Iterator[None]:
    """Let cuDNN choose its algorithms without trying them all, which it would repeat for every size of image."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _float32(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].float(), *inputs[1:])
