"""The dataset of free photographs: its split, and its preparation from tiny images with the same file names."""

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from mini_datasets import picture, save

from restormixer_arch.cli.prepare import run
from restormixer_arch.data.degradations.labels import CDD11
from restormixer_arch.data.lmdb_io import LmdbImages
from restormixer_arch.data.preparation import photos
from restormixer_arch.data.preparation.fixed_set import check_fixed_set, recorded_options
from restormixer_arch.errors import UserError

SHIPPABLE = ("budgie-backgrounds", "scikit-image", "scipy", "palapeli-data", "gnome-backgrounds")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Create tiny images with all file names; use only four of the fixed sets, and two labels of the mixed ones."""
    table = json.loads(photos.PAIRS.read_text())
    few = {f"{part}_{task}": dict(table[f"{part}_{task}"]) for part in ("val", "test") for task in ("derain", "mixed")}
    for part in ("val", "test"):
        few[f"{part}_mixed"] = {label: few[f"{part}_mixed"][label] for label in ("haze", "noise")}
    (tmp_path / "pairs.json").write_text(json.dumps(few))
    monkeypatch.setattr(photos, "PAIRS", tmp_path / "pairs.json")
    root = tmp_path / "pictures"
    for number, row in enumerate(photos.read_table()):
        save(root / row["file"], picture(number, (24, 30)))
    (root / "README.md").write_text("About them.")
    return root


def prepare(root, out, *more):
    return run(["photos", "--root", str(root), "--out", str(out), "--workers", "1", *more])


def test_split_is_disjoint_and_held_out_photographs_are_shippable():
    rows = photos.read_table()
    assert Counter(row["part"] for row in rows) == {"train": 147, "val": 8, "test": 16}
    assert len({row["file"] for row in rows}) == 171
    held_out = [row for row in rows if row["part"] != "train"]
    assert {row["class"] for row in held_out} == {"A"}
    assert {row["package"] for row in held_out} == set(SHIPPABLE)


def test_every_row_has_the_source_of_its_photograph():
    for row in photos.read_table():
        assert row["file"] == f"{row['package']}__{row['file'].partition('__')[2]}"
        assert row["version"] and row["suite"] and row["path_in_package"] and row["licence"]


@pytest.mark.parametrize("form", ["lmdb", "folder"])
def test_prepares_parts_and_fixed_pairs(small, tmp_path, capsys, form):
    out = tmp_path / "out"
    assert prepare(small, out, "--format", form) == 0
    said = capsys.readouterr().out
    assert "photos train: 147 images" in said and "photos test_mixed: haze, noise; 256x256; 32 pairs" in said
    assert prepare(small, out, "--format", form) == 0
    assert capsys.readouterr().out.count("already prepared") == 7
    assert prepare(small, out, "--format", form, "--check") == 0
    assert capsys.readouterr().out.count(" 0 problems") == 7


def test_fixed_pairs_use_only_held_out_photographs(small, tmp_path):
    prepare(small, tmp_path)
    parts = {row["file"].removesuffix(".png").replace(".", "_"): row["part"] for row in photos.read_table()}
    folder = tmp_path / "photos"
    assert {parts[name] for name in LmdbImages(folder / "train_gt.lmdb", "").names} == {"train"}
    lq, gt = (LmdbImages(folder / "test_derain" / f"{kind}.lmdb", "") for kind in ("lq", "gt"))
    held_out = sorted(name for name, part in parts.items() if part == "test")
    assert lq.names == gt.names == [f"rain/{name}_rain" for name in held_out]
    for name, key in zip(held_out, gt.names, strict=True):
        clean = cv2.imread(str(small / f"{name}.png")).astype(np.float32) / 255
        assert np.array_equal(gt.read(key), clean)
        assert 0.5 > np.abs(lq.read(key) - clean).mean() > 0


def test_same_photographs_give_identical_pairs(small, tmp_path):
    for name in ("one", "two"):
        prepare(small, tmp_path / name)
    one, two = (LmdbImages(tmp_path / name / "photos/val_mixed/lq.lmdb", "") for name in ("one", "two"))
    assert len(one.names) == 16 and one.names == two.names
    assert all(one.content(name) == two.content(name) for name in one.names)


def test_every_held_out_photograph_has_parameters_for_each_task():
    rows = photos.read_table()
    tasks = {"derain": ["rain"], "mixed": [*CDD11, "noise"], "derain_wide": ["rain"], "desnow": ["snow"]}
    tasks |= {"dehaze": ["haze"], "low_light": ["low"], "deblur": ["blur", "defocus"], "denoise": ["noise", "camera"]}
    sets = {fixed.out.name: fixed for fixed in photos.fixed_pairs(Path("photos"), "lmdb")}
    assert set(sets) == {f"{part}_{task}" for part in ("val", "test") for task in tasks}
    for name, fixed in sets.items():
        part, _, task = name.partition("_")
        assert list(fixed.labels) == tasks[task]
        names = {row["file"].removesuffix(".png").replace(".", "_") for row in rows if row["part"] == part}
        assert all(set(images) == names for images in fixed.compositions.values())


def test_missing_photograph_is_reported_with_its_package(small, tmp_path):
    (small / "scipy__face-raccoon.png").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of 171 photographs, first scipy__face-raccoon.png, .* scipy 1.11.4"):
        prepare(small, tmp_path)


def test_images_outside_the_split_are_skipped(small, tmp_path, capsys):
    save(small / "mine.png", picture(0))
    assert prepare(small, tmp_path, "--dry-run") == 0
    assert "1 images that are not in the split are left out, first mine.png" in "".join(capsys.readouterr())


def test_fixed_pairs_with_other_settings_are_not_overwritten(small, tmp_path):
    prepare(small, tmp_path)
    record = tmp_path / "photos/val_derain/made_with.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "gt_size": 77}))
    before = (record.parent / "lq.lmdb/data.mdb").read_bytes()
    with pytest.raises(UserError, match="val_derain: was made with other settings"):
        prepare(small, tmp_path)
    assert (record.parent / "lq.lmdb/data.mdb").read_bytes() == before


def test_check_finds_changed_and_additional_images(small, tmp_path, capsys):
    prepare(small, tmp_path, "--format", "folder")
    out = tmp_path / "photos/test_derain"
    changed = sorted((out / "lq/rain").iterdir())[0]
    save(changed, 255 - cv2.imread(str(changed)))
    save(out / "gt/rain/mine.png", picture(1))
    count, problems = check_fixed_set(str(tmp_path / "photos/test_gt"), out, lmdb=False)
    assert count == 32
    assert problems == [
        f"{out}/lq: image 'rain/{changed.stem}' differs from its source",
        f"{out}/gt: 1 images have no source, the first is 'rain/mine'",
    ]
    assert prepare(small, tmp_path, "--format", "folder", "--check") == 2
    assert "differs from its source" in capsys.readouterr().err


def test_folder_that_is_not_a_fixed_set_is_rejected(tmp_path):
    with pytest.raises(UserError, match="is not a fixed set of pairs: made_with.json cannot be read"):
        recorded_options(tmp_path)
