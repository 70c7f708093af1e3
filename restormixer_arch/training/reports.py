"""Report on a training run: progress bar, CSV files of losses and validations, and a PNG with curves.

``losses.csv``, ``validations.csv`` and ``learning_curve.png`` are in the experiment's folder. A resumed run continues
them from its checkpoint.
"""

from __future__ import annotations

import csv
import logging
import math
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

from basicsr.utils import get_root_logger
from basicsr.utils.options import dict2str
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from restormixer_arch.errors import UserError
from restormixer_arch.output import atomic_paths, warn
from restormixer_arch.training.checkpoint import saved_states

LOSSES, VALIDATIONS, CURVES = "losses.csv", "validations.csv", "learning_curve.png"
KEY = "iteration"
LOCKED_SECONDS = 60.0  # before a locked table is written again; on Windows, each attempt takes several seconds
LOGGERS = ("basicsr", "restormixer_arch")
BLUE, GRAY = "#1f6fb4", "#8c8c8c"
SIZE_INCHES, DPI = (8.0, 6.5), 120
SMOOTHED = 0.02  # span of the running mean as a fraction of the rows


class Progress:
    """A progress bar on stderr. If stderr is not a terminal, there is no bar, and the log lines are unchanged.

    It appears with the first iteration, when the number of iterations already done is known. Log lines are written
    above it.

    Attributes:
        psnr: PSNR of the last validation in dB, or None before the first.
        learning_rate: learning rate of the current iteration, or None if it is not known.
    """

    def __init__(self, total: int, *, shown: bool | None = None) -> None:
        self.total = total
        self.shown = sys.stderr.isatty() if shown is None else shown
        self.psnr: float | None = None
        self.learning_rate: float | None = None
        self._bar: tqdm | None = None
        self._read_at = -math.inf
        self._stack = ExitStack()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def start(self, done: int) -> None:
        """Show the bar, starting at ``done`` iterations."""
        if self.shown and self._bar is None:
            loggers = [logging.getLogger(name) for name in LOGGERS]
            self._stack.enter_context(logging_redirect_tqdm(loggers))
            bar = tqdm(total=self.total, initial=done, unit="it", desc="train", dynamic_ncols=True, smoothing=0.1)
            self._bar = self._stack.enter_context(bar)

    def step(self, iteration: int, losses: Mapping[str, float]) -> None:
        """Move to ``iteration``, the number of iterations done, and show a recent total loss.

        Losses are read at most twice a second, since reading them from a GPU waits for it.
        """
        if self._bar is None:
            return
        if iteration >= self.total or time.monotonic() - self._read_at > 0.5:
            self._read_at = time.monotonic()
            total = sum(value for name, value in losses.items() if name.startswith("l_"))
            parts = [f"loss {total:.4f}"]
            if self.psnr is not None:
                parts.append(f"PSNR {self.psnr:.2f}")
            if self.learning_rate is not None:
                parts.append(f"lr {self.learning_rate:.1e}")
            self._bar.set_postfix_str(", ".join(parts), refresh=False)
        self._bar.update(iteration - self._bar.n)


class Reports:
    """The reports of one training run.

    Args:
        opt: options of the run.
        start: iteration from which the run is resumed, or 0.

    Attributes:
        sums: loss -> its values in the iterations since the last row, which are saved in checkpoints.
    """

    def __init__(self, opt: dict[str, Any], start: int) -> None:
        self.folder, self.title = Path(opt["path"]["log"]), opt["name"]
        self.losses = Table(self.folder / LOSSES, start)
        self.validations = Table(self.folder / VALIDATIONS, start)
        self.sums: dict[str, list[float]] = {}

    def add_losses(self, losses: dict[str, float]) -> None:
        """Add the losses of one iteration."""
        for name, value in losses.items():
            self.sums.setdefault(name, []).append(value)

    def sums_as_numbers(self) -> dict[str, list[float]]:
        """Return :attr:`sums` as numbers for a checkpoint; on a GPU, its values are tensors."""
        return {name: [float(value) for value in values] for name, values in self.sums.items()}

    def write_losses(self, iteration: int, learning_rate: float) -> None:
        """Write the means of the losses since the last row."""
        means = {name: _mean(values) for name, values in self.sums.items()}
        self.losses.add({KEY: iteration, "lr": learning_rate, **means})
        self.sums = {}

    def write_validation(
        self, iteration: int, dataset: str, metrics: dict[str, float], inputs: dict[str, float]
    ) -> None:
        """Write the means of a validation.

        Args:
            iteration: iteration of the validation.
            dataset: name of the dataset.
            metrics: metric -> mean over the restored images.
            inputs: metric -> mean over the input images, if they are measured.
        """
        row: dict[str, Any] = {KEY: iteration, "dataset": dataset}
        for metric, value in metrics.items():
            row |= {f"{metric}_input": inputs[metric]} if metric in inputs else {}
            row[metric] = float(value)
        self.validations.add(row)

    def draw(self) -> None:
        """Draw the curves, if there is anything to draw, and complete the tables."""
        for table in (self.losses, self.validations):
            table.catch_up()
        if self.losses.rows or self.validations.rows:
            path = self.folder / CURVES
            try:
                draw_curves(self.losses.rows, self.validations.rows, path, self.title)
            except OSError as error:  # such as a full disk; it must not hide how the run ended
                get_root_logger().warning(f"{path}: cannot be written ({error})")


def as_markdown(opt: dict[str, Any]) -> str:
    """Return options as Markdown for tensorboard, with four spaces before each line to keep it unchanged."""
    return "".join(f"    {line}\n" for line in dict2str(opt).splitlines())


def _mean(values: list[float]) -> float:
    """Return the mean of the finite values, numbers or tensors; the steps of the others were skipped."""
    finite = [value for value in map(float, values) if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


class Table:
    """A CSV table of an experiment, in which each row has an iteration.

    Args:
        path: CSV file; existing rows are read.
        start: iteration from which the run is resumed; later rows are dropped, since they are written again.
    """

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        # While the file lacks rows, because another program had it open: the time.monotonic() of the next attempt
        self._retry_at: float | None = None
        before = _read(path)
        self.rows = [row for row in before if row[KEY] <= start]
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row))
        if before != self.rows:
            self._rewrite()

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; new columns are added at the right.

        It replaces a row of the same iteration and dataset, whose validation is repeated after a run was stopped.

        Raises:
            UserError: if the file cannot be written, for example because the disk is full. While another program locks
                it, there is only a warning, and the rows follow as soon as possible.
        """
        first = bisect_left(self.rows, row[KEY], key=lambda old: old[KEY])
        others = [old for old in self.rows[first:] if any(old.get(name) != row.get(name) for name in (KEY, "dataset"))]
        replaced = first + len(others) < len(self.rows)
        self.rows[first:] = [*others, row]
        new = [name for name in row if name not in self.columns]
        self.columns += new
        is_behind = self._retry_at is not None
        if is_behind and time.monotonic() < self._retry_at:
            return
        if new or replaced or is_behind or not self.path.exists():
            self._rewrite()
        else:
            with self._explain_errors(), self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns).writerow(row)

    def catch_up(self) -> None:
        """Write the rows that the file lacks, if any."""
        if self._retry_at is not None:
            self._rewrite()

    def _rewrite(self) -> None:
        with self._explain_errors(), atomic_paths([self.path]) as [part]:
            with part.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self.columns)
                writer.writeheader()
                writer.writerows(self.rows)

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
            self._retry_at = None
        except PermissionError as error:  # on Windows, a spreadsheet locks the file; it is no reason to end a training
            if self._retry_at is None:
                warn(f"{self.path}: cannot be written ({error.strerror or error}); its rows follow as soon as possible")
            self._retry_at = time.monotonic() + LOCKED_SECONDS
        except OSError as error:
            states = saved_states(self.path.parent / "training_states")
            way = f"free space, resume from {states[0].name} with --auto_resume" if states else "nothing was saved yet"
            raise UserError(f"{self.path}: cannot be written ({error.strerror or error}); {way}") from error


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the complete rows of a file, with numbers parsed; a killed run may leave its last row truncated."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [
            {name: _value(name, text) for name, text in row.items() if name and text} for row in csv.DictReader(file)
        ]
    return [row for row in rows if isinstance(row.get(KEY), int) and len(row) > 1]


def _value(column: str, text: str) -> int | float | str:
    if column == "dataset":  # the name may look like a number
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def draw_curves(losses: list[dict[str, Any]], validations: list[dict[str, Any]], path: Path, title: str) -> None:
    """Plot the curves and write them to a PNG file.

    Args:
        losses: rows with ``iteration`` and columns ``l_*``, which are summed.
        validations: rows with ``iteration``, ``dataset``, and metrics, with ``<metric>_input`` if it is known.
        path: output file, PNG.
        title: title of the figure.

    Raises:
        OSError: if the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, which would look for a display

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(plot_text(title))
    metric = _shown_metric(validations)
    panels = figure.subplots(2 if metric else 1, 1, sharex=True, squeeze=False)[:, 0]
    _draw_losses(panels[0], losses)
    if metric:
        _draw_metric(panels[1], validations, metric)
    panels[-1].set_xlabel("iteration")
    for panel in panels:
        panel.grid(alpha=0.25)
    with atomic_paths([path]) as [part]:
        figure.savefig(part, dpi=DPI, format="png")


def plot_text(text: str) -> str:
    """Escape text for matplotlib, where a dollar would start a formula and a first ``_`` would hide the label."""
    shown = text.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _draw_losses(panel: Any, rows: list[dict[str, Any]]) -> None:
    points = [(row["iteration"], sum(v for name, v in row.items() if name.startswith("l_"))) for row in rows]
    points = [(iteration, value) for iteration, value in points if math.isfinite(value)]
    logarithmic = all(value >= 0 for _, value in points)  # PSNRLoss is negative
    if logarithmic:
        points = [(iteration, value) for iteration, value in points if value]
    panel.set_ylabel("loss")
    if not points:
        return
    iterations, values = zip(*points, strict=True)
    span = max(1, round(len(values) * SMOOTHED))
    panel.plot(iterations, values, color=BLUE, alpha=0.35 if span > 1 else 1.0, linewidth=1.2)
    if span > 1:
        sums = [0.0, *accumulate(values)]
        begins = [max(0, at - span) for at in range(len(values))]
        smooth = [(sums[at + 1] - sums[begin]) / (at + 1 - begin) for at, begin in enumerate(begins)]
        panel.plot(iterations, smooth, color=BLUE, linewidth=1.8)
    if logarithmic:
        panel.set_yscale("log")
    for axis in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
        axis("{x:g}")  # 0.3, not 3 x 10^-1


def _draw_metric(panel: Any, rows: list[dict[str, Any]], metric: str) -> None:
    unit = " in dB" if "psnr" in metric.lower() else ""
    panel.set_ylabel(plot_text(f"{metric.upper()}{unit}"))
    for name in dict.fromkeys(row["dataset"] for row in rows):
        own = [row for row in rows if row["dataset"] == name and metric in row]
        (line,) = panel.plot([row["iteration"] for row in own], [row[metric] for row in own], marker="o", markersize=4)
        line.set_label(plot_text(f"{name}, restored"))
        before = next((row[f"{metric}_input"] for row in own if f"{metric}_input" in row), None)
        if before is not None:
            panel.axhline(
                before, color=line.get_color(), linestyle="--", linewidth=1, label=plot_text(f"{name}, input")
            )
    panel.legend(loc="best", fontsize="small")


def _shown_metric(rows: list[dict[str, Any]]) -> str | None:
    """Return the first PSNR metric, or else the first metric, or None if there are none."""
    names = [name for row in rows for name in row if name not in ("iteration", "dataset") and name[-6:] != "_input"]
    return next((name for name in names if "psnr" in name.lower()), names[0] if names else None)
