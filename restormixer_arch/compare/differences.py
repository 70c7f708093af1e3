"""Compute the mean difference between two competitors on the same images, and its 95% interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from restormixer_arch.compare.results import Difference
from restormixer_arch.data.degradations.labels import split_label

CONFIDENCE = 0.95  # level of the intervals


def paired_difference(values: Sequence[float], first: Sequence[float]) -> Difference:
    """Compare two competitors on the same images.

    The interval is Student's t for the mean of the differences. It treats the images as a random sample, so
    those of one photograph must be averaged first, see :func:`mean_per_photograph`. There is no interval for a single
    image, or if a difference is not finite.

    Args:
        values: values of a competitor, one per image.
        first: values of the first competitor, for the same images.

    Raises:
        ValueError: if the numbers of values differ, or there are none.
    """
    if len(values) != len(first) or not values:
        raise ValueError(f"as many values were expected, at least one, got {len(values)} and {len(first)}")
    return difference_over_seeds(np.array([values]), np.array([first]))


def mean_per_photograph(names: Sequence[str], values: np.ndarray) -> np.ndarray:
    """Average the values of each photograph's images with different labels, which are not independent.

    Args:
        names: names of the images.
        values: values (..., images).

    Returns:
        Means (..., photographs), in the order of each photograph's first image.
    """
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(split_label(name)[0], []).append(place)
    return np.stack([values[..., own].mean(axis=-1) for own in places.values()], axis=-1)


@dataclass(frozen=True)
class SeedVariance:
    """Mean squares of an analysis of variance (seeds x photographs, without replication), pooled over networks.

    Attributes:
        ms_seeds: mean square of the seeds' means, times the number of photographs.
        ms_residual: mean square of the residual after removing the means of seeds and photographs.
        df_seeds, df_residual: degrees of freedom of the two.
    """

    ms_seeds: float
    ms_residual: float
    df_seeds: int
    df_residual: int

    @property
    def adds(self) -> bool:
        """Whether the seeds differ by more than the residual makes them differ by chance."""
        return self.ms_seeds > self.ms_residual


def seed_variance(tables: Iterable[np.ndarray]) -> SeedVariance | None:
    """Return the pooled variance of networks that were trained with several seeds, or None if there are none.

    Args:
        tables: values (seeds, photographs) of each network under each budget.
    """
    sums, df_seeds, df_residual = np.zeros(2), 0, 0
    for table in tables:
        seeds, photographs = table.shape
        if min(table.shape) < 2 or not np.isfinite(table).all():
            continue
        means = table.mean(axis=1, keepdims=True)
        residual = table - table.mean(axis=0) - means + table.mean()
        sums += photographs * ((means - table.mean()) ** 2).sum(), (residual**2).sum()
        df_seeds += seeds - 1
        df_residual += (seeds - 1) * (photographs - 1)
    if not df_seeds:
        return None
    return SeedVariance(float(sums[0]) / df_seeds, float(sums[1]) / df_residual, df_seeds, df_residual)


def difference_over_seeds(own: np.ndarray, first: np.ndarray, of_seeds: SeedVariance | None = None) -> Difference:
    """Return the mean difference between two networks, and its interval.

    Without ``of_seeds``, the interval is Student's t over the photographs and does not cover other seeds. With it, the
    seed variance of both networks is added; each is assumed to have the pooled one, whatever its number of seeds.
    The degrees of freedom are Satterthwaite's, but not fewer than the smallest of the components': his formula gives
    too few when one variance is subtracted from another and little remains. The interval is None with fewer than two
    photographs, or if a difference is not finite.

    Args:
        own: values (seeds, photographs) of a network.
        first: values of the first network on the same photographs; its seeds and their number may differ.
        of_seeds: pooled seed variance of all networks.
    """
    with np.errstate(invalid="ignore"):  # the PSNR of exactly restored images is infinite
        differences = own.mean(axis=0) - first.mean(axis=0)
    (photographs,) = differences.shape
    mean = float(differences.mean())
    if photographs < 2 or not np.isfinite(differences).all():
        return Difference(mean=mean, low=None, high=None)
    variance = float(differences.var(ddof=1)) / photographs
    df: float = photographs - 1
    if of_seeds and of_seeds.adds:
        weight = (1 / len(own) + 1 / len(first)) / photographs
        parts = (
            (variance, photographs - 1),
            (weight * of_seeds.ms_seeds, of_seeds.df_seeds),
            (weight * of_seeds.ms_residual, of_seeds.df_residual),
        )
        variance += weight * (of_seeds.ms_seeds - of_seeds.ms_residual)
        satterthwaite = variance**2 / sum(part**2 / df_part for part, df_part in parts)
        df = max(satterthwaite, min(photographs - 1, of_seeds.df_seeds))
    error = math.sqrt(variance)
    if error <= 1e-12 * abs(mean):  # the same difference everywhere
        return Difference(mean=mean, low=mean, high=mean)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, df)) * error
    return Difference(mean=mean, low=mean - half, high=mean + half)
