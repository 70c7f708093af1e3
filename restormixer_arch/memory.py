"""How much memory this process held at most, and amounts of memory in words."""

from __future__ import annotations

import re
import sys
from pathlib import Path

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


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


def parse_bytes(text: str) -> int:
    """Bytes of ``3G``, ``800M``, ``1.5GB`` or ``3000000000``; the units are powers of 1000.

    Raises:
        ValueError: it is none of these, or 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if size == 0:
        raise ValueError(f"expected an amount of memory such as 3G or 800M, got {text!r}")
    return size


def in_words(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
