"""Test sets from the generators of other libraries: their content, and messages if a library is missing."""

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
def test_pairs_are_aligned_degraded_and_reproducible(clean, capsys, library):
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
            assert np.array_equal(after, again.read(name))  # the same seed


@pytest.mark.parametrize("library", LIBRARIES)
def test_motion_blur_does_not_shift_the_image(library):
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    places = np.arange(41) - 20
    for seed in range(8):
        blurred = other_generators.GENERATORS[library](point, "blur", seed)[..., 1].astype(float)
        assert 0 < blurred.max() < 255
        middle = np.array([blurred.sum(1) @ places, blurred.sum(0) @ places]) / blurred.sum()
        assert np.abs(middle).max() < 0.1


@pytest.fixture
def halving(monkeypatch):
    """Replace kornia, which need not be installed, by a simple generator; return the arguments of the command."""
    monkeypatch.setattr(other_generators.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(other_generators.GENERATORS, "kornia", lambda image, label, seed: image // 2)
    monkeypatch.setitem(other_generators.LABELS, "kornia", ("rain", "snow"))
    return ["degrade", "others", "--gt", "clean", "--libraries", "kornia", "--out", "sets"]


def test_interrupted_set_is_created_again(clean, halving, monkeypatch):
    write = other_generators.write_lmdb

    def full_disk(root, images):
        if root.name == "lq.lmdb" and images[0][0].startswith("snow/"):
            raise OSError(28, "No space left on device")
        write(root, images)

    with monkeypatch.context() as patch:
        patch.setattr(other_generators, "write_lmdb", full_disk)
        assert main(halving) == 2
    assert not (clean / "sets/kornia_snow").exists() and (clean / "sets/kornia_rain/lq.lmdb").is_dir()
    assert main(halving) == 0
    assert sorted(path.name for path in (clean / "sets").iterdir()) == ["kornia_rain", "kornia_snow"]
    gt, lq = (LmdbImages(clean / f"sets/kornia_snow/{kind}.lmdb", "x") for kind in ("gt", "lq"))
    for name in ("snow/0", "snow/1"):
        assert np.array_equal(np.round(gt.read(name) * 255) // 2, np.round(lq.read(name) * 255))


@pytest.mark.parametrize(
    ("change", "shown"), [(["--gt-size", "32"], "gt_size 256, images"), (["--seed", "9"], "seed 0"), ([], "images")]
)
def test_set_with_other_settings_is_rejected(clean, halving, capsys, change, shown):
    assert main(halving) == 0 and main(halving) == 0
    if not change:
        cv2.imwrite("clean/0.png", np.zeros((70, 90, 3), np.uint8))
    capsys.readouterr()
    assert main([*halving, *change]) == 2
    wanted = f"error: sets/kornia_rain: was made with other settings ({shown}); remove it or choose another --out\n"
    assert capsys.readouterr().err.endswith(wanted)


def test_incomplete_set_and_duplicate_names_are_rejected(clean, halving, capsys):
    (clean / "sets/kornia_rain/gt.lmdb").mkdir(parents=True)
    assert main(halving) == 2
    error = capsys.readouterr().err
    assert "sets/kornia_rain: exists but has no lq.lmdb; remove it to generate it again" in error
    cv2.imwrite("clean/0.jpg", np.zeros((40, 40, 3), np.uint8))
    assert main([*halving[:-1], "new"]) == 2
    assert "--gt: clean: '0.png' has the same name as '0.jpg' except for the extension" in capsys.readouterr().err
    assert not (clean / "new").exists()


def test_too_small_images_are_rejected(clean, halving, capsys):
    assert main([*halving, "--gt-size", "19"]) == 2
    assert capsys.readouterr().err.endswith("--gt-size: expected at least 20, got 19\n")
    cv2.imwrite("clean/small.png", np.zeros((19, 40, 3), np.uint8))
    assert main(halving) == 2
    text = "clean/small.png: is 19x40, expected at least 20 pixels a side\n"
    assert capsys.readouterr().err.endswith(text) and not (clean / "sets").exists()


@pytest.mark.parametrize("library", LIBRARIES)
def test_smallest_gt_size_is_accepted(clean, library):
    arguments = ["degrade", "others", "--gt", "clean", "--libraries", library, "--out", "sets", "--gt-size", "20"]
    assert main(arguments) == 0


def test_unknown_or_missing_library_is_rejected(clean, capsys, monkeypatch):
    assert main(["degrade", "others", "--gt", "clean", "--out", "x", "--libraries", "imgaug"]) == 2
    assert "'imgaug' is not a supported library, expected albumentations or kornia" in capsys.readouterr().err
    monkeypatch.setattr(other_generators.importlib.util, "find_spec", lambda name: None)
    assert main(["degrade", "others", "--gt", "clean", "--out", "x", "--libraries", "kornia"]) == 2
    assert capsys.readouterr().err.endswith("needs kornia, which is not installed: pip install kornia\n")


def test_missing_library_is_skipped(clean, halving, capsys, monkeypatch):
    monkeypatch.setattr(other_generators.importlib.util, "find_spec", lambda name: name == "kornia" or None)
    arguments = [word for word in halving if word not in ("--libraries", "kornia")]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.out == "sets: kornia_rain, kornia_snow\n" and said.err.count("\n") == 1
    assert "note: skipped the sets of albumentations, which is not installed: pip install --no-deps" in said.err
    monkeypatch.setattr(other_generators.importlib.util, "find_spec", lambda name: None)
    assert main([*arguments[:-1], "more"]) == 2
    error = capsys.readouterr().err
    assert "error: needs albumentations, which is not installed: pip" in error and error.count("\n") == 1
    assert not (clean / "more").exists()


def test_dots_in_names_are_replaced_in_lmdb_keys(clean, halving, capsys):
    (clean / "clean/0.png").rename(clean / "clean/0.v2.png")
    assert main(halving) == 0
    assert LmdbImages(clean / "sets/kornia_rain/lq.lmdb", "x").names == ["rain/0_v2", "rain/1"]
    cv2.imwrite("clean/0_v2.png", np.zeros((40, 40, 3), np.uint8))
    assert main([*halving[:-1], "new"]) == 2
    text = "--gt: clean: '0_v2.png' has the same name as '0.v2.png' with dots as _\n"
    assert capsys.readouterr().err.endswith(text)


def test_folder_with_a_similar_name_is_kept(clean, halving):
    (clean / "sets/kornia_rain.partial").mkdir(parents=True)
    (clean / "sets/kornia_rain.partial/f").write_text("precious")
    assert main(halving) == 0
    assert (clean / "sets/kornia_rain.partial/f").read_text() == "precious"
