"""Image pairs and helpers shared by the tests of ``basicsr prepare pairs`` and ``basicsr init``."""

from pathlib import Path

import cv2
import numpy as np

from restormixer_arch import cli
from restormixer_arch.data.lmdb_io import LmdbImages


def picture(seed, side=64):
    """Return a smooth random image, different for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)


def write_pairs():
    """Write twelve clean images to the folder gt and their degraded versions to lq."""
    for folder in ("gt", "lq"):
        Path(folder).mkdir()
    for number in range(12):
        cv2.imwrite(f"gt/{number:02}.png", picture(number))
        cv2.imwrite(f"lq/{number:02}.png", picture(number) // 2)


def prepare(*arguments):
    return cli.main(["prepare", "pairs", "--workers", "1", *arguments])


def init(*arguments):
    return cli.main(["init", *arguments])


def names(path):
    return LmdbImages(Path(path), str(path)).names
