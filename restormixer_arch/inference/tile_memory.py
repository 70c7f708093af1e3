"""Choose the tile size for a memory budget from the memory that a network needs per pixel on this machine.

A small and a medium tile are restored, and a line is fitted to the memory that they needed: on the CPU the growth of
the process's peak, on a GPU the peak of torch's allocator. For two RestorMixers on a CPU (glibc, one thread) the line
predicted 96 % to 124 % of the memory that tiles of 768 and 1024 pixels needed; :data:`SAFETY` covers the rest.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from restormixer_arch.errors import UserError
from restormixer_arch.inference.shards import processes_here, processes_per_gpu
from restormixer_arch.inference.tiles import ALIGNMENT
from restormixer_arch.memory import (
    available_bytes,
    format_bytes,
    is_out_of_memory,
    peak_bytes,
    release_freed_memory,
    reset_peak,
)
from restormixer_arch.output import warn

SMALL, MEDIUM = 128, 512  # sides of the two tiles in pixels
MAX_TILE = 2048  # maximum side of a tile in pixels: 16 times the area of MEDIUM; its overlaps cost 6 % of the time
SAFETY = 1.25
CPU_BUDGET = 3 * 10**9  # default budget in bytes, in addition to what the process holds
CPU_SHARE, GPU_SHARE = 0.8, 0.8  # of the free memory: limit of the default budget on a CPU; default budget on a GPU
UNMEASURED_TILE = 512  # pixels, if the system does not report a peak


@dataclass(frozen=True)
class TileMemory:
    """The memory budget and the memory that a tile needs.

    Attributes:
        budget: bytes that the run may hold, on the CPU the complete process; None if memory cannot be measured.
        held: bytes held before any image is read.
        fixed: bytes that any tile needs.
        per_pixel: bytes that each input pixel adds.
        on_host: whether the tiles share their memory with the images.
        strict: whether an image that needs more than the budget is rejected; otherwise the smallest tiles are used.
    """

    budget: int | None
    held: int = 0
    fixed: float = 0.0
    per_pixel: float = 0.0
    on_host: bool = True
    strict: bool = True

    def tile(self, height: int, width: int, image_bytes: int, overlap: int) -> int:
        """Return the largest tile side in pixels for an image: a multiple of 64, or enough for the complete image.

        Without a budget it is 512, or more if the overlap requires it. The sides of an image are rounded up to
        multiples of 64, since the network pads them for its windows: a strip of 2 x 30000 pixels needs more memory than
        its area suggests.

        Args:
            height, width: size of the image in pixels.
            image_bytes: CPU memory of the image and its result.
            overlap: overlap of the tiles in pixels.

        Raises:
            UserError: if the budget is strict and even the smallest tile exceeds it.
        """
        if self.budget is None:
            return max(UNMEASURED_TILE, overlap + ALIGNMENT)
        room = self.budget - self.held - (image_bytes if self.on_host else 0)
        pixels = min((room / SAFETY - self.fixed) / self.per_pixel, MAX_TILE**2)
        if math.prod(math.ceil(length / ALIGNMENT) * ALIGNMENT for length in (height, width)) <= pixels:
            return max(height, width, overlap + ALIGNMENT)
        side = math.isqrt(max(0, int(pixels))) // ALIGNMENT * ALIGNMENT
        smallest = math.ceil(overlap / ALIGNMENT) * ALIGNMENT + ALIGNMENT
        if side < smallest and not self.strict:
            return smallest
        if side < smallest:
            needed = self.budget - room + SAFETY * (self.fixed + self.per_pixel * smallest**2)
            raise UserError(
                f"max-memory: {format_bytes(self.budget)} is not enough for {width} x {height} pixels: "
                f"the smallest tile needs {format_bytes(needed)} in all"
            )
        return side


def measure_tile_memory(
    restore_tile: Callable[[Tensor], Tensor],
    channels: int,
    device: torch.device,
    max_memory: int | None = None,
    held: int | None = None,
) -> TileMemory:
    """Run ``restore_tile`` on two gray tiles and measure the memory that it needs.

    Args:
        restore_tile: function that restores a float32 tile (1, ``channels``, h, w) in [0, 1], given on the CPU.
        channels: number of the network's input channels.
        device: device of the network.
        max_memory: limit in bytes, on a CPU for the complete process, on a GPU for its memory. Default: on a CPU 3 GB,
            or 80 % of the free memory if that is less, in addition to ``held``; on a GPU 80 % of its free memory.
            Processes of torchrun or srun on one machine share the free memory. An image for which the default does not
            suffice is restored in the smallest tiles.
        held: bytes that the process held before any image was read, on a CPU. Default: what it holds now.

    Returns:
        The memory of tiles; without a budget if the system does not report a peak or cannot reset it (on a CPU, only
        Linux can). ``max_memory`` is then not enforced, and a warning reports that.

    Raises:
        UserError: if there is not enough memory for the two tiles.
    """
    if device.type not in ("cpu", "cuda"):
        return _unmeasured(max_memory)
    try:
        if device.type == "cuda":
            held, needed = _needed_on_gpu(restore_tile, channels, device)
            torch.cuda.empty_cache()  # the freed blocks of the measured tiles
            free = torch.cuda.mem_get_info(device)[0] + held
            budget = max_memory or int(GPU_SHARE * free / processes_per_gpu())
        elif not reset_peak():  # an earlier peak, such as that of the imports, would hide what the tiles need
            return _unmeasured(max_memory)
        else:
            now, needed = _needed_on_cpu(restore_tile, channels)
            held = now if held is None else held
            free = available_bytes()
            share = CPU_BUDGET if free is None else min(CPU_BUDGET, int(CPU_SHARE * free / processes_here()))
            budget = max_memory or held + share
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"tile: not enough memory to determine the tile size with tiles of up to {MEDIUM} pixels; give a "
            "smaller one"
        ) from error
    if needed[1] <= needed[0]:  # the system reports no peak, or an earlier one was higher
        return _unmeasured(max_memory)
    per_pixel = (needed[1] - needed[0]) / (MEDIUM**2 - SMALL**2)
    fixed = max(0.0, needed[0] - per_pixel * SMALL**2)
    on_host, strict = device.type == "cpu", max_memory is not None
    return TileMemory(min(budget, sys.maxsize), held, fixed, per_pixel, on_host, strict)


def _unmeasured(max_memory: int | None) -> TileMemory:
    if max_memory is not None:
        warn(
            "max_memory: the memory of a tile cannot be measured on this system; tiles have "
            f"{UNMEASURED_TILE} pixels, and may need more than {format_bytes(max_memory)}"
        )
    return TileMemory(None)


def _gray(channels: int, side: int) -> Tensor:
    """Return a gray tile: the content does not affect memory, and random content would change a user's random state."""
    return torch.full((1, channels, side, side), 0.5, dtype=torch.float32, device="cpu")


def _needed_on_cpu(restore_tile: Callable[[Tensor], Tensor], channels: int) -> tuple[int, list[int]]:
    """Return the bytes that the process held before, and how many more it held at the peak of each tile.

    Freed memory is returned to the system first, since a tile that reuses it would seem to need none.
    """
    release_freed_memory()
    reset_peak()
    held, needed = peak_bytes() or 0, []
    for side in (SMALL, MEDIUM):
        release_freed_memory()
        reset_peak()
        restore_tile(_gray(channels, side))
        needed.append((peak_bytes() or 0) - held)
    return held, needed


def _needed_on_gpu(
    restore_tile: Callable[[Tensor], Tensor], channels: int, device: torch.device
) -> tuple[int, list[int]]:
    torch.cuda.empty_cache()
    held, needed = torch.cuda.memory_allocated(device), []
    for side in (SMALL, MEDIUM):
        torch.cuda.reset_peak_memory_stats(device)
        restore_tile(_gray(channels, side))
        torch.cuda.synchronize(device)
        needed.append(torch.cuda.max_memory_allocated(device) - held)
    return held, needed
