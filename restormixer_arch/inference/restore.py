"""``restormixer_arch.restore``: restore numpy arrays, PIL images, torch tensors and decoded files.

Shape letters: B batch, C channels, H x W size in pixels, s the network's upscale.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from restormixer_arch.data.images.picture import Picture, split_alpha, to_pillow, to_rgb
from restormixer_arch.errors import UserError
from restormixer_arch.hub import WEIGHTS
from restormixer_arch.inference.installed import DEFAULT_TASK, installed_weights
from restormixer_arch.inference.restorer import (
    CHANNELS,
    WHITE,
    Progress,
    Restorer,
    check_settings,
    load_restorer,
    no_progress,
    pick_device,
)
from restormixer_arch.memory import parse_bytes
from restormixer_arch.output import user_path

PILLOW_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16L", "I;16B")
DEEP_MODES = ("I;16", "I;16L", "I;16B")
TOLERANCE = 1e-4  # allowed excess of floating-point images beyond [0, 1], from resizing and rounding
Restore = Callable[..., Tensor]  # called like a Restorer
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def restore(
    image: np.ndarray | Image.Image | Tensor,
    weights: str | Path | None = None,
    *,
    task: str = DEFAULT_TASK,
    device: str = "auto",
    precision: str = "fp32",
    self_ensemble: bool = False,
    tile: int | None = None,
    max_memory: int | str | None = None,
    strength: float = 1.0,
) -> np.ndarray | Image.Image | Tensor:
    """Restore an image: ``restormixer_arch.restore(image, weights="net_g_latest.pth")``.

    The network is kept for the next call with the same arguments.

    Args:
        image: a numpy array (H, W), (H, W, 1), RGB (H, W, 3) or with alpha (H, W, 2) or (H, W, 4); a tensor (C, H, W)
            or (B, C, H, W) with C 1 or 3, on any device; or a PIL image. Arrays and tensors are uint8, uint16, or
            floating point in [0, 1]; values up to 1e-4 outside are clipped. The EXIF orientation of a PIL image is not
            applied.
        weights: a weight file, ``.pth`` or ``.safetensors``, an ONNX file of ``basicsr export``, or a folder or
            repository, see :func:`restormixer_arch.hub.locate`.
        task: task of the installed weights to use, if ``weights`` is None.
        device: device name as in torch, or ``auto``.
        precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: ``bf16`` if it is faster and costs less than 0.02 dB.
        self_ensemble: whether to average over eight flips and rotations, at eight times the work.
        tile: largest side of a tile in pixels. Default: as large as ``max_memory`` allows.
        max_memory: memory limit in bytes, or text such as ``"3G"``; on a CPU for the complete process. Default: on a
            CPU 3 GB more than the process holds when the network is loaded, on a GPU 80 % of its free memory; an image
            that needs more is restored in the smallest tiles. Memory can only be measured on Linux and NVIDIA GPUs:
            elsewhere, tiles are 512 pixels wide, and a warning reports that the limit is not enforced.
        strength: share of the restored image in the result, in [0, 1]; the rest is the input.

    Returns:
        The restored image: the same kind, type, range, channels and device as ``image``, enlarged by the network's
        ``upscale``. The alpha is that of the input. PIL images have mode L, LA, RGB, RGBA or I;16.

    Raises:
        UserError: if the weights, the device or a setting cannot be used, or there is not enough memory.
        TypeError, ValueError: if ``image`` is none of the above.
    """
    path = user_path(weights) if weights is not None else installed_weights(task)
    try:
        budget = parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory
    except ValueError as error:
        raise UserError(f"max_memory: {error}") from error
    check_settings(tile=tile, max_memory=budget, strength=strength, precision=precision)
    file = path / WEIGHTS if path.is_dir() else path
    changed = file.stat().st_mtime_ns if file.is_file() else 0  # a file that changed is read again
    restorer = _cached_restorer(path, changed, device, precision, self_ensemble, tile, budget)
    apply = partial(restorer, strength=strength)
    if isinstance(image, Tensor):
        return _restore_tensor(apply, image)
    if isinstance(image, np.ndarray):
        return _restore_array(apply, image)
    if isinstance(image, Image.Image):
        return _restore_pillow(apply, image)
    raise TypeError(f"image must be a numpy array, a torch tensor or a PIL image, got {type(image).__name__}")


def restore_picture(
    restorer: Restore,
    picture: Picture,
    on_tile: Progress = no_progress,
) -> Picture:
    """Restore a decoded image file. Its alpha is kept, resized if the network upscales."""
    x = torch.from_numpy(np.ascontiguousarray(picture.pixels)).permute(2, 0, 1)[None]
    result = restorer(x, on_tile)
    pixels = to_type(result, x.dtype)[0].permute(1, 2, 0).contiguous().numpy()
    return Picture(pixels, _resize(picture.alpha, pixels.shape[:2]), picture.format, picture.metadata)


def side_by_side(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Join ``before`` (H, W, C), enlarged bicubically, and ``after`` (s * H, s * W, C) to (s * H, 2 * s * W, C)."""
    enlarged = _resize(before, after.shape[:2])
    return np.hstack([enlarged.reshape(*after.shape[:2], -1), after])


def to_type(result: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert float32 in [0, 1] to another type; integers are rounded. ``result`` may be overwritten."""
    white = WHITE.get(dtype)
    return result.to(dtype) if white is None else result.mul_(white).round_().to(dtype)


@lru_cache(maxsize=2)
def _cached_restorer(
    path: Path,
    changed: int,
    device: str,
    precision: str,
    self_ensemble: bool,
    tile: int | None,
    max_memory: int | None,
) -> Restorer:
    return load_restorer(
        path,
        pick_device(device, path, shown="device"),
        tile=tile,
        max_memory=max_memory,
        precision=precision,
        self_ensemble=self_ensemble,
    )


def _restore_tensor(restorer: Restore, image: Tensor) -> Tensor:
    if image.layout != torch.strided or image.is_meta:
        kind = "on the meta device" if image.is_meta else f"of layout {image.layout}"
        raise ValueError(f"a tensor must be dense and hold values, got one {kind}")
    if image.ndim not in (3, 4) or image.shape[-3] not in CHANNELS or 0 in image.shape:
        raise ValueError(
            f"a tensor must have the shape (C, H, W) or (B, C, H, W) with C 1 or 3, got {tuple(image.shape)}"
        )
    batch = image.detach() if image.ndim == 4 else image.detach()[None]
    batch = _within_range(batch)
    result = to_type(restorer(batch), image.dtype).to(image.device)
    return result if image.ndim == 4 else result[0]


def _restore_array(restorer: Restore, image: np.ndarray) -> np.ndarray:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 2, 3, 4)) or 0 in image.shape:
        raise ValueError(f"an array must have the shape (H, W) or (H, W, 1 to 4), got {image.shape}")
    image = _within_range(image)
    floating = np.issubdtype(image.dtype, np.floating)
    plain = image.astype(np.float32 if floating else image.dtype.newbyteorder("="))
    result = restore_picture(restorer, Picture(*split_alpha(plain))).planes.astype(image.dtype)
    return result if image.ndim == 3 else result[..., 0]


def _restore_pillow(restorer: Restore, image: Image.Image) -> Image.Image:
    if image.mode not in PILLOW_MODES:
        raise ValueError(f"a PIL image must be of mode {', '.join(PILLOW_MODES)}, got {image.mode}")
    if 0 in image.size:
        raise ValueError(f"a PIL image must have pixels, got {image.width} x {image.height}")
    if image.mode in DEEP_MODES:
        return _restore_deep_pillow(restorer, image)
    plain, info = to_rgb(image, image.info)
    result = to_pillow(restore_picture(restorer, Picture(*split_alpha(np.array(plain)))))
    result.info = {name: value for name, value in info.items() if name != "transparency"}
    return result


def _restore_deep_pillow(restorer: Restore, image: Image.Image) -> Image.Image:
    """Restore 16-bit gray. Pillow has no 16-bit alpha, but one gray level may be transparent: pixels of that level keep
    it, and other pixels that are restored to it are moved by one level.
    """
    dtype = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2"}.get(image.mode, "=u2")
    pixels = np.frombuffer(image.tobytes(), dtype).reshape(image.height, image.width)
    result = _restore_array(restorer, pixels.astype(np.uint16))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = _resize((pixels != transparent).astype(np.uint8), result.shape)
        other = transparent + 1 if transparent < 65535 else transparent - 1
        result = np.where(result == transparent, other, result)
        result = np.where(alpha == 0, transparent, result).astype(np.uint16)
    restored = Image.fromarray(result)
    restored.info = dict(image.info)
    return restored


def _within_range(image: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """Check the type and range of an image; return it with values slightly out of range clipped."""
    floating = image.dtype in FLOATS if isinstance(image, Tensor) else np.issubdtype(image.dtype, np.floating)
    dtype = str(image.dtype).removeprefix("torch.") if isinstance(image, Tensor) else image.dtype.name
    if not floating and dtype not in ("uint8", "uint16"):
        raise ValueError(f"image must be uint8, uint16 or floating point of 16 bits or more, got {image.dtype}")
    if not floating:
        return image
    lowest, highest = float(image.min()), float(image.max())
    if not (-TOLERANCE <= lowest and highest <= 1 + TOLERANCE):
        raise ValueError(f"a floating-point image must be within [0, 1], got {lowest:.7g} to {highest:.7g}")
    return image if 0 <= lowest and highest <= 1 else image.clip(0, 1)


def _resize(planes: np.ndarray | None, size: tuple[int, int]) -> np.ndarray | None:
    if planes is None or planes.shape[:2] == tuple(size):
        return planes
    import cv2

    resized = cv2.resize(planes, size[::-1], interpolation=cv2.INTER_CUBIC)
    return resized.clip(0, 1) if np.issubdtype(resized.dtype, np.floating) else resized  # bicubic overshoots
