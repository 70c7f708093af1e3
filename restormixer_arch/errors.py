"""User errors: the command line reports each in one line and exits with code 2."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from restormixer_arch.output import print_error, user_path

MAX_REASON = 300  # characters of an exception's text in a message
SPECIAL_FILE = "is neither a file nor a folder, but a pipe, socket or device"


class UserError(ValueError):
    """An error that the user can fix.

    Args:
        lines: one message for each error. It names the file or key, the value, and what was expected.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))

    @property
    def lines(self) -> list[str]:
        """The messages, without the traceback that torch adds to an error of a loader process.

        torch raises the same class again, with "Caught UserError in DataLoader worker process 0." and the complete
        traceback as its text. The message is what follows the class's name at the end.
        """
        lines = [str(line) for line in self.args]
        if len(lines) != 1 or not re.match(r"Caught \w+ in ", lines[0]):
            return lines
        parts = re.split(rf"^(?:[\w.]+\.)?{type(self).__name__}: ", lines[0], flags=re.MULTILINE)
        return [parts[-1].strip()]


def print_user_error(error: UserError) -> None:
    """Print one line to stderr for each message."""
    for line in error.lines:
        print_error(f"error: {line}")


@dataclass(frozen=True)
class Problem:
    """One error in an option file.

    Attributes:
        path: section names and key.
        text: description of the error.
    """

    path: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: {self.text}" if self.path else self.text


class OptionErrors(UserError):
    """All errors of an option file, one line each."""

    def __init__(self, shown: str, problems: Iterable[Problem]) -> None:
        super().__init__(*(f"{shown}: {problem}" for problem in problems))


def file_error(error: OSError) -> str:
    """Return the system's error message for a file as ``file: reason``."""
    return ": ".join(str(part) for part in (error.filename, error.strerror) if part)


def exception_text(error: BaseException, with_type: bool = True) -> str:
    """Return the class and text of another library's exception in one line, shortened to 300 characters."""
    text = " ".join(str(error).split())
    if len(text) > MAX_REASON:
        text = f"{text[: MAX_REASON - 3]}..."
    return text if not with_type else f"{type(error).__name__}: {text}".removesuffix(": ")


def closest(name: str, choices: Iterable[str]) -> str | None:
    """Return the most similar of ``choices``, or None if none is similar."""
    # Case-insensitive, since 'restormixer' for 'RestorMixer' is the most common error.
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the most similar of ``choices``, or ``""`` if none is similar."""
    close = closest(name, choices)
    return f" Did you mean '{close}'?" if close else ""


def similar_file(path: Path) -> str | None:
    """Return the file or folder in the same folder as ``path`` with the most similar name, or None."""
    try:
        close = closest(path.name, [entry.name for entry in path.parent.iterdir()])
    except OSError:  # the folder is missing, or must not be listed
        return None
    return str(path.parent / close) if close else None


def not_found(path: str | Path) -> str:
    """Return a message that a path does not exist, with the place that was searched and a similar name that exists.

    For a broken link, the message states its target instead.
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
