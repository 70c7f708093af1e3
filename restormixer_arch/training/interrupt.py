"""Stop a training run after the current iteration, with a checkpoint, on SIGINT, SIGTERM or SIGHUP."""

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
SAME_CTRL_C_SECONDS = 2.0  # seconds within which the SIGINTs of terminal and launcher for the same Ctrl-C arrive
CHECKPOINT = b"saving a checkpoint after this iteration"
LAST_VALIDATION = b"the last validation is running and will finish"
HINT = b"basicsr: %s: %s%s\n"


class Stopped(KeyboardInterrupt):
    """A signal stopped the training run; unless the run is temporary, its checkpoint is saved.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


@dataclass
class Interrupt:
    """The request to stop a training run. Once set, a signal remains set.

    Attributes:
        signal: number of the signal that this process or another one of the job received, or 0.
        running: True during the iterations of a run that is kept; otherwise, a signal ends the run immediately.
        has_launcher: True if a launcher was used, which sends another SIGINT besides the terminal's.
        quits_at_once: True after a second SIGINT, or after the first one if not ``running``.
        hint: message for the user about what happens after a signal.
    """

    signal: int = 0
    running: bool = False
    has_launcher: bool = False
    quits_at_once: bool = False
    hint: bytes = CHECKPOINT
    _when: float = 0.0

    def notice(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: store the first one, and quit on the second SIGINT."""
        if not self.running:
            if number != signal.SIGINT:
                raise Stopped(number)
            self.quits_at_once = True
            signal.default_int_handler(number, frame)
        if not self.signal:
            self.signal, self._when = number, time.monotonic()
            if is_first_process():
                name = signal.Signals(number).name.encode()
                with suppress(OSError):  # the terminal may be gone, as SIGHUP reports
                    os.write(2, HINT % (name, self.hint, b"; Ctrl-C again quits at once" * (number == signal.SIGINT)))
        elif number == signal.SIGINT and not (self.has_launcher and self._age() < SAME_CTRL_C_SECONDS):
            self.quits_at_once = True
            signal.default_int_handler(number, frame)

    def _age(self) -> float:
        """Return the seconds since the first signal."""
        return time.monotonic() - self._when

    def agree_on_signal(self) -> int:
        """Return the signal that any process of the job has received, or 0. All processes must call it together.

        A signal that arrives during the call remains set, and all processes agree on it at the next call.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.signal
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        flag = torch.tensor([self.signal], device=device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        agreed = int(flag.item())
        if agreed and not self.signal:  # never reset to 0: the handler may have run in the meantime
            self.signal, self._when = agreed, time.monotonic()
        return agreed


@contextmanager
def handle_signals(interrupt: Interrupt) -> Iterator[None]:
    """Let ``interrupt`` handle signals, except those with other handlers or that are ignored, as under nohup."""
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
