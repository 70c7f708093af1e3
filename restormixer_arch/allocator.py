"""Let the C library keep the memory that freed tensors leave."""

from __future__ import annotations

import ctypes
import sys

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


def release_freed_memory() -> bool:
    """Give the memory that freed objects left back to the system, so that what is then held is in use; glibc only.

    Returns:
        Whether the C library knows how.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is None:
        return False
    trim(0)
    return True
