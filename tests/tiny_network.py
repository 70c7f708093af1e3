"""A RestorMixer of a few thousand parameters that changes pictures, and files of its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from restormixer_arch import RestorMixer
from restormixer_arch.weight_options import add_stamp


def tiny_network(**options: int) -> RestorMixer:
    torch.manual_seed(0)
    heads = {"encoder_heads": (2, 2), "decoder_heads": (2, 2)}
    network = RestorMixer(base_channels=4, num_blocks=(1, 2, 2), d_state=4, **heads, **options)
    torch.nn.init.constant_(network.decoder.head_full.norm.weight, 0.5)  # 0 at first: the picture itself
    return network.fuse()


def save_tiny(path: Path, **options: int) -> Path:
    network = tiny_network(**options)
    save_file(add_stamp(network.state_dict(), network), path)
    return path
