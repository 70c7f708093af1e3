"""RDCNN, the residual depth CNN block of RestorMixer's full-resolution stages (arXiv 2504.10967).

Shape letters: B batch, C channels, H x W size.
"""

from __future__ import annotations

from torch import Tensor, nn

from restormixer_arch.layers import ConvNorm, ConvNormAct, conv, gelu, rowwise


class RDCNN(nn.Module):
    """3x3 convolution, BatchNorm, GELU, 3x3 depthwise and 1x1 convolution, BatchNorm, residual, GELU.

    The paper's figure ends at the addition; the released code, and so this block, has a GELU after it.

    Args:
        channels: C.

    Shape:
        (B, C, H, W) -> (B, C, H, W)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvNormAct(conv(channels, channels, 3))
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = ConvNorm(conv(channels, channels, 1))
        for weight in (self.conv.conv.weight, self.depthwise.weight, self.pointwise.conv.weight):
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")

    @rowwise(dim=2, halo=2)
    def forward(self, x: Tensor) -> Tensor:
        return gelu(x + self.pointwise(self.depthwise(self.conv(x))))
