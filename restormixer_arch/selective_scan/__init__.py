"""Run the selective scan of Mamba (arXiv 2312.00752) in one or two dimensions, on the backend that suits the tensors.

    definition   a plain, slow loop, the reference that all other backends are tested against; twice differentiable
    torch        plain torch with a hand-written backward pass, for every device and dtype
    native       the compiled kernel of this package, on the CPU
    triton       the Triton kernels of this package, on a GPU
    cuda         mamba-ssm's kernel on a GPU, if it is installed

``backend="auto"`` selects the first that works: native, then torch on a CPU; triton, cuda, then torch on a GPU. An
explicit name never falls back to another backend. Each backend that runs is logged once to the logger
``restormixer_arch``, and :func:`backend_report` shows why no faster one is used.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Collection

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from restormixer_arch.errors import UserError, did_you_mean
from restormixer_arch.native import library as native_library
from restormixer_arch.selective_scan import checks, cuda, triton_scan
from restormixer_arch.selective_scan.definition import DIRECTIONS, selective_scan_2d_loop, selective_scan_loop
from restormixer_arch.selective_scan.layouts import selective_scan_torch
from restormixer_arch.selective_scan.native_scan_1d import selective_scan_native
from restormixer_arch.selective_scan.operator import MAX_STATES, constant_when_traced, keep_states_by_default, scan_2d

__all__ = [
    "BACKENDS",
    "DIRECTIONS",
    "available_backends",
    "backend_report",
    "selective_scan",
    "selective_scan_2d",
]

BACKENDS = ("auto", "definition", "torch", "native", "triton", "cuda")
KERNELS = {"cpu": ("native",), "cuda": ("triton", "cuda")}  # kernels of each device type, best first
NATIVE_DTYPES = (torch.float32, torch.bfloat16)
CUDA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_logger = logging.getLogger("restormixer_arch")
_announced: set[str] = set()


def _kernel_reason(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why this kernel cannot scan tokens on ``device``, or None if it can."""
    if name == "native":
        return (
            native_library.unusable_reason()
            if device.type == "cpu"
            else f"it needs a CPU tensor, this one is on {device}"
        )
    return triton_scan.unusable_reason(device, dtype) if name == "triton" else cuda.unusable_reason(device)


def available_backends() -> dict[str, str | None]:
    """Return, by name of backend, None if it can be used on this machine, else the reason why not."""
    reasons = {"definition": None, "torch": None, "native": native_library.unusable_reason()}
    return reasons | {"triton": triton_scan.unusable_reason(), "cuda": cuda.unusable_reason()}


@constant_when_traced  # torch.compile calls it instead of tracing the probes of the kernels
def _automatic(
    device: torch.device, dtypes: Collection[torch.dtype], states: int, constant_weights: bool = False
) -> tuple[str, str]:
    """Return the backend that ``auto`` selects and, if it is not the best kernel of the device, the reason."""
    reasons = []
    for name in KERNELS.get(device.type, ()):
        known = NATIVE_DTYPES if name == "native" else CUDA_DTYPES
        unknown = sorted(str(dtype) for dtype in dtypes if dtype not in known)
        if unknown:
            reason = f"it does not take {', '.join(unknown)}"
        elif states > MAX_STATES:
            reason = f"it takes at most {MAX_STATES} states, these are {states}"
        elif name == "triton" and constant_weights:
            reason = triton_scan.NO_CONSTANT_WEIGHTS
        else:
            reason = _kernel_reason(name, device, next(iter(dtypes)))
        if reason is None:
            return name, "; ".join(reasons)
        reasons.append(f"{name}: {reason}")
    return "torch", "; ".join(reasons) or f"there is no kernel for {device.type} tensors"


def backend_report() -> str:
    """Return one line per device: the backend that ``auto`` selects for float32, and why not a better one."""
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    devices += [torch.device("mps")] * torch.backends.mps.is_available()
    lines = []
    for device in devices:
        name, reason = _automatic(device, {torch.float32}, 1)
        lines.append(f"{device}: {name}" + (f" ({reason})" if reason else ""))
    if not torch.cuda.is_available():
        lines.append(f"cuda: no device here; {_expected_gpu_backend()}")
    return "\n".join(lines)


def _expected_gpu_backend() -> str:
    """Describe which backend a GPU would use, as far as the installed packages show."""
    reason = triton_scan.package_reason()
    if reason is None:
        compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or os.name == "nt"
        lacking = "" if compiler else "; Triton needs a C compiler, and neither gcc nor clang is found"
        return f"on a GPU, triton would be used if it passes its probe{lacking}"
    if importlib.util.find_spec("mamba_ssm") is not None:
        return f"on a GPU, cuda would be used if it passes its probe (triton: {reason})"
    return f"on a GPU, torch would be used (triton: {reason}; cuda: mamba-ssm is not installed)"


def _log_backend_once(name: str, device: torch.device, reason: str) -> None:
    if not torch.compiler.is_compiling() and name not in _announced:
        _announced.add(name)
        _logger.info("selective scan: backend %s for %s%s", name, device, f" ({reason})" if reason else "")


def _choose(
    backend: str,
    streams: list[Tensor],
    parameters: list[Tensor],
    states: int,
    *,
    needs_state_grad: bool,
    constant_weights: bool = False,
) -> str:
    """Return the name of the backend to run, and log it. ``streams`` have values per token, u or x first."""
    tokens = streams[0]
    if backend not in BACKENDS:
        hint = did_you_mean(backend, BACKENDS)
        raise UserError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}.{hint}")
    reason = ""
    if backend == "auto":
        # GPU kernels accept parameters of any dtype.
        dtypes = [tensor.dtype for tensor in (streams if tokens.is_cuda else (*streams, *parameters))]
        backend, reason = _automatic(tokens.device, dtypes, states, constant_weights)
        if backend == "cuda" and needs_state_grad:
            backend, reason = "torch", "cuda: it has no gradient for the last state"
    elif backend not in ("definition", "torch"):
        unusable = _explicit_reason(backend, tokens.device, tokens.dtype)
        if unusable is not None:
            raise UserError(f"backend {backend!r} cannot be used: {unusable}; backend='auto' takes one that can")
    _log_backend_once(backend, tokens.device, reason)
    return backend


_explicit_reason = constant_when_traced(_kernel_reason)


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
    """Run a selective scan with the signature and semantics of mamba-ssm's ``selective_scan_fn``.

    dt = softplus(delta + delta_bias); h_t = exp(dt A) h_(t-1) + dt B_t u_t; y_t = <C_t, h_t> + D u_t; y *= silu(z).
    Arithmetic is in float32, or float64 for float64 tokens, even under autocast.

    Args:
        u: tokens (B, D, L).
        delta: time steps (B, D, L), before bias and softplus.
        A: decay rates (D, N), real, negative for a stable scan.
        B: input weights (B, G, N, L), where channel d reads group d // (D / G); or (B, N, L); or constant (D, N).
        C: output weights, in one of the shapes of ``B``.
        D: skip weights (D,).
        z: gate (B, D, L).
        delta_bias: bias (D,) of delta.
        delta_softplus: whether softplus (linear above 20) is applied to delta + delta_bias.
        return_last_state: whether to return also the state after the last token.
        backend: one of ``auto``, ``definition``, ``torch``, ``native``, ``triton`` or ``cuda``.

    Returns:
        Output (B, D, L) in the dtype of u; with ``return_last_state`` also the state (B, D, N), float32 or float64.
        The last state has a gradient, except on backend ``cuda``, which ``auto`` avoids if it may be needed.

    Raises:
        UserError: if the backend is unknown, or an explicit one cannot be used here.
        ValueError: if a shape is wrong, or tensors are on different devices.
        TypeError: if a dtype is not supported, such as complex A.
    """
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    checks.check_scan(given)
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given.values())
    name = _choose(
        backend,
        [u, delta, B, C, *([] if z is None else [z])],
        [tensor for tensor in (A, D, delta_bias) if tensor is not None],
        A.shape[1],
        needs_state_grad=return_last_state and needs_grad,
        constant_weights=2 in (B.dim(), C.dim()),
    )
    arguments = (u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
    scans = {
        "native": selective_scan_native,
        "definition": selective_scan_loop,
        "torch": selective_scan_torch,
        "triton": triton_scan.selective_scan_triton,
        "cuda": cuda.selective_scan_cuda,
    }
    return scans[name](*arguments)


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
    keep_states: bool | None = None,
) -> Tensor:
    """Scan an image once per direction and return the sum of the results at each pixel.

    ``row`` visits the image row by row, ``column`` column by column (h varies fastest); ``row_reverse`` and
    ``column_reverse`` visit the tokens from the last to the first. Softplus is always applied to delta + delta_bias.

    Args:
        x: tokens (B, H, W, D).
        delta: time steps (B, H, W, K, D), one set per direction, before bias and softplus.
        A: decay rates (K, D, N), negative for a stable scan.
        B: input weights (B, H, W, K, N).
        C: output weights (B, H, W, K, N).
        D: skip weights (K, D).
        delta_bias: bias of delta (K, D).
        directions: K different names from ``DIRECTIONS``.
        backend: see :func:`selective_scan`.
        keep_states: whether the forward pass keeps the states that the backward pass starts from. If not, the backward
            pass scans forward again, which is slower but needs less memory between the two. Default: the environment
            variable ``RESTORMIXER_SCAN_STATES``, ``keep`` or ``recompute``, or ``keep`` if it is not set.
            ``definition`` always keeps all states; ``cuda`` ignores this argument.

    Returns:
        Output (B, H, W, D) in the dtype of x.

    Raises:
        UserError: if the backend is unknown, or an explicit one cannot be used here.
        ValueError: if a shape is wrong, a direction is unknown or repeated, or tensors are on different devices.
        TypeError: if a dtype is not supported, such as complex A.
    """
    given = {"x": x, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias}
    checks.check_scan_2d(given, directions)
    name = _choose(backend, [x, delta, B, C], [A, D, delta_bias], A.shape[2], needs_state_grad=False)
    arguments = (x, delta, A, B, C, D, delta_bias, directions)
    if name == "definition":
        return selective_scan_2d_loop(*arguments)
    if name == "cuda" and not (torch.compiler.is_compiling() or is_in_torch_dispatch_mode()):
        return cuda.selective_scan_2d_cuda(*arguments)  # mamba-ssm keeps states, which the operator cannot do
    keep = keep_states_by_default() if keep_states is None else keep_states
    return scan_2d(*arguments, backend=name, keep_states=keep)
