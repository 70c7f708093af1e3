"""Define ``restormixer::scan_2d``, the selective scan of an image in K directions, as a torch operator for all devices.

An argument of the operator names the backend, so a traced graph keeps the backend it was traced with. torch.compile,
torch.export, FLOP counters and activation checkpointing see a single operator: its shapes, its gradient and its number
of operations are defined here and need neither the C library nor Triton.

A backend is a module with three functions. Each accepts any floating-point dtype that the backend supports,
accumulates in float32 or higher precision, and returns new tensors in the dtypes of the inputs:

    kept_states(x, A): uninitialized memory with the shape and dtype of the states that a forward pass keeps
    scan_2d_forward(inputs..., directions, keep): y, and the states if ``keep``, else None
    scan_2d_backward(grad_y, inputs..., states, directions): the gradients of the seven inputs; if ``states`` has no
        elements, the states are computed again

Shape letters: B batch, H x W image, K scan directions, D channels, N states.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from restormixer_arch.errors import UserError
from restormixer_arch.selective_scan.checks import check_scan_2d
from restormixer_arch.selective_scan.definition import DIRECTIONS, ORDERS

IMPLEMENTATIONS = {"native": "native_scan_2d", "torch": "layouts", "triton": "triton_scan", "cuda": "cuda"}
MAX_STATES = 256
KEEP_STATES = {"keep": True, "recompute": False}  # values of the environment variable RESTORMIXER_SCAN_STATES

_ops = torch.library.Library("restormixer", "FRAGMENT")


def constant_when_traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make torch.compile call a function while tracing and treat its result as a constant.

    This is ``torch.compiler.assume_constant_result`` without importing torch._dynamo, which takes seconds.
    """
    function._dynamo_marked_constant = True
    return function


INPUTS = ("x", "delta", "A", "B", "C", "D", "delta_bias")
_INPUTS = ", ".join(f"Tensor {name}" for name in INPUTS)
_ops.define(f"scan_2d({_INPUTS}, int[] directions, str backend, bool keep_states) -> (Tensor, Tensor)")
_ops.define(
    f"scan_2d_backward(Tensor grad_y, {_INPUTS}, Tensor states, int[] directions, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


@constant_when_traced
def keep_states_by_default() -> bool:
    """Return True if the environment variable ``RESTORMIXER_SCAN_STATES`` is ``keep`` (default), not ``recompute``."""
    wanted = os.environ.get("RESTORMIXER_SCAN_STATES", "keep")
    if wanted not in KEEP_STATES:
        raise UserError(f"RESTORMIXER_SCAN_STATES must be one of {', '.join(KEEP_STATES)}, got {wanted!r}")
    return KEEP_STATES[wanted]


def scan_2d(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    directions: tuple[str, ...],
    *,
    backend: str,
    keep_states: bool,
) -> Tensor:
    """Call the operator; the arguments are those of :func:`restormixer_arch.selective_scan.selective_scan_2d`."""
    tensors = (x, delta, A, B, C, D, delta_bias)
    refuse_tangents(tensors)
    keep = keep_states and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    orders = [ORDERS[name] for name in directions]
    return torch.ops.restormixer.scan_2d.default(*tensors, orders, backend, keep)[0]


def refuse_tangents(tensors: Iterable[Tensor]) -> None:
    """Raise NotImplementedError if a tensor has a forward-mode derivative, which torch would take to be 0."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError("the scan has no forward-mode derivative: use backend='definition'")


def _implementation(backend: str) -> ModuleType:
    if backend not in IMPLEMENTATIONS:
        raise ValueError(f"backend must be one of {', '.join(IMPLEMENTATIONS)}, got {backend!r}")
    return importlib.import_module(f"{__package__}.{IMPLEMENTATIONS[backend]}")


def _check(inputs: Sequence[Tensor], directions: Sequence[int], backend: str) -> None:
    if not set(directions) <= set(range(len(DIRECTIONS))):
        raise ValueError(f"directions must be numbers from 0 to {len(DIRECTIONS) - 1}, got {list(directions)}")
    check_scan_2d(dict(zip(INPUTS, inputs, strict=True)), [DIRECTIONS[number] for number in directions])
    if backend != "torch" and inputs[2].shape[-1] > MAX_STATES:
        raise ValueError(f"A must have 1 to {MAX_STATES} states, got {inputs[2].shape[-1]}")


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *inputs, directions, backend, keep_states = arguments
    _check(inputs, directions, backend)
    x = inputs[0]
    y, states = _implementation(backend).scan_2d_forward(*inputs, directions, keep_states)
    return y.contiguous(), x.new_empty(0) if states is None else states  # as in _fake_forward


def _backward(grad_y: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *inputs, states, directions, backend = arguments
    _check(inputs, directions, backend)
    if grad_y.shape != inputs[0].shape:
        raise ValueError(f"grad_y must have the shape of x, {tuple(inputs[0].shape)}, got {tuple(grad_y.shape)}")
    gradients = _implementation(backend).scan_2d_backward(grad_y, *inputs, states, directions)
    return tuple(gradient.contiguous() for gradient in gradients)  # as in _fake_backward


def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *inputs, directions, backend, keep_states = arguments
    _check(inputs, directions, backend)
    x, A = inputs[0], inputs[2]
    states = _implementation(backend).kept_states(x, A) if keep_states else x.new_empty(0)
    return x.new_empty(x.shape), states


def _fake_backward(grad_y: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in arguments[:7])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.directions, ctx.backend, _ = inputs
    ctx.set_materialize_grads(False)  # else torch would create zero gradients of the kept states
    ctx.save_for_backward(*tensors, output[1])


def _gradient(ctx: Any, grad_y: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return (None,) * len(ctx.needs_input_grad)
    backward = torch.ops.restormixer.scan_2d_backward.default
    return *backward(grad_y, *ctx.saved_tensors, ctx.directions, ctx.backend), None, None, None


def no_second_gradient(*_: object) -> None:
    raise NotImplementedError("the scan has no second derivative: use backend='definition'")


# One kernel for every device: the backend was chosen for the device before the call.
torch.library.impl(_ops, "scan_2d", "CompositeExplicitAutograd")(_forward)
torch.library.impl(_ops, "scan_2d_backward", "CompositeExplicitAutograd")(_backward)
torch.library.register_fake("restormixer::scan_2d", _fake_forward, lib=_ops)
torch.library.register_fake("restormixer::scan_2d_backward", _fake_backward, lib=_ops)
torch.library.register_autograd("restormixer::scan_2d", _gradient, setup_context=_setup_context, lib=_ops)
torch.library.register_autograd("restormixer::scan_2d_backward", no_second_gradient, lib=_ops)


def forward_flops(tokens: int, a_shape: Sequence[int]) -> int:
    """Return the FLOPs of a scan, A (..., D, N): 7 per state (dt A, exp, decay h, dt u B, both sums), 6 per channel."""
    return tokens * (7 * math.prod(a_shape) + 6 * math.prod(a_shape[:-1]))


def backward_flops(tokens: int, a_shape: Sequence[int]) -> int:
    """Return the FLOPs of the backward pass: 19 per state, of which 5 repeat the forward pass, and 15 per channel."""
    return tokens * (19 * math.prod(a_shape) + 15 * math.prod(a_shape[:-1]))


@register_flop_formula(torch.ops.restormixer.scan_2d)
def _flops(x: Sequence[int], delta: Any, A: Sequence[int], *_: Any, **__: Any) -> int:  # from shapes
    return forward_flops(x[0] * x[1] * x[2], A)


@register_flop_formula(torch.ops.restormixer.scan_2d_backward)
def _backward_flops(grad_y: Any, x: Sequence[int], delta: Any, A: Sequence[int], *_: Any, **__: Any) -> int:
    return backward_flops(x[0] * x[1] * x[2], A)
