"""Errors in public datasets and in the arguments of ``basicsr prepare``, and problems that ``--check`` finds."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import lmdb
import pytest
from mini_datasets import MINIATURES, pairs, picture, prepare_errors, run_prepare, save, stored_images


def broken_rain(root: Path, mistake: str) -> None:
    pairs(root, "train/Rain13K/target", "train/Rain13K/input", [(f"{n}.png",) * 2 for n in range(3)])
    clean, rainy = (root / "train/Rain13K" / kind for kind in ("target", "input"))
    if mistake == "layout":
        clean.rename(clean.with_name("targets"))
    elif mistake == "no clean partner":
        (clean / "1.png").unlink()
    elif mistake == "no degraded partner":
        (rainy / "1.png").unlink()
    elif mistake == "two sizes":
        save(rainy / "1.png", picture(1, (32, 41)))
    elif mistake == "no image":
        (rainy / "1.png").write_bytes(b"text")
    elif mistake == "empty file":
        (rainy / "1.png").write_bytes(b"")
    elif mistake == "two of one name":
        save(rainy / "1.jpg", picture(1))
    elif mistake == "nothing":
        shutil.rmtree(root / "train")


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            "layout",
            "root/train/Rain13K/input: its partner folder 'train/Rain13K/target' is missing in 'root'. "
            "Did you mean 'targets'?",
        ),
        ("no clean partner", "root/train/Rain13K/input/1.png: has no clean partner '1' in root/train/Rain13K/target."),
        (
            "no degraded partner",
            "root/train/Rain13K/target/1.png: has no degraded partner in root/train/Rain13K/input (1 such images)",
        ),
        (
            "two sizes",
            "root/train/Rain13K/input/1.png: is 32x41 (height x width), but its clean partner "
            "root/train/Rain13K/target/1.png is 32x40",
        ),
        ("no image", "root/train/Rain13K/input/1.png: cannot be decoded as an image (4 bytes)"),
        ("empty file", "root/train/Rain13K/input/1.png: cannot be decoded as an image (0 bytes)"),
        (
            "two of one name",
            "root/train/Rain13K/input/1.png: has the same name as 1.jpg except for the extension",
        ),
        (
            "nothing",
            "root: Rain13K not found; expected Rain13K in train/Rain13K/input and train/Rain13K/target "
            "(all layouts: data/DATASETS.md)",
        ),
    ],
)
def test_invalid_dataset_is_reported_in_one_line_with_its_path(root, capsys, mistake, message):
    broken_rain(root, mistake)
    assert run_prepare("derain", "--root", "root", "--sets", "Rain13K") == 2
    (line,) = prepare_errors(capsys)
    assert line.startswith(message)
    assert not list(Path().glob("datasets/Rain13K/train_*"))


def test_folder_that_exists_is_not_proposed_as_its_partner(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("Rain100L/rain").mkdir(parents=True)
    save(Path("Rain100L/rain/rain-001.png"), picture(1))
    assert run_prepare("derain", "--root", ".", "--sets", "Rain100L") == 2
    (line,) = prepare_errors(capsys)
    assert line.startswith("Rain100L/rain: its partner folder") and "Did you mean" not in line


@pytest.mark.parametrize("mistake", ["two sizes", "no image"])
def test_skip_bad_skips_bad_pairs(root, capsys, mistake):
    broken_rain(root, mistake)
    (root / "train/Rain13K/input/Thumbs.db").write_bytes(b"x")
    assert run_prepare("derain", "--root", "root", "--sets", "Rain13K", "--skip-bad") == 0
    out = capsys.readouterr().out
    assert (
        "3 pairs; images gt 2 (" in out and "; 1 skipped; 1 files that are not images ignored (Thumbs.db, ...)" in out
    )
    assert "\n  skipped: root/train/Rain13K/input/1.png: " in out
    assert set(stored_images(Path("datasets/Rain13K/train_gt.lmdb"))) == {"0", "2"}
    assert run_prepare("derain", "--root", "root", "--sets", "Rain13K", "--check") == 0


def test_dataset_without_usable_pairs_is_rejected(root, capsys):
    broken_rain(root, "two sizes")
    for name in ("0.png", "2.png"):
        (root / "train/Rain13K/input" / name).write_bytes(b"x")
    assert run_prepare("derain", "--root", "root", "--sets", "Rain13K", "--skip-bad") == 2
    (line,) = prepare_errors(capsys)
    assert line.startswith("root/train/Rain13K/target: none of 3 pairs could be used: root/train/Rain13K/input/0.png")


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("blur", "root/GOPRO_Large/train/GOPR0372_07_01/sharp: its partner folder is missing"),
        ("sharp", "root/GOPRO_Large/train/GOPR0372_07_01/blur: its partner folder is missing"),
    ],
)
def test_sequence_without_its_partner_folder_is_rejected(root, capsys, sequence, message):
    MINIATURES["deblur"](root)
    shutil.rmtree(root / f"GOPRO_Large/train/GOPR0372_07_01/{sequence}")
    assert run_prepare("deblur", "--root", "root") == 2
    assert prepare_errors(capsys)[0].startswith(message)


def test_missing_degradation_folder_is_rejected(root, capsys):
    MINIATURES["mixed"](root)
    shutil.rmtree(root / "CDD-11_train/haze_rain")
    assert run_prepare("mixed", "--root", "root") == 2
    assert prepare_errors(capsys) == ["root/CDD-11_train: lacks the folders haze_rain next to 'clear'"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["dreain"],
            "unknown task 'dreain'. Did you mean 'derain'? Tasks: derain, desnow, deblur, sr, denoise, mixed, photos",
        ),
        (
            ["derain", "--sets", "Rain13k"],
            "--sets: 'Rain13k' is not a set of derain. Did you mean 'Rain13K'? Sets: Rain13K",
        ),
        (["sr", "--crop", "50"], "--crop must be 0 or a multiple of 12, which all scales divide, got 50"),
        (["sr", "--step", "7"], "--step must be a multiple of 12, which all scales divide, got 7"),
        (
            ["sr", "--crop", "48", "--step", "60"],
            "--step must be at most --crop, or pixels between sub-images are lost: 60",
        ),
        (["sr", "--crop", "0", "--step", "24"], "--step: needs --crop, since no sub-images are cut without it"),
        (["derain", "--scale", "2"], "--scale: is for the task sr, got derain"),
        (["derain", "--root", "rot"], "--root: 'rot' does not exist. Did you mean 'root'?"),
        (["sr", "--scale", "5"], "basicsr prepare: argument --scale: invalid choice: 5 (choose from 2, 3, 4)."),
    ],
)
def test_invalid_argument_is_reported_in_one_line(root, capsys, arguments, message):
    MINIATURES["sr"](root)
    assert run_prepare(*arguments, *([] if "--root" in arguments else ["--root", "root"])) == 2
    (line,) = prepare_errors(capsys)
    assert line.startswith(message)


def test_check_accepts_skipped_pairs_if_root_is_given_as_absolute_path(root, capsys):
    broken_rain(root, "two sizes")
    assert run_prepare("derain", "--root", "root", "--sets", "Rain13K", "--skip-bad") == 0
    assert run_prepare("derain", "--root", str(root.absolute()), "--sets", "Rain13K", "--check") == 0
    assert "4 images compared, 0 problems" in capsys.readouterr().out


def spoil_lmdb(kind: str) -> None:
    place = Path("datasets/Rain13K/train_lq.lmdb")
    if kind == "no LMDB":
        (place / "data.mdb").write_bytes(b"x" * 9000)
    elif kind == "no meta":
        (place / "meta_info.txt").unlink()
    elif kind == "absent":
        shutil.rmtree(place)
    else:
        with lmdb.open(str(place), map_size=2**20, lock=False) as environment, environment.begin(write=True) as writing:
            if kind == "other image":
                writing.put(b"2", cv2.imencode(".png", picture(77))[1].tobytes())
            else:
                writing.delete(b"2")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no LMDB", "datasets/Rain13K/train_lq.lmdb: cannot be opened as an LMDB ("),
        (
            "no meta",
            "datasets/Rain13K: 'datasets/Rain13K/train_lq.lmdb' is not a BasicSR LMDB: meta_info.txt is missing",
        ),
        ("absent", "datasets/Rain13K/train_lq.lmdb: is not there; nothing was prepared, or with another --out"),
        (
            "other image",
            "datasets/Rain13K/train_lq.lmdb: image '2' differs from its source (of root/train/Rain13K/target/2.png)",
        ),
        ("lost image", "datasets/Rain13K/train_lq.lmdb: image '2' is missing (of root/train/Rain13K/target/2.png)"),
    ],
)
def test_check_finds_damaged_lmdbs(root, capsys, kind, message):
    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K"]
    assert run_prepare(*arguments) == 0
    spoil_lmdb(kind)
    assert run_prepare(*arguments, "--check") == 2
    (line,) = prepare_errors(capsys)
    assert line.startswith(message)


def test_check_finds_images_without_a_source(root, capsys):
    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K"]
    assert run_prepare(*arguments) == 0
    for kind in ("input", "target"):
        (root / f"train/Rain13K/{kind}/4.png").unlink(missing_ok=True)
    assert run_prepare(*arguments, "--check") == 2
    assert prepare_errors(capsys) == [
        f"datasets/Rain13K/train_{kind}.lmdb: 1 images have no source, the first is '4'" for kind in ("gt", "lq")
    ]


NAMED = {"--root": "--root", "--out": "-o/--out/--output"}


@pytest.mark.parametrize("arguments", [["--root", ""], ["--root", "root", "--out", ""]])
def test_empty_folder_name_is_rejected(root, capsys, arguments):
    assert run_prepare("derain", *arguments) == 2
    (line,) = prepare_errors(capsys)
    assert line.startswith(f"basicsr prepare: argument {NAMED[arguments[-2]]}: expected a name, got an empty string.")
