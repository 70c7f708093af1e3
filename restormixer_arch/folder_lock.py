"""Keep other processes out of a folder that this one writes into."""

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

LOCK = ".lock"  # in a folder that a process is writing into


class FolderLock:
    """Locks on folders.

    Args:
        instead: what the user may choose where another process has a folder.

    Each is a lock of the system on the file ``.lock``, which ends with the process, however that ends, and which loader
    processes do not inherit. Where the system or the file system has no such locks, nothing is locked.
    """

    def __init__(self, instead: str = "another name") -> None:
        self.instead = instead
        self._files: list[TextIO] = []

    def take(self, folder: str | Path) -> None:
        """Lock the folder, if it is there and can be written into: what is prepared on a read-only disk may be used.

        Raises:
            UserError: another process has it; the message names it.
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
            note(f"{shown_path(place)} is another user's, so that the folder is not locked")
            return
        if is_new:  # whoever may write into the folder may lock it
            with suppress(OSError):
                place.chmod(0o600 | Path(folder).stat().st_mode & 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                file.close()  # a file system without locks
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
