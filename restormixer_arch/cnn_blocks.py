"""The CNN blocks of RestorMixer (arXiv 2504.10967): RDCNN at full resolution, SCM and FAM for downsampled inputs.

Shape letters: B batch, C channels, H x W size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from restormixer_arch.layers import ConvNorm, ConvNormAct, conv, gelu, rowwise


class RDCNN(nn.Module):
    """3x3 convolution, BatchNorm, GELU, 3x3 depthwise and 1x1 convolution, BatchNorm, residual, GELU.

    The paper's figure ends at the addition; the released code and this block apply a GELU after it.

    Args:
        channels: number of channels C.

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
        # The block starts as GELU(x), just as residual blocks in Goyal et al. (arXiv 1706.02677) start as the identity.
        nn.init.zeros_(self.pointwise.norm.weight)

    @rowwise(dim=2, halo=2)
    def forward(self, x: Tensor) -> Tensor:
        return gelu(self.pointwise(self.depthwise(self.conv(x)), residual=x), source=self.pointwise)


class SCM(nn.Module):
    """Shallow convolution module: converts the downsampled input image to features of a stage.

    3x3, 1x1 and 3x3 convolutions with BatchNorm and GELU, a 1x1 convolution, then InstanceNorm.

    Args:
        in_channels: number of image channels.
        out_channels: number of feature channels C, a multiple of 4.

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
        features = self.norm(self.conv4(self.conv3(self.conv2(self.conv1(x)))))
        return features.contiguous(memory_format=torch.channels_last)  # InstanceNorm returns channels-first


class FAM(nn.Module):
    """Feature attention module: merges the features of the downsampled input image into those of the encoder.

    As in later networks derived from MIMO-UNet, this is a concatenation and a 3x3 convolution.

    Args:
        channels: number of channels C of both inputs and of the output.

    Shape:
        (B, C, H, W), (B, C, H, W) -> (B, C, H, W)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(2 * channels, channels, 3, bias=True)

    def forward(self, features: Tensor, image: Tensor) -> Tensor:
        return self.conv(torch.cat([features, image], dim=1))
