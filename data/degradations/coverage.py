"""Measure how well generated degradations cover a public set of pairs, by statistics of the residual.

A pair whose statistic is outside the range of the generated pairs is a kind of image that never occurs in training. The
statistics do not describe image content; they are those in which rain and snow generators differ:

==============  ====================================================================================================
``psnr``        PSNR of the input in dB
``mean``        mean of the residual ``lq - gt``, in levels of 255
``positive``    share of the residual's energy in pixels where the input is brighter
``skewness``    skewness of the residual; streaks and flakes have long tails
``angle``       direction of the streaks, across which the residual varies most, in degrees: 0 if vertical, up to 90
``coherence``   coherence of that direction, from 0 for no direction to 1 for a single one (structure tensor)
``run``         mean length in pixels of runs in which the residual is above a quarter of its greatest values (99.5th
                percentile), along the streaks
``width``       the same across the streaks
``smooth``      share of the residual's variance that is left after averaging over 31 pixels: veil, mist and haze
==============  ====================================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from restormixer_arch.data.degradations.compose import add_composition, draw_composition
from restormixer_arch.data.degradations.labels import parse_mixture
from restormixer_arch.data.images.folder import FolderImages, without_suffix
from restormixer_arch.data.lmdb_io import LmdbImages, open_images
from restormixer_arch.errors import UserError

NAMES = ("psnr", "mean", "positive", "skewness", "angle", "coherence", "run", "width", "smooth")
COVERED_PERCENTILES = (2.5, 97.5)  # percentiles of the drawn pairs between which a public pair is covered
SMOOTH_SIDE = 31  # side of the averaging window in pixels
SIDE = 256  # side of the evaluated part of an image, in pixels
MIN_SIDE = 32  # smallest side of an image, in pixels
MAX_PSNR = 99.0  # PSNR of identical images


@dataclass(frozen=True)
class Coverage:
    """One statistic of the drawn and the public pairs.

    Attributes:
        name: name of the statistic, see the module.
        drawn, public: its 5th, 50th and 95th percentiles.
        outside: share of the public pairs outside the central 95 % of the drawn pairs.
    """

    name: str
    drawn: tuple[float, float, float]
    public: tuple[float, float, float]
    outside: float


def residual_statistics(lq: np.ndarray, gt: np.ndarray) -> dict[str, float]:
    """Return the statistics of one pair, see the module.

    Args:
        lq, gt: float32 RGB (H, W, 3) or gray (H, W, 1) images in [0, 1], of the same size, at least 32x32 pixels.
    """
    residual = (lq.astype(np.float32) - gt.astype(np.float32)).mean(axis=2)
    energy, psnr = np.mean(residual**2), min(float(-10 * np.log10(max(np.mean((lq - gt) ** 2), 1e-12))), MAX_PSNR)
    if energy < 1e-9:  # no difference, or only one of color
        return dict(zip(NAMES, (psnr, 0, 0.5, 0, 0, 0, 0, 0, 0), strict=True))
    mean, std = residual.mean(), max(residual.std(), 1e-6)
    smooth = cv2.blur(residual, (SMOOTH_SIDE, SMOOTH_SIDE), borderType=cv2.BORDER_REFLECT)
    fine = residual - smooth
    angle, coherence = _direction(fine)
    run, width = _run_lengths(fine, angle)
    values = (
        psnr,
        float(255 * mean),
        float(np.mean(np.maximum(residual, 0) ** 2) / energy),
        float(np.mean(((residual - mean) / std) ** 3)),
        abs(angle),
        coherence,
        run,
        width,
        float(smooth.var() / std**2),
    )
    return dict(zip(NAMES, values, strict=True))


def compare_coverage(
    drawn: Iterable[tuple[np.ndarray, np.ndarray]], public: Iterable[tuple[np.ndarray, np.ndarray]]
) -> list[Coverage]:
    """Compare two sets of pairs (lq, gt) in every statistic.

    Raises:
        ValueError: if a set is empty.
    """
    ours, theirs = ([residual_statistics(lq, gt) for lq, gt in pairs] for pairs in (drawn, public))
    if not ours or not theirs:
        raise ValueError("both sets need at least one pair")
    return list(_compare(ours, theirs))


def compare_folders(
    lq: str, gt: str, labels: Sequence[str], *, clean: str | None = None, count: int = 100, seed: int = 0
) -> list[Coverage]:
    """Compare the pairs in folders or LMDBs with ``count`` pairs generated from clean images.

    Args:
        lq, gt: folders or LMDBs of degraded and clean images with the same names and sizes; only the upper left
            256x256 pixels are evaluated.
        labels: labels of the drawn pairs, used cyclically.
        clean: folder or LMDB of the images to degrade; None for ``gt``.
        count: number of drawn pairs.
        seed: random seed.

    Raises:
        UserError: if a folder is missing, a label is unknown, repeated or includes ``down``, or an image has no partner
            of the same size or is smaller than 32x32 pixels.
    """
    parse_mixture(list(labels))
    degraded, truths = open_images(lq, "--lq"), open_images(gt, "--gt")
    sources = truths if clean is None else open_images(clean, "--clean")
    partners = {without_suffix(name): name for name in truths.names}

    def public() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for name in degraded.names:
            if without_suffix(name) not in partners:
                raise UserError(f"--gt: {gt}: has no partner of {name!r}")
            pair = _read(degraded, name), _read(truths, partners[without_suffix(name)])
            if pair[0].shape != pair[1].shape:
                raise UserError(f"--lq: {lq}: {name!r} and its partner are of different sizes")
            yield _corner(pair[0]), _corner(pair[1])

    def drawn() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rng = np.random.default_rng(seed)
        for number in range(count):
            truth = _corner(_read(sources, sources.names[number % len(sources.names)]))
            yield add_composition(truth, draw_composition(rng, labels[number % len(labels)])), truth

    return compare_coverage(drawn(), public())


def _read(source: FolderImages | LmdbImages, name: str) -> np.ndarray:
    """Read an image as BGR (H, W, 3). Raises UserError if it is smaller than 32x32 pixels."""
    image = source.read(name)
    if min(image.shape[:2]) < MIN_SIDE:
        shape = f"{image.shape[0]}x{image.shape[1]}"
        raise UserError(f"{source.describe(name)}: is {shape}, expected at least {MIN_SIDE} pixels a side")
    return image


def _corner(image: np.ndarray) -> np.ndarray:
    """Return the upper left 256x256 pixels of a BGR image as RGB."""
    return np.ascontiguousarray(image[:SIDE, :SIDE, ::-1])


def coverage_table(rows: Sequence[Coverage]) -> str:
    """Return the statistics as a Markdown table."""
    lines = [
        "| residual | drawn: 5 % | 50 % | 95 % | public: 5 % | 50 % | 95 % | outside |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        numbers = " | ".join(f"{value:.2f}" for value in (*row.drawn, *row.public))
        lines.append(f"| {row.name} | {numbers} | {row.outside:.0%} |")
    return "\n".join(lines)


def _compare(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> Iterator[Coverage]:
    for name in NAMES:
        drawn, public = (np.array([one[name] for one in ones]) for ones in (ours, theirs))
        low, high = np.percentile(drawn, COVERED_PERCENTILES)
        outside = float(np.mean((public < low) | (public > high)))
        levels = [tuple(float(value) for value in np.percentile(values, (5, 50, 95))) for values in (drawn, public)]
        yield Coverage(name, *levels, outside)


def _direction(fine: np.ndarray) -> tuple[float, float]:
    """Return the streaks' angle in degrees, 0 if vertical and positive if they fall to the right, and its coherence."""
    smoothed = cv2.GaussianBlur(fine, (0, 0), 1.0)
    down, right = np.gradient(smoothed)
    rows, columns, mixed = (down**2).mean(), (right**2).mean(), (down * right).mean()
    spread = np.hypot(columns - rows, 2 * mixed)
    # The residual hardly changes along a streak, so its direction is the eigenvector of the smaller eigenvalue.
    angle = np.degrees(np.arctan2(-2 * mixed, columns - rows) / 2)
    return float(angle), float(spread / max(rows + columns, 1e-12))


def _run_lengths(fine: np.ndarray, angle: float) -> tuple[float, float]:
    """Return the mean length of bright runs along and across the direction."""
    height, width = fine.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), -angle, 1.0)
    upright = cv2.warpAffine(fine, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    bright = upright > np.percentile(upright, 99.5) / 4
    return _mean_run(bright.T), _mean_run(bright)


def _mean_run(bright: np.ndarray) -> float:
    """Return the mean length of runs of True along the rows, or 0 if there are none."""
    starts = np.count_nonzero(bright[:, 1:] & ~bright[:, :-1]) + np.count_nonzero(bright[:, 0])
    return float(np.count_nonzero(bright) / starts) if starts else 0.0
