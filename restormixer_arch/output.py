"""The two ways in which the command line speaks: results on stdout, notes and errors on stderr."""

from __future__ import annotations

import os
import sys


def is_first_process() -> bool:
    """True for the process that may speak: rank 0 of a distributed run, or the only process."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def say(text: str) -> None:
    """Write a result to stdout."""
    if is_first_process():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def note(text: str) -> None:
    """Write one line to stderr that the user should know but need not act on."""
    if is_first_process():
        complain(f"note: {text}")


def warn(text: str) -> None:
    """Write one line to stderr about something that was changed or left out."""
    if is_first_process():
        complain(f"warning: {text}")


def complain(text: str) -> None:
    """Write a line to stderr under the command's name, from any process."""
    sys.stderr.write(f"basicsr: {text}\n")
    sys.stderr.flush()
