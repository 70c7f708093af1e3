"""A RestorMixerModel that trains a tiny network on the CPU, for several test files."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from restormixer_arch.basicsr_adapter import register
from restormixer_arch.models.restormixer_model import RestorMixerModel

register.register()

RESTORMIXER = {
    "type": "RestorMixer",
    "base_channels": 4,
    "num_blocks": [1, 2, 2],
    "encoder_heads": [2, 2],
    "decoder_heads": [2, 2],
    "d_state": 4,
}
SWINIR = {
    "type": "SwinIR",
    **{"upscale": 1, "in_chans": 3, "img_size": 16, "window_size": 8, "img_range": 1.0},
    **{"depths": [2, 2], "embed_dim": 12, "num_heads": [2, 2], "mlp_ratio": 2, "upsampler": "", "drop_path_rate": 0.0},
}
EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 2, "upscale": 1}
NETWORKS = {"RestorMixer": RESTORMIXER, "SwinIR": SWINIR}


def options(tmp_path, network=None, **train) -> dict[str, Any]:
    return {
        "name": "unit",
        "is_train": True,
        "dist": False,
        "num_gpu": 0,
        "rank": 0,
        "scale": 1,
        "manual_seed": 0,
        "datasets": {"train": {"batch_size_per_gpu": 2, "gt_size": 16}},
        "network_g": dict(network or RESTORMIXER),
        "path": {
            "models": str(tmp_path),
            "training_states": str(tmp_path),
            "visualization": str(tmp_path / "pictures"),
        },
        "train": {
            "total_iter": 10,
            "optim_g": {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.1},
            "scheduler": {"type": "CosineAnnealingRestartLR", "periods": [10], "restart_weights": [1]},
            "pixel_opt": {"type": "MultiScaleDualDomainLoss"},
            **train,
        },
        "val": {"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 0}}},
    }


def build(tmp_path, network=None, **train) -> RestorMixerModel:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.meshgrid")  # BasicSR's SwinIR
        return RestorMixerModel(options(tmp_path, network, **train))


def batch(seed=1, images=2, side=16) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(seed)
    lq, gt = torch.rand(2, images, 3, side, side, generator=rng)
    return {"lq": lq, "gt": gt, "lq_path": [f"rain/{seed}_{number}.png" for number in range(images)]}


def step(model, iteration=1, data=None) -> None:
    model.feed_data(batch(iteration) if data is None else data)
    model.optimize_parameters(iteration)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.net_g.state_dict().items()}


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
