"""Restore a picture with any network: number type, self-ensemble, tiles; files and their formats are elsewhere.

Shape letters: B batch, C channels (1 gray, 3 RGB), H x W size in pixels, s the network's enlargement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from restormixer_arch.errors import UserError
from restormixer_arch.memory import parse_bytes
from restormixer_arch.models.tile_memory import MEDIUM, TileMemory, measure
from restormixer_arch.models.tiling import ALIGNMENT, DEFAULT_OVERLAP, tiled

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PEAKS = {torch.uint8: 255, torch.uint16: 65535}  # the value of white; 1 for floating-point pictures
Progress = Callable[[int, int], None]


def restored(
    network: nn.Module,
    picture: Tensor,
    *,
    tile: int,
    overlap: int = DEFAULT_OVERLAP,
    blend: str = "hann",
    precision: str = "fp32",
    self_ensemble: bool = False,
    on_tile: Progress = lambda done, total: None,
) -> Tensor:
    """Restore pictures, of which no more than a tile is ever on the network's device.

    Args:
        network: in eval mode; (B, C, h, w) of float32 in [0, 1] -> (B, C, s * h, s * w). Its attribute ``upscale`` is
            s (1 if it has none), ``in_channels`` its number of channels (3 if it has none). Gray pictures are passed
            to a network of 3 channels three times over and averaged, and colours one by one to a network of 1.
        picture: (B, C, H, W), RGB or gray; uint8, uint16, or floating point in [0, 1].
        tile: largest side of a tile, see :func:`~restormixer_arch.models.tiling.tiled`.
        overlap: of the tiles.
        blend: of the tiles.
        precision: ``fp32``, or ``bf16`` and ``fp16`` by torch's autocast.
        self_ensemble: the mean over the picture's eight flips and quarter turns; eight times the work. For networks
            that were trained with all of them: one of rain lost 2.4 dB by it, for turned streaks were strange to it.
        on_tile: called after each tile with how many are done and how many there are.

    Returns:
        float32 in [0, 1] on the CPU.

    Shape:
        (B, C, H, W) -> (B, C, s * H, s * W)

    Raises:
        UserError: the device's memory does not do, or the result is not a number in ``precision``.
        ValueError: ``tile``, ``overlap``, ``blend`` or ``precision`` is not possible.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")

    def restore_tile(part: Tensor) -> Tensor:
        result = _restored_tile(network, part, precision, self_ensemble)
        if not torch.isfinite(result).all():
            raise UserError(f"precision: the result in {precision} has infinite values or none at all; try fp32")
        return result

    scale = getattr(network, "upscale", 1)
    try:
        result = tiled(restore_tile, picture, tile, overlap=overlap, blend=blend, scale=scale, on_tile=on_tile)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):  # the latter: a CPU
            raise
        raise UserError(f"tile: the device's memory does not do for {tile} pixels; give a smaller one") from error
    return result.clamp_(0, 1)


def _restored_tile(network: nn.Module, part: Tensor, precision: str, self_ensemble: bool) -> Tensor:
    white = PEAKS.get(part.dtype, 1)
    part = part.to(next(network.parameters()).device).float() / white
    channels, wanted = part.shape[1], getattr(network, "in_channels", 3)
    apply = _ensemble if self_ensemble else _once
    with torch.no_grad(), torch.autocast(part.device.type, PRECISIONS[precision], enabled=precision != "fp32"):
        if channels == 1 and wanted == 3:
            return apply(network, part.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
        if wanted == 1:
            return torch.cat([apply(network, plane) for plane in part.split(1, dim=1)], dim=1)
        return apply(network, part)


def _once(network: nn.Module, x: Tensor) -> Tensor:
    return network(x).float()


def _ensemble(network: nn.Module, x: Tensor) -> Tensor:
    """The mean over the dihedral group of the square, each result turned back."""
    total = None
    for turns in range(4):
        for flipped in (False, True):
            turned = torch.rot90(x.flip(-1) if flipped else x, turns, (-2, -1))
            back = torch.rot90(network(turned.contiguous()).float(), -turns, (-2, -1))
            back = back.flip(-1) if flipped else back
            total = back.clone() if total is None else total.add_(back)
    return total / 8


@dataclass
class Restorer:
    """A network and how it is applied; the memory of its tiles is measured when the first is wanted.

    Attributes:
        network: as for :func:`restored`, on its device.
        tile: largest side of a tile in pixels, or None for as large as ``max_memory`` allows.
        overlap: of the tiles, in pixels.
        blend: ``hann`` or ``linear``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        self_ensemble: average over flips and turns.
        max_memory: bytes, see :func:`~restormixer_arch.models.tile_memory.measure`.

    Raises:
        UserError: ``tile`` and ``overlap`` do not go together.
    """

    network: nn.Module
    tile: int | None = None
    overlap: int = DEFAULT_OVERLAP
    blend: str = "hann"
    precision: str = "fp32"
    self_ensemble: bool = False
    max_memory: int | None = None

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < self.overlap + ALIGNMENT:
            raise UserError(
                f"tile: {self.tile} is too small for an overlap of {self.overlap}, "
                f"at least {self.overlap + ALIGNMENT} was expected"
            )

    @property
    def scale(self) -> int:
        return getattr(self.network, "upscale", 1)

    @cached_property
    def memory(self) -> TileMemory:
        def restore_tile(part: Tensor) -> Tensor:
            return _restored_tile(self.network, part, self.precision, self.self_ensemble)

        device = next(self.network.parameters()).device
        return measure(restore_tile, getattr(self.network, "in_channels", 3), device, self.max_memory)

    def tile_for(self, picture: Tensor) -> int:
        """The side of the tiles of a picture (B, C, H, W)."""
        if self.tile is not None:
            return self.tile
        batch, channels, height, width = picture.shape
        if self.max_memory is None and max(height, width) <= MEDIUM:
            return max(height, width, self.overlap + ALIGNMENT)  # to measure would take as much
        # Two copies of the input, as decoded and as an array; the float32 result and its conversion to integers.
        samples = batch * channels * height * width
        holding = samples * (2 * picture.element_size() + self.scale**2 * (4 + 2 * picture.element_size()))
        return self.memory.tile(height, width, holding, self.overlap)

    def __call__(self, picture: Tensor, on_tile: Progress = lambda done, total: None) -> Tensor:
        """:func:`restored` with these settings, one picture after the other.

        Shape:
            (B, C, H, W) -> (B, C, s * H, s * W)
        """
        settings = {
            "tile": self.tile_for(picture),
            "overlap": self.overlap,
            "blend": self.blend,
            "precision": self.precision,
            "self_ensemble": self.self_ensemble,
            "on_tile": on_tile,
        }
        if len(picture) == 1:
            return restored(self.network, picture, **settings)
        return torch.cat([restored(self.network, one, **settings) for one in picture.split(1)])


def restorer_of_options(network: nn.Module, val: dict[str, Any]) -> Restorer | None:
    """What ``val`` of an option file asks for, or None where pictures are to be restored whole."""
    if not val.get("tile") and not val.get("max_memory"):
        return None
    overlap, memory = val.get("tile_overlap"), val.get("max_memory")
    return Restorer(
        network,
        tile=val.get("tile"),
        overlap=DEFAULT_OVERLAP if overlap is None else overlap,
        blend=val.get("tile_blend") or "hann",
        max_memory=parse_bytes(memory) if memory else None,
    )


def pick_device(name: str) -> torch.device:
    """The device of a name, ``auto`` for the first GPU or else the CPU.

    Raises:
        UserError: torch has no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # unknown, not compiled in, or not there
        reason = str(error).splitlines()[0]
        raise UserError(f"--device: {name!r} cannot be used here ({reason})") from error
    return device
