"""What a training leaves to look at: its losses and validations as CSV, and both as curves in a PNG.

``losses.csv``, ``validations.csv`` and ``learning_curve.png`` are in the experiment's folder. A resumed training
continues them from its checkpoint.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from basicsr.utils import get_root_logger

from restormixer_arch.training.curves import draw_curves
from restormixer_arch.whole_files import whole

LOSSES, VALIDATIONS, CURVES = "losses.csv", "validations.csv", "learning_curve.png"
KEY = "iteration"


class Reports:
    """The reports of one training.

    Args:
        opt: options of the run.
        start: the iteration from which it is resumed, or 0.
    """

    def __init__(self, opt: dict[str, Any], start: int) -> None:
        self.folder, self.title = Path(opt["path"]["log"]), opt["name"]
        self.losses = Table(self.folder / LOSSES, start)
        self.validations = Table(self.folder / VALIDATIONS, start)
        self._sums: dict[str, list[float]] = {}  # of the losses since the last row

    def add_losses(self, losses: dict[str, float]) -> None:
        """Take the losses of one iteration."""
        for name, value in losses.items():
            self._sums.setdefault(name, []).append(value)

    def write_losses(self, iteration: int, learning_rate: float) -> None:
        """Write the means of the losses since the last row."""
        means = {name: _mean(values) for name, values in self._sums.items()}
        self.losses.add({KEY: iteration, "lr": learning_rate, **means})
        self._sums = {}

    def write_validation(
        self, iteration: int, dataset: str, metrics: dict[str, float], inputs: dict[str, float]
    ) -> None:
        """Write the means of a validation.

        Args:
            metrics: metric -> mean of the restored images.
            inputs: the same of the inputs, where they are measured.
        """
        row: dict[str, Any] = {KEY: iteration, "dataset": dataset}
        for metric, value in metrics.items():
            row |= {f"{metric}_input": inputs[metric]} if metric in inputs else {}
            row[metric] = float(value)
        self.validations.add(row)

    def draw(self) -> None:
        """Draw the curves, if there is anything to draw."""
        if self.losses.rows or self.validations.rows:
            path = self.folder / CURVES
            try:
                draw_curves(self.losses.rows, self.validations.rows, path, self.title)
            except OSError as error:  # a full disk, which must not hide how the training ended
                get_root_logger().warning(f"{path}: cannot be written ({error})")


def _mean(values: list[float]) -> float:
    """The mean of the finite values: the step of the others was skipped."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


class Table:
    """Rows of an experiment, each with its iteration.

    Args:
        path: the CSV file; what it holds already is read.
        start: the iteration from which the training is resumed. Rows beyond it are dropped: they are made again.
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
