"""A CSV file that grows row by row, and goes on where a resumed training does."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from restormixer_arch.whole_files import whole

KEY = "iteration"


class Table:
    """Rows of an experiment, each with its iteration.

    Args:
        path: the CSV file; what it holds already is read.
        start: the iteration that the training goes on from. Rows beyond it are dropped: they are made anew.
    """

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        before = _read(path)
        self.rows = [row for row in before if row[KEY] <= start]
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row))
        if before != self.rows:
            self._rewrite()

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; a column that is new gets its place at the right.

        It takes the place of one of the same iteration and data set: a validation that was owed to a checkpoint.
        """
        kept = [old for old in self.rows if any(old.get(name) != row.get(name) for name in (KEY, "dataset"))]
        replaced = len(kept) < len(self.rows)
        self.rows = [*kept, row]
        new = [name for name in row if name not in self.columns]
        self.columns += new
        if new or replaced or not self.path.exists():
            self._rewrite()
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns).writerow(row)

    def _rewrite(self) -> None:
        with whole([self.path]) as [part], part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the complete rows of a file, numbers as numbers; a killed training may leave half of its last one."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{name: _value(text) for name, text in row.items() if name and text} for row in csv.DictReader(file)]
    return [row for row in rows if isinstance(row.get(KEY), int) and len(row) > 1]


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
