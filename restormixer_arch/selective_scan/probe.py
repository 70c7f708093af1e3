"""Test once, on a tiny scan, whether a GPU kernel gives the definition's numbers on a device.

A version number or a successful import proves nothing: a package can be importable without its compiled part, and a
kernel can compile and give wrong numbers. A failed probe becomes a reason in the report, not an error.

A kernel that passes is trusted until the process ends. A failure may be temporary, such as a GPU whose memory was full,
so it is cached for only ``RETRY_SECONDS``; the first scan after that probes again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

RETRY_SECONDS = 600.0
Check = Callable[..., str | None]
Results = dict[str, Tensor]


def cache_result(check: Check) -> Check:
    """Cache the result of ``check`` by its arguments: None forever, a reason for ``RETRY_SECONDS``."""
    known: dict[tuple[Any, ...], tuple[str | None, float]] = {}

    @wraps(check)
    def ask(*key: Any) -> str | None:
        reason, until = known.get(key, ("", 0.0))
        if reason is not None and time.monotonic() >= until:
            reason = check(*key)
            known[key] = reason, time.monotonic() + RETRY_SECONDS
        return reason

    ask.cache_clear = known.clear
    return ask


def results(scan: Callable[..., Any], inputs: dict[str, Tensor], device: torch.device, **options: Any) -> Results:
    """Return the output, the last state if the scan returns it, and all gradients, on the CPU in float32."""
    leaves = {name: tensor.detach().to(device).requires_grad_() for name, tensor in inputs.items()}
    found = scan(**leaves, **options)
    found = dict(zip(("output", "last state"), found, strict=True)) if isinstance(found, tuple) else {"output": found}
    out = found["output"]
    weights = torch.arange(out.numel(), device=device).view_as(out).cos()
    gradients = torch.autograd.grad((out.float() * weights).sum(), list(leaves.values()))
    found |= {f"gradient of {name}": grad for name, grad in zip(leaves, gradients, strict=True)}
    return {name: tensor.detach().float().cpu() for name, tensor in found.items()}


def difference(
    kernel: str, tolerance: float, wanted: Callable[[], Results], found: Callable[[], Results]
) -> str | None:
    """Return None if both give the same numbers, else the reason.

    The error of a tensor may be ``tolerance`` times its largest absolute value, or times 1 if that is larger. The probe
    is independent of the caller's modes, such as fake tensors, inference mode, autocast and checkpointing.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with (
            _disable_current_modes(),
            torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x),  # not those of checkpointing
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast(device, enabled=False),
        ):
            right, given = wanted(), found()
    except Exception as error:  # noqa: BLE001 - a foreign kernel may raise anything; the reason is reported
        message = str(error).partition("\n")[0]
        return f"{kernel} does not run: {type(error).__name__}: {message}"
    for name, tensor in right.items():
        worst = (given[name] - tensor).abs().max() if given[name].shape == tensor.shape else torch.tensor(torch.inf)
        if not worst <= tolerance * max(1.0, tensor.abs().max().item()):  # written so that NaN fails
            return f"{kernel} gives wrong numbers: {name} is off by {worst.item():.3g}"
    return None
