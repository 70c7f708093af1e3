"""Compositions of degradations: labels, and the order in which the degradations are applied."""

from itertools import combinations

import numpy as np
import pytest

from restormixer_arch.data.degradations import compose
from restormixer_arch.data.degradations.compose import DEGRADATIONS, add_composition, draw_composition
from restormixer_arch.data.degradations.labels import (
    CDD11,
    NAMES,
    is_label,
    label_of,
    parse_label,
    split_label,
)
from restormixer_arch.errors import UserError


def test_labels_of_cdd11():
    assert len(CDD11) == 11 and all(is_label(label) for label in CDD11)
    groups = [group for size in (1, 2, 3) for group in combinations(("low", "haze", "rain", "snow"), size)]
    weather = ["_".join(group) for group in groups if not {"rain", "snow"} <= set(group)]
    assert sorted(CDD11) == sorted(weather)
    assert set(NAMES) == set(DEGRADATIONS)


def test_parse_label():
    assert parse_label("low_haze_rain") == ("low", "haze", "rain")
    assert parse_label("clean") == ()
    assert is_label("jpeg") and not is_label("") and not is_label("fog")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("hase", r"'hase' is not a degradation label: 'hase' is not one of low, haze.* Did you mean 'haze'\?"),
        ("haze_low", r"'haze_low' is not a degradation label. Did you mean 'low_haze'\?"),
        ("rain_rain", r"'rain_rain' is not a degradation label. Did you mean 'rain'\?"),
        ("low_clean", "'clean' is not one of"),
        ("", "'' is not a degradation label"),
    ],
)
def test_invalid_labels_are_rejected(label, message):
    with pytest.raises(UserError, match=message):
        parse_label(label)
    with pytest.raises(UserError, match=message):
        draw_composition(np.random.default_rng(0), label)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("low_haze/0001.png", "low_haze"),
        ("test/haze_rain/lq/7.png", "haze_rain"),
        ("0001_low_haze_snow.png", "low_haze_snow"),
        ("street_snow", "snow"),
        ("haze-0012.png", "haze"),
        ("rain/heavy_snow.png", "rain"),
        ("clean/3.png", "clean"),
        ("low\\9.png", "low"),
        ("GOPR0384_11_00/000001.png", None),
        ("rainbow.png", None),
        ("norain-1.png", None),
        ("snow.png", None),
    ],
)
def test_label_of_a_file_name(name, label):
    assert label_of(name) == label


def test_split_label_returns_the_name_without_the_label():
    labelled = ["x_rain", "x_1_low_haze", "low_haze_0001", "haze-0001", "0001-haze", "baby", "scene_None"]
    assert [split_label(name)[0] for name in labelled] == ["x", "x_1", "0001", "0001", "0001", "baby", "scene_None"]


def test_degradations_are_applied_in_physical_order(monkeypatch):
    """The order follows the path of the light, not the order in the label."""
    seen = []

    def recorder(name):
        return (lambda rng, strength: name, lambda image, parameters: seen.append(parameters) or image)

    monkeypatch.setattr(compose, "DEGRADATIONS", {name: recorder(name) for name in DEGRADATIONS})
    label = "low_haze_rain_snow_blur_defocus_down_noise_poisson_camera_jpeg"
    composition = draw_composition(np.random.default_rng(0), label)
    add_composition(np.zeros((4, 4, 3), np.float32), composition)
    assert seen == ["haze", "rain", "snow", "blur", "defocus", "down", "low", "noise", "poisson", "camera", "jpeg"]
    blind = draw_composition(np.random.default_rng(0), "haze_jpeg_blind")
    assert [name for name, _ in blind.steps] == ["haze", "jpeg", "blind"]


def test_composition_applies_its_steps_in_sequence():
    image = np.linspace(0, 1, 40 * 40 * 3, dtype=np.float32).reshape(40, 40, 3)
    composition = draw_composition(np.random.default_rng(3), "low_haze_snow", 0.6)
    assert [name for name, _ in composition.steps] == ["haze", "snow", "low"] and composition.label == "low_haze_snow"
    wanted = image
    for name, parameters in composition.steps:
        wanted = DEGRADATIONS[name][1](wanted, parameters)
    assert np.array_equal(add_composition(image, composition), wanted)
    assert composition == draw_composition(np.random.default_rng(3), "low_haze_snow", 0.6)


def test_low_light_dims_haze():
    """Low light also dims the airlight, since it is applied after haze."""
    image = np.zeros((40, 40, 3), np.float32)
    rng = np.random.default_rng(1)
    bright = add_composition(image, draw_composition(rng, "haze", 1.0)).mean()
    dark = add_composition(image, draw_composition(rng, "low_haze", 1.0)).mean()
    assert dark < bright / 3


def test_clean_and_strength_0_leave_the_image_unchanged():
    image = np.linspace(0, 1, 300, dtype=np.float32).reshape(10, 10, 3)
    rng = np.random.default_rng(0)
    for composition in (draw_composition(rng, "clean"), draw_composition(rng, "low_haze_rain_blur_noise_jpeg", 0.0)):
        result = add_composition(image, composition)
        assert np.array_equal(result, image) and not np.shares_memory(result, image)


def test_down_divides_the_sides_by_the_scale():
    image = np.full((12, 18, 3), 0.5, np.float32)
    composition = draw_composition(np.random.default_rng(0), "down_noise", 0.2, scale=3)
    assert add_composition(image, composition).shape == (4, 6, 3)
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        draw_composition(np.random.default_rng(0), "down", scale=0)
