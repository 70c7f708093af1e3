"""Test the network and the commands: parts of acceptance.py, with rows as in scan_parts.py."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import stubs  # noqa: F401 - first of all: it makes the others importable
import torch
from scan_parts import DEVICE, GPU, Row, milliseconds, peak_mib, usable_backends
from torch import Tensor, nn

from restormixer_arch import emvm
from restormixer_arch.restormixer_arch import RestorMixer

TINY_NETWORK = {
    "base_channels": 4,
    "num_blocks": (1, 2, 2),
    "d_state": 2,
    "encoder_heads": (1, 1),
    "decoder_heads": (1, 1),
}
# Maximum relative difference of the loss from the first row's, which is trained in float32. The loss is an average over
# all pixels of the outputs, so rounding errors cancel out.
LOSS_LIMITS = {None: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def train_step(network: nn.Module, x: Tensor, amp: torch.dtype | None) -> Tensor:
    """Run a forward and a backward pass, and return the loss."""
    with torch.autocast(DEVICE.type, amp or torch.bfloat16, enabled=amp is not None):
        outputs = network(x)
    loss = sum((o.float() - 0.5).abs().mean() for o in ([outputs] if isinstance(outputs, Tensor) else outputs))
    loss.backward()
    return loss


def _new_network(tiny: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network = RestorMixer(**(TINY_NETWORK if tiny else {})).to(DEVICE).train()
    return network, torch.rand(1 if tiny else 8, 3, *(16, 16) if tiny else (256, 256), device=DEVICE)


def steps(tiny: bool) -> Iterator[Row]:
    """Training steps of the network: every scan and precision, and once compiled; all have the same loss."""
    original, first_loss = emvm.selective_scan_2d, None
    for backend in usable_backends() if GPU else ("torch",):  # Triton's interpreter would take an hour
        for amp in (None, torch.bfloat16, torch.float16) if GPU else (None,):
            # Compiling takes minutes, so only one row is compiled.
            for compiled in (False, True) if GPU and (backend, amp) == ("triton", torch.bfloat16) else (False,):
                network, x = _new_network(tiny)
                if compiled:
                    network.compile()
                row = {"backend": backend, "amp": str(amp)[6:] if amp else "off", "compiled": compiled}
                try:
                    with patch.object(emvm, "selective_scan_2d", partial(original, backend=backend)):
                        begin = time.perf_counter()
                        loss = train_step(network, x, amp).item()
                        row |= {"first_s": round(time.perf_counter() - begin, 1), "loss": round(loss, 5)}
                        if first_loss is None and amp is None:
                            first_loss = loss
                        row["ok"] = first_loss is not None and abs(loss / first_loss - 1) <= LOSS_LIMITS[amp]
                        work = partial(train_step, network, x, amp)
                        row |= {"step_ms": milliseconds(work, 5), "peak_MiB": peak_mib(work)}
                    yield row
                except Exception as error:  # noqa: BLE001 - reported; the other ways still run
                    yield row | {"error": f"{type(error).__name__}: {str(error)[:300]}"}


def depthwise(tiny: bool) -> Iterator[Row]:
    """Depthwise convolutions of the network in both memory formats, forward and backward."""
    for channels, side in ((4, 8),) if tiny else ((32, 256), (128, 128), (256, 64)):
        conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels).to(DEVICE)
        for form in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(1 if tiny else 8, channels, side, side, device=DEVICE).to(memory_format=form)
            x.requires_grad_()
            for dtype in (torch.float32, torch.bfloat16) if GPU else (torch.float32,):

                def work(x: Tensor = x, conv: nn.Module = conv, dtype: torch.dtype = dtype) -> None:
                    with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
                        conv(x).float().sum().backward()

                row = {"channels": channels, "side": side, "format": str(form)[6:], "dtype": str(dtype)[6:]}
                yield row | {"both_ms": milliseconds(work)}


def distributed(tiny: bool) -> Iterator[Row]:
    """Two steps of DistributedDataParallel in one process."""
    import torch.distributed as dist

    backend = "nccl" if GPU else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            network, x = _new_network(tiny)
            wrapped = nn.parallel.DistributedDataParallel(network, device_ids=[0] if GPU else None)
            losses = [train_step(wrapped, x, None).item() for _ in range(2)]
            yield {"backend": backend, "losses": losses}
        finally:
            dist.destroy_process_group()


def rivals(tiny: bool) -> Iterator[Row]:
    """Training steps of other networks, where the package that keeps them is installed."""
    from restormixer_arch.benchmark.networks import COMPETITORS, missing

    for name in ("RestorMixer", "NAFNet-32", "Restormer"):
        if missing(name) or tiny:
            yield {"network": name, "left out": f"{missing(name)} is not installed" if missing(name) else "tiny"}
            continue
        network, x = COMPETITORS[name].build().to(DEVICE).train(), torch.rand(4, 3, 256, 256, device=DEVICE)
        work = partial(train_step, network, x, torch.bfloat16)
        yield {"network": name, "batch": 4, "step_ms": milliseconds(work, 5), "peak_MiB": peak_mib(work)}


def commands(tiny: bool) -> Iterator[Row]:
    """``basicsr doctor``, ``restore``, a training of ten iterations and ``bench``, each as a user would run it."""
    if importlib.util.find_spec("basicsr") is None:
        yield {"command": "basicsr", "left out": "basicsr is not installed"}
        return
    import cv2
    import numpy as np

    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(0)
        for kind in ("gt", "lq"):
            (folder / kind).mkdir()
            for number in range(6):
                side = 40 if tiny else 300
                picture = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
                cv2.imwrite(str(folder / kind / f"{number}.png"), picture)
        (folder / "x.yml").write_text(json.dumps(_training(tiny)), encoding="utf-8")  # JSON is valid YAML
        for command in (
            ["doctor"],
            ["restore", "lq/0.png", "-o", "out", "--device", DEVICE.type, "--task", "derain"],
            ["train", "-opt", "x.yml"],
            *([["bench", "--device", "cuda", "--quick", "--rounds", "3"]] if GPU and not tiny else []),
        ):
            begin = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "restormixer_arch.cli", *command], cwd=folder, capture_output=True, text=True
            )
            row = {"command": " ".join(command), "code": done.returncode, "s": round(time.perf_counter() - begin, 1)}
            text = done.stdout if command[0] in ("doctor", "bench") else (done.stdout + done.stderr)[-2000:]
            yield row | {"ok": done.returncode == 0, "output": text}


def _training(tiny: bool) -> Row:
    pairs = {"type": "PairedImageDataset", "dataroot_gt": "gt", "dataroot_lq": "lq", "io_backend": {"type": "disk"}}
    network = {name: list(v) if isinstance(v, tuple) else v for name, v in TINY_NETWORK.items()} if tiny else {}
    loader = {"num_worker_per_gpu": 2, "batch_size_per_gpu": 2, "gt_size": 16 if tiny else 128}
    return {
        **{"name": "acceptance", "model_type": "RestorMixerModel", "scale": 1, "num_gpu": int(GPU), "manual_seed": 0},
        "datasets": {
            "train": {**pairs, "name": "train", "use_hflip": True, "use_rot": True, **loader},
            "val": {**pairs, "name": "val"},
        },
        "network_g": {"type": "RestorMixer", **network},
        "path": {},
        "train": {
            **{"total_iter": 10, "ema_decay": 0.9, "amp": "bf16"},
            "optim_g": {"type": "AdamW", "lr": 1e-4},
            "scheduler": {"type": "CosineAnnealingRestartLR", "periods": [10], "restart_weights": [1]},
            "pixel_opt": {"type": "MultiScaleDualDomainLoss"},
        },
        "val": {"val_freq": 10, "save_img": False, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 0}}},
        "logger": {"print_freq": 1, "save_checkpoint_freq": 10, "use_tb_logger": False},
    }
