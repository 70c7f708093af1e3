"""A RestorMixer with about 40,000 parameters that changes images, and files with its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from restormixer_arch import RestorMixer
from restormixer_arch.cnn_blocks import RDCNN
from restormixer_arch.weight_options import add_stamp


def identity_network(**options: int) -> RestorMixer:
    """Return an untrained network: it returns its input, upsampled bicubically by ``upscale``."""
    torch.manual_seed(0)
    heads = {"encoder_heads": (2, 2), "decoder_heads": (2, 2)}
    return RestorMixer(base_channels=4, num_blocks=(1, 2, 2), d_state=4, **heads, **options)


def wake(network: RestorMixer) -> RestorMixer:
    """Set the scales that start at 0 to 0.5, so every layer affects the output."""
    torch.nn.init.constant_(network.decoder.head_full.norm.weight, 0.5)
    for module in network.modules():
        if isinstance(module, RDCNN):
            torch.nn.init.constant_(module.pointwise.norm.weight, 0.5)
    return network


def tiny_network(**options: int) -> RestorMixer:
    return wake(identity_network(**options)).fuse()


def save_identity(path: Path, **options: int) -> Path:
    network = identity_network(**options)
    save_file(add_stamp(network.state_dict(), network), path)
    return path


def save_tiny(path: Path, **options: int) -> Path:
    network = tiny_network(**options)
    save_file(add_stamp(network.state_dict(), network), path)
    return path
