"""EMVM, the enhanced memory visual Mamba block of RestorMixer (arXiv 2504.10967).

Shape letters: B batch, H x W size of the stage, C channels, D = expand * C inner channels of a scan, K scan
directions, N states, R rank of dt.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from restormixer_arch.layers import Mlp, by_rows, channels_last, conv_act, linear, linear_act
from restormixer_arch.selective_scan import selective_scan_2d

SCAN_MERGES = ("paper", "official")
DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4  # range and lower bound of the initial time steps (delta)


def _initial_dt_bias(directions: int, channels: int) -> Tensor:
    """Return biases (K, D) whose softplus is log-uniform in [DT_MIN, DT_MAX], as in Mamba (arXiv 2312.00752)."""
    dt = torch.exp(torch.empty(directions, channels).uniform_(math.log(DT_MIN), math.log(DT_MAX)))
    dt = dt.clamp(min=DT_FLOOR)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus


class DirectionalScan(nn.Module):
    """Gated selective scan of an image in one or more directions, each with separate parameters.

    Args:
        channels: number of channels C.
        directions: K scan directions: ``row``, ``column``, ``row_reverse`` or ``column_reverse``.
        d_state: number of states N.
        expand: expansion factor; D = int(expand * C).

    Shape:
        (B, H, W, C) -> (B, H, W, C)

    Raises:
        ValueError: if ``d_state`` or D is less than 1.
    """

    def __init__(self, channels: int, *, directions: tuple[str, ...], d_state: int, expand: float) -> None:
        if d_state < 1 or expand * channels < 1:
            raise ValueError(
                f"d_state and expand * {channels} channels must be at least 1, got {d_state} and {expand * channels:g}"
            )
        super().__init__()
        inner, count, rank = int(expand * channels), len(directions), math.ceil(channels / 16)
        self.directions = directions
        self.d_state, self.dt_rank = d_state, rank
        self.in_proj = nn.Linear(channels, inner, bias=False)
        self.gate_proj = nn.Linear(channels, inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        bound = inner**-0.5  # as in nn.Linear(inner, ...)
        self.x_proj = nn.Parameter(torch.empty(count, rank + 2 * d_state, inner).uniform_(-bound, bound))
        self.dt_proj = nn.Parameter(torch.empty(count, inner, rank).uniform_(-(rank**-0.5), rank**-0.5))
        self.dt_bias = nn.Parameter(_initial_dt_bias(count, inner))
        states = torch.arange(1, d_state + 1, dtype=torch.float32)
        self.A_log = nn.Parameter(states.log().expand(count, inner, d_state).clone())
        self.D_skip = nn.Parameter(torch.ones(count, inner))
        self.norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        convolve = partial(conv_act, self.conv, activation="swish")
        tokens = by_rows(lambda x: channels_last(convolve, linear_act(self.in_proj, x)), x, halo=1)  # (B, H, W, D)
        y = self.merge_scans(tokens)
        return by_rows(self._gate, x, y)

    def _gate(self, x: Tensor, y: Tensor) -> Tensor:
        return linear_act(self.out_proj, self.norm(y) * linear_act(self.gate_proj, x, "swish"))

    def merge_scans(self, tokens: Tensor) -> Tensor:
        """Return the sum of the scans over all directions. (B, H, W, D) -> (B, H, W, D)"""
        return self.scan(tokens)

    def scan(self, tokens: Tensor, chosen: slice = slice(None)) -> Tensor:
        """Return the sum of the scans over the ``chosen`` directions. (B, H, W, D) -> (B, H, W, D)"""
        x_proj = self.x_proj[chosen]
        # All directions read the same tokens, so one product computes dt, B and C for all of them.
        projected = linear(tokens, rearrange(x_proj, "k e d -> (k e) d"))
        projected = rearrange(projected, "b h w (k e) -> b h w k e", k=len(x_proj))  # (B, H, W, K, R + 2N)
        dt, b, c = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        precise = torch.promote_types(tokens.dtype, torch.float32)  # the state has at least float32 precision
        return selective_scan_2d(
            tokens,
            delta=torch.einsum("bhwkr,kdr->bhwkd", dt, self.dt_proj[chosen]),
            A=-torch.exp(self.A_log[chosen].to(precise)),
            B=b,
            C=c,
            D=self.D_skip[chosen].to(precise),
            delta_bias=self.dt_bias[chosen].to(precise),
            directions=self.directions[chosen],
        )


class StridedScan(DirectionalScan):
    """S3: three scans at half the stage's resolution, between a strided and a transposed depthwise convolution.

    Args:
        channels: number of channels C.
        d_state: number of states N.
        expand: expansion factor; D = int(expand * C).
        scan_merge: ``paper`` sums the three scans. ``official`` reproduces a bug of the released code: the
            column-backward output is replaced by the row-backward output, read as (W, H) and transposed, so the
            column-backward direction is never trained.

    Shape:
        (B, H, W, C) -> (B, H, W, C), H and W even

    Raises:
        ValueError: if ``scan_merge`` is unknown.
    """

    DIRECTIONS = ("column", "row_reverse", "column_reverse")

    def __init__(self, channels: int, *, d_state: int, expand: float, scan_merge: str) -> None:
        if scan_merge not in SCAN_MERGES:
            raise ValueError(f"scan_merge must be 'paper' or 'official', got {scan_merge!r}")
        super().__init__(channels, directions=self.DIRECTIONS, d_state=d_state, expand=expand)
        self.scan_merge = scan_merge
        self.down = nn.Conv2d(channels, channels, 7, stride=2, padding=3, groups=channels)
        self.up = nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1, output_padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        reduced = channels_last(self.down, x)  # (B, H / 2, W / 2, C)
        return channels_last(self.up, super().forward(reduced))

    def merge_scans(self, tokens: Tensor) -> Tensor:
        if self.scan_merge == "paper":
            return super().merge_scans(tokens)
        column, row_reverse = self.scan(tokens, slice(0, 1)), self.scan(tokens, slice(1, 2))
        flat = rearrange(row_reverse, "b h w d -> b (h w) d")
        return column + row_reverse + rearrange(flat, "b (w h) d -> b h w d", h=tokens.shape[1])


class EMVM(nn.Module):
    """Two sub-layers with learned skip scales: scans at two resolutions (S1 and S3), then an MLP.

    Args:
        channels: number of channels C.
        d_state: number of states N of a scan.
        expand: inner channels of a scan as a multiple of C.
        scan_merge: see :class:`StridedScan`.

    Shape:
        (B, H, W, C) -> (B, H, W, C), H and W even
    """

    def __init__(self, channels: int, *, d_state: int, expand: float, scan_merge: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.scan1 = DirectionalScan(channels, directions=("row",), d_state=d_state, expand=expand)
        self.scan3 = StridedScan(channels, d_state=d_state, expand=expand, scan_merge=scan_merge)
        self.skip_scale1 = nn.Parameter(torch.ones(channels))
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, channels)
        self.skip_scale2 = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x * self.skip_scale1 + self.scan1(y) + self.scan3(y)
        return by_rows(lambda x: x * self.skip_scale2 + self.mlp(self.norm2(x)), x)
