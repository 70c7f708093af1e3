"""Files and folders appear only when they are complete, and errors name them."""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

import pytest

from restormixer_arch import cli, output
from restormixer_arch.output import atomic_folder, atomic_paths, rename, shell_join, shown_path


def test_files_appear_only_when_complete(folder):
    target = folder / "a.png"
    target.write_text("old")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), atomic_paths([target]) as [part]:
            part.write_text("half")
            raise error
        assert target.read_text() == "old" and list(folder.iterdir()) == [target]
    with atomic_paths([target]) as [part]:
        assert part.suffix == ".png" and part.name.startswith(".")
        part.write_text("new")
    assert target.read_text() == "new" and list(folder.iterdir()) == [target]


def test_two_processes_may_write_the_same_file(folder):
    target = folder / "a.png"
    with atomic_paths([target]) as [first]:
        first.write_text("first")
        with atomic_paths([target]) as [second]:
            assert second != first and second.suffix == ".png"
            second.write_text("second")
        assert target.read_text() == "second" and first.read_text() == "first"
    assert target.read_text() == "first" and list(folder.iterdir()) == [target]
    long = folder / ("n" * 250 + ".png")
    with atomic_paths([long, long]) as [first, second]:
        assert first != second and len(first.name) < 60
        first.write_text("x"), second.write_text("y")
    assert long.read_text() == "y"


def aged(path: Path, days: float) -> None:
    os.utime(path, (time.time() - days * 24 * 3600,) * 2)


def test_files_of_killed_processes_are_removed_after_a_week(folder):
    names = [".part-0123abcd-old.png", ".part-0123abcd-new.png", ".part-mine.png", "other.png"]
    for name in names:
        (folder / name).write_bytes(b"x")
        aged(folder / name, 6 if "new" in name else 8)
    with atomic_paths([folder / "a.png"]) as [part]:
        part.write_bytes(b"")
    assert {path.name for path in folder.iterdir()} == {*names[1:], "a.png"}


def test_folders_of_killed_processes_are_removed_after_a_week(folder):
    """A folder with a new file is kept, even if the folder itself is old."""
    for name, days in ((".part-0123abcd-x", 8), (".part-0123abce-x", 6), (".part-0123abcf-x", 14), (".part-1", 14)):
        (folder / name / "in").mkdir(parents=True)
        (folder / name / "in/old").write_text("x")
        for path in (folder / name / "in/old", folder / name / "in", folder / name):
            aged(path, days)
    (folder / ".part-0123abcf-x/in/new").write_text("x")
    aged(folder / ".part-0123abcf-x/in", 14)
    with atomic_folder(folder / "x") as part:
        (part / "y").write_text("y")
    assert sorted(path.name for path in folder.iterdir()) == [".part-0123abce-x", ".part-0123abcf-x", ".part-1", "x"]
    assert (folder / "x/y").read_text() == "y"


def test_folder_appears_only_when_complete(folder):
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), atomic_folder(folder / "a/x") as part:
            (part / "y").write_text("half")
            raise error
        assert list(folder.iterdir()) == [folder / "a"] and not list((folder / "a").iterdir())


def test_os_errors_name_the_target_file_or_folder(folder):
    """The operating system names no file if a write fails, and the temporary file if it cannot be opened."""
    full = OSError(errno.ENOSPC, "No space left on device")
    for names, shown in ((["a.csv"], "a.csv"), (["b/a.csv", "b/a.json"], "b")):
        with pytest.raises(OSError, match="No space left") as caught, atomic_paths([folder / name for name in names]):
            raise full
        assert caught.value.filename == str(folder / shown) and caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left") as caught, atomic_folder(folder / "x"):
        raise full
    assert caught.value.filename == str(folder / "x")
    with pytest.raises(IsADirectoryError) as caught, atomic_folder(folder / "x") as part:
        part.read_bytes()
    assert caught.value.filename == str(folder / "x")
    with pytest.raises(FileNotFoundError) as caught, atomic_paths([folder / "no/a.csv"]) as [part]:
        part.write_text("x")
    assert caught.value.filename == str(folder / "no/a.csv")
    with pytest.raises(FileNotFoundError) as caught, atomic_paths([folder / "a.csv"]):
        (folder / "other").read_text()
    assert caught.value.filename == str(folder / "other")


def test_path_on_another_drive_is_shown_unchanged(folder, monkeypatch):
    assert shown_path(folder / "a/b") == str(Path("a/b"))

    def relpath(path):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", relpath)
    assert shown_path("D:/exp") == "D:/exp"


def test_rename_is_retried_on_windows(folder, monkeypatch):
    """A virus scanner or an indexer may briefly keep a new file open."""
    (folder / "a").write_text("x")
    refusals, original = [PermissionError(13, "in use")] * 3, os.replace

    def replace(source, target):
        if refusals:
            raise refusals.pop()
        original(source, target)

    monkeypatch.setattr(output.os, "replace", replace)
    monkeypatch.setattr(output, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    with pytest.raises(PermissionError):
        rename(folder / "a", folder / "b")
    refusals.append(PermissionError(13, "in use"))
    monkeypatch.setattr(output.sys, "platform", "win32")
    rename(folder / "a", folder / "b")
    assert (folder / "b").read_text() == "x" and not refusals


def test_shell_join_quotes_for_the_shell_of_the_platform(monkeypatch):
    words = ["basicsr", "init", "--data", "my set", "x\\y"]
    assert shell_join(words) == "basicsr init --data 'my set' 'x\\y'"
    monkeypatch.setattr(output.sys, "platform", "win32")
    assert shell_join(words) == 'basicsr init --data "my set" x\\y'


def test_print_error_ignores_a_closed_terminal(monkeypatch):
    class Gone:
        encoding = "utf-8"

        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    output.print_error("x")


def test_full_disk_while_writing_test_results(pairs, train_options, test_options, write, monkeypatch, capsys):
    assert cli.main(["train", "-opt", write(train_options)]) == 0

    def write_text(self, *arguments, **options):
        if self.name.endswith("results.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, *arguments, **options)

    original = Path.write_text
    monkeypatch.setattr(Path, "write_text", write_text)
    assert cli.main(["test", "-opt", write(test_options)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("basicsr: error: ") and last.endswith("results/tiny/results.json: No space left on device")


def test_line_break_in_a_name_is_escaped_in_messages(capsys):
    output.note("a\nb.png: skipped")
    assert capsys.readouterr().err == "basicsr: note: a\\nb.png: skipped\n"
    assert cli.main(["restore", "x\ny.png", "-o", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("basicsr: error: ") and "x\\ny.png" in line
