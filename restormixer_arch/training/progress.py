"""The bar that shows how training goes on: loss, PSNR, learning rate, iterations per second and time left."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

LOGGERS = ("basicsr", "restormixer_arch")


class Progress:
    """A progress bar on stderr. Where stderr is no terminal there is none, and the log lines stay as they are.

    It appears with the first iteration, when the number of iterations already done is known. Log lines are written
    above it.

    Attributes:
        psnr: of the last validation, in dB, or None before the first.
        learning_rate: of the iteration that comes, or None if nobody tells it.
    """

    def __init__(self, total: int, *, shown: bool | None = None) -> None:
        self.total = total
        self.shown = sys.stderr.isatty() if shown is None else shown
        self.psnr: float | None = None
        self.learning_rate: float | None = None
        self._bar: tqdm | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def start(self, done: int) -> None:
        """Show the bar at ``done`` iterations."""
        if self.shown and self._bar is None:
            loggers = [logging.getLogger(name) for name in LOGGERS]
            self._stack.enter_context(logging_redirect_tqdm(loggers))
            bar = tqdm(total=self.total, initial=done, unit="it", desc="train", dynamic_ncols=True, smoothing=0.1)
            self._bar = self._stack.enter_context(bar)

    def step(self, iteration: int, losses: Mapping[str, float]) -> None:
        """Move to ``iteration``, the number of iterations done, and show their last total loss."""
        if self._bar is None:
            return
        total = sum(value for name, value in losses.items() if name.startswith("l_"))
        parts = [f"loss {total:.4f}"]
        if self.psnr is not None:
            parts.append(f"PSNR {self.psnr:.2f}")
        if self.learning_rate is not None:
            parts.append(f"lr {self.learning_rate:.1e}")
        self._bar.set_postfix_str(", ".join(parts), refresh=False)
        self._bar.update(iteration - self._bar.n)
