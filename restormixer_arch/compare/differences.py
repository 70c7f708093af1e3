"""How much one competitor is better than another on the same pictures: the mean difference and its 95% interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from restormixer_arch.compare.results import Difference

CONFIDENCE = 0.95  # of the intervals


def paired_difference(values: Sequence[float], first: Sequence[float]) -> Difference:
    """Compare two competitors on the same pictures.

    The interval is Student's t for the mean of the differences. It takes the pictures for a random sample; several
    crops of one photograph are not independent, and make it too narrow. With one picture, and where a value is not
    finite, there is none.

    Args:
        values: of a competitor, picture by picture.
        first: of the first competitor, on the same pictures.

    Raises:
        ValueError: they are not as many, or none.
    """
    if len(values) != len(first) or not values:
        raise ValueError(f"as many values were expected, at least one, got {len(values)} and {len(first)}")
    return difference_over_seeds(np.array([[a - b for a, b in zip(values, first, strict=True)]]))


def difference_over_seeds(differences: np.ndarray) -> Difference:
    """Return the mean of differences (seeds, photographs) and its interval.

    With one seed it is Student's t over the photographs, and says nothing about other seeds. With several, photographs
    and seeds are both taken for random samples: the variance of the mean is that of the crossed random-effects model
    (Searle, Casella and McCulloch, Variance Components, 1992), never below that of the photographs alone, with
    Satterthwaite's degrees of freedom. Two seeds that disagree make it wide. It is None with fewer than two
    photographs, and where a difference is not finite.
    """
    seeds, photographs = differences.shape
    mean = float(differences.mean())
    if photographs < 2 or not np.isfinite(differences).all():
        return Difference(mean=mean, low=None, high=None)
    by_photograph, by_seed = differences.mean(axis=0), differences.mean(axis=1)
    square = seeds * float(by_photograph.var(ddof=1))  # the mean squares of an analysis of variance
    freedom: float = photographs - 1
    if seeds > 1:
        rest = differences - by_photograph - by_seed[:, None] + mean
        rest_freedom = (seeds - 1) * (photographs - 1)
        rest_square = float((rest**2).sum()) / rest_freedom
        seed_square = photographs * float(by_seed.var(ddof=1))
        if seed_square > rest_square:
            parts = ((square, photographs - 1), (seed_square, seeds - 1), (rest_square, rest_freedom))
            square += seed_square - rest_square
            freedom = square**2 / sum(part**2 / own for part, own in parts)
    error = math.sqrt(square / differences.size)
    if error <= 1e-12 * abs(mean):  # the same difference everywhere
        return Difference(mean=mean, low=mean, high=mean)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Difference(mean=mean, low=mean - half, high=mean + half)
