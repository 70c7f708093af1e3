"""Process the images of one unit: decode, compare, downsample, crop, and encode them if they have changed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import cv2
import numpy as np

from restormixer_arch.data.images.opencv import decode_color, encode
from restormixer_arch.data.preparation.find_pairs import Unit
from restormixer_arch.errors import UserError

PNG_LEVEL = 1
# For new images. With photographs, Huffman coding alone is smaller and faster than level 1's search for repeats.
PNG_OPTIONS = (cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY)
KEPT = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg"}  # formats that are stored unchanged if nothing is cut


@dataclass(frozen=True)
class Recipe:
    """The settings of a preparation.

    Args:
        crop: side of the sub-images in pixels of the clean image, 0 for complete images.
        step: distance between the corners of adjacent sub-images, in pixels of the clean image.
        scales: factors by which the clean image is downsampled bicubically.
        multiple: number to whose multiples clean images are cropped, so that every scale divides their sides.
    """

    crop: int = 0
    step: int = 0
    scales: tuple[int, ...] = ()
    multiple: int = 1


@dataclass(frozen=True)
class Entry:
    """An encoded image: its key, extension, size (height, width) and content."""

    key: str
    suffix: str
    size: tuple[int, int]
    content: bytes


@dataclass(frozen=True)
class Prepared:
    """The result for a unit: its entries by kind (``gt``, ``lq``, ``x2_lq``, ...), or why there are none."""

    unit: Unit
    entries: dict[str, list[Entry]]
    problem: str = ""


def start_worker() -> None:
    """Set up a worker: leave Ctrl-C to the main process, use one thread, and exit when the main process is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the parent process has ended; otherwise this process would wait for work forever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def prepare_units(units: Sequence[Unit], recipe: Recipe) -> list[Prepared]:
    """Prepare several units; problems are returned, not raised."""
    return [prepare_unit(unit, recipe) for unit in units]


def prepare_unit(unit: Unit, recipe: Recipe) -> Prepared:
    try:
        return Prepared(unit, _entries(unit, recipe))
    except UserError as error:
        return Prepared(unit, {}, str(error))


def windows(height: int, width: int, crop: int, step: int) -> list[tuple[int, int, int, int]]:
    """Return (top, left, height, width) of overlapping sub-images that cover an image; the last end at its edges."""
    if not crop:
        return [(0, 0, height, width)]
    rows, columns = (_starts(side, crop, step) for side in (height, width))
    return [(top, left, min(crop, height), min(crop, width)) for top, left in product(rows, columns)]


def _starts(side: int, crop: int, step: int) -> list[int]:
    last = max(side - crop, 0)
    return [*range(0, last, step), last]


def _entries(unit: Unit, recipe: Recipe) -> dict[str, list[Entry]]:
    content, clean = _read(unit.gt)
    height, width = (side - side % recipe.multiple for side in clean.shape[:2])
    if min(height, width) == 0:
        raise UserError(f"{unit.gt}: is {clean.shape[0]}x{clean.shape[1]}, smaller than {recipe.multiple}")
    whole = (height, width) == clean.shape[:2]
    clean = clean[:height, :width]
    entries = {"gt": list(_cut(unit.name, content if whole else None, clean, recipe))}
    for kind, name, path in unit.degraded:
        content, image = _read(path)
        if image.shape != clean.shape:
            raise UserError(
                f"{path}: is {image.shape[0]}x{image.shape[1]} (height x width), but its clean partner {unit.gt} is "
                f"{clean.shape[0]}x{clean.shape[1]}"
            )
        entries.setdefault(kind, []).extend(_cut(name, content, image, recipe))
    for scale in recipe.scales:
        entries[f"x{scale}_lq"] = list(_cut(unit.name, None, reduce_image(clean, scale), recipe, scale))
    return entries


def _cut(name: str, content: bytes | None, image: np.ndarray, recipe: Recipe, scale: int = 1) -> Iterator[Entry]:
    """Yield the sub-images, or the complete image; ``content`` is its file if it is unchanged, otherwise None."""
    parts = windows(*image.shape[:2], recipe.crop // scale, recipe.step // scale)
    if len(parts) == 1:
        suffix = next((end for start, end in KEPT.items() if content and content.startswith(start)), None)
        kept = content if suffix else _encode(image)
        yield Entry(name, suffix or ".png", image.shape[:2], kept)
        return
    for number, (top, left, height, width) in enumerate(parts, start=1):
        part = image[top : top + height, left : left + width]
        yield Entry(f"{name}_s{number:03d}", ".png", (height, width), _encode(part))


def _read(path: Path) -> tuple[bytes, np.ndarray]:
    """Return the content of a file and its image, BGR uint8 (H, W, 3), as training will decode it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return content, decode_color(content, str(path))


def _encode(image: np.ndarray) -> bytes:
    return encode(".png", image, PNG_OPTIONS)


def reduce_image(image: np.ndarray, scale: int) -> np.ndarray:
    """Downsample an image like MATLAB's imresize, with BasicSR's code; imported here, since torch loads slowly."""
    from restormixer_arch.basicsr_adapter import compat

    compat.apply()
    from basicsr.utils.matlab_functions import imresize

    smaller = imresize(image.astype(np.float32) / 255, 1 / scale)
    return np.clip(np.round(smaller * 255), 0, 255).astype(np.uint8)
