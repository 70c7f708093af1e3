"""Count what is found next to the files that are read, such as broken links, and describe it in messages."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container
from pathlib import Path

BROKEN = "links to missing files"
SPECIAL = "pipes, sockets or devices"
SINGULAR = {
    "folders": "folder",
    "they are": "it is",
    "inputs of their own": "an input of its own",
    BROKEN: "link to a missing file",
    SPECIAL: "pipe, socket or device",
}


def is_file(path: str | Path, suffixes: Container[str], skipped: Counter[str]) -> bool:
    """Return whether a path is a file; count anything but a folder that has one of the suffixes in ``skipped``."""
    if os.path.isfile(path):
        return True
    if os.path.splitext(path)[1].lower() in suffixes and not os.path.isdir(path):
        skipped[SPECIAL if os.path.exists(path) else BROKEN] += 1
    return False


def count_unreadable(error: OSError, skipped: Counter[str]) -> None:
    """Count a folder that could not be listed, such as lost+found."""
    skipped[f"folders that cannot be read ({error.strerror})"] += 1


def describe_skipped(skipped: Counter[str]) -> str:
    """Return a list such as ``2 links to missing files, 1 folder that cannot be read (Permission denied)``."""
    return ", ".join(_format_count(number, kind) for kind, number in sorted(skipped.items()) if number)


def _format_count(number: int, kind: str) -> str:
    """Return a number and what it counts; ``kind`` is in the plural."""
    if number == 1:
        for plural, singular in SINGULAR.items():
            kind = kind.replace(plural, singular)
    return f"{number} {kind}"
