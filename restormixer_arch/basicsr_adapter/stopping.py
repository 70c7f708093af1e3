"""SIGINT and SIGTERM end a training after the iteration that is under way, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch

from restormixer_arch.basicsr_adapter.output import is_first_process

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOGETHER = 2.0  # seconds in which a terminal's and a launcher's SIGINT for the same Ctrl-C arrive
HINT = b"basicsr: %s: saving a checkpoint after this iteration%s\n"


class Stopped(Exception):
    """A training has ended on a signal, and its checkpoint is saved.

    Attributes:
        signal: the number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


@dataclass
class Stopping:
    """Whether a training has been asked to stop.

    Attributes:
        signal: the signal that asked, or 0.
        running: iterations are under way; before that a signal ends the process at once.
        launched: by a launcher, which sends the processes a second SIGINT besides the terminal's.
        insisted: a second SIGINT has come.
    """

    signal: int = 0
    running: bool = False
    launched: bool = False
    insisted: bool = False
    _when: float = 0.0

    def notice(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: remember the first one, leave at the second SIGINT."""
        if not self.running:
            if number == signal.SIGTERM:
                raise Stopped(number)
            self.insisted = True
            signal.default_int_handler(number, frame)
        if not self.signal:
            self.signal, self._when = number, time.monotonic()
            if is_first_process():
                name = signal.Signals(number).name.encode()
                os.write(2, HINT % (name, b"; Ctrl-C again leaves at once" * (number == signal.SIGINT)))
        elif number == signal.SIGINT and not (self.launched and time.monotonic() - self._when < TOGETHER):
            self.insisted = True
            signal.default_int_handler(number, frame)

    def agreed(self) -> int:
        """Return the signal that any process of the job was sent, or 0; all of them must ask together."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.signal
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        flag = torch.tensor([self.signal], device=device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        self.signal = int(flag.item())
        return self.signal


@contextmanager
def noticing_signals(stopping: Stopping) -> Iterator[None]:
    """Let ``stopping`` notice the signals, where they are not somebody else's or ignored, as under nohup."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
                before[number] = signal.signal(number, stopping.notice)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
