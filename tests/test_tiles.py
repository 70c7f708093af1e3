"""Tiles: their positions, their blending weights, and the same results as without tiles for local operations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from restormixer_arch.inference.tiles import RAMPS, axis_tiles, axis_weights, restore_tiles

lengths = st.integers(1, 3000)
overlaps = st.sampled_from([0, 1, 16, 64, 100, 128])


@given(lengths, overlaps, st.integers(64, 1000))
def test_tiles_cover_an_axis_with_at_least_the_overlap(length, overlap, more):
    tile = overlap + more
    spans = axis_tiles(length, tile, overlap)
    assert spans[0][0] == 0 and spans[-1][1] == length
    assert all(first % 64 == 0 and 0 < last - first <= tile for first, last in spans)
    for (_, last), (first, _) in zip(spans, spans[1:], strict=False):
        assert last - first >= overlap
    longest_step = more // 64 * 64
    assert len(spans) == (1 if length <= tile else -(-(length - overlap) // longest_step))


def test_tiles_match_manual_computation():
    assert axis_tiles(512, 512, 64) == [(0, 512)]
    # 1000 pixels: steps of at most 448 need ceil(936 / 448) = 3 tiles; steps of 320 suffice, as 936 / 3 = 312.
    assert axis_tiles(1000, 512, 64) == [(0, 384), (320, 704), (640, 1000)]


@given(lengths, overlaps, st.integers(64, 500), st.sampled_from(sorted(RAMPS)))
def test_weights_add_up_to_one(length, overlap, more, blend):
    spans = axis_tiles(length, overlap + more, overlap)
    total = torch.zeros(length)
    for (first, last), weight in zip(spans, axis_weights(spans, overlap, blend), strict=True):
        assert weight.min() > 0
        total[first:last] += weight
    torch.testing.assert_close(total, torch.ones(length))


def test_weights_match_manual_computation():
    first, second = axis_weights([(0, 6), (2, 8)], 4, "linear")
    np.testing.assert_allclose(first, [1, 1, 7 / 8, 5 / 8, 3 / 8, 1 / 8], atol=1e-7)
    np.testing.assert_allclose(second, [1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1], atol=1e-7)
    first, _ = axis_weights([(0, 3), (1, 4)], 2, "hann")
    np.testing.assert_allclose(first, [1, np.cos(np.pi / 8) ** 2, np.sin(np.pi / 8) ** 2], atol=1e-7)


@pytest.mark.parametrize("blend", sorted(RAMPS))
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (64, 300), (257, 130), (200, 191)])
def test_pointwise_network_gives_the_same_result_with_tiles(size, scale, blend):
    picture = torch.rand(2, 3, *size)
    enlarge = nn.Upsample(scale_factor=scale, mode="nearest")
    calls = []
    result = restore_tiles(
        lambda part: enlarge(part * 2 - 0.5),
        picture,
        128,
        overlap=48,
        blend=blend,
        scale=scale,
        on_tile=lambda done, total: calls.append((done, total)),
    )
    torch.testing.assert_close(result, enlarge(picture * 2 - 0.5))
    assert [done for done, _ in calls] == list(range(1, calls[0][1] + 1))


def test_blending_at_scale_2_matches_the_weights():
    """The first tile is 0, the second 1: the result is the weight of the second, over twice the input's overlap."""
    values = iter((0.0, 1.0))
    result = restore_tiles(
        lambda part: torch.full((1, 1, 2 * part.shape[2], 2 * part.shape[3]), next(values)),
        torch.zeros(1, 1, 64, 192),
        128,
        overlap=64,
        blend="hann",
        scale=2,
    )
    ramp = torch.sin(math.pi / 2 * (torch.arange(128) + 0.5) / 128) ** 2
    wanted = torch.cat((torch.zeros(128), ramp, torch.ones(128)))
    torch.testing.assert_close(result[0, 0, 0], wanted, rtol=0, atol=1e-6)


def test_default_device_of_torch_is_ignored():
    picture = torch.rand(1, 3, 200, 191)
    with torch.device("meta"):
        result = restore_tiles(lambda part: part.clone(), picture, 128, overlap=48)
    torch.testing.assert_close(result, picture)


def test_blur_shows_no_seams_with_overlap():
    """The blur of a tile is wrong only at the tile's borders, where its weight is nearly 0."""
    blur = nn.Conv2d(1, 1, 9, padding=4, bias=False)
    nn.init.constant_(blur.weight, 1 / 81)
    picture = torch.rand(1, 1, 300, 300)
    with torch.no_grad():
        whole = blur(picture)
        near = (restore_tiles(blur, picture, 192, overlap=64) - whole).abs().max()
        seams = (restore_tiles(blur, picture, 192, overlap=0) - whole).abs().max()
    assert near < 0.01 < 0.2 < seams


def test_network_gets_only_tiles():
    seen = []

    def restore(part):
        seen.append(tuple(part.shape[-2:]))
        return part.float()

    restore_tiles(restore, torch.zeros(1, 3, 500, 700, dtype=torch.uint8), 256)
    assert len(seen) == 12 and max(max(size) for size in seen) <= 256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 127}, "tile must be at least overlap \\+ 64 = 128, got 127"),
        ({"tile": 500, "overlap": -1}, "= 63, got 500"),
        ({"tile": 128, "blend": "han"}, "blend must be one of hann, linear, got 'han'"),
    ],
)
def test_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        restore_tiles(lambda part: part, torch.zeros(1, 3, 8, 8), **options)
