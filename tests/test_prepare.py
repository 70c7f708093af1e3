"""``basicsr prepare`` on miniatures of the public datasets: which files it finds and writes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mini_datasets import MINIATURES, pairs, run_prepare, save, stored_images

from restormixer_arch.data.lmdb_io import LmdbImages
from restormixer_arch.data.preparation import prepare
from restormixer_arch.data.preparation.find_pairs import Unit
from restormixer_arch.data.preparation.sub_images import Recipe, windows

# Task -> (set, part) -> (clean images written, kinds of degraded images, degraded images written of each kind)
EXPECTED = {
    "derain": {
        "Rain13K/train": (6, ["lq"], 6),
        "Rain100H/test": (2, ["lq"], 2),
        "Rain100L/test": (2, ["lq"], 2),
        "Test2800/test": (6, ["lq"], 6),
        "Test1200/test": (2, ["lq"], 2),
        "Test100/test": (1, ["lq"], 1),
    },
    "desnow": {
        "Snow100K/train": (5, ["lq"], 5),
        "Snow100K/test_S": (1, ["lq"], 1),
        "Snow100K/test_M": (1, ["lq"], 1),
        "Snow100K/test_L": (1, ["lq"], 1),
        "SRRS/train": (3, ["lq"], 3),
        "SRRS/test": (1, ["lq"], 1),
        "CSD/train": (4, ["lq"], 4),
        "CSD/test": (2, ["lq"], 2),
    },
    "deblur": {"GoPro/train": (4, ["lq"], 4), "GoPro/test": (2, ["lq"], 2), "HIDE/test": (2, ["lq"], 2)},
    "mixed": {
        "CDD-11/train": (3, ["lq"], 33),
        "CDD-11/test": (1, ["lq"], 11),
    },
}


@pytest.mark.parametrize("task", EXPECTED)
@pytest.mark.parametrize("form", ["lmdb", "folder"])
def test_every_layout_is_found_and_written(root, capsys, task, form):
    MINIATURES[task](root)
    assert run_prepare(task, "--root", "root", "--format", form) == 0
    out = capsys.readouterr().out
    for part, (clean, kinds, degraded) in EXPECTED[task].items():
        assert f"{part.replace('/', ' ')}: " in out
        for kind, count in [("gt", clean), *((kind, degraded) for kind in kinds)]:
            place = Path("datasets", f"{part}_{kind}")
            names = stored_images(place.with_name(f"{place.name}.lmdb")) if form == "lmdb" else list(place.rglob("*.*"))
            assert len(names) == count, (part, kind)
    assert not list(Path("datasets").rglob("*.partial"))
    assert run_prepare(task, "--root", "root", "--format", form, "--check") == 0
    assert capsys.readouterr().out.count(" 0 problems") == len(EXPECTED[task])


def test_degraded_images_match_their_clean_images(root):
    """Each degraded miniature is its clean image divided by 2 (or by a number that depends on the label)."""
    for task in ("derain", "deblur", "mixed"):
        MINIATURES[task](root)
        assert run_prepare(task, "--root", "root") == 0
    for part in ("Rain100H/test", "Test2800/test", "GoPro/train", "HIDE/test"):
        clean, degraded = (stored_images(Path(f"datasets/{part}_{kind}.lmdb")) for kind in ("gt", "lq"))
        assert clean.keys() == degraded.keys()
        for name, image in clean.items():
            assert np.abs(image // 2 - degraded[name].astype(int)).mean() < 3, (part, name)
    assert set(stored_images(Path("datasets/Test2800/test_gt.lmdb"))) == {
        f"90{n}_{k}" for n in (1, 2) for k in (1, 2, 3)
    }
    assert set(stored_images(Path("datasets/GoPro/test_gt.lmdb"))) == {"GOPR0384_11_00_000047", "GOPR0384_11_00_000048"}
    clean, degraded = (stored_images(Path(f"datasets/CDD-11/train_{kind}.lmdb")) for kind in ("gt", "lq"))
    assert set(clean) == {"00001", "00002", "00003"} and {"low/00001", "low_haze_snow/00003"} <= set(degraded)
    assert np.array_equal(clean["00002"] // 3, degraded["haze/00002"])


def test_uncropped_png_and_jpeg_keep_their_bytes_and_tiff_becomes_png(root):
    MINIATURES["derain"](root)
    MINIATURES["desnow"](root)
    assert run_prepare("derain", "--root", "root") == run_prepare("desnow", "--root", "root") == 0
    stored = LmdbImages(Path("datasets/Rain13K/train_lq.lmdb"), "test")
    assert stored.content("1") == (root / "train/Rain13K/input/1.jpg").read_bytes()
    meta = Path("datasets/Rain13K/train_lq.lmdb/meta_info.txt").read_text().splitlines()
    assert meta[:2] == ["0.png (32,40,3) 1", "1.jpg (32,40,3) 1"]
    tiff = LmdbImages(Path("datasets/CSD/train_gt.lmdb"), "test").content("1")
    assert tiff.startswith(b"\x89PNG")
    assert np.array_equal(cv2.imdecode(np.frombuffer(tiff, np.uint8), 1), cv2.imread(str(root / "CSD/Train/Gt/1.tif")))


def test_basicsr_reads_the_written_lmdb(root):
    from restormixer_arch.basicsr_adapter import compat

    compat.apply()
    from basicsr.data.paired_image_dataset import PairedImageDataset

    MINIATURES["derain"](root)
    assert run_prepare("derain", "--root", "root", "--sets", "Rain13K") == 0
    options = {f"dataroot_{kind}": f"datasets/Rain13K/train_{kind}.lmdb" for kind in ("gt", "lq")}
    data = PairedImageDataset({**options, "io_backend": {"type": "lmdb"}, "scale": 1, "phase": "val"})
    assert len(data) == 6
    item = data[2]
    assert item["gt_path"] == item["lq_path"] == "2"
    assert np.abs(item["gt"].numpy() * 255 - 2 * 255 * item["lq"].numpy()).max() <= 1.01  # halved and rounded down


def test_super_resolution_downsampling_matches_basicsr(root):
    from restormixer_arch.basicsr_adapter import compat

    MINIATURES["sr"](root)
    assert run_prepare("sr", "--root", "root", "--crop", "48", "--step", "24") == 0
    compat.apply()
    from basicsr.utils.matlab_functions import imresize

    source = cv2.imread(str(root / "DIV2K/DIV2K_train_HR/0001.png"))[:72, :96]
    clean = stored_images(Path("datasets/DF2K/train_gt.lmdb"))
    assert {name for name in clean if name.startswith("0001_")} == {f"0001_s{n:03d}" for n in range(1, 7)}
    assert np.array_equal(clean["0001_s002"], source[:48, 24:72])
    for scale in (2, 3, 4):
        reduced = imresize(source.astype(np.float32) / 255, 1 / scale)
        expected = np.clip(np.round(reduced * 255), 0, 255).astype(np.uint8)
        degraded = stored_images(Path(f"datasets/DF2K/train_x{scale}_lq.lmdb"))
        assert degraded.keys() == clean.keys()
        side, left = 48 // scale, 24 // scale
        assert np.array_equal(degraded["0001_s002"], expected[:side, left : left + side])
    assert stored_images(Path("datasets/BSD100/test_x4_lq.lmdb"))["101085"].shape == (12, 15, 3)
    assert stored_images(Path("datasets/Set5/test_gt.lmdb"))["baby"].shape == (
        48,
        60,
        3,
    )  # 51x64 cropped to multiples of 12
    assert run_prepare("sr", "--root", "root", "--check") == 0  # with the recorded crop and step


@pytest.mark.parametrize(
    ("size", "crop", "step", "expected"),
    [
        ((10, 10), 0, 0, [(0, 0, 10, 10)]),
        ((10, 8), 12, 6, [(0, 0, 10, 8)]),
        ((12, 12), 12, 6, [(0, 0, 12, 12)]),
        ((12, 20), 12, 6, [(0, 0, 12, 12), (0, 6, 12, 12), (0, 8, 12, 12)]),
        ((24, 12), 12, 12, [(0, 0, 12, 12), (12, 0, 12, 12)]),
    ],
)
def test_windows_match_manually_computed_positions(size, crop, step, expected):
    assert windows(*size, crop, step) == expected


@pytest.mark.slow
def test_several_processes_write_the_same_images(root, monkeypatch):
    names = [(f"{n}.png",) * 2 for n in range(40)]
    pairs(root, "train/Rain13K/target", "train/Rain13K/input", names)
    assert run_prepare("derain", "--root", "root", "--workers", "0", "--out", "one") == 0
    assert run_prepare("derain", "--root", "root", "--workers", "2", "--out", "two") == 0
    for kind in ("gt", "lq"):
        one, two = (stored_images(Path(f"{out}/Rain13K/train_{kind}.lmdb")) for out in ("one", "two"))
        assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_workers_have_the_process_name_that_avoids_loading_torch(root):
    """``restormixer_arch.cli`` does not load torch in processes with this name."""
    units = [Unit(str(number), Path()) for number in range(2)]
    outcomes = list(prepare._parallel([[unit] for unit in units], Recipe(), 1))
    assert [one.unit.name for (one,) in outcomes] == ["0", "1"] and all(one.problem for (one,) in outcomes)
    process = prepare._Workers().Process()
    assert "PoolWorker" in process.name and process._start_method == "spawn"


def test_workers_end_with_the_command():
    """A worker that continued would keep stdout open, and reading it to its end would time out."""
    code = (
        "import os\n"
        "from restormixer_arch.data.preparation.prepare import ProcessPoolExecutor, _Workers, start_worker\n"
        "if __name__ == '__main__':\n"
        "    worker = ProcessPoolExecutor(1, _Workers(), start_worker).submit(os.getpid).result()\n"
        "    print(worker != os.getpid(), flush=True)\n"
        "    os._exit(9)  # as when it is killed\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 9 and done.stdout == "True\n"


def test_training_images_that_are_also_in_a_test_set_are_reported(root, capsys):
    """The training set is prepared first. It is compared when the test sets exist, and again if there are new ones."""
    for name, count in (("train/Rain13K", 3), ("test/Rain100L", 2)):
        pairs(root, f"{name}/target", f"{name}/input", [(f"{n}.png",) * 2 for n in range(count)])
    first = "root/train/Rain13K/target/0.png (Rain100L/test_gt.lmdb: 0)"
    text = f"warning: Rain13K train: training images that are also in a test or validation set: 2, first {first}"
    assert run_prepare("derain", "--root", "root") == 0
    assert text in capsys.readouterr().err
    assert run_prepare("derain", "--root", "root") == 0
    assert "warning" not in capsys.readouterr().err
    shutil.rmtree("datasets/Rain100L")
    assert run_prepare("derain", "--root", "root") == 0
    assert text in capsys.readouterr().err


def test_lmdb_grows_as_needed(root, monkeypatch):
    from restormixer_arch.data.preparation import store

    monkeypatch.setattr(store, "INITIAL_MAP_BYTES", 2**16)
    rng = np.random.default_rng(0)
    for number in range(4):
        image = rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)  # 120 kB each
        for kind in ("input", "target"):
            save(root / f"train/Rain13K/{kind}/{number}.png", image)
    assert run_prepare("derain", "--root", "root") == 0
    assert len(stored_images(Path("datasets/Rain13K/train_lq.lmdb"))) == 4


def test_chunks_are_limited_in_files_and_bytes(tmp_path, monkeypatch):
    for number, size in enumerate([10, 10, 10, 50, 200, 1, 1, 1, 1, 1]):
        (tmp_path / f"{number}").write_bytes(bytes(size))
    units = [Unit(str(n), tmp_path / str(n), (("lq", str(n), tmp_path / str(n)),)) for n in range(11)]  # 10 is missing
    monkeypatch.setattr(prepare, "CHUNK", 4)
    monkeypatch.setattr(prepare, "CHUNK_BYTES", 120)
    assert [[int(unit.name) for unit in chunk] for chunk in prepare._chunks(units)] == [
        [0, 1, 2],
        [3],
        [4],
        [5, 6, 7, 8],
        [9, 10],
    ]
    assert list(prepare._chunks([])) == []


def test_dry_run_writes_nothing(root, capsys):
    MINIATURES["deblur"](root)
    (root / "GOPRO_Large/train/GOPR0372_07_00/blur/notes.txt").write_text("x")
    assert run_prepare("deblur", "--root", "root", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "GoPro train: 4 pairs, sub-images of 512 every 256 -> datasets/GoPro/train_{gt,lq}.lmdb"
    assert "  ignored, not an image: root/GOPRO_Large/train/GOPR0372_07_00/blur/notes.txt" in lines
    assert "HIDE test: 2 pairs, whole images -> datasets/HIDE/test_{gt,lq}.lmdb" in lines
    assert not Path("datasets").exists()


def test_record_contains_settings_and_written_images(root):
    MINIATURES["derain"](root)
    assert run_prepare("derain", "--root", "root", "--sets", "Rain100L") == 0
    settings, first, *_ = (json.loads(line) for line in Path("datasets/Rain100L/test.jsonl").read_text().splitlines())
    assert settings == {"version": 2, "format": "lmdb", "crop": 0, "step": 0, "scales": [], "multiple": 1}
    assert first["unit"] == "0" and first["images"] == {"gt": ["0.png (32,40,3) 1"], "lq": ["0.png (32,40,3) 1"]}
    assert set(first["files"]) == {"gt/0.png", "lq/0.png"}


def test_lmdb_grows_by_thousands_of_small_images(tmp_path, monkeypatch):
    from restormixer_arch.data.preparation import store
    from restormixer_arch.data.preparation.sub_images import Entry

    monkeypatch.setattr(store, "INITIAL_MAP_BYTES", 2**16)
    rng = np.random.default_rng(0)
    entries = [Entry(f"{n:05}", ".png", (1, 1), rng.bytes(int(length))) for n, length in enumerate(range(1300, 2100))]
    entries += [Entry(f"s{n:05}", ".png", (1, 1), b"x") for n in range(4500)]
    growing = store.LmdbStore(tmp_path / "x")
    for begin in range(0, len(entries), 1000):
        growing.put(entries[begin : begin + 1000])
    growing.close(store.meta_line(entry) for entry in entries)
    reader = LmdbImages((tmp_path / "x").rename(tmp_path / "x.lmdb"), "x")
    assert [reader.content(entry.key) for entry in entries] == [entry.content for entry in entries]
