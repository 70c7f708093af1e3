"""Where public datasets are found, and errors in them that the table of layouts does not cover."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from mini_datasets import MINIATURES, pairs, picture, save

from restormixer_arch import cli
from restormixer_arch.data.preparation.find_pairs import Unit, clear_folder_cache, find_part
from restormixer_arch.data.preparation.layouts import SETS, TASKS, before_last_underscore, no_in_front
from restormixer_arch.data.preparation.sub_images import Recipe, prepare_unit
from restormixer_arch.errors import UserError


@pytest.fixture(autouse=True)
def fresh():
    clear_folder_cache()


def found(root: Path, name: str, part: str):
    public = SETS[name]
    return find_part(root, public, next(p for p in public.parts if p.name == part))


def test_the_table_covers_every_task():
    assert TASKS == ("derain", "desnow", "deblur", "sr", "denoise", "mixed")
    assert len(SETS) == 24 and all(public.parts for public in SETS.values())
    text = (Path(__file__).parent.parent / "data/DATASETS.md").read_text()
    for public in SETS.values():
        assert re.search(rf"\b{re.escape(public.name)}\b", text), public.name
        for part in public.parts:
            assert part.layouts and 0 <= part.step <= max(part.crop, 256)


def test_pairing_rules_of_file_names():
    assert before_last_underscore("901_14") == "901"
    assert no_in_front("rain-001") == "norain-001"


def test_root_may_be_the_dataset_folder_and_case_is_ignored(tmp_path):
    pairs(tmp_path, "csd/train/GT", "csd/train/snow", [("1.tif", "1.tif")])
    for root in (tmp_path, tmp_path / "csd"):
        (unit,) = found(root, "CSD", "train").units
        assert unit == Unit("1", tmp_path / "csd/train/GT/1.tif", (("lq", "1", tmp_path / "csd/train/snow/1.tif"),))


def test_root_may_be_the_working_directory(tmp_path, monkeypatch):
    pairs(tmp_path, "Rain100L/rain/norain", "Rain100L/rain/rain", [("norain-1.png", "rain-1.png")])
    pairs(tmp_path, "Rain100L/norain", "Rain100L/rain", [("norain-1.png", "rain-1.png")])
    monkeypatch.chdir(tmp_path / "Rain100L")
    assert [unit.name for unit in found(Path("."), "Rain100L", "test").units] == ["rain-1"]
    monkeypatch.chdir("rain")
    clear_folder_cache()
    assert [unit.name for unit in found(Path(".."), "Rain100L", "test").units] == ["rain-1"]


def test_clean_images_next_to_the_folder_of_degraded_images(tmp_path):
    """Rain100L's older layout, in which the folder of the clean images may contain other images."""
    pairs(tmp_path, "Rain100L", "Rain100L/rainy", [("norain-1.png", "rain-1.png")])
    save(tmp_path / "Rain100L/other.png", picture(3))
    assert [unit.name for unit in found(tmp_path, "Rain100L", "test").units] == ["rain-1"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_sequence_name_that_is_not_utf8_is_rejected(tmp_path):
    pairs(tmp_path, "GoPro/train/a/sharp", "GoPro/train/a/blur", [("1.png", "1.png")])
    os.rename(tmp_path / "GoPro/train/a", os.fsencode(tmp_path / "GoPro/train") + b"/\xe9")
    with pytest.raises(UserError, match=r"GoPro/train: the name '\\udce9' is not UTF-8; rename it$"):
        found(tmp_path, "GoPro", "train")


@pytest.mark.parametrize("top", ["media/jdway/GameSSD/overlapping/test", "jdway/GameSSD/overlapping/test", "test", ""])
def test_snow100k_is_found_below_the_paths_of_its_archive(tmp_path, top):
    folder = f"Snow100K-testset/{top}/Snow100K-L"
    pairs(tmp_path, f"{folder}/gt", f"{folder}/synthetic", [("a.jpg", "a.jpg")])
    assert [unit.name for unit in found(tmp_path, "Snow100K", "test_L").units] == ["a"]


def test_first_existing_layout_is_used(tmp_path):
    pairs(tmp_path, "Rain13K/target", "Rain13K/input", [("a.png", "a.png")])
    pairs(tmp_path, "train/Rain13K/target", "train/Rain13K/input", [("b.png", "b.png")])
    assert [unit.name for unit in found(tmp_path, "Rain13K", "train").units] == ["b"]


def test_both_halves_of_hide_and_of_df2k_are_combined(tmp_path):
    MINIATURES["deblur"](tmp_path)
    MINIATURES["sr"](tmp_path)
    assert [unit.name for unit in found(tmp_path, "HIDE", "test").units] == ["1fromGOPR0950", "2fromGOPR0950"]
    assert [unit.name for unit in found(tmp_path, "DF2K", "train").units] == ["000001", "000002", "0001", "0002"]


def test_combined_datasets_are_found_from_their_own_folders_without_duplicates(tmp_path):
    """Two layouts can match the same folder, directly or through a symbolic link; it is used once."""
    MINIATURES["deblur"](tmp_path)
    MINIATURES["sr"](tmp_path)
    assert [unit.name for unit in found(tmp_path / "DIV2K", "DF2K", "train").units] == ["0001", "0002"]
    assert [unit.name for unit in found(tmp_path / "Flickr2K", "DF2K", "train").units] == ["000001", "000002"]
    (tmp_path / "HIDE").mkdir()
    (tmp_path / "HIDE_dataset").rename(tmp_path / "HIDE/HIDE_dataset")
    clear_folder_cache()
    two = ["1fromGOPR0950", "2fromGOPR0950"]
    for root in (tmp_path, tmp_path / "HIDE", tmp_path / "HIDE/HIDE_dataset"):
        assert [unit.name for unit in found(root, "HIDE", "test").units] == two
    if sys.platform != "win32":
        (tmp_path / "DIV2K_train_HR").symlink_to("DIV2K/DIV2K_train_HR")
        clear_folder_cache()
        assert len(found(tmp_path, "DF2K", "train").units) == 4


def test_dots_in_names_become_underscores(tmp_path):
    pairs(tmp_path, "Rain13K/target", "Rain13K/input", [("im.1.png", "im.1.png")])
    assert found(tmp_path, "Rain13K", "train").units[0].name == "im_1"


def test_missing_or_empty_dataset_is_not_found(tmp_path):
    assert found(tmp_path, "Rain13K", "train") is None
    (tmp_path / "Set5").mkdir()
    assert found(tmp_path, "Set5", "test") is None


def test_names_that_become_equal_are_rejected(tmp_path):
    pairs(tmp_path, "Rain13K/target", "Rain13K/input", [("a.b.png",) * 2, ("a_b.png",) * 2])
    with pytest.raises(UserError, match=r"Rain13K/target: 2 images of Rain13K train are named 'a_b'"):
        found(tmp_path, "Rain13K", "train")


def test_empty_folder_of_degraded_images_is_rejected(tmp_path):
    pairs(tmp_path, "Rain13K/target", "Rain13K/input", [("a.png",) * 2])
    (tmp_path / "Rain13K/input/a.png").unlink()
    with pytest.raises(UserError, match=r"Rain13K/input: contains no images \(\.bmp"):
        found(tmp_path, "Rain13K", "train")


def test_image_too_small_to_downsample_is_reported(tmp_path):
    save(tmp_path / "a.png", picture(0, (11, 40)))
    outcome = prepare_unit(Unit("a", tmp_path / "a.png"), Recipe(scales=(2,), multiple=12))
    assert outcome.problem == f"{tmp_path}/a.png: is 11x40, smaller than 12" and not outcome.entries


def test_image_that_no_longer_exists_is_reported(tmp_path):
    outcome = prepare_unit(Unit("a", tmp_path / "a.png"), Recipe())
    assert outcome.problem == f"{tmp_path}/a.png: cannot be read (No such file or directory)"


def test_only_the_first_five_bad_pairs_are_listed(folder, capsys):
    pairs(folder / "root", "Rain13K/target", "Rain13K/input", [(f"{n}.png",) * 2 for n in range(9)])
    for number in range(7):
        (folder / f"root/Rain13K/input/{number}.png").write_bytes(b"")
    assert cli.main(["prepare", "derain", "--root", "root", "--skip-bad"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 5 + 1 and lines[-1] == "  and 2 more, listed in datasets/Rain13K/train.jsonl"
