"""Paired differences, compared with manually computed values and with scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import ttest_1samp

from restormixer_arch.compare.differences import (
    SeedVariance,
    difference_over_seeds,
    paired_difference,
    seed_variance,
)
from restormixer_arch.compare.results import Difference

VALUES = st.lists(st.tuples(*[st.floats(0, 60).map(lambda value: round(value, 3))] * 2), min_size=2, max_size=30)


def test_paired_difference_of_three_values():
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3); the 97.5% quantile of t with 2 df is 4.302653."""
    found = paired_difference([31, 32, 33], [30, 30, 30])
    half = 4.302653 / math.sqrt(3)
    assert found.mean == 2
    assert (found.low, found.high) == (pytest.approx(2 - half, abs=1e-6), pytest.approx(2 + half, abs=1e-6))


@given(VALUES)
def test_interval_equals_scipy_ttest_1samp(pairs):
    own, first = zip(*pairs, strict=True)
    differences = [a - b for a, b in pairs]
    found = paired_difference(own, first)
    assert found.mean == pytest.approx(sum(differences) / len(differences), abs=1e-9)
    if len({round(value, 9) for value in differences}) > 1:
        expected = ttest_1samp(differences, 0).confidence_interval(0.95)
        assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_equal_differences_have_a_zero_width_interval():
    assert paired_difference([3.0, 5.0], [1.0, 3.0]) == Difference(mean=2, low=2, high=2)


def test_no_interval_for_a_single_image_or_infinite_values():
    assert paired_difference([3.0], [1.0]) == Difference(mean=2, low=None, high=None)
    assert paired_difference([math.inf, 3.0], [1.0, 1.0]) == Difference(mean=math.inf, low=None, high=None)
    found = paired_difference([math.inf, 3.0], [math.inf, 1.0])
    assert math.isnan(found.mean) and found.low is None and found.high is None


@pytest.mark.parametrize(("own", "first"), [([], []), ([1.0], [1.0, 2.0])])
def test_empty_or_unequally_long_columns_are_rejected(own, first):
    with pytest.raises(ValueError, match=f"at least one, got {len(own)} and {len(first)}"):
        paired_difference(own, first)


def test_interval_without_seed_variance_is_students_t_over_photographs():
    pictures = np.random.default_rng(3).normal(0.3, 1.0, (1, 20))
    none = np.zeros_like(pictures)
    one = difference_over_seeds(pictures, none)
    low, high = stats.t.interval(0.95, 19, loc=pictures.mean(), scale=stats.sem(pictures[0]))
    assert (one.mean, one.low, one.high) == pytest.approx((pictures.mean(), low, high))
    same = difference_over_seeds(np.full((2, 5), 0.5), np.full((1, 5), 0.25))
    assert (same.mean, same.low, same.high) == (0.25, 0.25, 0.25)
    assert difference_over_seeds(np.array([[np.inf, 1.0]]), np.ones((1, 2))).low is None
    assert difference_over_seeds(np.ones((1, 1)), np.zeros((1, 1))).low is None


def test_seed_variance_equals_manually_computed_mean_squares():
    """Rows (1, 3) and (2, 6) have the mean squares 4 for seeds and 1 for the residual; two equal rows have 0."""
    table = np.array([[1.0, 3.0], [2.0, 6.0]])
    assert seed_variance([table]) == SeedVariance(4, 1, 1, 1)
    assert seed_variance([table, np.ones((2, 2))]) == SeedVariance(2, 0.5, 2, 2)
    assert seed_variance([np.ones((1, 4)), np.array([[np.inf, 1.0], [1.0, 1.0]])]) is None


def test_interval_includes_seed_variance():
    """Variance 1 from two photographs with differences 1 and 3, (4 - 1) * 2 / 2 from the seeds of two networks."""
    values = np.array([[21.0, 13.0]]), np.array([[20.0, 10.0]])
    found = difference_over_seeds(*values, SeedVariance(4, 1, 3, 9))
    half = stats.t.ppf(0.975, 4**2 / (1**2 / 1 + 4**2 / 3 + 1**2 / 9)) * 2
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half))
    alike = SeedVariance(1, 4, 1, 1)  # not more than by chance
    assert not alike.adds and difference_over_seeds(*values, alike) == difference_over_seeds(*values)


def test_interval_with_different_numbers_of_seeds():
    """One seed against three with the same mean as above: the seeds add (1 + 1/3) / 2 * (4 - 1)."""
    own, first = np.array([[21.0, 13.0]]), np.array([[19.0, 9.0], [20.0, 10.0], [21.0, 11.0]])
    found = difference_over_seeds(own, first, SeedVariance(4, 1, 3, 9))
    weight = 4 / 6
    variance = 1 + weight * 3
    df = variance**2 / (1**2 / 1 + (weight * 4) ** 2 / 3 + weight**2 / 9)
    half = stats.t.ppf(0.975, df) * math.sqrt(variance)
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half))


def test_tiny_variance_component_gives_a_finite_interval():
    """Seeds that add almost nothing to nearly equal photographs: with 0.01 df, the interval would be huge."""
    differences = np.linspace(-0.05, 0.05, 16)[None]
    found = difference_over_seeds(differences, np.zeros((1, 16)), SeedVariance(1.02, 1, 3, 45))
    variance = differences.var(ddof=1) / 16 + 2 / 16 * 0.02
    assert found.high == pytest.approx(stats.t.ppf(0.975, 3) * math.sqrt(variance))


@pytest.mark.parametrize("spread", [(0.3, 0.0, 0.1), (0.3, 0.1, 0.1), (0.05, 0.2, 0.02), (0.1, 0.05, 0.1)])
@pytest.mark.parametrize("seeds", [(1, 1), (1, 2), (2, 2)])
def test_interval_covers_zero_in_95_percent_of_studies(spread, seeds):
    """Studies of three equal networks, two budgets and two seeds; one or both compared networks may have one seed."""
    rng, (photographs, of_seeds, rest) = np.random.default_rng(0), spread

    def network(seeds):
        own = rng.normal(0, photographs / 2**0.5, 16) + rng.normal(0, of_seeds, (seeds, 1))
        return own + rng.normal(0, rest / 2**0.5, (seeds, 16))

    hits = 0
    for _ in range(600):
        known = seed_variance([network(2) for _ in range(6)])
        found = difference_over_seeds(network(seeds[0]), network(seeds[1]), known)
        hits += found.low <= 0 <= found.high
    assert 0.92 < hits / 600 < 0.98
