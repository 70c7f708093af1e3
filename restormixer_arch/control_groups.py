"""The control groups of this process on Linux: the limits that containers, SLURM and systemd set for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def read_groups(controller: str, *names: str) -> Iterator[list[str]]:
    """Yield the contents of these files of each group of this process that has all of them, from the root down.

    Args:
        controller: such as ``memory``; in version 1 each has a tree of its own.
        names: of files, such as ``memory.max`` and ``memory.current``.
    """
    for folder in _folders(controller):
        try:
            yield [(folder / name).read_text(encoding="utf-8") for name in names]
        except OSError:  # another version, a group without this controller, or one that a container does not show
            continue


def _folders(controller: str) -> Iterator[Path]:
    """Yield the folders in which the groups of this process would be."""
    trees = {ROOT: "/", ROOT / controller: "/"}  # of version 2 and version 1 -> the path of the process's own group
    try:
        lines = OWN.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            trees[ROOT / controller if controllers else ROOT] = path
    for tree, path in trees.items():
        folder = tree
        yield folder
        for part in Path(path).parts[1:]:
            folder /= part
            yield folder
