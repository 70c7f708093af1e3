"""Locks that keep other processes out of a folder while this process writes into it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from restormixer_arch.errors import UserError
from restormixer_arch.output import note, shown_path

LOCK = ".lock"  # lock file in a folder that is being written to


class FolderLock:
    """Locks on folders.

    Each is a system lock on the file ``.lock``. It is released when the process ends for any reason, and is not
    inherited by loader processes. If the system or file system does not support such locks, nothing is locked.

    Args:
        instead: alternative that the error message suggests if another process has locked a folder.
    """

    def __init__(self, instead: str = "another name") -> None:
        self.instead = instead
        self._files: list[TextIO] = []

    def take(self, folder: str | Path) -> None:
        """Lock a folder if it exists and is writable, so that data on a read-only disk can still be used.

        Raises:
            UserError: if another process has locked it; the message names the process.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            return
        if not Path(folder).is_dir() or not os.access(folder, os.W_OK):
            return
        place = Path(folder) / LOCK
        try:
            is_new = not place.exists()
            file = place.open("a+", encoding="utf-8")
        except PermissionError:
            note(f"{shown_path(place)} belongs to another user, so the folder is not locked")
            return
        if is_new:  # anyone with write access to the folder may lock it
            with suppress(OSError):
                place.chmod(0o600 | Path(folder).stat().st_mode & 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                file.close()  # the file system does not support locks
                return
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            shown = shown_path(folder)
            raise UserError(f"{shown}: {owner} is writing into it; wait for it, or choose {self.instead}") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._files.append(file)

    def close(self) -> None:
        """Unlock all folders."""
        while self._files:
            self._files.pop().close()


@contextmanager
def locked(folder: Path, instead: str) -> Iterator[None]:
    """Lock a folder, creating it if necessary. Raises UserError if another process has locked it."""
    folder.mkdir(parents=True, exist_ok=True)
    with closing(FolderLock(instead)) as lock:
        lock.take(folder)
        yield
