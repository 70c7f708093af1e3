"""Time, memory and operations of one piece of work.

``python -m restormixer_arch.benchmark.measure`` runs one job, given as JSON on stdin, and prints the result as JSON.
Times of several networks are taken in turn, round by round, so that a machine that slows down slows all of them.
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
    """One restoration of (batch, 3, size, size) pictures by a network of the benchmark."""
    network = COMPETITORS[name].build().eval().to(device)
    if isinstance(network, Fusable):
        network.fuse()
    return restoring(network, size, dtype, device, batch)


def restoring(
    network: nn.Module, size: int, dtype: str = "float32", device: str = "cpu", batch: int = 1
) -> Callable[[], object]:
    """One restoration of (batch, 3, size, size) pictures by any network, as it is; the network is on the device."""
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
    """One training step, L1 loss and AdamW, on a (batch, 3, size, size) picture."""
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
    """One selective scan, forward and backward."""
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
    """The fastest scan in pure torch that PyPI has, as its own Mamba block calls it: tensors of (B, L, D, N)."""
    from mambapy.pscan import pscan

    u, delta, B, C = (t.transpose(1, 2) for t in (u, delta, B, C))  # (B, L, ...)
    decays = torch.exp(delta[..., None] * A)
    states = pscan(decays, (delta * u)[..., None] * B[:, :, None])
    return (states @ C[..., None])[..., 0]


def gemm_work(size: int, device: str = "cpu") -> Callable[[], object]:
    """One product of two square matrices."""
    a, b = torch.rand(2, size, size, device=device).unbind(0)
    return lambda: a @ b


def picture_work(task: str, height: int, width: int, device: str = "cpu") -> Callable[[], object]:
    """One restoration of a picture by installed weights, in tiles, as ``basicsr restore`` does it."""
    from restormixer_arch.inference.installed import installed_weights
    from restormixer_arch.inference.restorer import load_restorer

    restorer = load_restorer(installed_weights(task), torch.device(device))
    picture = torch.rand(1, 3, height, width)
    return lambda: restorer(picture)


def start_work(command: str, device: str = "cpu") -> Callable[[], object]:
    """A new Python process: ``torch``, its import alone, or ``restore``, the restoration of a picture of 384x256."""
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
    """Keep processes running that never rest."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def finished(work: Callable[[], object]) -> Callable[[], None]:
    """The same work, left when the GPU has done it."""

    def wait() -> None:
        work()
        torch.cuda.synchronize()

    return wait


def times(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each piece of work, in turn, ``rounds`` times after two warm-ups."""
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
    """Floating-point operations of a forward pass, two for a multiply-add; scans and attention included."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    custom = {attention: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # torch counts nothing of nn.MultiheadAttention's fused operator
    try:
        work()  # the kernel's operator, which brings its count, is registered at its first use
        if hasattr(torch.ops.torchvision, "deform_conv2d"):
            custom[torch.ops.torchvision.deform_conv2d] = _deform_conv_flops
        with FlopCounterMode(display=False, custom_mapping=custom) as counter:
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return float(counter.get_total_flops())


def _deform_conv_flops(x: Any, weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """The products of a deformable convolution, as of a plain one; where it reads its input is not counted."""
    return 2 * math.prod(weight[1:]) * math.prod(out_shape)


def thop_figures(network: nn.Module, size: int) -> tuple[float, float] | None:
    """(multiply-adds, parameters) as the counter ``thop`` prints them, or None where it is not installed.

    thop leaves its marks on the network, which is of no further use.
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
        keep_freed_memory()  # as the command does, for every network
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
