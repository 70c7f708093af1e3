"""Output: results on stdout, notes and errors on stderr, and atomic writes of files and folders.

A file or folder is written under a temporary name in the target folder and renamed at the end. The name is unique, so
two processes can write the same file; the last one to finish wins. Leftovers of killed processes are removed later.
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

# Characters that control a terminal or reorder text, and surrogates for undecodable bytes in file names.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
PART = re.compile(r"\.part-[0-9a-f]{8}-")  # prefix of unfinished files and folders
LONGEST_NAME = 255  # in bytes, the limit of nearly all file systems
ABANDONED_SECONDS = 7 * 24 * 3600  # seconds without change after which an unfinished file is considered abandoned
RETRY_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # pauses between attempts to rename
_shared_job = False  # see set_shared_job


def set_shared_job(shared: bool) -> None:
    """Set whether this process is part of a multi-process job, in which only the first process prints.

    The environment does not show this: in a pod of a cluster, RANK is set for every command.
    """
    global _shared_job
    _shared_job = shared


def is_first_process() -> bool:
    """Return whether this process may print: it is the first process of a job, or a standalone process."""
    distributed = sys.modules.get("torch.distributed")  # set if other code started distributed training
    started = distributed is not None and distributed.is_available() and distributed.is_initialized()
    if not _shared_job and not started:
        return True
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def printable(text: str, stream: TextIO | None) -> str:
    """Return a text with control characters, and characters that the stream cannot encode, replaced by escapes."""
    text = UNPRINTABLE.sub(lambda found: found.group().encode("unicode_escape").decode(), text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def print_result(text: str) -> None:
    """Write a result to stdout. If this fails, report it on stderr; only BrokenPipeError is raised."""
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
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes stdout at exit


def note(text: str, *, any_process: bool = False) -> None:
    """Write a one-line note to stderr that requires no action.

    Args:
        text: line to write.
        any_process: whether every process of a job prints the note, for notes that differ between processes.
    """
    if any_process or is_first_process():
        print_error(f"note: {text}")


def warn(text: str) -> None:
    """Write a one-line warning to stderr about something that was changed or skipped."""
    if is_first_process():
        print_error(f"warning: {text}")


def print_error(text: str) -> None:
    """Write a line with the command's name to stderr, from any process; do nothing if stderr is closed or missing."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            line = printable(text, sys.stderr).replace("\n", "\\n")  # the name of a file may have a line break
            sys.stderr.write(f"basicsr: {line}\n")
            sys.stderr.flush()


def user_path(text: str | Path) -> Path:
    """Return a user's path with ``~`` expanded to the home folder; ``~name`` is kept if there is no such user."""
    return Path(os.path.expanduser(text))


def shell_join(arguments: Sequence[str | Path]) -> str:
    """Return a command quoted for the user's shell; that of Windows supports only double quotes."""
    words = [str(argument) for argument in arguments]
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)


def shown_path(path: str | Path) -> str:
    """Return a path relative to the working directory, or unchanged if it is on another Windows drive."""
    try:
        return os.path.relpath(path)
    except ValueError:
        return str(path)


def rename(source: str | Path, target: str | Path) -> None:
    """Rename a file, or a folder to a path that does not exist yet. Raises OSError if this fails.

    On Windows, another program such as a virus scanner may briefly keep a new file open, so the attempt is repeated for
    several seconds.
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
    """Yield temporary paths for files to write. They are renamed at the end, or removed on an error or interruption.

    Raises:
        OSError: if writing fails. It names the file, or the folder if several files are written to a full disk, since
            the system then reports no file name.
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
            with suppress(OSError):  # an error here would hide the cause of the failure
                part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to write into. It is renamed at the end, or removed on an error or interruption.

    Raises:
        OSError: if writing fails. It names the folder or the file in it.
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
    """Replace temporary names in OSErrors by final names, and missing names (full disk) by ``place``."""
    try:
        yield
    except OSError as error:
        if not error.strerror:
            raise
        named = str(place) if error.filename is None else PART.sub("", str(error.filename))
        raise OSError(error.errno, error.strerror, named) from error


def _part_name(path: Path) -> str:
    start = f".part-{os.urandom(4).hex()}-"  # not the process ID, which another machine may use too
    if len(os.fsencode(start + path.name)) <= LONGEST_NAME:
        return start + path.name
    return start + hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16] + path.suffix


@lru_cache(maxsize=1024)
def _remove_abandoned(folder: str) -> None:
    """Remove leftovers of killed processes from a folder. Cached, so a folder with many files is searched once."""
    try:
        with os.scandir(folder) as entries:
            for part in [Path(entry) for entry in entries if PART.match(entry.name)]:
                inside = part.rglob("*") if part.is_dir() else ()
                if time.time() - max(path.lstat().st_mtime for path in (part, *inside)) <= ABANDONED_SECONDS:
                    continue
                if part.is_dir():
                    shutil.rmtree(part)
                else:
                    part.unlink()
    except OSError:  # it is missing, or another process was faster
        pass


def write_text_atomically(path: Path, text: str) -> Path:
    """Write a UTF-8 text file and return its path. If OSError is raised, an existing file is kept."""
    with atomic_paths([path]) as [part]:
        part.write_text(text, encoding="utf-8")
    return path
