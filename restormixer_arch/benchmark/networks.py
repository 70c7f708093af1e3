"""Build the networks to compare, each from the library that provides it, with random weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


def restormixer() -> nn.Module:
    from restormixer_arch.restormixer_arch import RestorMixer

    return RestorMixer()


def nafnet_32() -> nn.Module:
    from spandrel.architectures.NAFNet import NAFNet

    return NAFNet(width=32, enc_blk_nums=[2, 2, 4, 8], middle_blk_num=12, dec_blk_nums=[2, 2, 2, 2])


def restormer() -> nn.Module:
    from spandrel_extra_arches.architectures.Restormer import Restormer

    return Restormer()


def swinir_light() -> nn.Module:
    from restormixer_arch.basicsr_adapter import compat

    compat.apply()
    from basicsr.archs.swinir_arch import SwinIR

    return SwinIR(
        img_size=64, window_size=8, depths=[6, 6, 6, 6], embed_dim=60, num_heads=[6, 6, 6, 6], mlp_ratio=2, upsampler=""
    )


# The small networks are those of options/compare_equal_budget.yml.
def restormixer_s() -> nn.Module:
    from restormixer_arch.restormixer_arch import RestorMixer

    return RestorMixer(base_channels=16, num_blocks=(2, 2, 2), deep_supervision=False)


def nafnet_s() -> nn.Module:
    from spandrel.architectures.NAFNet import NAFNet

    return NAFNet(width=16, enc_blk_nums=[1, 1, 1], middle_blk_num=4, dec_blk_nums=[1, 1, 1])


def restormer_s() -> nn.Module:
    from spandrel_extra_arches.architectures.Restormer import Restormer

    sizes = {"dim": 12, "num_blocks": [1, 1, 1, 2], "num_refinement_blocks": 1, "heads": [1, 2, 4, 6]}
    return Restormer(**sizes, ffn_expansion_factor=2.0)


def unet_s() -> nn.Module:
    from spandrel.architectures.DRUNet import DRUNet

    return DRUNet(in_nc=3, out_nc=3, nc=[16, 32, 64, 64], nb=2)


@dataclass(frozen=True)
class Competitor:
    """A network to compare with: a function that builds it, and the package that it requires."""

    build: Callable[[], nn.Module]
    package: str


COMPETITORS = {
    "RestorMixer": Competitor(restormixer, "torch"),
    "NAFNet-32": Competitor(nafnet_32, "spandrel"),
    "Restormer": Competitor(restormer, "spandrel_extra_arches"),
    "SwinIR-light": Competitor(swinir_light, "basicsr"),
    "RestorMixer-S": Competitor(restormixer_s, "torch"),
    "NAFNet-S": Competitor(nafnet_s, "spandrel"),
    "U-Net-S": Competitor(unet_s, "spandrel"),
    "Restormer-S": Competitor(restormer_s, "spandrel_extra_arches"),
}
SMALL = ("RestorMixer-S", "NAFNet-S", "U-Net-S", "Restormer-S")  # 0.52 to 0.65 M parameters


def missing(name: str) -> str | None:
    """Return the missing package of the network ``name``, or None if it can be built."""
    package = COMPETITORS[name].package
    return None if importlib.util.find_spec(package) else package
