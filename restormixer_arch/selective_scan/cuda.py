"""Run the selective scan on CUDA by the kernel of mamba-ssm, if it is installed.

This module was written from mamba-ssm's documented interface, is tested with substitutes for it, and has never been run
on a GPU. Therefore the real kernel is probed before its first use on a device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from restormixer_arch.selective_scan.definition import DIRECTIONS, selective_scan_loop
from restormixer_arch.selective_scan.layouts import sum_of_images, tokens_by_direction
from restormixer_arch.selective_scan.probe import cache_result, difference, results

INTERFACE = "mamba_ssm.ops.selective_scan_interface"
ALIGNMENT = 16  # bytes of each load in the kernel
TOLERANCE = 1e-3  # for values around 1; the fast exponentials of a GPU are accurate to about 1e-5


Scan = Callable[..., Tensor | tuple[Tensor, Tensor]]


def _kernel() -> Scan:
    return importlib.import_module(INTERFACE).selective_scan_fn


def _tiny_scan() -> dict[str, Tensor]:
    """Return inputs of a scan with two groups and all optional arguments, the same numbers on every device."""
    draw = torch.Generator("cpu").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device="cpu")

    inputs = {"u": normal(2, 4, 9), "delta": normal(2, 4, 9), "A": -normal(4, 8).exp(), "B": normal(2, 2, 8, 9)}
    return inputs | {"C": normal(2, 2, 8, 9), "D": normal(4), "z": normal(2, 4, 9), "delta_bias": normal(4)}


@cache_result
def probe(device: torch.device) -> str | None:
    """Run mamba-ssm's kernel once on ``device``; return None if it matches the definition, else the reason."""
    options = {"delta_softplus": True, "return_last_state": True}
    return difference(
        "mamba-ssm's kernel",
        TOLERANCE,
        lambda: results(selective_scan_loop, _tiny_scan(), torch.device("cpu"), **options),
        lambda: results(_kernel(), _tiny_scan(), device, **options),
    )


def unusable_reason(device: torch.device | None = None) -> str | None:
    """Return why the kernel cannot be used on ``device`` (default: torch's current CUDA device), or None if it can."""
    if device is not None and device.type != "cuda":
        return f"mamba-ssm's kernel needs a CUDA tensor, this one is on {device}"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    index = torch.cuda.current_device() if device is None or device.index is None else device.index
    return probe(torch.device("cuda", index))


def _for_kernel(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Convert to the kernel's dtype and a layout with a dense last axis and rows that allow loads of 16 bytes."""
    if tensor is None:
        return None
    tensor = tensor.to(dtype)
    steps = [stride for stride, size in zip(tensor.stride()[:-1], tensor.shape[:-1], strict=True) if size > 1]
    even = tensor.is_contiguous() or all(step * tensor.element_size() % ALIGNMENT == 0 for step in steps)
    if tensor.stride(-1) == 1 and even and tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def selective_scan_cuda(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute the same as :func:`~restormixer_arch.selective_scan.definition.selective_scan_loop`.

    The kernel has no gradient for the last state, which is therefore returned detached.

    Raises:
        TypeError: if u is float64, which the kernel does not support.
    """
    if u.dtype == torch.float64:
        raise TypeError(f"the CUDA kernel takes float32, float16 and bfloat16, got {u.dtype}: use backend='torch'")
    result = _kernel()(
        _for_kernel(u, u.dtype),
        _for_kernel(delta, u.dtype),
        _for_kernel(A, torch.float32),
        *(_for_kernel(w, torch.float32 if w.dim() == 2 else u.dtype) for w in (B, C)),
        D=_for_kernel(D, torch.float32),
        z=_for_kernel(z, u.dtype),
        delta_bias=_for_kernel(delta_bias, torch.float32),
        delta_softplus=delta_softplus,
        return_last_state=return_last_state,
    )
    return (result[0], result[1].detach()) if return_last_state else result


def selective_scan_2d_cuda(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    directions: tuple[str, ...],
) -> Tensor:
    """Compute the same as :func:`~restormixer_arch.selective_scan.definition.selective_scan_2d_loop`.

    The kernel receives the K directions as groups.
    """
    images = x.unsqueeze(3).expand(-1, -1, -1, len(directions), -1)  # (B, H, W, K, D)
    # (L, B, K, E) -> (B, K, E, L)
    u, dt, B, C = (tokens_by_direction(t, directions).permute(1, 2, 3, 0) for t in (images, delta, B, C))
    y = selective_scan_cuda(
        u.flatten(1, 2), dt.flatten(1, 2), A.flatten(0, 1), B, C, D.flatten(), None, delta_bias.flatten(), True
    )
    y = y.unflatten(1, (len(directions), -1)).permute(3, 0, 1, 2)  # (B, K D, L) -> (L, B, K, D)
    return sum_of_images(y, directions, *x.shape[1:3])


def kept_states(x: Tensor, A: Tensor) -> Tensor:
    """Return an empty tensor: mamba-ssm's states are not accessible from here."""
    return x.new_empty(0)


def scan_2d_forward(*arguments: Any) -> tuple[Tensor, None]:
    """See :mod:`restormixer_arch.selective_scan.operator`."""
    *inputs, directions, _ = arguments
    return selective_scan_2d_cuda(*inputs, tuple(DIRECTIONS[number] for number in directions)), None


def scan_2d_backward(grad_y: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """See :mod:`restormixer_arch.selective_scan.operator`; the forward pass is computed again."""
    *inputs, _, directions = arguments
    with _autograd():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        y = selective_scan_2d_cuda(*leaves, tuple(DIRECTIONS[number] for number in directions))
        return torch.autograd.grad(y, leaves, grad_y)


@contextmanager
def _autograd() -> Iterator[None]:
    """Record gradients inside an operator, where torch has disabled this."""
    with torch._C._PreserveDispatchKeyGuard(), torch.inference_mode(False), torch.enable_grad():
        torch._C._dispatch_tls_set_dispatch_key_excluded(torch._C.DispatchKey.AutogradFunctionality, False)
        yield
