"""MWSA, the multi-scale window self-attention block of RestorMixer (arXiv 2504.10967).

"Multi-scale" refers to the sequence of blocks: the i-th block of a stage, from i = 0, attends in windows of 8 (i + 1)
pixels by default. There is no shift, no relative position bias and no mask.

Shape letters: B batch, H x W size of the stage, C channels, w window side, G windows in the batch, T = w * w.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from restormixer_arch.layers import Mlp, linear_act, rowwise
from restormixer_arch.native import blocks as native_blocks


def to_windows(x: Tensor, side: int) -> Tensor:
    """Pad an image with zeros at the right and bottom and split it into windows. (B, H, W, C) -> (G, T, C)"""
    x = F.pad(x, (0, 0, 0, -x.shape[2] % side, 0, -x.shape[1] % side))
    return rearrange(x, "b (rows i) (columns j) c -> (b rows columns) (i j) c", i=side, j=side)


def from_windows(windows: Tensor, like: Tensor, side: int) -> Tensor:
    """Reassemble windows to an image and crop the padding. (G, T, C) -> (B, H, W, C), the shape of ``like``"""
    height, width = like.shape[1:3]
    counts = {"rows": -(-height // side), "columns": -(-width // side)}
    x = rearrange(windows, "(b rows columns) (i j) c -> b (rows i) (columns j) c", **counts, i=side)
    return x[:, :height, :width].contiguous()  # followed by channels-last convolutions


class WindowAttention(nn.Module):
    """Multi-head self-attention inside each window.

    Args:
        channels: number of channels C, a multiple of ``heads``.
        heads: number of attention heads.

    Shape:
        (G, T, C) -> (G, T, C)

    Raises:
        ValueError: if ``channels`` is not a multiple of ``heads``.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels must be a multiple of heads, got {channels} channels and {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        qkv = linear_act(self.qkv, x)
        if native_blocks.usable(qkv):
            return linear_act(self.proj, native_blocks.window_attention(qkv, self.heads))
        q, k, v = rearrange(qkv, "g t (three heads c) -> three g heads t c", three=3, heads=self.heads)
        y = F.scaled_dot_product_attention(q, k, v)
        return linear_act(self.proj, rearrange(y, "g heads t c -> g t (heads c)"))


class MWSA(nn.Module):
    """Window self-attention and MLP, both pre-norm and residual, on channels-last features.

    The features are padded to complete windows with zeros at the right and bottom *before* the LayerNorm. As in the
    released code, the padded tokens take part in the attention like all others.

    Args:
        channels: number of channels C.
        heads: number of attention heads.
        window_size: side of the windows in pixels of the stage.
        mlp_ratio: hidden channels of the MLP as a multiple of C, rounded down.

    Shape:
        (B, H, W, C) -> (B, H, W, C)

    Raises:
        ValueError: if ``window_size`` or the number of hidden channels is less than 1.
    """

    def __init__(self, channels: int, *, heads: int, window_size: int, mlp_ratio: float) -> None:
        if window_size < 1 or mlp_ratio * channels < 1:
            sizes = f"{window_size} and {mlp_ratio * channels:g}"
            raise ValueError(f"window_size and mlp_ratio * {channels} channels must be at least 1, got {sizes}")
        super().__init__()
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))

    @rowwise(multiple="window_size")
    def forward(self, x: Tensor) -> Tensor:
        windows = to_windows(x, self.window_size)
        windows = windows + self.attention(self.norm1(windows))
        windows = windows + self.mlp(self.norm2(windows))
        return from_windows(windows, x, self.window_size)
