"""MWSA, the multi-scale window self-attention block of RestorMixer (arXiv 2504.10967).

"Multi-scale" is across blocks: the i-th block of a stage attends in windows of 8 (i + 1) pixels. There is no
shift, no relative position bias and no mask.

Shape letters: B batch, H x W size of the stage, C channels, w window side, G windows in the batch, T = w * w.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from restormixer_arch.layers import Mlp, by_rows


class WindowAttention(nn.Module):
    """Multi-head self-attention inside each window.

    Args:
        channels: C, a multiple of ``heads``.
        heads: number of attention heads.

    Shape:
        (G, T, C) -> (G, T, C)

    Raises:
        ValueError: ``channels`` is not a multiple of ``heads``.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels must be a multiple of heads, got {channels} channels and {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        windows, tokens, channels = x.shape
        qkv = self.qkv(x).view(windows, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (G, heads, T, C / heads)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(windows, tokens, channels))


class MWSA(nn.Module):
    """Window self-attention and MLP, both pre-norm and residual, on channels-last features.

    The features are padded with zeros on the right and at the bottom to whole windows *before* the LayerNorm, and
    the padded tokens take part in the attention as any other, as in the released code.

    Args:
        channels: C.
        heads: attention heads.
        window_size: side of the windows in pixels of the stage.
        mlp_ratio: hidden channels of the MLP are ``int(channels * mlp_ratio)``.

    Shape:
        (B, H, W, C) -> (B, H, W, C)
    """

    def __init__(self, channels: int, *, heads: int, window_size: int, mlp_ratio: float) -> None:
        super().__init__()
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        return by_rows(self._attend, x, multiple=self.window_size)

    def _attend(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        windows = self._to_windows(x)
        windows = windows + self.attention(self.norm1(windows))
        windows = windows + self.mlp(self.norm2(windows))
        return self._from_windows(windows, height, width)

    def _to_windows(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (G, T, C), padded with zeros to whole windows."""
        side = self.window_size
        x = F.pad(x, (0, 0, 0, -x.shape[2] % side, 0, -x.shape[1] % side))
        batch, height, width, channels = x.shape
        x = x.view(batch, height // side, side, width // side, side, channels)
        return x.transpose(2, 3).reshape(-1, side * side, channels)

    def _from_windows(self, windows: Tensor, height: int, width: int) -> Tensor:
        """(G, T, C) -> (B, H, W, C), the padding cropped."""
        side = self.window_size
        rows, columns = -(-height // side), -(-width // side)
        x = windows.view(-1, rows, columns, side, side, windows.shape[-1]).transpose(2, 3)
        x = x.reshape(-1, rows * side, columns * side, windows.shape[-1])
        return x[:, :height, :width].contiguous()  # channels-last convolutions follow
