"""How the raw picture at a lower resolution joins the features there: SCM and FAM, as in the MIMO-UNet family.

Shape letters: B batch, C channels, H x W size of the stage.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from restormixer_arch.layers import ConvNormAct, conv


class SCM(nn.Module):
    """Shallow convolution module: lifts the reduced input picture to the stage's channels.

    3x3, 1x1 and 3x3 convolutions with BatchNorm and GELU, a 1x1 convolution, then InstanceNorm.

    Args:
        in_channels: channels of the picture.
        out_channels: C, a multiple of 4.

    Shape:
        (B, in_channels, H, W) -> (B, C, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(conv(in_channels, out_channels // 4, 3))
        self.conv2 = ConvNormAct(conv(out_channels // 4, out_channels // 2, 1))
        self.conv3 = ConvNormAct(conv(out_channels // 2, out_channels // 2, 3))
        self.conv4 = conv(out_channels // 2, out_channels, 1, bias=True)
        self.norm = nn.InstanceNorm2d(out_channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv4(self.conv3(self.conv2(self.conv1(x)))))


class FAM(nn.Module):
    """Feature attention module in this family's later form: concatenation and one 3x3 convolution.

    Args:
        channels: C of both inputs and of the output.

    Shape:
        (B, C, H, W), (B, C, H, W) -> (B, C, H, W)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(2 * channels, channels, 3, bias=True)

    def forward(self, features: Tensor, picture: Tensor) -> Tensor:
        return self.conv(torch.cat([features, picture], dim=1))
