"""Replace what is missing on a machine with only torch, Triton and numpy: einops, OpenCV and the installed package.

``import stubs`` makes the network, the scans and the degradations rain, haze, snow, low light and Gaussian noise
importable from a checkout. Installed packages are not replaced.
"""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]


def _plan(pattern: str) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Return the names in each axis, before and after."""
    sides = [re.findall(r"\([^)]*\)|\S+", side) for side in pattern.split("->")]
    return tuple(tuple(tuple(part.strip("()").split()) for part in side) for side in sides)


_plan._dynamo_marked_constant = True  # torch.compile calls it without tracing it


def rearrange(x: Tensor, pattern: str, **sizes: int) -> Tensor:
    """Rearrange axes as einops does, for patterns of names and of groups of names in parentheses."""
    left, right = _plan(pattern)
    known = dict(sizes)
    for axis, names in enumerate(left):
        size = x.shape[axis]
        unknown = [name for name in names if name not in known]
        for name in names:
            size //= known.get(name, 1)
        known |= dict.fromkeys(unknown, size)  # at most one
    before = [name for names in left for name in names]
    after = [name for names in right for name in names]
    x = x.reshape([known[name] for name in before]).permute([before.index(name) for name in after])
    return x.reshape([math.prod([known[name] for name in names]) for names in right])


def _correlate(image: np.ndarray, rows: np.ndarray, columns: np.ndarray | None, border: str) -> np.ndarray:
    """Correlate each channel with a kernel (K, K), or with one for the rows and one for the columns."""
    x = (
        torch.from_numpy(np.ascontiguousarray(image, np.float32))
        .reshape(*image.shape[:2], -1)
        .permute(2, 0, 1)[:, None]
    )
    kernels = [rows] if columns is None else [rows[:, None], columns[None]]
    for kernel in kernels:
        weights = torch.from_numpy(np.ascontiguousarray(kernel, np.float32))[None, None]
        up, left = (side // 2 for side in kernel.shape)
        places = (_mirrored(side, margin, border) for side, margin in zip(x.shape[2:], (up, left), strict=True))
        down, across = (torch.from_numpy(index) for index in places)
        x = F.conv2d(x[:, :, down][..., across], weights)
    return x[:, 0].permute(1, 2, 0).reshape(image.shape).numpy()


def _mirrored(length: int, margin: int, border: str) -> np.ndarray:
    """Return the indices of a line mirrored at both ends: ``cba|abc|cba``, or ``cb|abc|ba`` for ``reflect 101``."""
    places = np.arange(-margin, length + margin)
    if border == "reflect":
        places = places % (2 * length)
        return np.where(places < length, places, 2 * length - 1 - places)
    period = max(2 * length - 2, 1)
    places = places % period
    return np.where(places < length, places, period - places)


def filter2D(image: np.ndarray, depth: int, kernel: np.ndarray, borderType: str = "reflect 101") -> np.ndarray:  # noqa: N802, N803
    return _correlate(image, kernel, None, borderType)


def GaussianBlur(image: np.ndarray, size: Any, sigma: float, borderType: str = "reflect 101") -> np.ndarray:  # noqa: N802, N803
    side = round(sigma * 8 + 1) | 1
    distances = np.arange(side) - side // 2
    weights = np.exp(-(distances**2) / (2 * sigma**2))
    weights /= weights.sum()
    return _correlate(image, weights, weights, borderType)


def resize(image: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    """Resize a field (H, W) to (width, height) with bicubic interpolation, whatever ``interpolation`` is."""
    x = torch.from_numpy(np.ascontiguousarray(image))[None, None]
    return F.interpolate(x, size=size[::-1], mode="bicubic", align_corners=False)[0, 0].numpy()


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)  # torch checks whether einops can be found
    module.__dict__.update(members)
    return module


def prepare() -> None:
    """Install the stand-ins for modules that cannot be found."""
    if importlib.util.find_spec("restormixer_arch") is None:
        sys.path.insert(0, str(ROOT))
    if importlib.util.find_spec("einops") is None:
        sys.modules["einops"] = _module("einops", rearrange=rearrange, __version__="0.8.0", __path__=[])
        ready = _module("einops._torch_specific", _ops_were_registered_in_torchdynamo=True)
        sys.modules["einops._torch_specific"] = ready  # torch.compile looks for it
    if importlib.util.find_spec("cv2") is None:
        members = {"filter2D": filter2D, "GaussianBlur": GaussianBlur, "resize": resize}
        sys.modules["cv2"] = _module("cv2", BORDER_REFLECT="reflect", INTER_CUBIC=2, **members)
    if importlib.util.find_spec("restormixer_arch.data") is None:  # a checkout, where data/ is at the top level
        sys.modules["restormixer_arch.data"] = _module("restormixer_arch.data", __path__=[str(ROOT / "data")])


prepare()
