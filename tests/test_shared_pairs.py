"""Pairs of several degraded images and one clean image, and the names of their results."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from restormixer_arch.data.pairing import result_names, shared_pairs
from restormixer_arch.errors import UserError


def source(option, *names):
    return SimpleNamespace(option=option, root=f"data/{option}", names=list(names))


def test_every_degraded_image_is_paired():
    gt, lq = source("gt", "1.png", "2.png"), source("lq", "haze/1.jpg", "haze/2.jpg", "low_haze/2.png", "x/y/1.png")
    pairs = [("1.png", "haze/1.jpg"), ("2.png", "haze/2.jpg"), ("2.png", "low_haze/2.png"), ("1.png", "x/y/1.png")]
    assert shared_pairs(gt, lq, gt.names) == pairs
    assert shared_pairs(gt, lq, ["1.png"], allow_unpaired=True) == [pairs[0], pairs[3]]


def test_image_without_a_partner_is_named():
    gt, lq = source("gt", "0001", "0002"), source("lq", "haze/0001", "haze/0003")
    with pytest.raises(UserError) as error:
        shared_pairs(gt, lq, gt.names)
    assert str(error.value) == (
        "gt 'data/gt' has no partner for 1 of 2 images in lq 'data/lq', the first is that of 'haze/0003'. "
        "Did you mean '0002'?"
    )
    lq = source("lq", "haze/0001")
    with pytest.raises(UserError, match="lq 'data/lq' has no partner for 1 of 2 images in gt 'data/gt', .* '0002'"):
        shared_pairs(gt, lq, gt.names)


def test_result_names_are_unique_regardless_of_case():
    """Otherwise, one file would overwrite the other on Windows and macOS."""
    assert result_names(["a/X.png", "b/x.png"], "") == ["a_X", "b_x"]
    assert result_names(["X.png", "x.png", "y.png"], "") == ["X_png_1", "x_png_2", "y"]
    assert result_names(["X.png", "x.jpg"], "") == ["X_png", "x_jpg"]
