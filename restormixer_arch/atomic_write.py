"""Atomic writes: a file is written under a temporary name in its folder and renamed at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PART = ".part-"  # starts the name of an unfinished file


@contextmanager
def atomic_paths(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield temporary names for files to write: renamed at the end, removed if anything fails or is stopped."""
    parts = [path.with_name(PART + path.name) for path in paths]
    try:
        yield parts
        for part, path in zip(parts, paths, strict=True):
            part.replace(path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> Path:
    """Write a text in UTF-8 and return its path. Raises OSError; what was there before is kept."""
    with atomic_paths([path]) as [part]:
        part.write_text(text, encoding="utf-8")
    return path
