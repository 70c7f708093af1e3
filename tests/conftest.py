"""Shared fixtures: a few pairs of tiny images, and option files that train and test on them."""

from __future__ import annotations

import json
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, settings

# The same examples on every machine, however slow it is.
settings.register_profile("tests", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # each process would use all cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

NETWORK = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 1}
NETWORK |= {"img_range": 255.0, "rgb_mean": [0.5, 0.5, 0.5]}
PAIRS = {
    "type": "PairedImageDataset",
    "dataroot_gt": "pairs/gt",
    "dataroot_lq": "pairs/lq",
    "io_backend": {"type": "disk"},
}
METRICS = {"psnr": {"type": "calculate_psnr", "crop_border": 0}}
COMMON = {"name": "tiny", "model_type": "SRModel", "scale": 1, "num_gpu": "auto", "manual_seed": 0}


@pytest.fixture(autouse=True)
def fresh_log() -> Iterator[None]:
    """Close BasicSR's log after each test, because BasicSR opens it only once per process."""
    yield
    module = sys.modules.get("basicsr.utils.logger")
    if module is not None and module.initialized_logger.pop("basicsr", None):
        logger = logging.getLogger("basicsr")
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = True


@pytest.fixture(autouse=True)
def same_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed the global generators, and clear the variable that changes the pixel limit."""
    monkeypatch.delenv("RESTORMIXER_MAX_PIXELS", raising=False)
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own(folder: Path) -> Path:
    """A working directory with twelve pairs of images in the folders ``gt`` and ``lq``."""
    from paired_folders import write_pairs

    write_pairs()
    return folder


@pytest.fixture
def root(folder: Path) -> Path:
    """An empty folder ``root`` in the working directory, for downloaded datasets."""
    (folder / "root").mkdir()
    return folder / "root"


@pytest.fixture
def restore_folder(folder: Path) -> Path:
    """A working directory with the weights of a network that returns its input, and an empty folder ``in``."""
    from tiny_network import save_identity

    save_identity(folder / "w.safetensors")
    (folder / "in").mkdir()
    return folder


@pytest.fixture
def pairs(folder: Path) -> Path:
    """A working directory with six pairs of images, ``pairs/gt/<n>.png`` and ``pairs/lq/<n>.png``."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    for kind in ("gt", "lq"):
        (folder / "pairs" / kind).mkdir(parents=True)
    for number in range(6):
        image = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"pairs/gt/{number}.png"), image)
        cv2.imwrite(str(folder / f"pairs/lq/{number}.png"), image // 2)
    return folder


@pytest.fixture
def train_options() -> dict[str, Any]:
    """Options of a training run of five iterations, each with a batch of four of the six pairs."""
    options = {
        **COMMON,
        "datasets": {
            "train": {
                **PAIRS,
                **{"name": "pairs", "gt_size": 16, "use_hflip": True, "use_rot": False},
                **{"num_worker_per_gpu": 0, "batch_size_per_gpu": 4},
            },
            "val": {**PAIRS, "name": "pairs_val"},
        },
        "network_g": NETWORK,
        "path": {},
        "train": {
            "optim_g": {"type": "Adam", "lr": 0.001},
            "scheduler": {"type": "MultiStepLR", "milestones": [100]},
            "total_iter": 5,
            "pixel_opt": {"type": "L1Loss"},
        },
        "val": {"val_freq": 100, "save_img": False, "metrics": METRICS},
        "logger": {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False},
    }
    return json.loads(json.dumps(options))


@pytest.fixture
def test_options() -> dict[str, Any]:
    """Options that test the weights trained with ``train_options``."""
    options = {
        **COMMON,
        "datasets": {"test_1": {**PAIRS, "name": "pairs_test"}},
        "network_g": NETWORK,
        "path": {"pretrain_network_g": "experiments/tiny/models/net_g_latest.pth"},
        "val": {"save_img": True, "metrics": METRICS},
    }
    return json.loads(json.dumps(options))


@pytest.fixture
def write(folder: Path) -> Callable[[dict[str, Any]], str]:
    """A function that writes options to ``x.yml`` in the working directory and returns this file name."""

    def write_options(options: dict[str, Any]) -> str:
        Path(folder, "x.yml").write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
        return "x.yml"

    return write_options
