"""The selective scan of Mamba (arXiv 2312.00752) in one and two dimensions, on whichever backend fits the tensors.

    definition   a plain loop, slow: what every other backend is tested against, and twice differentiable
    torch        plain torch with a hand-written backward: every device and dtype
    native       the compiled kernel of this package, on the CPU
    cuda         mamba-ssm's kernel, where it is installed and gives right numbers

``backend="auto"`` takes the fastest that works; an explicit name never falls back. The backend that runs is logged
once to the logger ``restormixer_arch``, and :func:`backend_report` says why no faster one is used.
"""

from __future__ import annotations

import logging
import os

import torch
from torch import Tensor

from restormixer_arch.errors import UserError, did_you_mean
from restormixer_arch.selective_scan import checks
from restormixer_arch.selective_scan.definition import DIRECTIONS, selective_scan_2d_loop, selective_scan_loop

__all__ = [
    "BACKENDS",
    "DIRECTIONS",
    "available_backends",
    "backend_for",
    "backend_report",
    "selective_scan",
    "selective_scan_2d",
]

BACKENDS = ("auto", "definition", "torch", "native", "cuda")
NATIVE_DTYPES = (torch.float32, torch.bfloat16)
CUDA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KERNEL_STATES = 256  # the most states N that either kernel takes

_logger = logging.getLogger("restormixer_arch")
_announced: set[str] = set()


def _native_reason() -> str | None:
    """Why the native kernel cannot be used, or None if it can."""
    try:
        from restormixer_arch.selective_scan import native
    except ImportError as error:
        if os.environ.get("RESTORMIXER_REQUIRE_NATIVE") == "1":
            raise
        return f"the native kernel is not part of this build ({error})"
    return native.unusable_reason()


def _cuda_reason(device: torch.device | None = None) -> str | None:
    """Why mamba-ssm's kernel cannot be used on a device, or None if it can."""
    from restormixer_arch.selective_scan import cuda

    return cuda.unusable_reason(device)


def available_backends() -> dict[str, str | None]:
    """Each backend's name with None if it can be used on this machine, or the reason why not."""
    return {"definition": None, "torch": None, "native": _native_reason(), "cuda": _cuda_reason()}


def _automatic(device: torch.device, dtypes: set[torch.dtype], states: int) -> tuple[str, str]:
    """The backend that ``auto`` takes and, if that is torch, why it is not a kernel."""
    name = {"cpu": "native", "cuda": "cuda"}.get(device.type)
    if name is None:
        return "torch", f"there is no kernel for {device.type} tensors"
    # The kernel follows the dtype of the tokens on CUDA, and takes each tensor as it is on the CPU.
    known = NATIVE_DTYPES if name == "native" else CUDA_DTYPES
    unknown = sorted(str(dtype) for dtype in dtypes.difference(known))
    if unknown:
        return "torch", f"{name}: it does not take {', '.join(unknown)}"
    if states > KERNEL_STATES:
        return "torch", f"{name}: it takes at most {KERNEL_STATES} states, these are {states}"
    reason = _native_reason() if name == "native" else _cuda_reason(device)
    return (name, "") if reason is None else ("torch", f"{name}: {reason}")


def backend_for(tensor: Tensor) -> str:
    """The backend that ``auto`` takes for tokens, and other inputs, of this tensor's device and dtype."""
    return _automatic(tensor.device, {tensor.dtype}, 1)[0]


def backend_report() -> str:
    """One line per kind of device: the backend that ``auto`` takes for float32 there, and why not a better one."""
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    devices += [torch.device("mps")] * torch.backends.mps.is_available()
    lines = []
    for device in devices:
        name, reason = _automatic(device, {torch.float32}, 1)
        lines.append(f"{device}: {name}" + (f" ({reason})" if reason else ""))
    return "\n".join(lines)


def _announce(name: str, device: torch.device, reason: str) -> None:
    if not torch.compiler.is_compiling() and name not in _announced:
        _announced.add(name)
        _logger.info("selective scan: backend %s for %s%s", name, device, f" ({reason})" if reason else "")


def _choose(backend: str, tokens: Tensor, tensors: list[Tensor], states: int, *, needs_state_grad: bool) -> str:
    """The name of the backend to run, announced."""
    if backend not in BACKENDS:
        hint = did_you_mean(backend, BACKENDS)
        raise UserError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}.{hint}")
    reason = ""
    if backend == "auto":
        dtypes = {tokens.dtype} if tokens.is_cuda else {tensor.dtype for tensor in tensors}
        backend, reason = _automatic(tokens.device, dtypes, states)
        if backend == "cuda" and needs_state_grad:
            backend, reason = "torch", "cuda: it has no gradient for the last state"
    elif backend in ("native", "cuda"):
        unusable = _explicit_reason(backend, tokens.device)
        if unusable is not None:
            raise UserError(f"backend {backend!r} cannot be used: {unusable}; backend='auto' takes one that can")
    _announce(backend, tokens.device, reason)
    return backend


def _explicit_reason(backend: str, device: torch.device) -> str | None:
    if backend == "cuda":
        return _cuda_reason(device)
    return _native_reason() if device.type == "cpu" else f"it needs a CPU tensor, this one is on {device}"


def selective_scan(
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
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan with the signature and meaning of mamba-ssm's ``selective_scan_fn``.

    dt = softplus(delta + delta_bias); h_t = exp(dt A) h_(t-1) + dt B_t u_t; y_t = <C_t, h_t> + D u_t; y *= silu(z).
    The arithmetic is in float32, in float64 for float64 tokens, also under autocast.

    Args:
        u: tokens (B, D, L).
        delta: time steps (B, D, L), before bias and softplus.
        A: decay rates (D, N), real, negative for a stable scan.
        B: input weights (B, G, N, L), where channel d reads group d // (D / G); or (B, N, L); or constant (D, N).
        C: output weights, as ``B``.
        D: weights of the skip (D,).
        z: gate (B, D, L).
        delta_bias: (D,), added to delta.
        delta_softplus: whether softplus (linear above 20) is applied to delta + delta_bias.
        return_last_state: whether to return the state after the last token too.
        backend: ``auto``, ``definition``, ``torch``, ``native`` or ``cuda``.

    Returns:
        (B, D, L) in the dtype of u; with ``return_last_state`` also the state (B, D, N), float32 or float64. The last
        state carries a gradient, except on backend ``cuda``, which ``auto`` avoids where that gradient may be needed.

    Raises:
        UserError: an unknown backend, or an explicit one that cannot be used here.
        ValueError: a shape, or tensors on different devices.
        TypeError: a dtype, complex A included.
    """
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    checks.check_scan(given)
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given.values())
    name = _choose(backend, u, list(given.values()), A.shape[1], needs_state_grad=return_last_state and needs_grad)
    arguments = (u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
    if name == "native":
        from restormixer_arch.selective_scan.native import selective_scan_native as scan
    elif name == "cuda":
        from restormixer_arch.selective_scan.cuda import selective_scan_cuda as scan
    elif name == "torch":
        from restormixer_arch.selective_scan.layouts import selective_scan_torch as scan
    else:
        scan = selective_scan_loop
    return scan(*arguments)


def selective_scan_2d(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    directions: tuple[str, ...],
    *,
    backend: str = "auto",
) -> Tensor:
    """Sum of one selective scan of an image per direction, each put back in place.

    ``row`` visits the image row by row, ``column`` column by column (h runs fastest), ``row_reverse`` and
    ``column_reverse`` the same tokens from the last to the first. Softplus is always applied to delta + delta_bias.

    Args:
        x: tokens (B, H, W, D).
        delta: time steps (B, H, W, K, D), one set per direction, before bias and softplus.
        A: decay rates (K, D, N), negative for a stable scan.
        B: input weights (B, H, W, K, N).
        C: output weights (B, H, W, K, N).
        D: weights of the skip (K, D).
        delta_bias: (K, D).
        directions: K different names out of ``DIRECTIONS``.
        backend: as for :func:`selective_scan`.

    Returns:
        (B, H, W, D) in the dtype of x.

    Raises:
        UserError: an unknown backend, or an explicit one that cannot be used here.
        ValueError: a shape, an unknown or repeated direction, or tensors on different devices.
        TypeError: a dtype, complex A included.
    """
    given = {"x": x, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias}
    checks.check_scan_2d(given, directions)
    name = _choose(backend, x, list(given.values()), A.shape[2], needs_state_grad=False)
    arguments = (x, delta, A, B, C, D, delta_bias, directions)
    if name == "native":
        from restormixer_arch.selective_scan.native import selective_scan_2d_native as scan
    elif name == "cuda":
        from restormixer_arch.selective_scan.cuda import selective_scan_2d_cuda as scan
    elif name == "torch":
        from restormixer_arch.selective_scan.layouts import selective_scan_2d_torch as scan
    else:
        scan = selective_scan_2d_loop
    return scan(*arguments)
