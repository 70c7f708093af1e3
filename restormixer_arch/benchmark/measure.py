"""Measure the time, memory and operations of one piece of work.

``python -m restormixer_arch.benchmark.measure`` runs one job, read as JSON from stdin, and prints the result as JSON.
Several networks are timed alternately, round by round, so a machine that slows down slows all of them.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from restormixer_arch.benchmark.networks import COMPETITORS
from restormixer_arch.memory import keep_freed_memory, peak_bytes
from restormixer_arch.processes import module_command
from restormixer_arch.protocol import Fusable


def forward_work(
    name: str, size: int, dtype: str = "float32", device: str = "cpu", batch: int = 1
) -> Callable[[], object]:
    """Return a function that restores (batch, 3, size, size) images with a network of the benchmark."""
    network = COMPETITORS[name].build().eval().to(device)
    if isinstance(network, Fusable):
        network.fuse()
    return restoring(network, size, dtype, device, batch)


def restoring(
    network: nn.Module, size: int, dtype: str = "float32", device: str = "cpu", batch: int = 1
) -> Callable[[], object]:
    """Return a function that restores (batch, 3, size, size) images with ``network``, which must be on ``device``."""
    x = torch.rand(batch, 3, size, size, device=device)
    if dtype == "float32":
        run = network
    else:
        kind = getattr(torch, dtype)

        def run(x: Tensor) -> Tensor:
            with torch.autocast(device, dtype=kind):
                return network(x)

    def work() -> object:
        with torch.inference_mode():
            return run(x)

    return work


def step_work(name: str, size: int, batch: int, device: str = "cpu") -> Callable[[], object]:
    """Return a function that runs one training step (L1 loss, AdamW) on a batch of shape (batch, 3, size, size)."""
    network = COMPETITORS[name].build().train().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    x, target = torch.rand(2, batch, 3, size, size, device=device).unbind(0)

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        outputs = network(x)
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        loss = sum((o - nn.functional.interpolate(target, o.shape[-2:], mode="bilinear")).abs().mean() for o in outputs)
        loss.backward()
        optimizer.step()

    return work


def scan_work(
    backend: str, batch: int, channels: int, length: int, states: int, device: str = "cpu"
) -> Callable[[], object]:
    """Return a function that runs one selective scan, forward and backward."""
    tensors = {
        "u": torch.randn(batch, channels, length),
        "delta": torch.rand(batch, channels, length) * 0.1,
        "A": -torch.rand(channels, states) - 0.5,
        "B": torch.randn(batch, states, length),
        "C": torch.randn(batch, states, length),
    }
    tensors = {name: tensor.to(device).requires_grad_() for name, tensor in tensors.items()}
    scan = _mambapy_scan if backend == "mambapy" else _own_scan(backend)

    def work() -> None:
        for tensor in tensors.values():
            tensor.grad = None
        scan(**tensors).sum().backward()

    return work


def _own_scan(backend: str) -> Callable[..., Tensor]:
    from restormixer_arch.selective_scan import selective_scan

    return lambda u, delta, A, B, C: selective_scan(u, delta, A, B[:, None], C[:, None], backend=backend)


def _mambapy_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Run the fastest pure-torch scan on PyPI, as its own Mamba block does: on (B, L, D, N) tensors."""
    from mambapy.pscan import pscan

    u, delta, B, C = (t.transpose(1, 2) for t in (u, delta, B, C))  # (B, L, ...)
    decays = torch.exp(delta[..., None] * A)
    states = pscan(decays, (delta * u)[..., None] * B[:, :, None])
    return (states @ C[..., None])[..., 0]


def gemm_work(size: int, device: str = "cpu") -> Callable[[], object]:
    """Return a function that multiplies two square matrices."""
    a, b = torch.rand(2, size, size, device=device).unbind(0)
    return lambda: a @ b


def picture_work(task: str, height: int, width: int, device: str = "cpu") -> Callable[[], object]:
    """Return a function that restores an image with installed weights, in tiles, as ``basicsr restore`` does."""
    from restormixer_arch.inference.installed import installed_weights
    from restormixer_arch.inference.restorer import load_restorer

    restorer = load_restorer(installed_weights(task), torch.device(device))
    picture = torch.rand(1, 3, height, width)
    return lambda: restorer(picture)


def start_work(command: str, device: str = "cpu") -> Callable[[], object]:
    """Return a function that starts Python to import torch (``torch``) or to restore a 384x256 image (``restore``)."""
    if command == "torch":
        return lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True)

    def restore() -> None:
        with tempfile.TemporaryDirectory() as folder:
            picture = f"{folder}/picture.png"
            Image.effect_noise((384, 256), 64).convert("RGB").save(picture)
            arguments = ["restore", picture, "-o", f"{folder}/restored", "--device", device]
            run = [*module_command("restormixer_arch.cli"), *arguments]
            subprocess.run(run, check=True, capture_output=True)

    return restore


WORKS = {
    "forward": forward_work,
    "step": step_work,
    "scan": scan_work,
    "gemm": gemm_work,
    "picture": picture_work,
    "start": start_work,
}


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep ``count`` processes running in busy loops."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def finished(work: Callable[[], object]) -> Callable[[], None]:
    """Wrap ``work`` so that it returns only after the GPU has finished it."""

    def wait() -> None:
        work()
        torch.cuda.synchronize()

    return wait


def times(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the times of each piece of work in seconds: ``rounds`` alternating measurements after two warm-up runs."""
    for work in works.values():
        work()
        work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            begin = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - begin)
    return taken


def operations(work: Callable[[], object]) -> float:
    """Count the floating-point operations of a forward pass, two per multiply-add, including scans and attention."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    custom = {attention: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # torch does not count the fused operator of nn.MultiheadAttention
    try:
        work()  # the kernel's operator, with its FLOP count, is registered at first use
        if hasattr(torch.ops.torchvision, "deform_conv2d"):
            custom[torch.ops.torchvision.deform_conv2d] = _deform_conv_flops
        with FlopCounterMode(display=False, custom_mapping=custom) as counter:
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return float(counter.get_total_flops())


def _deform_conv_flops(x: Any, weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Count a deformable convolution as a plain one, without the sampling of its input."""
    return 2 * math.prod(weight[1:]) * math.prod(out_shape)


def thop_figures(network: nn.Module, size: int) -> tuple[float, float] | None:
    """Return (multiply-adds, parameters) as counted by ``thop``, or None if it is not installed.

    thop modifies the network, which must not be used afterwards.
    """
    try:
        import thop
    except ImportError:
        return None
    macs, parameters = thop.profile(network.eval(), (torch.rand(1, 3, size, size),), verbose=False)
    return float(macs), float(parameters)


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Run one job: ``{"kind": "times" | "memory" | "operations", "device": "cpu" | "cuda", ...}``."""
    device = job.get("device", "cpu")
    on_gpu = device == "cuda"
    if not job.get("own_malloc"):
        keep_freed_memory()  # as the basicsr command does, for every network
    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    if job["kind"] == "times":
        works = {label: WORKS[work](**arguments, device=device) for label, (work, arguments) in job["works"].items()}
        with busy_processes(job.get("busy", 0)):
            return times({label: finished(work) if on_gpu else work for label, work in works.items()}, job["rounds"])
    if job["kind"] == "memory":
        work = WORKS[job["work"]](**job["arguments"], device=device)
        work()
        work()
        return {"peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_bytes()}
    network = COMPETITORS[job["network"]].build()
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "operations": operations(forward_work(job["network"], job["size"])),
        "thop": thop_figures(network, job["size"]),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run_job(json.load(sys.stdin))) + "\n")
