"""Networks as a restorer takes them: for images of any size, which some, such as BasicSR's SwinIR, do not take."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from restormixer_arch.layers import pad_to_multiple


def window_of(network: nn.Module) -> int:
    """Return the multiple that the sides of images must have for a network of windows, 1 where any size will do."""
    if getattr(network, "pads_itself", False):
        return 1
    own = getattr(network, "window_size", None)
    return max([own if isinstance(own, int) else 1, *map(window_of, network.children())])


def restore_padded(restore: Callable[[Tensor], Tensor], x: Tensor, multiple: int) -> Tensor:
    """Mirror images at the right and lower edges up to a multiple, restore them, and cut the result.

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
    """A network whose images are mirrored at the right and lower edges to a multiple, and cut again.

    It runs without ``torch.compile``, which would compile it again for each size.

    Args:
        network: restores images whose sides are multiples.
        multiple: of the sides.
        upscale: of the network, where it does not say it itself.
        channels: of the images, where the network does not say it.

    Shape:
        (B, C, H, W) -> (B, C, upscale * H, upscale * W)
    """

    def __init__(self, network: nn.Module, multiple: int, upscale: int = 1, channels: int = 3) -> None:
        super().__init__()
        self.network = network
        self.multiple = multiple
        own = getattr(network, "upscale", None)  # of some networks it is a layer
        self.upscale = own if isinstance(own, int) else upscale
        self.in_channels = getattr(network, "in_channels", channels)

    def forward(self, x: Tensor) -> Tensor:
        return restore_padded(self.network.forward, x, self.multiple)
