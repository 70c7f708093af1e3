r"""Restore an image in overlapping tiles, so that only one tile is on the device at a time.

Neighboring tiles are blended in their overlap. The grid of tiles is a product of columns and rows, and so are the
blending weights: each axis has separate weights, which add up to 1 in every pixel.

Tiles start at multiples of 64 pixels, where the windows of RestorMixer's attention start (up to 16 x 16 at a quarter of
the resolution), so a tile has the same windows as the complete image. The scans would otherwise run over the complete
image, so a tiled result is never exactly the same.

The effect of the overlap was measured with the trained network of ``options/train_derain_demo.yml``, on photographs
with this package's synthetic rain. "Between" is the PSNR between the tiled and the untiled result, "truth" is the
change of the PSNR against the ground truth by tiling:

============================  ========  ===========  ==========
image, side of the tiles      overlap   between      truth
============================  ========  ===========  ==========
sample 384 x 256, 256         0         45.9 dB      -0.02 dB
(roman-colosseum)             16        54.5 dB      +0.04 dB
\                             64        55.7 dB      +0.04 dB
\                             128       57.3 dB      +0.03 dB
sample 384 x 256, 256         0         49.0 dB      -0.11 dB
(perched-osprey)              64        63.3 dB      +0.01 dB
photograph 1200 x 800, 512    0         45.3 dB      +0.04 dB
(casa-mila)                   64        51.5 dB      +0.06 dB
\                             128       52.6 dB      +0.03 dB
photograph 1280 x 800, 512    0         39.6 dB      -0.13 dB
(Garden)                      64        41.4 dB      -0.09 dB
\                             128       42.0 dB      -0.03 dB
photograph 1200 x 800, 256    64        48.4 dB      +0.25 dB
============================  ========  ===========  ==========

Without an overlap, single pixels at the seams differ by up to 0.6; with 64 pixels by 0.03 to 0.12, due to the missing
context of the scans and not to a seam. Hann and linear weights differ by at most 0.1 dB in "between". Small tiles can
be better than the complete image, as in the last line: the network was trained on crops of 64 pixels.

Shape letters: B batch, C channels, H x W size in pixels, s the upscale factor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

ALIGNMENT = 64  # pixels; every tile starts at a multiple of this
DEFAULT_OVERLAP = 64  # pixels


def _hann(position: Tensor) -> Tensor:
    return torch.sin(position * (math.pi / 2)).square()


RAMPS: dict[str, Callable[[Tensor], Tensor]] = {"hann": _hann, "linear": lambda position: position}


def restore_tiles(
    restore_tile: Callable[[Tensor], Tensor],
    images: Tensor,
    tile: int,
    *,
    overlap: int = DEFAULT_OVERLAP,
    blend: str = "hann",
    scale: int = 1,
    on_tile: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Apply ``restore_tile`` to overlapping tiles and blend the results.

    Args:
        restore_tile: function of a part of ``images``: (B, C, h, w) -> float32 (B, C', scale * h, scale * w), on any
            device.
        images: images (B, C, H, W) of any dtype; they remain on their device.
        tile: largest side of a tile in pixels of ``images``, at least 64 more than ``overlap``. Images that fit are
            not split.
        overlap: minimum number of pixels that neighbors share.
        blend: shape of the weights in the overlap, ``hann`` (a squared sine) or ``linear``.
        scale: s, the upscale factor of ``restore_tile``.
        on_tile: function that is called after each tile with the number of tiles done and the total number.

    Returns:
        Blended results, float32 on the CPU.

    Shape:
        (B, C, H, W) -> (B, C', s * H, s * W)

    Raises:
        ValueError: if ``tile`` is too small for ``overlap``, or ``blend`` is unknown.
    """
    if overlap < 0 or tile < overlap + ALIGNMENT:
        raise ValueError(f"tile must be at least overlap + {ALIGNMENT} = {overlap + ALIGNMENT}, got {tile}")
    if blend not in RAMPS:
        raise ValueError(f"blend must be one of {', '.join(RAMPS)}, got {blend!r}")
    height, width = images.shape[-2:]
    rows, columns = axis_tiles(height, tile, overlap), axis_tiles(width, tile, overlap)
    row_weights, column_weights = (
        axis_weights([(first * scale, last * scale) for first, last in spans], overlap * scale, blend)
        for spans in (rows, columns)
    )
    result = None
    grid = list(itertools.product(range(len(rows)), range(len(columns))))
    for done, (i, j) in enumerate(grid, start=1):
        (top, bottom), (left, right) = rows[i], columns[j]
        restored = restore_tile(images[..., top:bottom, left:right]).float().cpu()
        if len(grid) == 1:
            result = restored
        else:
            if result is None:
                result = restored.new_zeros(*restored.shape[:2], height * scale, width * scale)
            place = result[..., top * scale : bottom * scale, left * scale : right * scale]
            place.add_(restored.mul_(row_weights[i][:, None]).mul_(column_weights[j]))
        on_tile(done, len(grid))
    return result


def overlap_for(tile: int | None) -> int:
    """Return the overlap for a tile size that was given without one: the default, or less if the tile is too small."""
    return DEFAULT_OVERLAP if tile is None else max(0, min(DEFAULT_OVERLAP, tile - ALIGNMENT))


def axis_tiles(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Return (first, last + 1) of each tile along one axis: as few tiles as ``tile`` allows, as small as possible."""
    if length <= tile:
        return [(0, length)]
    longest_step = (tile - overlap) // ALIGNMENT * ALIGNMENT
    count = math.ceil((length - overlap) / longest_step)
    step = math.ceil((length - overlap) / count / ALIGNMENT) * ALIGNMENT
    return [(first, min(first + step + overlap, length)) for first in range(0, length - overlap, step)]


def axis_weights(spans: list[tuple[int, int]], overlap: int, blend: str) -> list[Tensor]:
    """Return the float32 weights of the pixels of each span; in each pixel, those of all spans add up to 1."""
    on_cpu = {"dtype": torch.float64, "device": "cpu"}  # independent of torch's default device
    ramp = RAMPS[blend]((torch.arange(overlap, **on_cpu) + 0.5) / max(overlap, 1))
    weights = []
    for number, (first, last) in enumerate(spans):
        weight = torch.ones(last - first, **on_cpu)
        if number > 0:
            weight[:overlap] *= ramp
        if number < len(spans) - 1:
            weight[len(weight) - overlap :] *= ramp.flip(0)
        weights.append(weight)
    total = torch.zeros(spans[-1][1], **on_cpu)
    for (first, last), weight in zip(spans, weights, strict=True):
        total[first:last] += weight
    return [(weight / total[first:last]).float() for (first, last), weight in zip(spans, weights, strict=True)]
