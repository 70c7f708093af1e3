"""Output: results on stdout, notes and errors on stderr, and atomic writes of files and folders.

A file or folder is written under a temporary name beside its place and renamed at the end. The name is the process's
own, so that two processes may write the same file: the last one's stays. What a killed process has left is removed by a
later one.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TextIO

# Characters that a terminal obeys or reorders text by, and bytes of file names that are no text.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
PART = re.compile(r"\.part-[0-9a-f]{8}-")  # starts the name of an unfinished file or folder
LONGEST_NAME = 255  # bytes of a file's name, nearly everywhere
ABANDONED = 7 * 24 * 3600  # seconds after which what is unfinished and has not grown is that of a killed process
RETRY_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # pauses before a rename is tried again
_shared_job = False  # see set_shared_job


def set_shared_job(shared: bool) -> None:
    """Set whether this process is part of a multi-process job, in which only the first process prints.

    The environment alone does not show it: in a pod of a cluster RANK is set for whatever command is run.
    """
    global _shared_job
    _shared_job = shared


def is_first_process() -> bool:
    """True for the process that may print: the first process of a job, or any standalone process."""
    distributed = sys.modules.get("torch.distributed")  # of a training that this project's commands have not started
    started = distributed is not None and distributed.is_available() and distributed.is_initialized()
    if not _shared_job and not started:
        return True
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def printable(text: str, stream: TextIO | None) -> str:
    """Return a text with escapes for terminal control characters, and for characters that the stream cannot encode."""
    text = UNPRINTABLE.sub(lambda found: found.group().encode("unicode_escape").decode(), text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def print_result(text: str) -> None:
    """Write a result to stdout. Where that cannot be written, a line on stderr says so, and the work stays done."""
    if not is_first_process() or sys.stdout is None:
        return
    try:
        sys.stdout.write(printable(text, sys.stdout) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:  # the disk is full, or the stream is closed
        print_error(f"stdout cannot be written ({getattr(error, 'strerror', None) or error})")
        if not sys.stdout.closed:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it at its end


def note(text: str, *, any_process: bool = False) -> None:
    """Write a one-line note to stderr that needs no action.

    Args:
        text: the line.
        any_process: print from every process of a job, since the notes differ.
    """
    if any_process or is_first_process():
        print_error(f"note: {text}")


def warn(text: str) -> None:
    """Write one line to stderr about something that was changed or left out."""
    if is_first_process():
        print_error(f"warning: {text}")


def print_error(text: str) -> None:
    """Write a line to stderr under the command's name, from any process; nothing where stderr is closed or gone."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            line = printable(text, sys.stderr).replace("\n", "\\n")  # the name of a file may have a line break
            sys.stderr.write(f"basicsr: {line}\n")
            sys.stderr.flush()


def user_path(text: str | Path) -> Path:
    """Return the path that a user named: ``~`` is the home folder; a name such as ``~backup.png`` of no user stays."""
    return Path(os.path.expanduser(text))


def shell_join(arguments: Sequence[str | Path]) -> str:
    """Return a command as the user's shell takes it; that of Windows knows double quotes alone."""
    words = [str(argument) for argument in arguments]
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)


def shown_path(path: str | Path) -> str:
    """Return a path relative to the working directory, or as it is where it lies on another drive of Windows."""
    try:
        return os.path.relpath(path)
    except ValueError:
        return str(path)


def rename(source: str | Path, target: str | Path) -> None:
    """Rename a file, or a folder to a place where none is. Raises OSError.

    On Windows another program, such as a virus scanner, may have a new file open for a moment: it is tried again for
    some seconds.
    """
    pauses = RETRY_SECONDS if sys.platform == "win32" else ()
    for pause in (*pauses, None):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if pause is None:
                raise
            time.sleep(pause)


@contextmanager
def atomic_paths(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield temporary names for files to write: renamed at the end, removed if anything fails or is stopped.

    Raises:
        OSError: it names the file, or the folder of several; the system says nothing of the place of a full disk.
    """
    for folder in {path.parent for path in paths}:
        _remove_abandoned(str(folder.absolute()))
    parts = [path.with_name(_part_name(path)) for path in paths]
    try:
        with _final_names(paths[0] if len(paths) == 1 else paths[0].parent):
            yield parts
            for part, path in zip(parts, paths, strict=True):
                rename(part, path)
    finally:
        for part in parts:
            with suppress(OSError):  # which would hide why the writing failed
                part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to write into: renamed at the end, removed if anything fails or is stopped.

    Raises:
        OSError: it names the folder or the file in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(str(path.parent.absolute()))
    part = path.with_name(_part_name(path))
    part.mkdir()
    try:
        with _final_names(path):
            yield part
            rename(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


@contextmanager
def _final_names(place: Path) -> Iterator[None]:
    """Let errors of the system name files as the user knows them, or ``place`` where they name none: a full disk."""
    try:
        yield
    except OSError as error:
        if not error.strerror:
            raise
        named = str(place) if error.filename is None else PART.sub("", str(error.filename))
        raise OSError(error.errno, error.strerror, named) from error


def _part_name(path: Path) -> str:
    start = f".part-{os.urandom(4).hex()}-"  # not the number of the process: another machine may have it, too
    if len(os.fsencode(start + path.name)) <= LONGEST_NAME:
        return start + path.name
    return start + hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16] + path.suffix


@lru_cache(maxsize=1024)
def _remove_abandoned(folder: str) -> None:
    """Remove what killed processes have left in a folder. Once for each folder, since it may hold many files."""
    try:
        with os.scandir(folder) as entries:
            for part in [Path(entry) for entry in entries if PART.match(entry.name)]:
                inside = part.rglob("*") if part.is_dir() else ()
                if time.time() - max(path.lstat().st_mtime for path in (part, *inside)) <= ABANDONED:
                    continue
                if part.is_dir():
                    shutil.rmtree(part)
                else:
                    part.unlink()
    except OSError:  # it is not there, or another process was faster
        pass


def write_text_atomically(path: Path, text: str) -> Path:
    """Write a text in UTF-8 and return its path. Raises OSError; what was there before is kept."""
    with atomic_paths([path]) as [part]:
        part.write_text(text, encoding="utf-8")
    return path
