"""Find training images that are also in a test or validation set by their content.

Names, formats and sizes may differ.

Images are compared by thumbnails of 16 x 16 gray values. A copy that was resized or saved again as JPEG has nearly the
same thumbnail; so has one whose sides were cropped to multiples of 12, as in test sets for super-resolution. A copy
that was cropped otherwise, rotated or strongly edited has a different one and is not found.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from restormixer_arch.data.images.opencv import decode
from restormixer_arch.data.lmdb_io import LmdbImages
from restormixer_arch.data.preparation.store import FolderReader
from restormixer_arch.errors import UserError
from restormixer_arch.output import warn

TEST_SETS = [f"*/{part}*_gt{suffix}" for part in ("test", "valid") for suffix in (".lmdb", "")]
SIDE = 16
MAX_DIFFERENCE = 2.0  # maximum mean difference of two thumbnails of the same image, in levels of 255
ROUNDING = 0.01  # of a thumbnail's mean
MIN_CONTRAST = 4.0  # standard deviation of a thumbnail; images below it are too uniform to be told apart


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Reduce a gray (H, W) uint8 image to (256,) float32 levels."""
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()


def find_copies(training: Iterable[Path], root: Path, own: Path | None = None) -> list[tuple[Path, str]]:
    """Return the training images that are also in a prepared test set, or among the validation images of their own set.

    Each comes with that set and its name there. Images that cannot be read are skipped. A set that cannot be opened is
    skipped with a warning.

    Args:
        training: files of the clean training images.
        root: folder of the prepared sets; test sets are ``<set>/test*_gt.lmdb`` or folders ``<set>/test*_gt``, and
            ``valid`` instead of ``test`` for DIV2K, whose published results are those of its validation images.
        own: folder of the set that the training images belong to, with its validation images in ``val_gt.lmdb`` or
            ``val_gt``.
    """
    known = []
    paths = [found for pattern in TEST_SETS for found in root.glob(pattern)]
    if own:
        paths += [own.absolute() / "val_gt.lmdb", own.absolute() / "val_gt"]
    for path in sorted(paths):
        if not path.is_dir():
            continue
        try:
            reader = LmdbImages(path, str(path)) if path.suffix == ".lmdb" else FolderReader(path)
        except UserError as error:
            warn(f"training images are not compared with those of another set: {error}")
            continue
        for name in reader.names:
            image = _half_size(functools.partial(reader.content, name))
            if image is not None and (small := thumbnail(image)).std() >= MIN_CONTRAST:
                known.append((f"{path.parent.name}/{path.name}: {name}", small))
    if not known:
        return []
    known.sort(key=lambda pair: pair[1].mean())
    matrix = np.stack([small for _, small in known])
    means = matrix.mean(axis=1)
    copies = []
    files = tqdm(list(training), desc="compare with test sets", unit="image", disable=not sys.stderr.isatty())
    for file in files:
        image = _half_size(file.read_bytes)
        for small in () if image is None else map(thumbnail, _crops(image)):
            if small.std() < MIN_CONTRAST:
                continue
            # The means of two thumbnails differ by no more than the thumbnails do.
            first, end = np.searchsorted(means, small.mean() + np.array([-1, 1]) * (MAX_DIFFERENCE + ROUNDING))
            differences = np.abs(matrix[first:end] - small).mean(axis=1)
            if differences.size and differences.min() <= MAX_DIFFERENCE:
                copies.append((file, known[first + int(differences.argmin())][0]))
                break
    return copies


def _half_size(read: Callable[[], bytes | None]) -> np.ndarray | None:
    """Return an encoded image as gray levels of half the size; None if it cannot be read or is missing."""
    try:
        content = read()
    except (OSError, UserError):
        return None
    return decode(content, cv2.IMREAD_REDUCED_GRAYSCALE_2) if content else None


def _crops(image: np.ndarray) -> list[np.ndarray]:
    """Return an image of half the size, and what remains of it if the sides of the original are cropped.

    The sides are cropped to multiples of 12, that is 6 here. A side of 6 * n may have been 12 * n, which remains, or
    12 * n - 1, of which 12 * (n - 1) remains: half a pixel is rounded up in JPEG files, and down in others.
    """
    sides = [[side - side % 6] if side % 6 else [side, side - 6] for side in image.shape]
    sizes = dict.fromkeys([image.shape, *product(*sides)])
    return [image[:height, :width] for height, width in sizes if min(height, width) > 0]
