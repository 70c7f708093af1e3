"""Use any restoration network of ARCH_REGISTRY for super-resolution, to compare networks that have no upscaler."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from restormixer_arch.basicsr_adapter import spandrel_networks
from restormixer_arch.protocol import DeeplySupervised


class Upscaled(nn.Module):
    """A network that runs at input resolution and whose output channels become pixels (pixel shuffle).

    The network receives each channel ``upscale**2`` times and returns as many channels. Its residual, after the pixel
    shuffle, is added to the bicubically upsampled input, as in RestorMixer.

    Args:
        network: section ``network_g`` of a network with ``3 * upscale**2`` input and output channels, and one more
            input channel with ``noise_map``.
        upscale: upscaling factor of each side. With 1, only the input is added to the output, for networks that do not
            do this themselves, such as DRUNet (``residual: false``).
        residual: whether the network adds its input to its output, as NAFNet and Restormer do; if not, its output is
            the residual.
        noise_map: value of an additional, constant input channel, for networks that expect a noise level map, such as
            DRUNet. Without it, DRUNet, which has no biases, scales its output with its input and cannot correct
            exposure.

    Shape:
        (B, C, H, W) in [0, 1] -> (B, C, upscale * H, upscale * W), not clamped

    Raises:
        UserError: if no network has that type.
    """

    def __init__(
        self, *, network: dict[str, Any], upscale: int = 2, residual: bool = True, noise_map: float | None = None
    ) -> None:
        super().__init__()
        self.network = spandrel_networks.build(network, "network_g.network.type")
        if isinstance(self.network, DeeplySupervised):
            self.network.set_deep_supervision(False)
            unused = getattr(self.network, "_ddp_params_and_buffers_to_ignore", ())  # read by torch from the root only
            names = [f"network.{name}" for name in unused]
            nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, names)
        self.upscale = upscale
        self.residual = residual
        self.noise_map = noise_map

    def forward(self, x: Tensor) -> Tensor:
        repeated = x.repeat_interleave(self.upscale**2, dim=1)
        given = repeated if self.noise_map is None else F.pad(repeated, (0, 0, 0, 0, 0, 1), value=self.noise_map)
        out = self.network(given)
        bicubic = F.interpolate(x, scale_factor=float(self.upscale), mode="bicubic", align_corners=False)
        return bicubic + F.pixel_shuffle(out - repeated if self.residual else out, self.upscale)
