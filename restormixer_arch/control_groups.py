"""The control groups of this process on Linux, in which containers, SLURM and systemd set limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT, PROCESS_FILE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def groups(controller: str) -> Iterator[Path]:
    """Yield possible folders of this process's control groups, versions 2 and 1, each tree from the root down.

    Args:
        controller: name of a controller, such as ``memory``; in version 1, each has a separate tree.
    """
    trees = {ROOT: "/", ROOT / controller: "/"}  # tree -> path of the process's group
    for line in read(PROCESS_FILE).splitlines():
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
    """Return the text of a file, or "" if it is missing: it belongs to the other version, or a container hides it."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
