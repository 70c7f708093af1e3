"""Files that come whole or not at all: written under another name beside their place, and renamed at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PART = ".part-"  # begins the name of a file that is not yet whole


@contextmanager
def whole(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Temporary names for files to write: renamed at the end, removed where anything fails or is stopped."""
    parts = [path.with_name(PART + path.name) for path in paths]
    try:
        yield parts
        for part, path in zip(parts, paths, strict=True):
            part.replace(path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> Path:
    """Write a text in UTF-8 and return its place. Raises OSError: what was there before still is."""
    with whole([path]) as [part]:
        part.write_text(text, encoding="utf-8")
    return path
