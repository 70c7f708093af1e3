"""Networks that take only some sizes of images, such as BasicSR's SwinIR: their images are padded, and cut again."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from restormixer_arch.layers import pad_to_multiple
from restormixer_arch.protocol import PadsItself


def window_of(network: nn.Module) -> int:
    """Return the multiple that the sides of images must have for a network of windows, 1 where any size will do."""
    if isinstance(network, PadsItself):
        return 1
    windows = (getattr(module, "window_size", None) for module in network.modules())
    return max((window for window in windows if isinstance(window, int)), default=1)


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

    Shape:
        (B, C, H, W) -> (B, C, scale * H, scale * W)
    """

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network = network
        self.multiple = multiple
        for name in ("upscale", "in_channels"):  # what is asked of a network
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))

    def forward(self, x: Tensor) -> Tensor:
        return restore_padded(self.network, x, self.multiple)
