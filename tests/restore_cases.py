"""Helpers for the tests of ``basicsr restore``: images, and calls of the command with a tiny network."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tiny_network import save_tiny

from restormixer_arch import cli
from restormixer_arch.data import lmdb_io
from restormixer_arch.data.lmdb_io import LmdbImages

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
SMOOTH = cv2.resize(RGB[:5, :8], (64, 48), interpolation=cv2.INTER_CUBIC)
ARGUMENTS = ["--weights", "w.safetensors", "--device", "cpu"]


def photograph():
    """Return part of a sample photograph, float32 RGB (96, 96, 3) in [0, 1]."""
    images = LmdbImages(Path(lmdb_io.__file__).parent / "samples/rain_val_gt.lmdb", "samples")
    return np.ascontiguousarray(images.read(images.names[0])[48:144, 48:144, ::-1])


def run(*arguments):
    return cli.main(["restore", *arguments, *ARGUMENTS])


def run_in_tiles(*arguments):
    return cli.main(["restore", *arguments, "--tile", "192"])


def make_place(folder):
    """Fill a folder with weights and two images, one of them in a subfolder."""
    (folder / "in/sub").mkdir(parents=True)
    Image.fromarray(RGB).save(folder / "in/a.png")
    Image.fromarray(RGB[:, ::-1]).save(folder / "in/sub/b.png")
    save_tiny(folder / "w.safetensors")
    return folder


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)
