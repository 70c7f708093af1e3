"""What the tests of ``basicsr restore`` share: images, and the command by a network that returns its input."""

import cv2
import numpy as np

from restormixer_arch import cli

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
SMOOTH = cv2.resize(RGB[:5, :8], (64, 48), interpolation=cv2.INTER_CUBIC)
ARGUMENTS = ["--weights", "w.safetensors", "--device", "cpu"]


def run(*arguments):
    return cli.main(["restore", *arguments, *ARGUMENTS])
