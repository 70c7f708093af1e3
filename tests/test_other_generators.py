"""Test sets by the generators of other libraries: what is written, and what is said where they are missing."""

import importlib.util

import cv2
import numpy as np
import pytest

from restormixer_arch.cli import main
from restormixer_arch.data.lmdb_io import LmdbImages
from restormixer_arch.data.preparation import other_generators

LIBRARIES = [
    pytest.param(
        name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
    )
    for name in other_generators.INSTALL
]


@pytest.fixture
def clean(folder):
    (folder / "clean").mkdir()
    for seed in range(2):
        image = cv2.GaussianBlur(np.random.default_rng(seed).integers(0, 256, (70, 90, 3), dtype=np.uint8), (0, 0), 2)
        cv2.imwrite(f"clean/{seed}.png", cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX))
    return folder


@pytest.mark.parametrize("library", LIBRARIES)
def test_sets_of_pairs(clean, capsys, library):
    arguments = ["degrade", "others", "--gt", "clean", "--libraries", library, "--gt-size", "64"]
    for out in ("first", "second"):
        assert main([*arguments, "--out", out]) == 0
    labels = other_generators.LABELS[library]
    assert capsys.readouterr().out.startswith(f"first: {library}_{labels[0]}, ")
    for label in labels:
        gt, lq, again = (
            LmdbImages(clean / f"{out}/{library}_{label}/{kind}.lmdb", "x")
            for out, kind in (("first", "gt"), ("first", "lq"), ("second", "lq"))
        )
        assert gt.names == lq.names == [f"{label}/0", f"{label}/1"]
        for name in gt.names:
            before, after = gt.read(name), lq.read(name)
            assert before.shape == after.shape == (64, 64, 3)
            whole = cv2.imread(f"clean/{name[-1]}.png")
            np.testing.assert_allclose(before * 255, whole[3:67, 13:77], atol=1e-3)
            assert np.abs(after - before).mean() > 1e-3, label
            assert np.array_equal(after, again.read(name))  # the seed decides


@pytest.mark.parametrize("library", LIBRARIES)
def test_motion_blur_does_not_move_the_image(library):
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    places = np.arange(41) - 20
    for seed in range(8):
        blurred = other_generators.GENERATORS[library](point, "blur", seed)[..., 1].astype(float)
        assert 0 < blurred.max() < 255
        middle = np.array([blurred.sum(1) @ places, blurred.sum(0) @ places]) / blurred.sum()
        assert np.abs(middle).max() < 0.1


def test_mistakes(clean, capsys, monkeypatch):
    assert main(["degrade", "others", "--gt", "clean", "--out", "x", "--libraries", "imgaug"]) == 2
    assert "'imgaug' is no library with generators here, expected albumentations or kornia" in capsys.readouterr().err
    monkeypatch.setattr(other_generators.importlib.util, "find_spec", lambda name: None)
    assert main(["degrade", "others", "--gt", "clean", "--out", "x", "--libraries", "kornia"]) == 2
    assert capsys.readouterr().err.endswith("needs kornia, which is not installed: pip install kornia\n")
