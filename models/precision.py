"""Mixed precision: the forward pass in 16 bits where that is safe, loss scaling for float16, and TF32.

With ``train.amp: bf16`` or ``fp16``, convolutions, linear layers and attention run in 16 bits. Weights, optimizer,
LayerNorm, GroupNorm, the state of the selective scan and all losses use float32, as do the statistics and arithmetic of
BatchNorm, whose input may have 16 bits. Validation uses float32 only.

On NVIDIA GPUs since Ampere, float32 products may round their factors to TF32, with a mantissa of 10 bits. By default,
torch does so in convolutions but not in matrix products; ``train.tf32`` sets both.
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
    """Autocast and, for float16, a loss scale that prevents underflow of small gradients.

    Args:
        amp: precision, one of ``off``, ``bf16`` and ``fp16``.
        device: device of the network.

    Raises:
        UserError: if ``amp`` is unknown.
    """

    def __init__(self, amp: str, device: torch.device) -> None:
        if amp not in AMP:
            raise UserError(f"train.amp: {amp!r} is none of {', '.join(AMP)}.{did_you_mean(amp, AMP)}")
        self.dtype = AMP[amp]
        self.device_type = device.type
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def autocast(self) -> AbstractContextManager[None]:
        """Return the autocast context of the forward pass."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def prepare(self, network: nn.Module) -> None:
        """Make LayerNorm and GroupNorm compute in float32, which autocast itself does only on CUDA."""
        if self.dtype is not None:
            for module in network.modules():
                if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                    module.register_forward_pre_hook(_float32)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the loss scale in place."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, finite: Tensor | None = None) -> None:
        """Take an optimizer step and update the loss scale.

        Args:
            optimizer: optimizer of the network; it must be fused if ``finite`` is given.
            finite: flag on the GPU; if it is false, the optimizer's kernels change nothing.
        """
        if finite is None:
            self.scaler.step(optimizer)
        else:
            optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
        self.scaler.update()

    def skip(self) -> None:
        """Update the loss scale without a step, which lowers it if the gradients overflowed."""
        self.scaler.update()

    def overflowing_scale(self) -> float | None:
        """Return the loss scale, halved after an overflow that it explains, or None if it is below 1 or disabled."""
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else 0.0
        return scale if scale >= 1.0 else None

    @property
    def loss_scale(self) -> float:
        """Factor of the gradients before :meth:`unscale`, a power of two; 1 without loss scaling."""
        return self.scaler.get_scale()

    def extra_state(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Load a saved loss scale; if the state has none, keep the initial value."""
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)


def read_amp(options: dict[str, Any], device: torch.device) -> str:
    """Return ``train.amp``, ``off`` by default.

    Raises:
        UserError: if ``fp16`` is set without a CUDA device.
    """
    amp = options.get("amp") or "off"  # YAML 1.1 parses an unquoted off as false
    if amp == "fp16" and device.type != "cuda":
        raise UserError(f"train.amp: 'fp16' needs a CUDA device, this is {device.type}; use 'bf16' or 'off'")
    return amp


def set_tf32(wanted: bool | None) -> str:
    """Enable or disable TF32 in this process, or keep its setting for None, and return a line for the log."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    if wanted is not None:
        convolutions.allow_tf32 = products.allow_tf32 = wanted
    state = [f"{'on' if place.allow_tf32 else 'off'}" for place in (convolutions, products)]
    return "TF32: {} in convolutions, {} in matrix products (train.tf32).".format(*state)


@contextmanager
def cudnn_benchmark_disabled() -> Iterator[None]:
    """Disable cuDNN's algorithm benchmark, which would be repeated for every image size."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _float32(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].float(), *inputs[1:])
