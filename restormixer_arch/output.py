"""The two ways in which the command line speaks: results on stdout, notes and errors on stderr."""

from __future__ import annotations

import os
import re
import sys
from typing import TextIO

# Characters that a terminal obeys or reorders text by, and bytes of file names that are no text.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def is_first_process() -> bool:
    """True for the process that may speak: rank 0 of a distributed run, or the only process."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def printable(text: str, stream: TextIO | None) -> str:
    """Return a text with escapes for what a terminal would obey, or the stream's encoding does not have."""
    text = UNPRINTABLE.sub(lambda found: found.group().encode("unicode_escape").decode(), text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def say(text: str) -> None:
    """Write a result to stdout. Where that cannot be written, a line on stderr says so, and the work stays done."""
    if not is_first_process() or sys.stdout is None:
        return
    try:
        sys.stdout.write(printable(text, sys.stdout) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:  # the disk is full, or the stream is closed
        complain(f"stdout cannot be written ({getattr(error, 'strerror', None) or error})")
        if not sys.stdout.closed:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it at its end


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
    if sys.stderr is not None:
        sys.stderr.write(f"basicsr: {printable(text, sys.stderr)}\n")
        sys.stderr.flush()
