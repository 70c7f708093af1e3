"""The memory of this process: what it held at most, and that the C library keeps what freed tensors leave."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_KEPT = 100 << 20  # bytes; with larger ones kept too, gaps between them cost more memory than they save time


def keep_freed_memory() -> bool:
    """Reuse the memory of freed tensors up to 100 MB instead of giving each back to the system; glibc only.

    By its own rule glibc maps every tensor above 32 MB anew and unmaps it when it is freed, and the kernel clears
    each page again at its first touch: more than half of a forward pass at 1024x1024 went there. It holds for the
    whole process, so a command asks for it and a library must not.

    Returns:
        Whether the C library took it.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all(
        mallopt(option, value) == 1
        for option, value in ((M_MMAP_THRESHOLD, LARGEST_KEPT), (M_TRIM_THRESHOLD, 2**31 - 1))
    )


def peak_bytes() -> int | None:
    """The most memory that this process has held, since :func:`reset_peak` if it could; None where nobody tells."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> bool:
    """Let the peak begin anew from what is held now. Returns whether the system can: only Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
