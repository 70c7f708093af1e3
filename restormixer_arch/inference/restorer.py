"""Prepare a network for inference: dtype, self-ensemble, tiles, memory. Image formats are handled elsewhere.

Shape letters: B batch, C channels (1 gray, 3 RGB), H x W size in pixels, s the network's upscale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restormixer_arch.errors import UserError
from restormixer_arch.inference.installed import suits_bf16
from restormixer_arch.inference.onnx_network import OnnxNetwork, is_onnx
from restormixer_arch.inference.tile_memory import MEDIUM, TileMemory, measure_tile_memory
from restormixer_arch.inference.tiles import ALIGNMENT, DEFAULT_OVERLAP, overlap_for, restore_tiles
from restormixer_arch.inference.weights import load_network
from restormixer_arch.memory import (
    available_bytes,
    format_bytes,
    is_out_of_memory,
    parse_bytes,
    release_freed_memory,
    resident_bytes,
)
from restormixer_arch.output import note

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CHANNELS = (1, 3)  # of images that can be restored: gray and RGB
WHITE = {torch.uint8: 255, torch.uint16: 65535}  # the value of white; 1 for floating-point images
Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


def restore_batch(
    network: nn.Module,
    images: Tensor,
    *,
    tile: int,
    overlap: int = DEFAULT_OVERLAP,
    blend: str = "hann",
    precision: str = "fp32",
    self_ensemble: bool = False,
    strength: float = 1.0,
    allow_non_finite: bool = False,
    on_tile: Progress = no_progress,
) -> Tensor:
    """Restore images in tiles; at most one tile is on the network's device at a time.

    Args:
        network: network in eval mode: float32 (B, C, h, w) in [0, 1] -> (B, C, s * h, s * w). Its attributes
            ``upscale`` and ``in_channels`` give s (default 1) and C (default 3). For a 3-channel network, gray images
            are repeated and the result is averaged; RGB images pass through a 1-channel network channel by channel.
        images: images (B, C, H, W), RGB or gray; uint8, uint16, or floating point in [0, 1].
        tile: largest side of a tile, see :func:`~restormixer_arch.inference.tiles.restore_tiles`.
        overlap: overlap of the tiles in pixels.
        blend: blending of the tiles, ``hann`` or ``linear``.
        precision: ``fp32``, or ``bf16`` or ``fp16`` by torch's autocast.
        self_ensemble: whether to average over the eight flips and rotations, at eight times the work. For networks
            trained with all of them: a deraining network lost 2.4 dB, since it had never seen rotated rain.
        strength: share of the restored image in [0, 1]; the rest is the input, enlarged bicubically by s.
        allow_non_finite: whether to return NaN where the network's output is not finite, instead of raising an error.
        on_tile: function that is called after each tile with the number of tiles done and the total number.

    Returns:
        Restored images, float32 in [0, 1] on the CPU.

    Shape:
        (B, C, H, W) -> (B, C, s * H, s * W)

    Raises:
        UserError: if there is not enough memory, or the result is not finite in ``precision``.
        ValueError: if ``tile``, ``overlap``, ``blend`` or ``precision`` is not valid.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")

    def restore_tile(part: Tensor) -> Tensor:
        result = _apply_network(network, part, precision, self_ensemble)
        finite = torch.isfinite(result)
        if not finite.all():
            if allow_non_finite:
                return result.masked_fill(~finite, torch.nan)
            advice = "" if precision == "fp32" else "; try fp32"
            raise UserError(f"precision: the result in {precision} is not finite{advice}")
        return result if strength == 1 else torch.lerp(_enlarge(part, result), result.clamp(0, 1), strength)

    scale = getattr(network, "upscale", 1)
    try:
        result = restore_tiles(restore_tile, images, tile, overlap=overlap, blend=blend, scale=scale, on_tile=on_tile)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"tile: not enough memory for a tile of {tile} pixels; use a smaller one") from error
    return result.clamp_(0, 1)


def _apply_network(network: nn.Module, part: Tensor, precision: str, self_ensemble: bool) -> Tensor:
    """Restore a tile of any dtype on the network's device. Returns float32."""
    white = WHITE.get(part.dtype, 1)
    part = part.float().to(next(network.parameters()).device) / white  # MPS has neither float64 nor uint16
    channels, wanted = part.shape[1], getattr(network, "in_channels", 3)
    apply = _apply_ensemble if self_ensemble else _apply_once
    with torch.no_grad(), torch.autocast(part.device.type, PRECISIONS[precision], enabled=precision != "fp32"):
        if channels == 1 and wanted == 3:
            return apply(network, part.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
        if wanted == 1:
            return torch.cat([apply(network, plane) for plane in part.split(1, dim=1)], dim=1)
        return apply(network, part)


def _enlarge(part: Tensor, result: Tensor) -> Tensor:
    """Return a tile of any dtype as float32 in [0, 1], on the device and in the size of its result.

    The output of bicubic interpolation is clamped, since it overshoots at edges.
    """
    part = part.float().to(result.device) / WHITE.get(part.dtype, 1)
    if part.shape == result.shape:
        return part
    return F.interpolate(part, size=result.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)


def _apply_once(network: nn.Module, x: Tensor) -> Tensor:
    return network(x).float()


def _apply_ensemble(network: nn.Module, x: Tensor) -> Tensor:
    """Return the mean over the eight flips and rotations by 90 degrees, each result transformed back."""
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
    """A network and the settings to apply it with. The memory of its tiles is measured when it is first needed.

    Attributes:
        network: network as for :func:`restore_batch`, on its device.
        tile: largest side of a tile in pixels, or None for as large as ``max_memory`` allows.
        overlap: overlap of the tiles in pixels.
        blend: blending of the tiles, ``hann`` or ``linear``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        self_ensemble: whether to average over flips and rotations.
        max_memory: limit in bytes, see :func:`~restormixer_arch.inference.tile_memory.measure_tile_memory`.
        strength: share of the restored image in the result, in [0, 1]; the rest is the input.
        held: bytes that the process held before any image was read, for ``max_memory`` on a CPU; None for what it
            holds when the memory of the tiles is measured.
        allow_non_finite: whether to return NaN where the network's output is not finite, instead of raising an error.

    Raises:
        UserError: if a setting is not valid, see :func:`check_settings`.
    """

    network: nn.Module
    tile: int | None = None
    overlap: int = DEFAULT_OVERLAP
    blend: str = "hann"
    precision: str = "fp32"
    self_ensemble: bool = False
    max_memory: int | None = None
    strength: float = 1.0
    held: int | None = None
    allow_non_finite: bool = False

    def __post_init__(self) -> None:
        check_settings(tile=self.tile, overlap=self.overlap, max_memory=self.max_memory, strength=self.strength)

    @property
    def scale(self) -> int:
        return getattr(self.network, "upscale", 1)

    @cached_property
    def memory(self) -> TileMemory:
        def restore_tile(part: Tensor) -> Tensor:
            return _apply_network(self.network, part, self.precision, self.self_ensemble)

        device = next(self.network.parameters()).device
        channels = getattr(self.network, "in_channels", 3)
        return measure_tile_memory(restore_tile, channels, device, self.max_memory, self.held)

    def tile_for(self, images: Tensor) -> int:
        """Return the tile side for images (B, C, H, W). Raises UserError if the results alone do not fit in memory."""
        if self.tile is not None:
            return self.tile
        batch, channels, height, width = images.shape
        if self.max_memory is None and max(height, width) <= MEDIUM:
            return max(height, width, self.overlap + ALIGNMENT)  # measuring would need as much memory
        # Two copies of the input (decoded and as an array), the float32 result and its conversion to integers.
        samples = batch * channels * height * width
        result = samples * self.scale**2 * (4 + 2 * images.element_size())
        if (free := available_bytes(swap=True)) is not None and result > free:
            needed, available = format_bytes(result), format_bytes(free)
            raise UserError(f"not enough memory: the result needs {needed}, {available} are free")
        holding = result + samples * 2 * images.element_size()
        return self.memory.tile(height, width, holding, self.overlap)

    def __call__(self, images: Tensor, on_tile: Progress = no_progress, strength: float | None = None) -> Tensor:
        """Apply :func:`restore_batch` with these settings to one image after the other.

        Args:
            images, on_tile: see :func:`restore_batch`.
            strength: value that replaces the attribute of that name, if not None.

        Shape:
            (B, C, H, W) -> (B, C, s * H, s * W)
        """
        settings = {
            "tile": self.tile_for(images),
            "overlap": self.overlap,
            "blend": self.blend,
            "precision": self.precision,
            "self_ensemble": self.self_ensemble,
            "strength": self.strength if strength is None else strength,
            "allow_non_finite": self.allow_non_finite,
            "on_tile": on_tile,
        }
        results = [restore_batch(self.network, image, **settings) for image in images.split(1)]
        return results[0] if len(results) == 1 else torch.cat(results)


def load_restorer(
    weights: str | Path,
    device: torch.device,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    max_memory: int | None = None,
    blend: str = "hann",
    precision: str = "fp32",
    self_ensemble: bool = False,
    strength: float = 1.0,
) -> Restorer:
    """Load a weight file and prepare its network on a device.

    Args:
        weights: weight file; an ONNX file of ``basicsr export`` is run by onnxruntime.
        device: device of the network, see :func:`pick_device`.
        tile, overlap, max_memory: see :class:`Restorer`.
        precision: see :class:`Restorer`; or ``auto``, see :func:`pick_precision`.
        blend, self_ensemble, strength: see :class:`Restorer`.

    Raises:
        UserError: if the weights cannot be loaded, the network restores neither gray nor RGB images, or a setting is
            not valid.
    """
    path = Path(weights)
    if precision == "auto":
        precision = pick_precision(path, device)
    if is_onnx(path):
        if precision != "fp32":
            raise UserError(
                f"precision: {precision} cannot be set for {path}, whose precision is fixed; "
                "leave it out, or export the weights with --half"
            )
        if device.type != "cpu":
            raise UserError(f"device: {path} runs on the CPU only, got {str(device)!r}; leave it out")
        network = OnnxNetwork(path)
    else:
        network = load_network(path).to(device)
    if network.in_channels not in CHANNELS:
        raise UserError(f"{path}: restores images of {network.in_channels} channels, expected 1 or 3")
    overlap = overlap_for(tile) if overlap is None else overlap
    release_freed_memory()  # used to read the file
    held = resident_bytes()
    return Restorer(network, tile, overlap, blend, precision, self_ensemble, max_memory, strength, held)


def check_settings(
    *,
    tile: int | None = None,
    overlap: int | None = None,
    max_memory: int | None = None,
    strength: float = 1.0,
    precision: str = "fp32",
) -> None:
    """Check settings of a :class:`Restorer` that need no network; an overlap of None is the default for the tile.

    Raises:
        UserError: if ``strength`` is outside [0, 1], ``tile`` is too small for ``overlap``, ``max_memory`` is not
            positive, ``precision`` is unknown, or a value has the wrong type.
    """
    for name, value in (("tile", tile), ("overlap", overlap), ("max_memory", max_memory), ("strength", strength)):
        kind, wanted = (Integral, "a whole number") if name in ("tile", "overlap") else (Real, "a number")
        if not isinstance(value, kind) and (value is not None or name == "strength"):
            raise UserError(f"{name}: got {value!r}, expected {wanted}")
    if precision not in (names := (*PRECISIONS, "auto")):
        raise UserError(f"precision: got {precision!r}, expected one of {', '.join(names)}")
    if not 0 <= strength <= 1:
        raise UserError(f"strength: must be in [0, 1], got {strength}")
    if max_memory is not None and not max_memory >= 1:
        raise UserError(f"max_memory: got {max_memory}, expected at least 1 byte")
    overlap = overlap_for(tile) if overlap is None else overlap
    if tile is not None and tile < overlap + ALIGNMENT:
        raise UserError(
            f"tile: {tile} is too small for an overlap of {overlap}, expected at least {overlap + ALIGNMENT}"
        )


def restorer_of_options(network: nn.Module, val: dict[str, Any]) -> Restorer | None:
    """Return the restorer for the section ``val`` of an option file, or None to restore images without tiles.

    It returns NaN where the network's output is not finite, which shows in the metrics of a validation.
    """
    if not val.get("tile") and not val.get("max_memory"):
        return None
    overlap, memory = val.get("tile_overlap"), val.get("max_memory")
    return Restorer(
        network,
        tile=val.get("tile"),
        overlap=overlap_for(val.get("tile")) if overlap is None else overlap,
        blend=val.get("tile_blend") or "hann",
        max_memory=parse_bytes(memory) if memory else None,
        allow_non_finite=True,
    )


def pick_device(name: str, weights: str | Path = "", *, shown: str = "--device", gpu: str = "cuda") -> torch.device:
    """Return the device of a name; ``auto`` is a GPU if it is usable, else the CPU, and always the CPU for ONNX files.

    Args:
        name: device name as in torch, or ``auto``.
        weights: weights to run on the device.
        shown: name of the setting in messages.
        gpu: GPU that ``auto`` selects.

    Raises:
        UserError: if torch cannot use the device here.
    """
    if name == "auto":
        if is_onnx(weights) or not torch.cuda.is_available():
            return torch.device("cpu")
        if reason := unusable_reason(gpu):
            note(f"the GPU is not used: {reason}")
        return torch.device("cpu" if reason else gpu)
    if reason := unusable_reason(name):
        raise UserError(f"{shown}: {name!r} cannot be used here ({reason})")
    return torch.device(name)


def unusable_reason(name: str) -> str | None:
    """Return why torch cannot compute on a device, or None; its wheels have no kernels for old GPUs, for example."""
    try:
        torch.ones(1, device=torch.device(name)).add(1).cpu()
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:  # unknown, not compiled in, or missing
        return str(error).partition("\n")[0] or type(error).__name__
    return None


def pick_precision(weights: Path, device: torch.device) -> str:
    """Return ``bf16`` if it is faster than float32 and costs less than 0.02 dB, otherwise ``fp32``.

    It is faster on CPUs and GPUs that support bfloat16 multiplication (AMX, AVX512-BF16; Ampere and later). Its cost
    was measured only for the installed weights.
    """
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:  # private names that older or newer versions of torch may lack
        checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16"))
        fast = device.type == "cpu" and any(check is not None and check() for check in checks)
    return "bf16" if fast and suits_bf16(weights) else "fp32"
