"""Find, load and call the compiled library (``kernel/``) through ctypes.

The library does not depend on Python or torch, so one file works with every version of both. It is built with the
package if a C compiler exists. Environment variables: ``RESTORMIXER_REQUIRE_NATIVE=1`` makes a missing kernel an error,
``RESTORMIXER_ISA=plain|avx2|avx512|neon`` forces an instruction set.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path

import torch
from torch import Tensor

from restormixer_arch.errors import UserError

ABI = 2  # KERNEL_ABI of kernel.h
LANES, CHUNK, MAX_STATES = 16, 64, 256  # also of kernel.h
FIX = "install a C compiler (gcc or clang), then run `pip install --force-reinstall --no-deps .` in the project"
NO_STREAM = (0, 0, 0, 0, 0, 0)
STREAM_DTYPES = (torch.float32, torch.bfloat16)
Stream = tuple[int, int, int, int, int, int]

_CALL = struct.Struct("98q")
_STATUS = {1: "out of memory", 2: "a malformed call"}


def load(folder: Path) -> tuple[ctypes.CDLL | None, str, str]:
    """Return the library in ``folder``, the instruction set in use, and the reason if there is no library."""
    found = [path for path in sorted(folder.glob("_kernel*")) if path.suffix in (".so", ".pyd", ".dylib")]
    if not found:
        return None, "", f"the native kernel was not built: {FIX}"
    try:
        library = ctypes.CDLL(str(found[0]))
        if library.restormixer_abi() != ABI:
            return None, "", f"{found[0].name} belongs to another version of this package: {FIX}"
        _declare(library)
    except (OSError, AttributeError) as error:
        return None, "", f"{found[0].name} cannot be loaded ({error}): {FIX}"
    wanted = os.environ.get("RESTORMIXER_ISA", "")
    isa = library.restormixer_isa(wanted.encode())
    if isa is None:
        return None, "", f"RESTORMIXER_ISA must name an instruction set of this processor, got {wanted!r}"
    return library, isa.decode(), ""


def _declare(library: ctypes.CDLL) -> None:
    """Declare the functions of the library. Raises AttributeError if one is missing."""
    library.restormixer_isa.restype = ctypes.c_char_p
    for function in (library.restormixer_scan_forward, library.restormixer_scan_backward):
        function.argtypes = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_char_p]
    for function in (library.restormixer_gelu, library.restormixer_attention):
        function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_char_p]
    library.restormixer_gelu_tiles.argtypes = [ctypes.c_int64, ctypes.c_int64]
    library.restormixer_gelu_tiles.restype = ctypes.c_int64


def _torch_threads() -> int:
    """Return the address of GOMP_parallel in the OpenMP runtime that torch uses, 0 if it has none."""
    suffix = {"linux": ".so", "darwin": ".dylib"}.get(sys.platform)
    if suffix is None:
        return 0
    try:
        # Symbols are looked up in the libraries that the handle links to, so this finds only torch's runtime.
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu{suffix}"))
        return ctypes.cast(torch_cpu.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


_LIBRARY, INSTRUCTION_SET, REASON = load(Path(__file__).parent)
_ISA = INSTRUCTION_SET.encode()
_parallel = _torch_threads()
if REASON and os.environ.get("RESTORMIXER_REQUIRE_NATIVE") == "1":
    raise UserError(f"RESTORMIXER_REQUIRE_NATIVE=1, but {REASON}")


def _disable_torch_threads_after_fork() -> None:
    """Stop using torch's OpenMP threads: a forked child has none, and the runtime would wait for them forever."""
    global _parallel
    _parallel = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disable_torch_threads_after_fork)


def batch_sum(shares: Tensor) -> Tensor:
    """Sum the gradients of a parameter, which the kernel writes separately per batch item. (B, ...) -> (...)"""
    return shares[0] if shares.shape[0] == 1 else shares.sum(0)


def float16_to_float32(tensor: Tensor | None) -> Tensor | None:
    """Convert float16 to float32; other dtypes are left to :func:`check_dtypes`."""
    return tensor.float() if tensor is not None and tensor.dtype is torch.float16 else tensor


def low_precision_to_float32(tensor: Tensor | None) -> Tensor | None:
    """Convert float16 and bfloat16 parameters to float32; return others unchanged."""
    if tensor is None or tensor.dtype not in (torch.float16, torch.bfloat16):
        return tensor
    return tensor.float()


def check_dtypes(streams: dict[str, Tensor | None], dense: dict[str, Tensor | None]) -> None:
    """Raise :class:`TypeError` unless streams are float32 or bfloat16 and dense arrays are float32."""
    for name, tensor in (*streams.items(), *dense.items()):
        allowed = STREAM_DTYPES if name in streams else (torch.float32,)
        if tensor is not None and tensor.dtype not in allowed:
            raise TypeError(f"{name} must be of dtype {' or '.join(map(str, allowed))}, got {tensor.dtype}")


def check_grad(grad_y: Tensor, y: Tensor) -> None:
    """Raise TypeError or ValueError if the dtype or shape of the output's gradient is wrong."""
    check_dtypes({"the output's gradient": grad_y}, {})
    if grad_y.shape != y.shape:
        raise ValueError(f"the output's gradient must have shape {tuple(y.shape)}, got {tuple(grad_y.shape)}")


def unusable_reason() -> str | None:
    """Return why the kernel cannot be used and how to fix this, or None if it can be used."""
    return REASON or None


def require() -> None:
    """Raise :class:`UserError`, with the fix, if the kernel cannot be used."""
    if REASON:
        raise UserError(f"the compiled library, backend 'native', is not usable: {REASON}")


def chunks(length: int) -> int:
    """Return the number of states saved for ``length`` steps."""
    return -(-length // CHUNK)


def stream(tensor: Tensor, batch: int, part: int, step: int, lane: int) -> Stream:
    """Describe a float32 or bfloat16 tensor with its strides over batch, part, step and lane, in elements."""
    return tensor.data_ptr(), batch, part, step, lane, tensor.dtype is torch.bfloat16


def address(tensor: Tensor | None) -> int:
    """Return the address of a dense float32 tensor, or 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def call(
    *,
    backward: bool,
    sizes: tuple[int, int, int, int, int, int],
    flags: tuple[bool, bool, bool, bool],
    orders: tuple[int, int, int, int],
    dense: tuple[int, int, int, int, int],
    streams: tuple[Stream, ...],
    grad_streams: tuple[Stream, ...] = (NO_STREAM,) * 6,
    grad_dense: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> None:
    """Call the scan kernel. The groups of arguments are those of ``struct scan_call``, in the same order.

    Args:
        backward: whether to compute gradients instead of outputs.
        sizes: batch, parts, height, width, channels of a part, states.
        flags: softplus, summed, constant B, constant C.
        orders: scan orders of the directions, values of ``ORDERS``.
        dense: addresses of A, D, bias, saved states, last state.
        streams: streams of u, delta, z, B, C, y.
        grad_streams: streams of the gradients of y, u, delta, z, B, C.
        grad_dense: addresses of the gradients of A, D, bias and last state.

    Raises:
        UserError: if the library cannot be used.
        MemoryError: if there is not enough memory.
        RuntimeError: if the call is malformed.
    """
    require()
    values = _CALL.pack(
        *sizes, *flags, torch.get_num_threads(), _parallel, *orders, *dense,
        *(value for one in streams for value in one), *(value for one in grad_streams for value in one),
        *grad_dense, 0,
    )  # fmt: skip
    run = _LIBRARY.restormixer_scan_backward if backward else _LIBRARY.restormixer_scan_forward
    status = run(values, 98, _ISA)
    if status:
        raise (MemoryError if status == 1 else RuntimeError)(f"native selective scan: {_STATUS[status]}")


def run(function: str, arguments: ctypes.Structure) -> None:
    """Call ``restormixer_gelu`` or ``restormixer_attention``.

    Raises:
        UserError: if the library cannot be used.
        MemoryError: if there is not enough memory.
        RuntimeError: if the call is malformed.
    """
    require()
    status = getattr(_LIBRARY, function)(ctypes.byref(arguments), torch.get_num_threads(), _parallel, _ISA)
    if status:
        raise (MemoryError if status == 1 else RuntimeError)(f"native {function}: {_STATUS[status]}")


def gelu_tiles(count: int, period: int) -> int:
    """Return the number of rows of partial sums that the backward pass of ``restormixer_gelu`` writes."""
    require()
    return _LIBRARY.restormixer_gelu_tiles(count, period)
