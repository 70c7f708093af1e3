"""Small training runs shared by several test files, and the comparison of their results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from restormixer_arch import cli

EXPERIMENT = Path("experiments/tiny")
SWINIR = {"type": "SwinIR", "upscale": 1, "in_chans": 3, "img_size": 16, "window_size": 8, "img_range": 1.0}
SWINIR |= {"depths": [1], "embed_dim": 8, "num_heads": [2], "mlp_ratio": 2, "upsampler": "", "resi_connection": "1conv"}
SWINIR |= {"drop_rate": 0.2}  # dropout uses torch's generator during training
RESTORMIXER = {"type": "RestorMixer", "base_channels": 8, "num_blocks": [1, 2, 2], "encoder_heads": [2, 2]}
COSINE = {"type": "CosineAnnealingRestartLR", "periods": [100], "restart_weights": [1], "eta_min": 1.0e-6}


class Killed(BaseException):
    """Raised instead of sending SIGKILL to the test process."""


def several_batches(options: dict[str, Any], total: int = 8) -> dict[str, Any]:
    """Change the options of the shared fixture to three batches per epoch, with EMA and all augmentations."""
    options["datasets"]["train"].update(batch_size_per_gpu=2, use_rot=True)
    options["train"].update(total_iter=total, ema_decay=0.9, scheduler=dict(COSINE), warmup_iter=3)
    return options


def architecture(options: dict[str, Any], name: str) -> dict[str, Any]:
    """Change the options to train another network."""
    if name == "SwinIR":
        options.update(model_type="SwinIRModel", network_g=dict(SWINIR))
    elif name == "RestorMixer":
        options.update(model_type="RestorMixerModel", network_g=dict(RESTORMIXER))
        options["datasets"]["train"]["type"] = options["datasets"]["val"]["type"] = "PairedRestorationDataset"
    return options


def train(file: str, *arguments: str) -> int:
    return cli.main(["train", "-opt", file, *arguments])


def load(name: str, experiment: Path = EXPERIMENT) -> Any:
    return torch.load(experiment / name, weights_only=True)


def same(left: Any, right: Any) -> bool:
    """Return whether both contain the same values; tensors are compared bit by bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right
