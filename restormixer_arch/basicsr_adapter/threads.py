"""Share a machine's cores between torch's threads and the loader processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import torch


@contextmanager
def opencv_alone() -> Iterator[None]:
    """Let OpenCV work without threads of its own, for loader processes use the other cores.

    It must be so before they are forked: threads are not forked with them, and OpenCV would wait for its own forever.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(available: int, processes: int, workers: int) -> int:
    """Return torch's threads for one of ``processes`` with ``workers`` loader processes each.

    A loader of small crops is idle for most of the time, so at least half of the cores are left to the mathematics.
    """
    own = max(available // processes, 1)
    return max(own - workers, (own + 1) // 2, 1)


def set_threads(wanted: int | None, processes: int, workers: int) -> str:
    """Set torch's threads on a CPU, and return a line for the log.

    Args:
        wanted: ``num_threads`` of the option file.
        processes: of the job on this machine.
        workers: loader processes of each.
    """
    outer = os.environ.get("OMP_NUM_THREADS")
    if wanted:
        torch.set_num_threads(wanted)
        reason = "num_threads of the option file"
    elif outer:
        reason = f"OMP_NUM_THREADS is {outer}" + (", which torchrun sets if nobody else does" if processes > 1 else "")
    else:
        torch.set_num_threads(share(cores(), processes, workers))
        reason = f"{cores()} cores for {processes} process{'es' * (processes > 1)} with {workers} loaders each"
    return f"Threads of torch: {torch.get_num_threads()} ({reason})."


def share_cores(opt: dict[str, Any], workers: int) -> None:
    """Set torch's threads of this process of a job on CPUs, and log it.

    Args:
        opt: the options of the run.
        workers: loader processes that work while the network does.
    """
    if opt["num_gpu"] == 0:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", opt["world_size"])) if opt["dist"] else 1
        logging.getLogger("basicsr").info(set_threads(opt.get("num_threads"), processes, workers))
