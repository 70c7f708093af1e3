"""Paired differences: by hand, and beside scipy's test."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from restormixer_arch.compare.results import Difference
from restormixer_arch.compare.run import paired_difference

VALUES = st.lists(st.tuples(*[st.floats(0, 60).map(lambda value: round(value, 3))] * 2), min_size=2, max_size=30)


def test_by_hand():
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt 3; t of 2 degrees of freedom at 97.5% is 4.302653."""
    found = paired_difference([31, 32, 33], [30, 30, 30])
    half = 4.302653 / math.sqrt(3)
    assert found.mean == 2
    assert (found.low, found.high) == (pytest.approx(2 - half, abs=1e-6), pytest.approx(2 + half, abs=1e-6))


@given(VALUES)
def test_is_the_interval_of_scipys_test(pairs):
    own, first = zip(*pairs, strict=True)
    differences = [a - b for a, b in pairs]
    found = paired_difference(own, first)
    assert found.mean == pytest.approx(sum(differences) / len(differences), abs=1e-9)
    if len({round(value, 9) for value in differences}) > 1:
        expected = ttest_1samp(differences, 0).confidence_interval(0.95)
        assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_equal_differences_leave_no_doubt():
    assert paired_difference([3.0, 5.0], [1.0, 3.0]) == Difference(mean=2, low=2, high=2)


def test_no_interval_of_one_picture_or_of_infinite_values():
    assert paired_difference([3.0], [1.0]) == Difference(mean=2, low=None, high=None)
    assert paired_difference([math.inf, 3.0], [1.0, 1.0]) == Difference(mean=math.inf, low=None, high=None)
    found = paired_difference([math.inf, 3.0], [math.inf, 1.0])
    assert math.isnan(found.mean) and found.low is None and found.high is None


@pytest.mark.parametrize(("own", "first"), [([], []), ([1.0], [1.0, 2.0])])
def test_columns_of_different_lengths(own, first):
    with pytest.raises(ValueError, match=f"at least one, got {len(own)} and {len(first)}"):
        paired_difference(own, first)
