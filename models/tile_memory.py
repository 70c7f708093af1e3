"""How large a tile may be, measured before the run: what a network needs, by the pixel, on this machine.

A small and a medium tile are restored and the memory they needed is fitted by a line. On the CPU that is the growth of
the process's peak, on a GPU what torch's allocator gave out at most. With two RestorMixers on a CPU (glibc, one
thread) the line told 96 % to 124 % of what tiles of 768 and 1024 pixels took; :data:`SAFETY` is for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from restormixer_arch.errors import UserError
from restormixer_arch.memory import in_words, peak_bytes, release_freed_memory, reset_peak
from restormixer_arch.models.tiling import ALIGNMENT

SMALL, MEDIUM = 128, 512  # sides of the measured tiles in pixels
LARGEST = 2048  # side of a tile in pixels: 16 times the medium one's area; its overlaps cost 6 % of the time
SAFETY = 1.25
CPU_BUDGET = 3 * 10**9  # bytes of the whole process, where the user names no budget
GPU_SHARE = 0.8  # of a GPU's free memory, likewise
UNMEASURED_TILE = 512  # pixels, where the system does not tell a peak


@dataclass(frozen=True)
class TileMemory:
    """What a tile may cost.

    Attributes:
        budget: bytes that the run may hold, on the CPU the whole process; None: no limit is known.
        held: bytes held before any picture is read.
        fixed: bytes that any tile needs.
        per_pixel: bytes for each pixel of the input more.
        on_host: the tiles share their memory with the pictures.
    """

    budget: int | None
    held: int = 0
    fixed: float = 0.0
    per_pixel: float = 0.0
    on_host: bool = True

    def tile(self, height: int, width: int, picture_bytes: int, overlap: int) -> int:
        """The largest side of a tile, a multiple of 64 or the whole picture, for one of ``height`` x ``width`` pixels.

        Args:
            height, width: of the picture.
            picture_bytes: what holding the picture and its result takes on the CPU.
            overlap: of the tiles, in pixels.

        Raises:
            UserError: even the smallest tile needs more than the budget.
        """
        if self.budget is None:
            return UNMEASURED_TILE
        room = self.budget - self.held - (picture_bytes if self.on_host else 0)
        pixels = min((room / SAFETY - self.fixed) / self.per_pixel, LARGEST**2)
        if height * width <= pixels:
            return max(height, width, overlap + ALIGNMENT)
        side = math.isqrt(max(0, int(pixels))) // ALIGNMENT * ALIGNMENT
        smallest = math.ceil(overlap / ALIGNMENT) * ALIGNMENT + ALIGNMENT
        if side < smallest:
            needed = self.budget - room + SAFETY * (self.fixed + self.per_pixel * smallest**2)
            raise UserError(
                f"max-memory: {in_words(self.budget)} do not do for {width} x {height} pixels: "
                f"the smallest tile needs {in_words(needed)} in all"
            )
        return side


def measure(
    restore_tile: Callable[[Tensor], Tensor], channels: int, device: torch.device, max_memory: int | None = None
) -> TileMemory:
    """Measure ``restore_tile`` on two tiles of noise.

    Args:
        restore_tile: float32 (1, ``channels``, h, w) in [0, 1] on the CPU -> restored.
        channels: of the network's input.
        device: where it works.
        max_memory: bytes, on the CPU of the whole process, on a GPU of its memory. None: 3 GB of a CPU, 80 % of what
            is free of a GPU.
    """
    if device.type == "cuda":
        held, needed = _on_gpu(restore_tile, channels, device)
        budget = max_memory or int(GPU_SHARE * (torch.cuda.mem_get_info(device)[0] + held))
    elif device.type == "cpu":
        held, needed = _on_cpu(restore_tile, channels)
        budget = max_memory or CPU_BUDGET
    else:
        return TileMemory(None)
    if needed[1] <= needed[0]:  # no peak is told, or an earlier one was higher
        return TileMemory(None)
    per_pixel = (needed[1] - needed[0]) / (MEDIUM**2 - SMALL**2)
    fixed = max(0.0, needed[0] - per_pixel * SMALL**2)
    return TileMemory(budget, held, fixed, per_pixel, on_host=device.type == "cpu")


def _on_cpu(restore_tile: Callable[[Tensor], Tensor], channels: int) -> tuple[int, list[int]]:
    """Bytes of the process before, and how much more it held at most with each tile.

    Memory that was freed before is given back first: a tile that found room in it would seem to need none.
    """
    release_freed_memory()
    reset_peak()
    held, needed = peak_bytes() or 0, []
    for side in (SMALL, MEDIUM):
        release_freed_memory()
        reset_peak()
        restore_tile(torch.rand(1, channels, side, side))
        needed.append((peak_bytes() or 0) - held)
    return held, needed


def _on_gpu(restore_tile: Callable[[Tensor], Tensor], channels: int, device: torch.device) -> tuple[int, list[int]]:
    torch.cuda.empty_cache()
    held, needed = torch.cuda.memory_allocated(device), []
    for side in (SMALL, MEDIUM):
        torch.cuda.reset_peak_memory_stats(device)
        restore_tile(torch.rand(1, channels, side, side))
        torch.cuda.synchronize(device)
        needed.append(torch.cuda.max_memory_allocated(device) - held)
    return held, needed
