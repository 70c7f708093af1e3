"""User errors: the command line reports each in one line and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from restormixer_arch.output import user_path

SPECIAL_FILE = "is neither a file nor a folder, but a pipe, socket or device"


class UserError(ValueError):
    """A mistake that the user can fix: one line that names the file or key, the value and what was expected."""


@dataclass(frozen=True)
class Problem:
    """One mistake in an option file: the path of the key, and what is wrong with it."""

    path: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: {self.text}" if self.path else self.text


class OptionErrors(UserError):
    """All mistakes of an option file at once; ``lines`` has one for each."""

    def __init__(self, shown: str, problems: Iterable[Problem]) -> None:
        self.lines = [f"{shown}: {problem}" for problem in problems]
        super().__init__("\n".join(self.lines))


def file_error(error: OSError) -> str:
    """Return what the system says of a file, as ``file: reason``."""
    return ": ".join(str(part) for part in (error.filename, error.strerror) if part)


def closest(name: str, choices: Iterable[str]) -> str | None:
    """Return the most similar of ``choices``, or None where nothing is close."""
    # Case-insensitive, since 'restormixer' for 'RestorMixer' is the most common mistake.
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the most similar of ``choices``, or ``""`` where nothing is close."""
    close = closest(name, choices)
    return f" Did you mean '{close}'?" if close else ""


def similar_file(path: Path) -> str | None:
    """Return the file or folder beside ``path`` with the most similar name, or None."""
    folder = path.parent
    close = closest(path.name, [entry.name for entry in folder.iterdir()]) if folder.is_dir() else None
    return str(folder / close) if close else None


def not_found(path: str | Path) -> str:
    """Say that a path does not exist, where it was looked for, and what lies nearby under a similar name.

    A link to nothing is named with what it points to.
    """
    given = user_path(path)
    absent = given
    while not absent.parent.exists():  # ends at the root or at '.'
        absent = absent.parent
    if absent.is_symlink():
        link = f"is a link to {str(absent.readlink())!r}, which does not exist"
        return link if absent == given else f"does not exist ({str(absent)!r} {link})"
    place = "" if given.is_absolute() else f" in {Path.cwd()}"
    reason = "does not exist" if absent == given else f"does not exist (there is no {str(absent)!r}{place})"
    close = similar_file(absent)
    return f"{reason}." + (f" Did you mean '{close}'?" if close else "")
