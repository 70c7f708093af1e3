"""SIGINT, SIGTERM and SIGHUP stop a training after the current iteration, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

import torch

from restormixer_arch.output import is_first_process

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
TOGETHER = 2.0  # seconds in which a terminal's and a launcher's SIGINT for the same Ctrl-C arrive
CHECKPOINT = b"saving a checkpoint after this iteration"
LAST_VALIDATION = b"the last validation is running and will finish"
HINT = b"basicsr: %s: %s%s\n"


class Stopped(KeyboardInterrupt):
    """A signal stopped the training run; unless it is temporary, its checkpoint is saved.

    Attributes:
        signal: the number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


@dataclass
class Interrupt:
    """Whether a training was asked to stop. A signal, once set, stays set.

    Attributes:
        signal: the signal that this process or another one of the job received, or 0.
        running: iterations of a training that is kept are running; else a signal ends it at once.
        launched: started by a launcher, which sends a second SIGINT besides the terminal's.
        second_sigint: a second SIGINT has come.
        hint: what happens after a signal, for the user.
    """

    signal: int = 0
    running: bool = False
    launched: bool = False
    second_sigint: bool = False
    hint: bytes = CHECKPOINT
    _when: float = 0.0

    def notice(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: remember the first one, quit at the second SIGINT."""
        if not self.running:
            if number != signal.SIGINT:
                raise Stopped(number)
            self.second_sigint = True
            signal.default_int_handler(number, frame)
        if not self.signal:
            self.signal, self._when = number, time.monotonic()
            if is_first_process():
                name = signal.Signals(number).name.encode()
                with suppress(OSError):  # the terminal may be gone, which is what SIGHUP says
                    os.write(2, HINT % (name, self.hint, b"; Ctrl-C again quits at once" * (number == signal.SIGINT)))
        elif number == signal.SIGINT and not (self.launched and time.monotonic() - self._when < TOGETHER):
            self.second_sigint = True
            signal.default_int_handler(number, frame)

    def agree_on_signal(self) -> int:
        """Return the signal that any process of the job has received, or 0. All processes must call it together.

        A signal that arrives during the call stays set, and all processes agree on it at the next call.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.signal
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        flag = torch.tensor([self.signal], device=device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        agreed = int(flag.item())
        if agreed and not self.signal:  # never set back to 0: the handler may have run in the meantime
            self.signal, self._when = agreed, time.monotonic()
        return agreed


@contextmanager
def handle_signals(interrupt: Interrupt) -> Iterator[None]:
    """Let ``interrupt`` handle the signals, unless somebody else does, or they are ignored as under nohup."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
                before[number] = signal.signal(number, interrupt.notice)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
