"""Interrupted preparations are resumed, and existing outputs are kept or rejected."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import lmdb
import pytest
from mini_datasets import MINIATURES, pairs, prepare_errors, run_prepare

from restormixer_arch.cli.prepare import writing
from restormixer_arch.data import lmdb_io
from restormixer_arch.data.preparation import prepare
from restormixer_arch.data.preparation.store import STORES, open_reader
from restormixer_arch.data.preparation.sub_images import prepare_units
from restormixer_arch.errors import UserError


@pytest.mark.parametrize("form", ["lmdb", "folder"])
def test_interrupted_preparation_resumes(root, capsys, monkeypatch, form):
    names = [(f"{n}.png",) * 2 for n in range(10)]
    pairs(root, "train/Rain13K/target", "train/Rain13K/input", names)
    monkeypatch.setattr(prepare, "CHUNK", 2)
    bad = root / "train/Rain13K/input/7.png"
    content = bad.read_bytes()
    bad.write_bytes(b"no image")
    assert run_prepare("derain", "--root", "root", "--format", form, "--workers", "0") == 2
    assert prepare_errors(capsys) == ["root/train/Rain13K/input/7.png: cannot be decoded as an image (8 bytes)"]
    assert not list(Path("datasets/Rain13K").glob("train_*"))
    journal = Path("datasets/Rain13K/train.partial/journal.jsonl")
    assert len(journal.read_text().splitlines()) == 1 + 6
    with journal.open("a") as file:
        file.write('{"unit": "9", "fi')  # truncated by a power failure
    bad.write_bytes(content)
    assert run_prepare("derain", "--root", "root", "--format", form, "--workers", "0") == 0
    assert ", 6 done before -> datasets/Rain13K/train_{gt,lq}" in capsys.readouterr().out
    assert run_prepare("derain", "--root", "root", "--format", form, "--check") == 0
    assert "20 images compared, 0 problems" in capsys.readouterr().out
    assert run_prepare("derain", "--root", "root", "--format", form) == 0
    assert "already prepared" in capsys.readouterr().out


def test_interruption_between_two_renames_is_repaired(root, capsys):
    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K"]
    assert run_prepare(*arguments) == 0
    place = Path("datasets/Rain13K")
    (place / "train.partial").mkdir()
    (place / "train_lq.lmdb").rename(place / "train.partial/lq")
    (place / "train.jsonl").rename(place / "train.partial/journal.jsonl")
    assert run_prepare(*arguments) == 0 and run_prepare(*arguments, "--check") == 0
    lock = [] if sys.platform == "win32" else [".lock"]  # no lock file on Windows
    assert sorted(path.name for path in place.iterdir()) == [*lock, "train.jsonl", "train_gt.lmdb", "train_lq.lmdb"]
    assert "already prepared" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "name", "text"),
    [
        (prepare, "prepare_units", "finished work on Rain13K train is kept; run the same command again to resume"),
        (
            writing,
            "find_copies",
            "Rain13K train was prepared, but not compared with all test and validation sets; remove it to repeat this",
        ),
    ],
)
def test_ctrl_c_keeps_finished_work_and_says_what_is_missing(root, capsys, monkeypatch, module, name, text):
    def stopped(*arguments):
        raise KeyboardInterrupt

    MINIATURES["derain"](root)
    monkeypatch.setattr(module, name, stopped)
    assert run_prepare("derain", "--root", "root", "--sets", "Rain13K", "--workers", "0") == 130
    assert capsys.readouterr().err == f"basicsr: stopped; {text}\n"


def killed(units, recipe):
    """Replace prepare_units by a function that kills the process at the third image."""
    if units[0].name == "2":
        os._exit(9)
    return prepare_units(units, recipe)


def test_killed_worker_is_reported_and_preparation_resumes(root, capsys, monkeypatch):
    pairs(root, "train/Rain13K/target", "train/Rain13K/input", [(f"{n}.png",) * 2 for n in range(6)])
    monkeypatch.setattr(prepare, "CHUNK", 1)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "prepare_units", killed)
        assert run_prepare("derain", "--root", "root", "--workers", "2") == 2
    assert prepare_errors(capsys) == ["a process was killed; if the memory ran out, lower --workers"]
    assert run_prepare("derain", "--root", "root", "--workers", "1") == 0
    assert run_prepare("derain", "--root", "root", "--check", "--workers", "1") == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            "changed",
            "datasets/Rain13K/train_gt.lmdb: was prepared from other files, or they have changed since; remove it",
        ),
        ("settings", "datasets/Rain13K/train_gt.lmdb: was prepared with other settings ({'crop': 0, 'step': 0}, now {"),
        (
            "foreign",
            "datasets/Rain13K/train_gt.lmdb: already exists and was not created by this command; choose another --out",
        ),
    ],
)
def test_existing_output_is_not_overwritten(root, capsys, spoil, message):
    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K"]
    assert run_prepare(*arguments) == 0
    if spoil == "changed":
        pairs(root, "train/Rain13K/target", "train/Rain13K/input", [("0.png", "0.png")], (40, 48))
    elif spoil == "settings":
        arguments += ["--crop", "24"]
    else:
        Path("datasets/Rain13K/train.jsonl").unlink()
    assert run_prepare(*arguments) == 2
    (line,) = prepare_errors(capsys)
    assert line.startswith(message)


def test_missing_half_of_a_dataset_is_named(root, capsys):
    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K"]
    assert run_prepare(*arguments) == 0
    shutil.rmtree("datasets/Rain13K/train_lq.lmdb")
    assert run_prepare(*arguments) == 2
    assert prepare_errors(capsys) == [
        "datasets/Rain13K/train_gt.lmdb: was prepared, but train_lq.lmdb is missing; remove it, or choose another "
        "--out, to prepare it again"
    ]


def test_second_format_of_a_dataset_is_rejected(root, capsys):
    """Otherwise, the LMDBs would lose their record, and ``basicsr init`` would use them instead of the folders."""
    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K"]
    assert run_prepare(*arguments) == 0 and run_prepare(*arguments, "--format", "folder") == 2
    assert prepare_errors(capsys) == [
        "datasets/Rain13K/train_gt.lmdb: was prepared with other settings ({'format': 'lmdb'}, now {'format': 'folder'"
        "}); remove it and train_lq.lmdb, or choose another --out, to prepare it again"
    ]
    assert run_prepare(*arguments) == 0 and run_prepare(*arguments, "--check") == 0
    assert "already prepared" in capsys.readouterr().out


def test_error_names_all_outputs_to_remove(root, capsys):
    """The outputs of both parts, also in other formats or scales, are listed, but not those of other parts."""
    pairs(root, "CSD/train/Gt", "CSD/train/Snow", [("1.tif",) * 2])
    pairs(root, "CSD/test/Gt", "CSD/test/Snow", [("1.tif",) * 2])
    arguments = ["desnow", "--root", "root", "--sets", "CSD"]
    assert run_prepare(*arguments) == 0
    for name in ("train_x2_lq.lmdb", "train_lq", "train_S_lq.lmdb", "train_lq.lmdb.old"):
        Path("datasets/CSD", name).mkdir()
    for part in ("train", "test"):
        pairs(root, f"CSD/{part}/Gt", f"CSD/{part}/Snow", [("1.tif",) * 2], (40, 48))
    assert run_prepare(*arguments) == 2
    assert prepare_errors(capsys) == [
        "datasets/CSD/train_gt.lmdb: was prepared from other files, or they have changed since; remove it, "
        "train_lq.lmdb, train_lq, train_x2_lq.lmdb, test_gt.lmdb and test_lq.lmdb, or choose another --out, to prepare "
        "it again"
    ]
    for name in ("train_gt.lmdb", "train_lq.lmdb", "train_lq", "test_gt.lmdb", "test_lq.lmdb"):
        shutil.rmtree(Path("datasets/CSD", name))
    assert run_prepare(*arguments) == 2
    assert prepare_errors(capsys)[0].startswith(
        "datasets/CSD/train_x2_lq.lmdb: was prepared from other files, or they have changed since; remove it, or choose"
    )
    shutil.rmtree("datasets/CSD/train_x2_lq.lmdb")
    assert run_prepare(*arguments) == 0 and run_prepare(*arguments, "--check") == 0


def as_version_1(record: Path, folders: dict[str, str]) -> None:
    """Rewrite a record in the format of earlier versions, which identified files by folder and name."""
    settings, *records = (json.loads(line) for line in record.read_text().splitlines())
    for one in records:
        named = {f"{folders[name.partition('/')[0]]}/{Path(name).name}": s for name, s in one.get("files", {}).items()}
        one |= {"files": named} if "files" in one else {}
    lines = [json.dumps(line) for line in ({**settings, "version": 1}, *records)]
    record.write_text("".join(f"{line}\n" for line in lines))


def test_records_of_an_earlier_version_are_used(root, capsys):
    """Complete and unfinished ones are used unless they lack files; then the error names the outputs to remove."""
    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K"]
    assert run_prepare(*arguments) == 0
    place = Path("datasets/Rain13K")
    as_version_1(place / "train.jsonl", {"gt": "target", "lq": "input"})
    assert run_prepare(*arguments) == 0 and run_prepare(*arguments, "--check") == 0
    assert "already prepared" in capsys.readouterr().out
    (place / "train.partial").mkdir()
    for kind in ("gt", "lq"):
        (place / f"train_{kind}.lmdb").rename(place / f"train.partial/{kind}")
    lines = (place / "train.jsonl").read_text().splitlines(keepends=True)
    (place / "train.partial/journal.jsonl").write_text("".join(lines[:-2]))
    (place / "train.jsonl").unlink()
    assert run_prepare(*arguments) == 0 and run_prepare(*arguments) == 0 and run_prepare(*arguments, "--check") == 0
    assert ", 5 done before -> " in capsys.readouterr().out
    as_version_1(place / "train.jsonl", dict.fromkeys(("gt", "lq", "target", "input"), "img"))
    assert run_prepare(*arguments) == 2
    assert prepare_errors(capsys) == [
        "datasets/Rain13K/train_gt.lmdb: was prepared by an earlier version, or from other files, or they have changed "
        "since; remove it and train_lq.lmdb, or choose another --out, to prepare it again"
    ]


@pytest.mark.parametrize("form", ["lmdb", "folder"])
def test_user_folder_is_not_removed(root, capsys, form):
    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K", "--format", form]
    place = Path("datasets/Rain13K/train.partial")
    place.mkdir(parents=True)
    (place / "f").write_text("precious")
    assert run_prepare(*arguments) == 2
    assert prepare_errors(capsys) == [
        "datasets/Rain13K/train.partial: was not created by this command and is in the way; rename it, or choose "
        "another --out"
    ]
    assert (place / "f").read_text() == "precious" and len(list(place.iterdir())) == 1
    (place / "f").rename(place / ".part-0123abcd-journal.jsonl")  # of a process killed at its first step
    assert run_prepare(*arguments) == 0 and not place.exists()


def begun(root: Path, monkeypatch, form: str) -> list[str]:
    """Prepare six of ten pairs, and return the arguments that resume the preparation."""
    pairs(root, "train/Rain13K/target", "train/Rain13K/input", [(f"{n}.png",) * 2 for n in range(10)])
    monkeypatch.setattr(prepare, "CHUNK", 2)
    bad = root / "train/Rain13K/input/7.png"
    content = bad.read_bytes()
    bad.write_bytes(b"no image")
    arguments = ["derain", "--root", "root", "--workers", "0", "--format", form]
    assert run_prepare(*arguments) == 2
    bad.write_bytes(content)
    return arguments


@pytest.mark.parametrize("form", ["lmdb", "folder"])
def test_images_of_removed_sources_are_not_kept_when_resuming(root, capsys, monkeypatch, form):
    arguments = begun(root, monkeypatch, form)
    for kind in ("target", "input"):
        (root / f"train/Rain13K/{kind}/0.png").unlink()
    assert run_prepare(*arguments) == 0
    for kind in ("gt", "lq"):
        names = open_reader(Path(f"datasets/Rain13K/train_{kind}{STORES[form].suffix}"), form).names
        assert sorted(names) == [str(n) for n in range(1, 10)]
    assert run_prepare(*arguments, "--check") == 0 and "18 images compared, 0 problems" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["garbage", "empty", "cut short", "absent"])
def test_damaged_lmdb_is_prepared_again(root, capsys, monkeypatch, damage):
    arguments = begun(root, monkeypatch, "lmdb")
    data = Path("datasets/Rain13K/train.partial/gt/data.mdb")
    content = data.read_bytes()
    data.write_bytes({"garbage": b"x" * 9000, "empty": b"", "cut short": content[:8192]}.get(damage, b""))
    if damage == "absent":
        data.unlink()
    assert run_prepare(*arguments) == 0
    assert "done before" not in capsys.readouterr().out
    assert run_prepare(*arguments, "--check") == 0 and "20 images compared, 0 problems" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["lmdb", "folder"])
@pytest.mark.parametrize(
    ("line", "done"),
    [(b"\xff\xfe\n", 3), (b"[1]\n", 3), (b"5\n", 3), (b'{"unit": "9"}\n', 3), (b'{"unit": 1, "files": {}}\n', 3)],
)
@pytest.mark.parametrize("first", [True, False])
def test_damaged_journal_is_used_up_to_the_damage(root, capsys, monkeypatch, form, line, done, first):
    arguments = begun(root, monkeypatch, form)
    journal = Path("datasets/Rain13K/train.partial/journal.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[0 if first else 1 + done] = line
    journal.write_bytes(b"".join(lines))
    assert run_prepare(*arguments) == 0
    assert (f", {done} done before" in capsys.readouterr().out) is not first
    assert run_prepare(*arguments, "--check") == 0


@pytest.mark.parametrize("line", [b"\xff\xfe\n", b"[1]\n", b'{"crop": 0}\n', b"\n"])
def test_output_with_a_damaged_record_is_not_overwritten(root, capsys, line):
    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K"]
    assert run_prepare(*arguments) == 0
    record = Path("datasets/Rain13K/train.jsonl")
    record.write_bytes(line + b"".join(record.read_bytes().splitlines(keepends=True)[1:]))
    assert run_prepare(*arguments, "--check") == 0
    assert run_prepare(*arguments) == 2
    assert prepare_errors(capsys)[0].startswith(
        "datasets/Rain13K/train_gt.lmdb: already exists and was not created by this command; choose another --out"
    )


def test_full_disk_when_creating_an_lmdb_is_reported(root, capsys, monkeypatch):
    from restormixer_arch.data.preparation import store

    def full_disk(path, **options):
        raise lmdb.DiskError(f"{path}: No space left on device")

    MINIATURES["derain"](root)
    arguments = ["derain", "--root", "root", "--sets", "Rain13K"]
    with monkeypatch.context() as patch:
        patch.setattr(store.lmdb, "open", full_disk)
        assert run_prepare(*arguments) == 2
    (line,) = prepare_errors(capsys)
    assert line == "datasets/Rain13K/train.partial/gt: cannot be written (No space left on device)"
    assert run_prepare(*arguments) == 0


@pytest.mark.parametrize(("free", "reason"), [(4096, "No space left on device"), (2**30, "Input/output error")])
def test_full_disk_when_writing_an_lmdb_is_reported(tmp_path, monkeypatch, free, reason):
    """LMDB calls a partial write an input/output error."""
    monkeypatch.setattr(lmdb_io.shutil, "disk_usage", lambda path: path.stat() and SimpleNamespace(free=free))
    for path in (tmp_path, tmp_path / "new.lmdb"):
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: cannot be written .{reason}.$"):
            with lmdb_io.writing(path):
                raise lmdb.Error("mdb_txn_commit: Input/output error")
