"""Any restoration network of ARCH_REGISTRY as one for super-resolution, to compare networks that have no upscaler."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from restormixer_arch.basicsr_adapter import spandrel_networks
from restormixer_arch.protocol import DeeplySupervised


class Upscaled(nn.Module):
    """A network at the resolution of the input whose last channels become pixels of the output (pixel shuffle).

    The network is given each channel ``upscale**2`` times and returns as many; what it adds to them is added to the
    bicubic enlargement, as RestorMixer does.

    Args:
        network: a section ``network_g`` of a network that takes and returns ``3 * upscale**2`` channels.
        upscale: of each side. With 1 this only adds the input to the output, for networks that do not, such as DRUNet
            (``residual: false``).
        residual: the network adds its own input to its output, as NAFNet and Restormer do; otherwise its output is
            taken for the residual itself.

    Shape:
        (B, C, H, W) in [0, 1] -> (B, C, upscale * H, upscale * W), not clamped

    Raises:
        UserError: there is no network of that type.
    """

    def __init__(self, *, network: dict[str, Any], upscale: int = 2, residual: bool = True) -> None:
        super().__init__()
        self.network = spandrel_networks.build(network, "network_g.network.type")
        if isinstance(self.network, DeeplySupervised):
            self.network.set_deep_supervision(False)
            unused = getattr(self.network, "_ddp_params_and_buffers_to_ignore", ())  # which torch asks the root for
            names = [f"network.{name}" for name in unused]
            nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, names)
        self.upscale = upscale
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        repeated = x.repeat_interleave(self.upscale**2, dim=1)
        out = self.network(repeated)
        bicubic = F.interpolate(x, scale_factor=float(self.upscale), mode="bicubic", align_corners=False)
        return bicubic + F.pixel_shuffle(out - repeated if self.residual else out, self.upscale)
