"""Atomic writes: a file is written under a temporary name in its folder and renamed at the end."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PART = ".part-"  # starts the name of an unfinished file
LONGEST_NAME = 255  # bytes of a file's name, nearly everywhere


@contextmanager
def atomic_paths(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield temporary names for files to write: renamed at the end, removed if anything fails or is stopped."""
    parts = [path.with_name(_part_name(path)) for path in paths]
    try:
        yield parts
        for part, path in zip(parts, paths, strict=True):
            part.replace(path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def _part_name(path: Path) -> str:
    name = PART + path.name
    if len(os.fsencode(name)) <= LONGEST_NAME:
        return name
    return PART + hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16] + path.suffix


def write_text_atomically(path: Path, text: str) -> Path:
    """Write a text in UTF-8 and return its path. Raises OSError; what was there before is kept."""
    with atomic_paths([path]) as [part]:
        part.write_text(text, encoding="utf-8")
    return path
