"""Pad images for networks that do not accept every image size, such as BasicSR's SwinIR."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from restormixer_arch.layers import pad_to_multiple


def required_multiple(network: nn.Module) -> int:
    """Return the largest window size in a network, of which image sides must be a multiple; 1 if any size works."""
    if getattr(network, "pads_itself", False):
        return 1
    own = getattr(network, "window_size", None)
    return max([own if isinstance(own, int) else 1, *map(required_multiple, network.children())])


def restore_padded(restore: Callable[[Tensor], Tensor], x: Tensor, multiple: int) -> Tensor:
    """Pad images at the right and bottom to a multiple by reflection, restore them, and crop the result.

    Shape:
        (B, C, H, W) -> (B, C, scale * H, scale * W)
    """
    if multiple == 1:
        return restore(x)
    height, width = x.shape[-2:]
    out = restore(pad_to_multiple(x, multiple))
    scale = out.shape[-1] // (width + -width % multiple)
    return out[..., : height * scale, : width * scale]


class Padded(nn.Module):
    """A network that pads images at the right and bottom to a multiple by reflection, and crops the result.

    The network runs without ``torch.compile``, which would compile it again for each size.

    Args:
        network: network for images whose sides are multiples of ``multiple``.
        multiple: number of pixels that the sides are padded to a multiple of.
        upscale: upscaling factor, if the network has no integer attribute ``upscale``.
        channels: number of image channels, if the network has no attribute ``in_channels``.

    Shape:
        (B, C, H, W) -> (B, C, upscale * H, upscale * W)
    """

    def __init__(self, network: nn.Module, multiple: int, upscale: int = 1, channels: int = 3) -> None:
        super().__init__()
        self.network = network
        self.multiple = multiple
        own = getattr(network, "upscale", None)  # in some networks this is a layer
        self.upscale = own if isinstance(own, int) else upscale
        self.in_channels = getattr(network, "in_channels", channels)

    def forward(self, x: Tensor) -> Tensor:
        return restore_padded(self.network.forward, x, self.multiple)
