"""Low light and the sRGB curve, compared with the standard and Foi's noise variance."""

import numpy as np
import pytest

from restormixer_arch.data.degradations.common import linear_to_srgb, srgb_to_linear
from restormixer_arch.data.degradations.low_light import (
    LowLightParameters,
    add_low_light,
    draw_low_light,
    illumination,
)


def test_srgb_matches_the_standard():
    """IEC 61966-2-1: linear up to 0.04045, a power function above."""
    stored = np.array([0, 0.02, 0.04045, 0.5, 1], np.float32)
    wanted = [0, 0.02 / 12.92, 0.04045 / 12.92, ((0.5 + 0.055) / 1.055) ** 2.4, 1]
    np.testing.assert_allclose(srgb_to_linear(stored), wanted, rtol=1e-5)
    assert srgb_to_linear(stored).dtype == linear_to_srgb(stored).dtype == np.float32
    values = np.linspace(0, 1, 1001, dtype=np.float32)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(values)), values, atol=2e-6)


def test_a_stop_halves_the_light():
    image = np.linspace(0, 1, 300, dtype=np.float32).reshape(10, 10, 3)
    dark = add_low_light(image, LowLightParameters(stops=3))
    np.testing.assert_allclose(srgb_to_linear(dark), srgb_to_linear(image) / 8, atol=1e-6)


def test_noise_has_the_documented_variance():
    """The variance is photon * signal + read^2 in linear light, here for gray 0.5 darkened by four stops."""
    image = np.full((200, 200, 3), 0.5, np.float32)
    signal = srgb_to_linear(np.float32(0.5)) / 16
    for photon, read in ((1e-4, 0), (0, 1e-3), (2e-4, 1e-3)):
        dark = srgb_to_linear(add_low_light(image, LowLightParameters(stops=4, photon=photon, read=read, seed=3)))
        assert dark.mean() == pytest.approx(signal, rel=5e-3)
        assert dark.var() == pytest.approx(photon * signal + read**2, rel=0.03)


def test_uneven_light_is_smooth_and_never_brightens():
    parameters = LowLightParameters(stops=1, uneven=1.0, seed=2)
    light = illumination(np.random.default_rng(2), np.zeros((90, 70, 3), np.float32), parameters)
    assert light.shape == (90, 70) and 0 < light.min() and light.max() <= 1
    assert np.std(np.log2(light)) > 0.3
    assert np.abs(np.diff(np.log2(light), axis=0)).max() < 0.2


def test_lamp_light_falls_off_with_the_squared_distance():
    rng = np.random.default_rng(5)
    row, column = rng.uniform(-0.2, 1.2, 2) * (60, 80)
    reach, peak = rng.uniform(0.1, 0.5) * 60, rng.uniform(0.3, 1)
    light = illumination(
        np.random.default_rng(5), np.zeros((60, 80, 3), np.float32), LowLightParameters(stops=5, lamps=1)
    )
    for i, j in ((0, 0), (30, 40), (59, 79), (12, 71)):
        lit = peak / (1 + ((i - row) ** 2 + (j - column) ** 2) / reach**2)
        assert light[i, j] == pytest.approx(1 / 32 + (1 - 1 / 32) * lit, rel=1e-5)


def test_bright_sky_keeps_its_light_and_the_scene_in_front_does_not():
    image = np.full((100, 100, 3), linear_to_srgb(np.float32(0.1)), np.float32)
    image[:50] = linear_to_srgb(np.float32(0.8))
    dark = srgb_to_linear(add_low_light(image, LowLightParameters(stops=3, backlit=True)))
    np.testing.assert_allclose(dark[:45], 0.8, rtol=1e-3)
    np.testing.assert_allclose(dark[55:], 0.1 / 8, rtol=1e-3)
    assert np.all(np.diff(dark[:, 50, 0]) <= 1e-6)


def test_draws_cover_the_parameter_ranges():
    drawn = [draw_low_light(np.random.default_rng(seed)) for seed in range(200)]
    assert {one.lamps for one in drawn} == {0, 1, 2, 3}
    assert 0.12 < np.mean([one.backlit for one in drawn]) < 0.3
    assert max(one.stops for one in drawn) > 4.5
