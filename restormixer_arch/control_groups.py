"""The control groups of this process on Linux: the limits that containers, SLURM and systemd set for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def groups(controller: str) -> Iterator[Path]:
    """Yield the folders in which the groups of this process would be, from the root down, of version 2 and version 1.

    Args:
        controller: such as ``memory``; in version 1 each has a tree of its own.
    """
    trees = {ROOT: "/", ROOT / controller: "/"}  # tree -> the path of the process's own group
    for line in read(OWN).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            trees[ROOT / controller if controllers else ROOT] = path
    for tree, path in trees.items():
        folder = tree
        yield folder
        for part in Path(path).parts[1:]:
            folder /= part
            yield folder


def read(file: Path) -> str:
    """Return what a file holds, "" where there is none: of another version, or that a container does not show."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
