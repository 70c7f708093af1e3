"""Test the scans: parts of acceptance.py, each of which yields rows, dictionaries of plain values.

A row with ``ok`` False, or with an ``error``, is a failure; ``left out`` states why something could not run.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import stubs  # noqa: F401 - first of all: it makes the others importable
import torch
from torch import Tensor

from restormixer_arch.selective_scan import DIRECTIONS, available_backends, selective_scan_2d, triton_scan
from restormixer_arch.selective_scan.definition import selective_scan_2d_loop

S3 = ("column", "row_reverse", "column_reverse")
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}  # relative errors: norm of the error / norm
BLOCKS = 4  # EMVM blocks of the base network at 1/2 resolution, and as many at 1/4
HERE = Path(__file__).resolve().parent
GPU = torch.cuda.is_available()
# A GPU's exp2 is only accurate to 2^-22.5: in these gradients, errors of the same sign add up along the scan.
APPROXIMATE = {"A": 3.0, "delta_bias": 3.0}  # factors of the limit
MAX_SPILLS = 16  # words
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
NAMES = ("y", "x", "delta", "A", "B", "C", "D", "delta_bias")
CONFIGS = [(4, 16, 64), (8, 8, 64), (4, 16, 128), (8, 8, 32), (4, 32, 128), (2, 32, 128)]  # rows, tiles, channels
Row = dict[str, Any]
Way = tuple[str, bool, tuple[int, int, int] | None]  # backend, states kept, configuration


def scan_inputs(size: tuple[int, int, int], channels: int, states: int, count: int, dtype: torch.dtype) -> list[Tensor]:
    """Return random inputs of selective_scan_2d as in the network: B and C are views of one tensor."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=DEVICE)

    _, B, C = normal(*size, count, 4 + 2 * states).to(dtype).split([4, states, states], dim=-1)
    delta = (normal(*size, count, channels) - 2).to(dtype)
    parameters = (normal(count, channels), normal(count, channels) / 2)
    return [normal(*size, channels).to(dtype), delta, -normal(count, channels, states).exp(), B, C, *parameters]


def both_ways(scan: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Return the output and the gradients of all inputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    y = scan(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]


def usable_backends() -> list[str]:
    reasons = available_backends()
    if not GPU and triton_scan.interpreted() and triton_scan.package_reason() is None:
        reasons["triton"] = None
    return [name for name in ("triton", "cuda", "torch") if reasons[name] is None]


def accuracy(tiny: bool) -> Iterator[Row]:
    """Values, gradients and repeatability against the definition in float64."""
    for dtype in LIMITS if GPU else ():
        reason = triton_scan.unusable_reason(DEVICE, dtype)
        yield {"case": f"probe {str(dtype)[6:]}", "backend": "triton", "ok": reason is None, "reason": reason}
    cases = [((1, 2, 5), 3, 2, DIRECTIONS), ((1, 1, 7), 3, 2, ("column_reverse",))]
    if not tiny:
        cases = [
            *(((2, 5, 7), 6, 3, DIRECTIONS), ((1, 1, 37), 40, 16, ("column_reverse",))),
            *(((1, 37, 1), 40, 16, ("column", "row")), ((2, 33, 47), 128, 16, ("row",))),
            *(((2, 31, 29), 96, 16, S3), ((1, 24, 40), 256, 5, DIRECTIONS), ((1, 9, 11), 64, 64, ("row",))),
        ]
    for size, channels, states, directions in cases:
        # Each number of states and each dtype is compiled separately, so 16-bit types are tested only with 16 states,
        # as in the network.
        for dtype in LIMITS if states == 16 and size[0] == 2 else (torch.float32,):
            torch.manual_seed(0)
            inputs = scan_inputs(size, channels, states, len(directions), dtype)
            grad = torch.randn(inputs[0].shape, device=DEVICE).to(dtype)
            exact = [tensor.cpu().double() for tensor in inputs]
            wanted = both_ways(lambda *t, d=directions: selective_scan_2d_loop(*t, d), exact, grad.cpu().double())
            name = f"{'x'.join(map(str, (*size, channels)))} N{states} {'+'.join(directions)} {str(dtype)[6:]}"
            for backend in usable_backends():
                yield {"case": name, "backend": backend} | _errors(inputs, grad, wanted, directions, backend)
            if "triton" in usable_backends():
                with patch.object(triton_scan, "PROGRAMS", 1):  # chunks as long as those of large images
                    found = _errors(inputs, grad, wanted, directions, "triton")
                yield {"case": f"{name}, long chunks", "backend": "triton"} | found


def _errors(inputs: list[Tensor], grad: Tensor, wanted: list[Tensor], directions: tuple[str, ...], backend: str) -> Row:
    scans = [
        partial(selective_scan_2d, directions=directions, backend=backend, keep_states=keep)
        for keep in (True, True, False)
    ]
    found, again, computed = (both_ways(scan, inputs, grad) for scan in scans)
    errors = [((f.cpu().double() - w).norm() / w.norm()).item() for f, w in zip(found, wanted, strict=True)]
    repeats = all(map(torch.equal, found, again)) and all(map(torch.equal, found, computed))
    shares = [e / APPROXIMATE.get(n, 1.0) for e, n in zip(errors, NAMES, strict=True)]
    passed = max(shares) <= LIMITS[inputs[0].dtype] and (repeats or backend != "triton")
    row = {"worst": max(zip(errors, NAMES, strict=True)), "repeats": repeats}
    return row | ({} if backend == "cuda" else {"ok": passed})  # mamba-ssm's kernel: its accuracy is only reported


def milliseconds(work: Callable[[], object], rounds: int = 10) -> float:
    """Return the median time of several runs (one without a GPU), after two warm-up runs."""
    work()
    work()
    times = []
    for _ in range(rounds if GPU else 1):
        if GPU:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        else:
            begin = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - begin))
    return round(statistics.median(times), 3)


def peak_mib(work: Callable[[], object]) -> int:
    """Return the peak memory of a run in MiB beyond what was allocated before it; 0 without a GPU."""
    if not GPU:
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - held) >> 20


def scans(tiny: bool) -> Iterator[Row]:
    """Time and memory of every backend at the shapes of a training step, 8 pictures of 256x256."""
    shapes = {"tiny": ((1, 2, 4), 4, 2, ("row",))}
    if not tiny:
        shapes = {
            "S1 at 1/2": ((8, 128, 128), 128, 16, ("row",)),
            "S3 at 1/2": ((8, 64, 64), 128, 16, S3),
            "S1 at 1/4": ((8, 64, 64), 256, 16, ("row",)),
            "S3 at 1/4": ((8, 32, 32), 256, 16, S3),
        }
    totals: dict[tuple[str, Any, Any, Any], list[float | None]] = {}
    for shape, (size, channels, states, directions) in shapes.items():
        for dtype in (torch.bfloat16, torch.float32) if not tiny else (torch.float32,):
            inputs = scan_inputs(size, channels, states, len(directions), dtype)
            grad = torch.randn(inputs[0].shape, device=DEVICE)
            ways: list[Way] = [(backend, keep, None) for backend in usable_backends() for keep in (True, False)]
            if "triton" in usable_backends() and (tiny or dtype == torch.bfloat16):
                ways += [("triton", True, config) for config in (CONFIGS[:1] if tiny else CONFIGS)]
            for backend, keep, config in ways:
                row = {"shape": shape, "dtype": str(dtype)[6:], "backend": backend, "keep": keep, "config": config}
                found = _timed(inputs, grad, directions, backend, keep, config)
                key = (row["dtype"], backend, keep, config)
                totals.setdefault(key, []).append(found.get("both_ms"))
                yield row | found
    for (dtype, backend, keep, config), times in totals.items():
        row = {"shape": "all of a step", "dtype": dtype, "backend": backend, "keep": keep, "config": config}
        if len(times) == len(shapes) and None not in times:
            yield row | {"both_ms": round(BLOCKS * sum(times), 2)}


def _timed(
    inputs: list[Tensor],
    grad: Tensor,
    directions: tuple[str, ...],
    backend: str,
    keep: bool,
    config: tuple[int, int, int] | None,
) -> Row:
    scan = partial(selective_scan_2d, directions=directions, backend=backend, keep_states=keep)
    used = triton_scan.CONFIG if config is None else triton_scan.Config(*config, warps=1, loads=8)
    try:
        with patch.object(triton_scan, "CONFIG", used):
            with torch.no_grad():
                forward = milliseconds(lambda: scan(*inputs))
            work = partial(both_ways, scan, inputs, grad)
            return {"forward_ms": forward, "both_ms": milliseconds(work), "peak_MiB": peak_mib(work)}
    except Exception as error:  # noqa: BLE001 - one configuration that fails is a result
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}


def wide(tiny: bool) -> Iterator[Row]:
    """Offsets of 64 bits, as images of 2^31 elements need them, give the same numbers bit by bit."""
    if "triton" not in usable_backends():
        yield {"left out": "the Triton scan cannot run here"}
        return
    size, channels = ((1, 2, 3), 3) if tiny else ((1, 31, 29), 96)
    inputs = scan_inputs(size, channels, 2, 1, torch.float32)
    scan = partial(selective_scan_2d, directions=("column",), backend="triton")
    found = []
    for offsets in (triton_scan.WIDE_OFFSETS, 1):
        with patch.object(triton_scan, "WIDE_OFFSETS", offsets):
            found.append(both_ways(scan, inputs, torch.ones_like(inputs[0])))
    yield {"case": f"{'x'.join(map(str, size))}x{channels} column", "ok": all(map(torch.equal, *found))}


def sanitizer(tiny: bool) -> Iterator[Row]:
    """compute-sanitizer, which looks for reads and writes out of bounds, on the tiny accuracy cases."""
    tool = shutil.which("compute-sanitizer")
    if not GPU or tool is None:
        yield {"left out": "no GPU" if not GPU else "compute-sanitizer is not installed"}
        return
    with tempfile.TemporaryDirectory() as folder:
        script = [sys.executable, str(HERE / "acceptance.py"), "--tiny", "--only", "accuracy", "wide", "--out", folder]
        # The script runs its parts in separate processes.
        check = [tool, "--target-processes", "all", "--error-exitcode", "9", "--report-api-errors", "no", *script]
        # With torch's cache, small tensors share a block, so writes past their ends would be within bounds.
        alone = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        try:
            done = subprocess.run(check, capture_output=True, text=True, env=alone, timeout=240)
        except subprocess.TimeoutExpired:
            yield {"left out": "compute-sanitizer took more than 240 s"}
            return
    if "Device not supported" in done.stdout:
        yield {"left out": "compute-sanitizer does not support this device"}
        return
    yield {"tool": tool, "code": done.returncode, "ok": done.returncode == 0, "output": done.stdout[-2000:]}


def spills(tiny: bool) -> Iterator[Row]:
    """Registers, spills and shared memory of the kernels of the default configuration, as compiled for accuracy.

    Kernels for odd numbers of channels have a stack of two words, which does no harm.
    """
    if not GPU or "triton" not in usable_backends():
        return
    from restormixer_arch.selective_scan import triton_kernels as kernels

    for name in ("ends_kernel", "carry_kernel", "apply_kernel", "gradient_kernel"):
        for cache in getattr(getattr(kernels, name), "device_caches", {}).values():
            for compiled in (cache[0] if isinstance(cache, tuple) else cache).values():
                found = {"registers": getattr(compiled, "n_regs", None), "spills": getattr(compiled, "n_spills", None)}
                yield {
                    "kernel": name,
                    **found,
                    "shared": compiled.metadata.shared,
                    "ok": (found["spills"] or 0) <= MAX_SPILLS,
                }
