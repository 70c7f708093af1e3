"""The memory of this process: its peak, freed memory that the C library keeps, the lack of it, and amounts in bytes."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

from restormixer_arch.control_groups import groups, read

MEMINFO = Path("/proc/meminfo")
GROUPS = (  # limit, what is held, and the line of memory.stat that says how much of it is a cache of files
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MAX_KEPT_BYTES = 100 << 20  # bytes; with larger ones kept too, gaps between them cost more memory than they save time
OPENCV_NO_MEMORY = -4  # cv2.Error.StsNoMem
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
OUT_OF_MEMORY += ("could not create a primitive",)  # oneDNN's
OUT_OF_MEMORY += ("cublas_status_alloc_failed", "cudnn_status_alloc_failed")
OUT_OF_MEMORY += ("failed to allocate memory", "bad allocation", "bad_alloc")  # onnxruntime's, and C++'s own


def peak_bytes() -> int | None:
    """The most memory that this process has held, since :func:`reset_peak` on Linux; None if it is not known."""
    if (peak := _status("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes(*, swap: bool = False) -> int | None:
    """The memory that is free, up to the limits of the process's control groups, as a container or SLURM sets them.

    A cache of files counts as free, as the kernel drops it. None if it is not known: only Linux shows it.

    Args:
        swap: count the free swap space of the machine, too.
    """
    try:
        text = MEMINFO.read_text()
        free = int(re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)[1]) * 1024
    except (OSError, TypeError):
        return None
    if swap and (found := re.search(r"^SwapFree:\s+(\d+) kB$", text, re.MULTILINE)):
        free += int(found[1]) * 1024
    for group in groups("memory"):
        for *names, cache_name in GROUPS:
            limit, held = (read(group / name) for name in names)
            if limit.isdecimal() and held.isdecimal():  # not "max"
                cached = re.search(rf"^{cache_name} (\d+)$", read(group / "memory.stat"), re.MULTILINE)
                free = min(free, max(int(limit) - int(held) + (int(cached[1]) if cached else 0), 0))
    return free


def resident_bytes() -> int | None:
    """The memory that this process holds now; None if it is not known: only Linux tells."""
    return _status("VmRSS")


def _status(name: str) -> int | None:
    """An amount of Linux's /proc/self/status in bytes, or None."""
    status = Path("/proc/self/status")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.exists() else {}
    return int(lines[name].split()[0]) * 1024 if name in lines else None


def reset_peak() -> bool:
    """Set the peak to what is held now. Returns whether the system can: only Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def keep_freed_memory() -> bool:
    """Reuse the memory of freed tensors up to 100 MB instead of returning it to the system; glibc only.

    By default glibc maps every tensor above 32 MB again and unmaps it when it is freed, and the kernel clears each
    page at its first use: more than half of the time of a forward pass at 1024x1024. The setting holds for the whole
    process, so a command may make it and a library must not.

    Returns:
        Whether the C library accepted it.
    """
    mallopt = _glibc("mallopt")
    return mallopt is not None and all(
        mallopt(option, value) == 1
        for option, value in ((M_MMAP_THRESHOLD, MAX_KEPT_BYTES), (M_TRIM_THRESHOLD, 2**31 - 1))
    )


def release_freed_memory() -> bool:
    """Return the memory of freed objects to the system, so that what is held is in use; glibc only.

    Returns:
        Whether the C library can.
    """
    trim = _glibc("malloc_trim")
    if trim is None:
        return False
    trim(0)
    return True


def _glibc(name: str) -> ctypes._CFuncPtr | None:
    """A function of glibc, or None where there is another C library."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


def parse_bytes(text: str) -> int:
    """Bytes of ``3G``, ``800M``, ``1.5GB`` or ``3000000000``; the units are powers of 1000.

    Raises:
        ValueError: it is none of these, 0, or too large.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    try:
        size = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    except OverflowError as error:
        raise ValueError("is too large") from error
    if size == 0:
        raise ValueError(f"expected an amount of memory such as 3G or 800M, got {text!r}")
    return size


def format_bytes(size: float) -> str:
    """A number of bytes as ``1.50 GB``."""
    return f"{size / 1e9:.2f} GB"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch, OpenCV or Python is a lack of memory, on the CPU or a GPU."""
    torch = sys.modules.get("torch")  # which is not imported for this: it may be what is missing
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.cuda.OutOfMemoryError)):
        return True
    if type(error).__module__ == "cv2" and getattr(error, "code", 0) == OPENCV_NO_MEMORY:
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in OUT_OF_MEMORY)
