"""What the tests of ``basicsr restore`` share: images, and the command by a network that returns its input."""

import cv2
import numpy as np
from PIL import Image
from tiny_network import save_tiny

from restormixer_arch import cli

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
SMOOTH = cv2.resize(RGB[:5, :8], (64, 48), interpolation=cv2.INTER_CUBIC)
ARGUMENTS = ["--weights", "w.safetensors", "--device", "cpu"]


def run(*arguments):
    return cli.main(["restore", *arguments, *ARGUMENTS])


def run_in_tiles(*arguments):
    return cli.main(["restore", *arguments, "--tile", "192"])


def make_place(folder):
    """A folder with two pictures, one in a sub-folder, and weights."""
    (folder / "in/sub").mkdir(parents=True)
    Image.fromarray(RGB).save(folder / "in/a.png")
    Image.fromarray(RGB[:, ::-1]).save(folder / "in/sub/b.png")
    save_tiny(folder / "w.safetensors")
    return folder


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)
