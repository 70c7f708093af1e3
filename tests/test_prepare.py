"""``basicsr prepare`` on miniatures of the public sets: what it finds, writes, resumes, checks and refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
from miniatures import MINIATURES, pairs, picture, save

from restormixer_arch import cli
from restormixer_arch.data.lmdb_io import LmdbImages
from restormixer_arch.data.preparation import prepare
from restormixer_arch.data.preparation.find_pairs import Unit
from restormixer_arch.data.preparation.sub_images import Recipe, prepare_units, windows

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


def run(*arguments: str) -> int:
    return cli.main(["prepare", *arguments])


def errors(capsys) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix("basicsr: error: ") for line in lines if "error: " in line]


@pytest.fixture
def root(folder):
    """A folder in the working directory for what is downloaded."""
    (folder / "root").mkdir()
    return folder / "root"


def images(path: Path) -> dict[str, np.ndarray]:
    reader = LmdbImages(path, "test")
    return {name: (reader.read(name) * 255).round().astype(np.uint8) for name in reader.names}


@pytest.mark.parametrize("task", EXPECTED)
@pytest.mark.parametrize("form", ["lmdb", "folder"])
def test_every_layout_is_found_and_written(root, capsys, task, form):
    MINIATURES[task](root)
    assert run(task, "--root", "root", "--format", form) == 0
    out = capsys.readouterr().out
    for part, (clean, kinds, degraded) in EXPECTED[task].items():
        assert f"{part.replace('/', ' ')}: " in out
        for kind, count in [("gt", clean), *((kind, degraded) for kind in kinds)]:
            place = Path("datasets", f"{part}_{kind}")
            names = images(place.with_name(f"{place.name}.lmdb")) if form == "lmdb" else list(place.rglob("*.*"))
            assert len(names) == count, (part, kind)
    assert not list(Path("datasets").rglob("*.partial"))
    assert run(task, "--root", "root", "--format", form, "--check") == 0
    assert capsys.readouterr().out.count(" 0 problems") == len(EXPECTED[task])


def test_pairs_belong_together(root):
    """Each degraded miniature is its clean one halved (or divided by the label's number)."""
    for task in ("derain", "deblur", "mixed"):
        MINIATURES[task](root)
        assert run(task, "--root", "root") == 0
    for part in ("Rain100H/test", "Test2800/test", "GoPro/train", "HIDE/test"):
        clean, degraded = (images(Path(f"datasets/{part}_{kind}.lmdb")) for kind in ("gt", "lq"))
        assert clean.keys() == degraded.keys()
        for name, image in clean.items():
            assert np.abs(image // 2 - degraded[name].astype(int)).mean() < 3, (part, name)
    assert set(images(Path("datasets/Test2800/test_gt.lmdb"))) == {f"90{n}_{k}" for n in (1, 2) for k in (1, 2, 3)}
    assert set(images(Path("datasets/GoPro/test_gt.lmdb"))) == {"GOPR0384_11_00_000047", "GOPR0384_11_00_000048"}
    clean, degraded = (images(Path(f"datasets/CDD-11/train_{kind}.lmdb")) for kind in ("gt", "lq"))
    assert set(clean) == {"00001", "00002", "00003"} and {"low/00001", "low_haze_snow/00003"} <= set(degraded)
    assert np.array_equal(clean["00002"] // 3, degraded["haze/00002"])


def test_whole_images_keep_their_bytes_and_others_become_png(root):
    MINIATURES["derain"](root)
    MINIATURES["desnow"](root)
    assert run("derain", "--root", "root") == run("desnow", "--root", "root") == 0
    stored = LmdbImages(Path("datasets/Rain13K/train_lq.lmdb"), "test")
    assert stored.content("1") == (root / "train/Rain13K/input/1.jpg").read_bytes()
    meta = Path("datasets/Rain13K/train_lq.lmdb/meta_info.txt").read_text().splitlines()
    assert meta[:2] == ["0.png (32,40,3) 1", "1.jpg (32,40,3) 1"]
    tiff = LmdbImages(Path("datasets/CSD/train_gt.lmdb"), "test").content("1")
    assert tiff.startswith(b"\x89PNG")
    assert np.array_equal(cv2.imdecode(np.frombuffer(tiff, np.uint8), 1), cv2.imread(str(root / "CSD/Train/Gt/1.tif")))


def test_basicsr_reads_what_was_written(root):
    from restormixer_arch.basicsr_adapter import compat

    compat.apply()
    from basicsr.data.paired_image_dataset import PairedImageDataset

    MINIATURES["derain"](root)
    assert run("derain", "--root", "root", "--sets", "Rain13K") == 0
    options = {f"dataroot_{kind}": f"datasets/Rain13K/train_{kind}.lmdb" for kind in ("gt", "lq")}
    data = PairedImageDataset({**options, "io_backend": {"type": "lmdb"}, "scale": 1, "phase": "val"})
    assert len(data) == 6
    item = data[2]
    assert item["gt_path"] == item["lq_path"] == "2"
    assert np.abs(item["gt"].numpy() * 255 - 2 * 255 * item["lq"].numpy()).max() <= 1.01  # halved and rounded down


def test_super_resolution_is_reduced_as_basicsr_does(root):
    from restormixer_arch.basicsr_adapter import compat

    MINIATURES["sr"](root)
    assert run("sr", "--root", "root", "--crop", "48", "--step", "24") == 0
    compat.apply()
    from basicsr.utils.matlab_functions import imresize

    source = cv2.imread(str(root / "DIV2K/DIV2K_train_HR/0001.png"))[:72, :96]
    clean = images(Path("datasets/DF2K/train_gt.lmdb"))
    assert {name for name in clean if name.startswith("0001_")} == {f"0001_s{n:03d}" for n in range(1, 7)}
    assert np.array_equal(clean["0001_s002"], source[:48, 24:72])
    for scale in (2, 3, 4):
        reduced = imresize(source.astype(np.float32) / 255, 1 / scale)
        expected = np.clip(np.round(reduced * 255), 0, 255).astype(np.uint8)
        degraded = images(Path(f"datasets/DF2K/train_x{scale}_lq.lmdb"))
        assert degraded.keys() == clean.keys()
        side, left = 48 // scale, 24 // scale
        assert np.array_equal(degraded["0001_s002"], expected[:side, left : left + side])
    assert images(Path("datasets/BSD100/test_x4_lq.lmdb"))["101085"].shape == (12, 15, 3)
    assert images(Path("datasets/Set5/test_gt.lmdb"))["baby"].shape == (48, 60, 3)  # 51x64 cut to multiples of 12
    assert run("sr", "--root", "root", "--check") == 0  # with the recorded crop and step


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
def test_windows_worked_by_hand(size, crop, step, expected):
    assert windows(*size, crop, step) == expected


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["lmdb", "folder"])
def test_a_stopped_preparation_resumes(root, capsys, monkeypatch, form):
    names = [(f"{n}.png",) * 2 for n in range(10)]
    pairs(root, "train/Rain13K/target", "train/Rain13K/input", names)
    monkeypatch.setattr(prepare, "CHUNK", 2)
    bad = root / "train/Rain13K/input/7.png"
    content = bad.read_bytes()
    bad.write_bytes(b"no image")
    assert run("derain", "--root", "root", "--format", form, "--workers", "0") == 2
    assert errors(capsys) == ["root/train/Rain13K/input/7.png: cannot be decoded as an image (8 bytes)"]
    assert not list(Path("datasets/Rain13K").glob("train_*"))
    journal = Path("datasets/Rain13K/train.partial/journal.jsonl")
    assert len(journal.read_text().splitlines()) == 1 + 6
    with journal.open("a") as file:
        file.write('{"unit": "9", "fi')  # cut short by a power failure
    bad.write_bytes(content)
    assert run("derain", "--root", "root", "--format", form, "--workers", "0") == 0
    assert ", 6 done before -> datasets/Rain13K/train_{gt,lq}" in capsys.readouterr().out
    assert run("derain", "--root", "root", "--format", form, "--check") == 0
    assert "20 images compared, 0 problems" in capsys.readouterr().out
    assert run("derain", "--root", "root", "--format", form) == 0
    assert "already prepared" in capsys.readouterr().out


def test_a_stop_between_two_renames_is_fixed(root, capsys):
    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K"]
    assert run(*arguments) == 0
    place = Path("datasets/Rain13K")
    (place / "train.partial").mkdir()
    (place / "train_lq.lmdb").rename(place / "train.partial/lq")
    (place / "train.jsonl").rename(place / "train.partial/journal.jsonl")
    assert run(*arguments) == 0 and run(*arguments, "--check") == 0
    lock = [] if sys.platform == "win32" else [".lock"]  # no locks there
    assert sorted(path.name for path in place.iterdir()) == [*lock, "train.jsonl", "train_gt.lmdb", "train_lq.lmdb"]
    assert "already prepared" in capsys.readouterr().out


def test_ctrl_c_keeps_what_is_done(root, capsys, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    MINIATURES["derain"](root)
    monkeypatch.setattr(prepare, "prepare_units", stopped)
    assert run("derain", "--root", "root", "--sets", "Rain13K", "--workers", "0") == 130
    text = "basicsr: stopped; what is done of Rain13K train is kept, the same command resumes from there\n"
    assert capsys.readouterr().err == text


@pytest.mark.slow
def test_several_processes_write_the_same(root, monkeypatch):
    names = [(f"{n}.png",) * 2 for n in range(40)]
    pairs(root, "train/Rain13K/target", "train/Rain13K/input", names)
    assert run("derain", "--root", "root", "--workers", "0", "--out", "one") == 0
    assert run("derain", "--root", "root", "--workers", "2", "--out", "two") == 0
    for kind in ("gt", "lq"):
        one, two = (images(Path(f"{out}/Rain13K/train_{kind}.lmdb")) for out in ("one", "two"))
        assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def killed(units, recipe):
    """In the place of prepare_units: the third image takes the process with it."""
    if units[0].name == "2":
        os._exit(9)
    return prepare_units(units, recipe)


def test_a_process_that_was_killed(root, capsys, monkeypatch):
    pairs(root, "train/Rain13K/target", "train/Rain13K/input", [(f"{n}.png",) * 2 for n in range(6)])
    monkeypatch.setattr(prepare, "CHUNK", 1)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "prepare_units", killed)
        assert run("derain", "--root", "root", "--workers", "2") == 2
    assert errors(capsys) == ["a process was killed; if the memory ran out, lower --workers"]
    assert run("derain", "--root", "root", "--workers", "1") == 0
    assert run("derain", "--root", "root", "--check", "--workers", "1") == 0


def test_workers_load_no_torch(root):
    """Their name is what the command looks at."""
    units = [Unit(str(number), Path()) for number in range(2)]
    outcomes = list(prepare._parallel([[unit] for unit in units], Recipe(), 1))
    assert [one.unit.name for (one,) in outcomes] == ["0", "1"] and all(one.problem for (one,) in outcomes)
    process = prepare._Workers().Process()
    assert "PoolWorker" in process.name and process._start_method == "spawn"


def test_workers_end_with_the_command():
    """They hold its stdout, which is read to its end here."""
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


def test_copies_in_test_sets_of_the_same_command(root, capsys):
    """The training set is prepared first; it is compared once the test sets are there, and again with new ones."""
    for name, count in (("train/Rain13K", 3), ("test/Rain100L", 2)):
        pairs(root, f"{name}/target", f"{name}/input", [(f"{n}.png",) * 2 for n in range(count)])
    first = "root/train/Rain13K/target/0.png (Rain100L/test_gt.lmdb: 0)"
    text = f"warning: Rain13K train: 2 training images are also in a test set, first {first}"
    assert run("derain", "--root", "root") == 0
    assert text in capsys.readouterr().err
    assert run("derain", "--root", "root") == 0
    assert "warning" not in capsys.readouterr().err
    shutil.rmtree("datasets/Rain100L")
    assert run("derain", "--root", "root") == 0
    assert text in capsys.readouterr().err


def test_an_lmdb_grows_as_needed(root, monkeypatch):
    from restormixer_arch.data.preparation import store

    monkeypatch.setattr(store, "SLACK", 2**16)
    rng = np.random.default_rng(0)
    for number in range(4):
        image = rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)  # 120 kB each
        for kind in ("input", "target"):
            save(root / f"train/Rain13K/{kind}/{number}.png", image)
    assert run("derain", "--root", "root") == 0
    assert len(images(Path("datasets/Rain13K/train_lq.lmdb"))) == 4


# --- mistakes --------------------------------------------------------------------------------------------------------


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
            "root/train/Rain13K/input: is there, but its partner folder 'train/Rain13K/target' is not in 'root'. "
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
            "root/train/Rain13K/input/1.png: has the same name as 1.jpg but for the extension",
        ),
        (
            "nothing",
            "root: Rain13K not found; expected Rain13K in train/Rain13K/input and train/Rain13K/target "
            "(all layouts: data/DATASETS.md)",
        ),
    ],
)
def test_a_wrong_set_is_one_line_with_the_path(root, capsys, mistake, message):
    broken_rain(root, mistake)
    assert run("derain", "--root", "root", "--sets", "Rain13K") == 2
    (line,) = errors(capsys)
    assert line.startswith(message)
    assert not list(Path().glob("datasets/Rain13K/train_*"))


@pytest.mark.parametrize("mistake", ["two sizes", "no image"])
def test_bad_pairs_can_be_left_out(root, capsys, mistake):
    broken_rain(root, mistake)
    (root / "train/Rain13K/input/Thumbs.db").write_bytes(b"x")
    assert run("derain", "--root", "root", "--sets", "Rain13K", "--skip-bad") == 0
    out = capsys.readouterr().out
    assert "3 pairs; images gt 2 (" in out and "; 1 skipped; 1 files that are no images ignored (Thumbs.db, ...)" in out
    assert "\n  skipped: root/train/Rain13K/input/1.png: " in out
    assert set(images(Path("datasets/Rain13K/train_gt.lmdb"))) == {"0", "2"}
    assert run("derain", "--root", "root", "--sets", "Rain13K", "--check") == 0


def test_nothing_usable_is_a_mistake(root, capsys):
    broken_rain(root, "two sizes")
    for name in ("0.png", "2.png"):
        (root / "train/Rain13K/input" / name).write_bytes(b"x")
    assert run("derain", "--root", "root", "--sets", "Rain13K", "--skip-bad") == 2
    (line,) = errors(capsys)
    assert line.startswith("root/train/Rain13K/target: none of 3 pairs could be used: root/train/Rain13K/input/0.png")


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("blur", "root/GOPRO_Large/train/GOPR0372_07_01/sharp: its partner folder is not there"),
        ("sharp", "root/GOPRO_Large/train/GOPR0372_07_01/blur: its partner folder is not there"),
    ],
)
def test_one_sequence_without_its_partner(root, capsys, sequence, message):
    MINIATURES["deblur"](root)
    shutil.rmtree(root / f"GOPRO_Large/train/GOPR0372_07_01/{sequence}")
    assert run("deblur", "--root", "root") == 2
    assert errors(capsys)[0].startswith(message)


def test_a_degradation_that_is_missing(root, capsys):
    MINIATURES["mixed"](root)
    shutil.rmtree(root / "CDD-11_train/haze_rain")
    assert run("mixed", "--root", "root") == 2
    assert errors(capsys) == ["root/CDD-11_train: lacks the folders haze_rain beside 'clear'"]


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
        (["derain", "--root", "rot"], "--root: 'rot' does not exist. Did you mean 'root'?"),
        (["sr", "--scale", "5"], "basicsr prepare: argument --scale: invalid choice: 5 (choose from 2, 3, 4)."),
    ],
)
def test_a_wrong_argument_is_one_line(root, capsys, arguments, message):
    MINIATURES["sr"](root)
    assert run(*arguments, *([] if "--root" in arguments else ["--root", "root"])) == 2
    (line,) = errors(capsys)
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            "changed",
            "datasets/Rain13K/train_gt.lmdb: was prepared from other files, or they have changed since; remove it",
        ),
        ("settings", "datasets/Rain13K/train_gt.lmdb: was prepared with other settings ({'crop': 0, 'step': 0}, now {"),
        ("foreign", "datasets/Rain13K/train_gt.lmdb: already exists and was not made by this command; remove it"),
    ],
)
def test_what_is_there_is_not_overwritten(root, capsys, spoil, message):
    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K"]
    assert run(*arguments) == 0
    if spoil == "changed":
        pairs(root, "train/Rain13K/target", "train/Rain13K/input", [("0.png", "0.png")], (40, 48))
    elif spoil == "settings":
        arguments += ["--crop", "24"]
    else:
        Path("datasets/Rain13K/train.jsonl").unlink()
    assert run(*arguments) == 2
    (line,) = errors(capsys)
    assert line.startswith(message)


def test_a_set_has_one_format(root, capsys):
    """LMDBs would be left without their record, and 'basicsr init' would take them instead of the folders."""
    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K"]
    assert run(*arguments) == 0 and run(*arguments, "--format", "folder") == 2
    assert errors(capsys) == [
        "datasets/Rain13K/train_gt.lmdb: was prepared with other settings ({'format': 'lmdb'}, now {'format': 'folder'"
        "}); remove it and train_lq.lmdb, or choose another --out, to prepare it again"
    ]
    assert run(*arguments) == 0 and run(*arguments, "--check") == 0
    assert "already prepared" in capsys.readouterr().out


def test_what_has_to_go_is_named_as_a_whole(root, capsys):
    """Both parts, and what another preparation would leave beside them; images of other parts stay out of it."""
    pairs(root, "CSD/train/Gt", "CSD/train/Snow", [("1.tif",) * 2])
    pairs(root, "CSD/test/Gt", "CSD/test/Snow", [("1.tif",) * 2])
    arguments = ["desnow", "--root", "root", "--sets", "CSD"]
    assert run(*arguments) == 0
    for name in ("train_x2_lq.lmdb", "train_lq", "train_S_lq.lmdb", "train_lq.lmdb.old"):
        Path("datasets/CSD", name).mkdir()
    for part in ("train", "test"):
        pairs(root, f"CSD/{part}/Gt", f"CSD/{part}/Snow", [("1.tif",) * 2], (40, 48))
    assert run(*arguments) == 2
    assert errors(capsys) == [
        "datasets/CSD/train_gt.lmdb: was prepared from other files, or they have changed since; remove it, "
        "train_lq.lmdb, train_lq, train_x2_lq.lmdb, test_gt.lmdb and test_lq.lmdb, or choose another --out, to prepare "
        "it again"
    ]
    for name in ("train_gt.lmdb", "train_lq.lmdb", "train_lq", "test_gt.lmdb", "test_lq.lmdb"):
        shutil.rmtree(Path("datasets/CSD", name))
    assert run(*arguments) == 2
    assert errors(capsys)[0].startswith(
        "datasets/CSD/train_x2_lq.lmdb: was prepared from other files, or they have changed since; remove it, or choose"
    )
    shutil.rmtree("datasets/CSD/train_x2_lq.lmdb")
    assert run(*arguments) == 0 and run(*arguments, "--check") == 0


def test_large_files_are_few_at_once(tmp_path, monkeypatch):
    for number, size in enumerate([10, 10, 10, 50, 200, 1, 1, 1, 1, 1]):
        (tmp_path / f"{number}").write_bytes(bytes(size))
    units = [Unit(str(n), tmp_path / str(n), (("lq", str(n), tmp_path / str(n)),)) for n in range(11)]  # 10: none
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


def test_check_knows_skipped_pairs_however_the_root_is_spelled(root, capsys):
    broken_rain(root, "two sizes")
    assert run("derain", "--root", "root", "--sets", "Rain13K", "--skip-bad") == 0
    assert run("derain", "--root", str(root.absolute()), "--sets", "Rain13K", "--check") == 0
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
            "datasets/Rain13K: 'datasets/Rain13K/train_lq.lmdb' is no LMDB of BasicSR: it has no meta_info.txt",
        ),
        ("absent", "datasets/Rain13K/train_lq.lmdb: is not there; nothing was prepared, or with another --out"),
        (
            "other image",
            "datasets/Rain13K/train_lq.lmdb: image '2' differs from its source (of root/train/Rain13K/target/2.png)",
        ),
        ("lost image", "datasets/Rain13K/train_lq.lmdb: image '2' is missing (of root/train/Rain13K/target/2.png)"),
    ],
)
def test_check_finds_what_is_wrong(root, capsys, kind, message):
    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K"]
    assert run(*arguments) == 0
    spoil_lmdb(kind)
    assert run(*arguments, "--check") == 2
    (line,) = errors(capsys)
    assert line.startswith(message)


def test_check_finds_images_without_a_source(root, capsys):
    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K"]
    assert run(*arguments) == 0
    for kind in ("input", "target"):
        (root / f"train/Rain13K/{kind}/4.png").unlink(missing_ok=True)
    assert run(*arguments, "--check") == 2
    assert errors(capsys) == [
        f"datasets/Rain13K/train_{kind}.lmdb: 1 images have no source, the first is '4'" for kind in ("gt", "lq")
    ]


def test_dry_run_writes_nothing(root, capsys):
    MINIATURES["deblur"](root)
    (root / "GOPRO_Large/train/GOPR0372_07_00/blur/notes.txt").write_text("x")
    assert run("deblur", "--root", "root", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "GoPro train: 4 pairs, sub-images of 512 every 256 -> datasets/GoPro/train_{gt,lq}.lmdb"
    assert "  ignored, no image: root/GOPRO_Large/train/GOPR0372_07_00/blur/notes.txt" in lines
    assert "HIDE test: 2 pairs, whole images -> datasets/HIDE/test_{gt,lq}.lmdb" in lines
    assert not Path("datasets").exists()


def test_the_record_shows_what_was_made(root):
    MINIATURES["derain"](root)
    assert run("derain", "--root", "root", "--sets", "Rain100L") == 0
    settings, first, *_ = (json.loads(line) for line in Path("datasets/Rain100L/test.jsonl").read_text().splitlines())
    assert settings == {"version": 2, "format": "lmdb", "crop": 0, "step": 0, "scales": [], "multiple": 1}
    assert first["unit"] == "0" and first["images"] == {"gt": ["0.png (32,40,3) 1"], "lq": ["0.png (32,40,3) 1"]}
    assert set(first["files"]) == {"gt/0.png", "lq/0.png"}


def as_version_1(record: Path, folders: dict[str, str]) -> None:
    """Rewrite a record as earlier versions wrote it: files by folder and name."""
    settings, *records = (json.loads(line) for line in record.read_text().splitlines())
    for one in records:
        named = {f"{folders[name.partition('/')[0]]}/{Path(name).name}": s for name, s in one.get("files", {}).items()}
        one |= {"files": named} if "files" in one else {}
    lines = [json.dumps(line) for line in ({**settings, "version": 1}, *records)]
    record.write_text("".join(f"{line}\n" for line in lines))


def test_records_of_an_earlier_version(root, capsys):
    """They are taken as they are, whole or half done, unless they lack files: then it says what to remove."""
    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K"]
    assert run(*arguments) == 0
    place = Path("datasets/Rain13K")
    as_version_1(place / "train.jsonl", {"gt": "target", "lq": "input"})
    assert run(*arguments) == 0 and run(*arguments, "--check") == 0
    assert "already prepared" in capsys.readouterr().out
    (place / "train.partial").mkdir()
    for kind in ("gt", "lq"):
        (place / f"train_{kind}.lmdb").rename(place / f"train.partial/{kind}")
    lines = (place / "train.jsonl").read_text().splitlines(keepends=True)
    (place / "train.partial/journal.jsonl").write_text("".join(lines[:-2]))
    (place / "train.jsonl").unlink()
    assert run(*arguments) == 0 and run(*arguments) == 0 and run(*arguments, "--check") == 0
    assert ", 5 done before -> " in capsys.readouterr().out
    as_version_1(place / "train.jsonl", dict.fromkeys(("gt", "lq", "target", "input"), "img"))
    assert run(*arguments) == 2
    assert errors(capsys) == [
        "datasets/Rain13K/train_gt.lmdb: was prepared by an earlier version, or from other files, or they have changed "
        "since; remove it and train_lq.lmdb, or choose another --out, to prepare it again"
    ]


# --- what is in the place of a part that grows ------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["lmdb", "folder"])
def test_a_folder_of_the_user_is_not_removed(root, capsys, form):
    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K", "--format", form]
    place = Path("datasets/Rain13K/train.partial")
    place.mkdir(parents=True)
    (place / "f").write_text("precious")
    assert run(*arguments) == 2
    assert errors(capsys) == [
        "datasets/Rain13K/train.partial: was not made by this command, which needs its place; rename it, or choose "
        "another --out"
    ]
    assert (place / "f").read_text() == "precious" and len(list(place.iterdir())) == 1
    (place / "f").rename(place / ".part-0123abcd-journal.jsonl")  # of a process that was killed at its first step
    assert run(*arguments) == 0 and not place.exists()


def begun(root: Path, monkeypatch, form: str) -> list[str]:
    """Prepare six of ten pairs and stop there. Returns the arguments with which it resumes."""
    pairs(root, "train/Rain13K/target", "train/Rain13K/input", [(f"{n}.png",) * 2 for n in range(10)])
    monkeypatch.setattr(prepare, "CHUNK", 2)
    bad = root / "train/Rain13K/input/7.png"
    content = bad.read_bytes()
    bad.write_bytes(b"no image")
    arguments = ["derain", "--root", "root", "--workers", "0", "--format", form]
    assert run(*arguments) == 2
    bad.write_bytes(content)
    return arguments


@pytest.mark.parametrize("damage", ["garbage", "empty", "cut short", "absent"])
def test_a_damaged_lmdb_is_begun_again(root, capsys, monkeypatch, damage):
    arguments = begun(root, monkeypatch, "lmdb")
    data = Path("datasets/Rain13K/train.partial/gt/data.mdb")
    content = data.read_bytes()
    data.write_bytes({"garbage": b"x" * 9000, "empty": b"", "cut short": content[:8192]}.get(damage, b""))
    if damage == "absent":
        data.unlink()
    assert run(*arguments) == 0
    assert "done before" not in capsys.readouterr().out
    assert run(*arguments, "--check") == 0 and "20 images compared, 0 problems" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["lmdb", "folder"])
@pytest.mark.parametrize(
    ("line", "done"),
    [(b"\xff\xfe\n", 3), (b"[1]\n", 3), (b"5\n", 3), (b'{"unit": "9"}\n', 3), (b'{"unit": 1, "files": {}}\n', 3)],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_damaged_journal_counts_up_to_the_damage(root, capsys, monkeypatch, form, line, done, first):
    arguments = begun(root, monkeypatch, form)
    journal = Path("datasets/Rain13K/train.partial/journal.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[0 if first else 1 + done] = line
    journal.write_bytes(b"".join(lines))
    assert run(*arguments) == 0
    assert (f", {done} done before" in capsys.readouterr().out) is not first
    assert run(*arguments, "--check") == 0


@pytest.mark.parametrize("line", [b"\xff\xfe\n", b"[1]\n", b'{"crop": 0}\n', b"\n"])
def test_a_damaged_record_of_what_is_there(root, capsys, line):
    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K"]
    assert run(*arguments) == 0
    record = Path("datasets/Rain13K/train.jsonl")
    record.write_bytes(line + b"".join(record.read_bytes().splitlines(keepends=True)[1:]))
    assert run(*arguments, "--check") == 0
    assert run(*arguments) == 2
    assert errors(capsys)[0].startswith(
        "datasets/Rain13K/train_gt.lmdb: already exists and was not made by this command; remove it and train_lq.lmdb"
    )


def test_a_full_disk_where_an_lmdb_is_made(root, capsys, monkeypatch):
    from restormixer_arch.data.preparation import store

    def full_disk(path, **options):
        raise lmdb.DiskError(f"{path}: No space left on device")

    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K"]
    with monkeypatch.context() as patch:
        patch.setattr(store.lmdb, "open", full_disk)
        assert run(*arguments) == 2
    (line,) = errors(capsys)
    assert line == "datasets/Rain13K/train.partial/gt: cannot be written (No space left on device)"
    assert run(*arguments) == 0


def test_an_lmdb_grows_by_thousands_of_small_images(tmp_path, monkeypatch):
    from restormixer_arch.data.preparation import store
    from restormixer_arch.data.preparation.sub_images import Entry

    monkeypatch.setattr(store, "SLACK", 2**16)
    rng = np.random.default_rng(0)
    entries = [Entry(f"{n:05}", ".png", (1, 1), rng.bytes(int(length))) for n, length in enumerate(range(1300, 2100))]
    entries += [Entry(f"s{n:05}", ".png", (1, 1), b"x") for n in range(4500)]
    growing = store.LmdbStore(tmp_path / "x")
    for begin in range(0, len(entries), 1000):
        growing.put(entries[begin : begin + 1000])
    growing.close(store.meta_line(entry) for entry in entries)
    reader = LmdbImages((tmp_path / "x").rename(tmp_path / "x.lmdb"), "x")
    assert [reader.content(entry.key) for entry in entries] == [entry.content for entry in entries]


@pytest.mark.parametrize("arguments", [["--root", ""], ["--root", "root", "--out", ""]])
def test_an_empty_name_is_not_the_working_directory(root, capsys, arguments):
    assert run("derain", *arguments) == 2
    (line,) = errors(capsys)
    assert line.startswith(f"basicsr prepare: argument {arguments[-2]}: expected a name, got none.")
