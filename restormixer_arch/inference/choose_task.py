"""Choose the installed weights that suit an image, for ``basicsr restore --task auto``.

Up to five windows of an image are examined. Each gives the statistics of :data:`STATISTICS`, most of them logarithms;
multinomial logistic regression turns them into a probability for ``clean``, for each task, and for ``mixed`` (two or
more degradations at the same time). Its coefficients in ``choose_task.json`` are fitted by
``python -m restormixer_arch.benchmark.task_choice``, which also measures how often the choice is right.

Shape letters: H x W size in pixels, C channels (1 gray, 3 RGB).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

CLEAN, MIXED = "clean", "mixed"
MODEL = Path(__file__).with_name("choose_task.json")
SIDE, PER_SIDE = 256, 3  # side of a window in pixels; windows along each side of a large image
MIN_PROBABILITY = 0.5  # of the chosen task; below this, the image is left unchanged
DARK, TINY = 0.01, 1e-4  # added before the logarithm of brightness, and of differences
NOISE_MASK = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6  # suppresses edges and planes (Immerkaer)
STATISTICS = (
    *("bright_5", "bright_50", "bright_95", "contrast", "saturation"),
    *("dark_mean", "dark_5", "dark_95"),
    *("noise_median", "noise_flat", "noise_dark_to_bright", "noise_color", "noise_smooth"),
    *("band_0", "band_1", "band_2", "band_3", "tails_0", "sharpest"),
    *("upright_0", "upright_2", "coherence_0", "coherence_2"),
    *("top_3", "top_3_tail", "top_3_to_bottom", "top_9", "top_9_tail", "top_9_to_bottom", "top_white"),
    *("streak_5", "streak_5_to_dark", "streak_15", "streak_15_to_dark"),
)


@dataclass(frozen=True)
class Choice:
    """The task that an image needs.

    Attributes:
        task: ``clean``, ``mixed`` or a task, whichever has the highest probability.
        probability: probability of ``task`` in [0, 1].
    """

    task: str
    probability: float


def choose_task(images: Sequence[np.ndarray]) -> Choice:
    """Choose the task of an image, or of some frames of a video.

    Args:
        images: one or several arrays (H, W, C), RGB or gray, uint8 or uint16.
    """
    model = _model()
    windows = np.array([window_statistics(window) for image in images for window in windows_of(image)])
    scores = model.scores(windows).mean(0)
    probabilities = np.exp(scores - scores.max())
    best = int(np.argmax(probabilities))
    return Choice(model.tasks[best], float(probabilities[best] / probabilities.sum()))


@dataclass(frozen=True)
class Model:
    """Logistic regression of T ``tasks``; ``center`` and ``spread``, both (S,), standardize the S statistics.

    ``weights``, (2 S + 1, T), apply to the statistics, their squares and a constant.
    """

    tasks: tuple[str, ...]
    center: np.ndarray
    spread: np.ndarray
    weights: np.ndarray

    def scores(self, statistics: np.ndarray) -> np.ndarray:
        """Return log-probabilities up to a constant: (N, S) -> (N, T)."""
        return regression_features(statistics, self.center, self.spread) @ self.weights


def regression_features(statistics: np.ndarray, center: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return standardized statistics, their squares, and a column of ones: (N, S) -> (N, 2 * S + 1)."""
    scaled = np.clip((statistics - center) / spread, -4, 4)
    return np.hstack([scaled, scaled**2, np.ones((len(scaled), 1))])


@lru_cache(maxsize=1)
def _model() -> Model:
    content = json.loads(MODEL.read_text(encoding="utf-8"))
    arrays = [np.array(content[name], np.float64) for name in ("center", "spread", "weights")]
    return Model(tuple(content["tasks"]), *arrays)


def windows_of(image: np.ndarray) -> list[np.ndarray]:
    """Return up to five windows, near the corners and in the middle, float32 RGB in [0, 1]; a small image gives one."""
    white = np.float32(np.iinfo(image.dtype).max)
    starts = [_starts(side) for side in image.shape[:2]]
    grid = [(y, x) for row, y in enumerate(starts[0]) for column, x in enumerate(starts[1]) if (row + column) % 2 == 0]
    parts = [image[y : y + SIDE, x : x + SIDE] for y, x in grid]
    return [np.repeat(part, 4 - part.shape[2], 2)[..., :3].astype(np.float32) / white for part in parts]


def _starts(length: int) -> list[int]:
    number = min(PER_SIDE, max(1, length // SIDE))
    return [round(position) for position in np.linspace(0, max(0, length - SIDE), number + 2)[1:-1]]


def window_statistics(rgb: np.ndarray) -> np.ndarray:
    """Return :data:`STATISTICS` of a window (H, W, 3), float32 RGB in [0, 1]."""
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    red, green, blue = cv2.split(rgb)
    bright, least = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    values = [*_brightness(bright, least, gray), *_haze(least), *_noise(red - green, gray), *_bands(gray)]
    values += [*_directions(gray), *_spots(gray, least)]
    return np.array(values)


def _percentiles(values: np.ndarray, *wanted: int) -> list[float]:
    places = [values.size * percent // 100 for percent in wanted]
    return [float(value) for value in np.partition(values, places, axis=None)[places]]


def _blocks(values: np.ndarray) -> np.ndarray:
    """Return the means of blocks of 8 x 8 pixels."""
    height, width = values.shape
    return cv2.resize(values, (max(1, width // 8), max(1, height // 8)), interpolation=cv2.INTER_AREA)


def _brightness(bright: np.ndarray, least: np.ndarray, gray: np.ndarray) -> list[float]:
    levels = np.log(DARK + np.array(_percentiles(bright[::2, ::2], 5, 50, 95)))
    saturation = float(((bright - least) / (bright + DARK)).mean())
    return [*levels, float(np.log(DARK + gray.std())), saturation]


def _haze(least: np.ndarray) -> list[float]:
    """Return statistics of the dark channel, which haze makes bright (He et al., CVPR 2009)."""
    dark = cv2.erode(least, np.ones((7, 7), np.uint8))[::2, ::2]
    return [*np.log(DARK + np.array([dark.mean(), *_percentiles(dark, 5, 95)]))]


def _noise(color: np.ndarray, gray: np.ndarray) -> list[float]:
    size = np.abs(cv2.filter2D(gray, -1, NOISE_MASK))
    blocks = _blocks(size)
    levels = _blocks(gray)
    middle = np.median(levels)
    dark, light = blocks[levels <= middle].mean(), blocks[levels >= middle].mean()
    color = np.abs(cv2.filter2D(color, -1, NOISE_MASK))
    smooth = np.abs(cv2.filter2D(cv2.pyrDown(gray), -1, NOISE_MASK))
    medians = [_percentiles(values[::2, ::2], 50)[0] for values in (size, color, smooth)]
    logs = np.log(TINY + np.array([medians[0], *_percentiles(blocks, 10), *medians[1:], dark, light]))
    return [logs[0], logs[1], logs[4] - logs[5], logs[2], logs[3]]


def _bands(gray: np.ndarray) -> list[float]:
    """Return the log energy of four octaves, and the weight of the tails and the sharpest blocks of the finest one."""
    values, image = [], gray
    for level in range(4):
        smaller = cv2.pyrDown(image)
        band = image - cv2.pyrUp(smaller, dstsize=image.shape[::-1])
        if level == 0:
            finest = band
        values.append(float(np.log(TINY + band.std())))
        image = smaller
    size = np.abs(finest)
    blocks = _blocks(size)
    tails = np.log(TINY + size.mean()) - values[0]
    return [*values, float(tails), float(np.log(TINY + _percentiles(blocks, 95)[0]))]


def _directions(gray: np.ndarray) -> list[float]:
    """Return how vertical the structure is and how uniform its direction is, in the finest and the third octave."""
    upright, coherence = [], []
    for image in (gray, cv2.pyrDown(cv2.pyrDown(gray))):
        dx, dy = cv2.Sobel(image, -1, 1, 0), cv2.Sobel(image, -1, 0, 1)
        xx, yy, xy = float((dx * dx).mean()), float((dy * dy).mean()), float((dx * dy).mean())
        whole = xx + yy + TINY**2
        upright.append((xx - yy) / whole)
        coherence.append(float(np.hypot(xx - yy, 2 * xy)) / whole)
    return [*upright, *coherence]


def _spots(gray: np.ndarray, least: np.ndarray) -> list[float]:
    """Return statistics of small bright spots (snow) and streaks (rain), also relative to dark ones."""
    values = []
    for side in (3, 9):
        square = np.ones((side, side), np.uint8)
        top = cv2.morphologyEx(gray, cv2.MORPH_TOPHAT, square)
        bottom = cv2.morphologyEx(gray, cv2.MORPH_BLACKHAT, square)
        mean, below = np.log(TINY + top.mean()), np.log(TINY + bottom.mean())
        values += [mean, np.log(TINY + _percentiles(top[::2, ::2], 99)[0]) - mean, mean - below]
    values.append(np.log(TINY + cv2.morphologyEx(least, cv2.MORPH_TOPHAT, square).mean()) - mean)
    for side in (5, 15):
        across, along = np.ones((1, side), np.uint8), np.ones((side, 1), np.uint8)
        means = [
            np.log(TINY + cv2.morphologyEx(gray, kind, line).mean())
            for kind in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT)
            for line in (across, along)
        ]
        values += [means[0] - means[1], means[0] - means[1] - means[2] + means[3]]
    return [float(value) for value in values]
