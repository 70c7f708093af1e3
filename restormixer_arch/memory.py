"""Memory of this process: peak and available memory, freed memory, out-of-memory errors, and parsing of amounts."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

from restormixer_arch.control_groups import groups, read

MEMINFO = Path("/proc/meminfo")
GROUPS = (  # limit, memory in use, and the line of memory.stat with the size of the file cache in it
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
MAX_KEPT_BYTES = 100 << 20  # in bytes; keeping larger blocks too is not worth the memory lost in gaps between them
OPENCV_NO_MEMORY = -4  # cv2.Error.StsNoMem
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
OUT_OF_MEMORY += ("could not create a primitive",)  # of oneDNN
OUT_OF_MEMORY += ("cublas_status_alloc_failed", "cudnn_status_alloc_failed")
OUT_OF_MEMORY += ("failed to allocate memory", "bad allocation", "bad_alloc")  # of ONNX Runtime and C++


def peak_bytes() -> int | None:
    """Return the peak memory of this process in bytes, on Linux since :func:`reset_peak`, or None if it is unknown."""
    if (peak := _status("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes(*, swap: bool = False) -> int | None:
    """Return the available memory in bytes within the limits of the process's control groups (containers, SLURM).

    The file cache counts as available, since the kernel can drop it. None if unknown; only Linux reports it.

    Args:
        swap: whether to include the machine's free swap space.
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
    """Return the current memory of this process in bytes, or None if it is unknown; only Linux reports it."""
    return _status("VmRSS")


def _status(name: str) -> int | None:
    """Return an amount of /proc/self/status in bytes, or None if it is missing."""
    status = Path("/proc/self/status")
    text = status.read_text(errors="replace") if status.exists() else ""
    lines = dict(line.split(":", 1) for line in text.splitlines())
    return int(lines[name].split()[0]) * 1024 if name in lines else None


def reset_peak() -> bool:
    """Reset the peak to the current memory, and return whether the system supports this; only Linux does."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def keep_freed_memory() -> bool:
    """Reuse the memory of freed tensors up to 100 MiB instead of returning it to the system; glibc only.

    By default, glibc maps memory for every tensor above 32 MiB and unmaps it when the tensor is freed, and the kernel
    clears each page at its first use. This takes more than half of the time of a forward pass at 1024x1024. The setting
    affects the complete process, so a command may change it but a library must not.

    Returns:
        Whether the C library accepted the setting.
    """
    mallopt = _glibc("mallopt")
    return mallopt is not None and all(
        mallopt(option, value) == 1
        for option, value in ((M_MMAP_THRESHOLD, MAX_KEPT_BYTES), (M_TRIM_THRESHOLD, 2**31 - 1))
    )


def release_freed_memory() -> bool:
    """Return the memory of freed objects to the system, so the process holds only memory in use; glibc only.

    Returns:
        Whether the C library supports it.
    """
    trim = _glibc("malloc_trim")
    if trim is None:
        return False
    trim(0)
    return True


def _glibc(name: str) -> ctypes._CFuncPtr | None:
    """Return a function of the C library, or None if it is missing or this is not Linux."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


def parse_bytes(text: str) -> int:
    """Return the number of bytes in ``3G``, ``800M``, ``1.5GB`` or ``3000000000``; units are powers of 1000.

    Raises:
        ValueError: if the text has another format, or the number is 0 or too large.
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
    """Format a number of bytes as ``1.50 GB``."""
    return f"{size / 1e9:.2f} GB"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch, OpenCV or Python is due to a lack of CPU or GPU memory."""
    torch = sys.modules.get("torch")  # not imported here, since torch may be missing
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.cuda.OutOfMemoryError)):
        return True
    if type(error).__module__ == "cv2" and getattr(error, "code", 0) == OPENCV_NO_MEMORY:
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in OUT_OF_MEMORY)
