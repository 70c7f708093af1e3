"""Small compare files shared by several test files."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 1}
RIDNET = {"type": "RIDNet", "in_channels": 3, "mid_channels": 16, "out_channels": 3, "num_block": 1}
PAIRS = {
    "type": "PairedImageDataset",
    "dataroot_gt": "pairs/gt",
    "dataroot_lq": "pairs/lq",
    "io_backend": {"type": "disk"},
}
LOADED = {"gt_size": 16, "use_hflip": True, "use_rot": False, "num_worker_per_gpu": 0, "batch_size_per_gpu": 2}
OPTIONS = {
    "name": "tiny",
    "num_gpu": 0,
    "competitors": {"edsr": {"network_g": EDSR}, "ridnet": {"network_g": RIDNET}},
    "datasets": {"train": {**PAIRS, "name": "pairs", **LOADED}, "test": {**PAIRS, "name": "pairs_test"}},
    "train": {
        "budget": {"iterations": 4},
        "optim_g": {"type": "Adam", "lr": 0.001},
        "pixel_opt": {"type": "L1Loss"},
        "ema_decay": 0.5,
    },
    "val": {"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 0}}},
    "measure": {"size": 16, "rounds": 2},
}


def compare_options() -> dict[str, Any]:
    """Return options that compare two tiny networks, trained for four iterations on the images of fixture ``pairs``."""
    return deepcopy(OPTIONS)
