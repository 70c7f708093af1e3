"""Find training images that are also in a test set by comparing content, regardless of name, format and size.

Images are compared by thumbnails of 16 x 16 gray values. A copy that was resized or saved again as JPEG has nearly the
same thumbnail; one that was cropped, rotated or strongly edited has a different one and is not found.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from restormixer_arch.data.images.opencv import decode
from restormixer_arch.data.lmdb_io import LmdbImages
from restormixer_arch.data.preparation.store import FolderReader
from restormixer_arch.errors import UserError
from restormixer_arch.output import warn

SIDE = 16
MAX_DIFFERENCE = 2.0  # maximum mean difference of two thumbnails of the same image, in levels of 255
MIN_CONTRAST = 4.0  # standard deviation of a thumbnail; images below it are too uniform to be told apart


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Reduce a gray (H, W) uint8 image to (256,) float32 levels."""
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()


def find_copies(training: Iterable[Path], root: Path) -> list[tuple[Path, str]]:
    """Return the training images that are also in a prepared test set, each with the test set and its name there.

    Images that cannot be read are skipped. A test set that cannot be opened is skipped with a warning.

    Args:
        training: files of the clean training images.
        root: folder of the prepared sets; test sets are ``<set>/test*_gt.lmdb``, or folders ``<set>/test*_gt``.
    """
    names, thumbnails = [], []
    for path in sorted((*root.glob("*/test*_gt.lmdb"), *root.glob("*/test*_gt"))):
        if not path.is_dir():
            continue
        try:
            reader = LmdbImages(path, str(path)) if path.suffix == ".lmdb" else FolderReader(path)
        except UserError as error:
            warn(f"training images are not compared with those of a test set: {error}")
            continue
        for name in reader.names:
            names.append(f"{path.relative_to(root)}: {name}")
            thumbnails.append(_decoded(functools.partial(reader.content, name)))
    known = [(name, small) for name, small in zip(names, thumbnails, strict=True) if small is not None]
    if not known:
        return []
    matrix = np.stack([small for _, small in known])
    copies = []
    files = tqdm(list(training), desc="compare with test sets", unit="image", disable=not sys.stderr.isatty())
    for file in files:
        small = _decoded(file.read_bytes)
        if small is None:
            continue
        differences = np.abs(matrix - small).mean(axis=1)
        nearest = int(differences.argmin())
        if differences[nearest] <= MAX_DIFFERENCE:
            copies.append((file, known[nearest][0]))
    return copies


def _decoded(read: Callable[[], bytes | None]) -> np.ndarray | None:
    """Return the thumbnail of an encoded image, None if it cannot be read, is missing or is too uniform."""
    try:
        content = read()
    except (OSError, UserError):
        return None
    image = decode(content, cv2.IMREAD_REDUCED_GRAYSCALE_2) if content else None
    if image is None:
        return None
    small = thumbnail(image)
    return small if small.std() >= MIN_CONTRAST else None
