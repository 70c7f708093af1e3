"""The ``degradations`` option."""

import numpy as np
import pytest

from restormixer_arch.data.degradations.labels import CDD11, WeightedLabel, parse_mixture
from restormixer_arch.errors import UserError


def test_group_list_and_table_are_parsed():
    assert [ingredient.label for ingredient in parse_mixture("cdd11")] == list(CDD11)
    assert parse_mixture(["rain", "low_haze"]) == (WeightedLabel("rain"), WeightedLabel("low_haze"))
    table = {"noise": {"strength": 0.5}, "rain": None, "clean": {"weight": 2, "strength": [0, 1]}}
    assert parse_mixture(table) == (
        WeightedLabel("noise", 1.0, (0.5, 0.5)),
        WeightedLabel("rain"),
        WeightedLabel("clean", 2.0, (0.0, 1.0)),
    )
    assert parse_mixture(["down", "blur_down"], scale=2)[1].label == "blur_down"


def test_strengths_are_drawn_from_the_range():
    rng = np.random.default_rng(0)
    drawn = [WeightedLabel("rain", 1, (0.2, 0.6)).draw_strength(rng) for _ in range(500)]
    assert 0.2 <= min(drawn) < 0.21 and 0.59 < max(drawn) <= 0.6
    assert np.mean(drawn) == pytest.approx(0.4, abs=0.02)
    assert WeightedLabel("rain").draw_strength(rng) is None


@pytest.mark.parametrize(
    ("option", "scale", "message"),
    [
        ("cd11", 1, r"'cd11' is not a group, expected cdd11.* Did you mean 'cdd11'\?"),
        ([], 1, r"expected a list or a table of labels, got \[\]"),
        (3, 1, "expected a list or a table of labels, got 3"),
        ([4], 1, "expected labels, got 4"),
        (["rain", "snwo"], 1, r"degradations: 'snwo' is not a degradation label.* Did you mean 'snow'\?"),
        (["rain", "rain"], 1, "'rain' is listed twice"),
        ({"rain": 3}, 1, r"degradations\.rain: expected weight and strength, got 3"),
        ({"rain": {"wieght": 1}}, 1, r"degradations\.rain\.wieght: unknown key.* Did you mean 'weight'\?"),
        ({"rain": {"weight": 0}}, 1, r"degradations\.rain\.weight: expected a positive number, got 0"),
        ({"rain": {"weight": True}}, 1, "positive number, got True"),
        ({"rain": {"strength": 1.5}}, 1, r"degradations\.rain\.strength: expected a number or .* got 1.5"),
        ({"rain": {"strength": [0.6, 0.2]}}, 1, r"got \[0.6, 0.2\]"),
        ({"rain": {"strength": "x"}}, 1, "got 'x'"),
        (["down"], 1, "scale 1 does not allow 'down'; 2, 3 or 4 does, got 'down'"),
        (["down", "noise"], 2, "scale 2 needs 'down' or 'blind' in every label, got 'noise'"),
    ],
)
def test_invalid_options(option, scale, message):
    with pytest.raises(UserError, match=message):
        parse_mixture(option, scale)
