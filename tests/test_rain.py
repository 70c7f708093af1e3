"""The rain model, compared with manually computed cases."""

import dataclasses
import hashlib
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restormixer_arch.data.degradations import rain
from restormixer_arch.data.degradations.haze import HazeParameters, add_haze
from restormixer_arch.data.degradations.rain import (
    Rain,
    RainParameters,
    add_rain,
    draw_rain,
    streak_opacity,
)

PLAIN = RainParameters(angle=10, length=20, width=1.5, density=8, intensity=0.5, layers=2, light=0.9, veil=0.1, seed=3)


def gradient(height, width, channels=3):
    ramp = np.linspace(0, 1, height * width * channels, dtype=np.float32)
    return ramp.reshape(height, width, channels)


def digest(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def line(shape, center, length, degrees, weight):
    return rain._draw_lines(
        shape, np.array([center], float), np.array([length], float), np.radians([degrees]), np.array([weight], float)
    )


def axis_degrees(weights):
    """Direction of the greatest second moment, from straight down (rows) toward the right (columns)."""
    rows, columns = np.mgrid[: weights.shape[0], : weights.shape[1]]
    r, c = rows - np.average(rows, weights=weights), columns - np.average(columns, weights=weights)
    covariance = np.average(r * c, weights=weights)
    spread = np.average(r * r, weights=weights) - np.average(c * c, weights=weights)
    return math.degrees(math.atan2(2 * covariance, spread) / 2)


@pytest.mark.parametrize("degrees", [-60, -20, 0, 35, 80])
def test_streak_has_the_given_direction_length_position_and_weight(degrees):
    drawn = line((101, 121), (50.25, 60.5), 40.0, degrees, weight=2.0)
    # The weight rises linearly from 0 over SOFT_END of the length at each end; the loss at both is SOFT_END in total.
    assert drawn.sum() == pytest.approx(2 * 40 * (1 - rain.SOFT_END), rel=2e-3)
    rows, columns = np.mgrid[:101, :121]
    assert np.average(rows, weights=drawn) == pytest.approx(50.25, abs=0.01)
    assert np.average(columns, weights=drawn) == pytest.approx(60.5, abs=0.01)
    assert axis_degrees(drawn) == pytest.approx(degrees, abs=0.2)
    # The profile convolves boxes of lengths 1 - e and e: their variances and that of the pixels' tents add up.
    along = math.cos(math.radians(degrees)) * (rows - 50.25) + math.sin(math.radians(degrees)) * (columns - 60.5)
    e = rain.SOFT_END
    expected = 40**2 * ((1 - e) ** 2 + e**2) / 12 + rain.TENT_VARIANCE
    assert np.average(along**2, weights=drawn) == pytest.approx(expected, rel=0.01)


def test_vertical_streak_matches_manual_computation():
    """Each of four points in column 2, at rows 0.5, 1.5, 2.5 and 3.5, is split equally between the two nearest rows."""
    drawn = line((5, 4), (2.0, 2.0), 4.0, 0, weight=1.0)
    outer = (0.5 - 0.375) / rain.SOFT_END  # faded weight at rows 0.5 and 3.5
    wanted = np.zeros((5, 4))
    wanted[:, 2] = [outer / 2, (outer + 1) / 2, 1, (outer + 1) / 2, outer / 2]
    np.testing.assert_allclose(drawn, wanted, rtol=1e-6)


def test_streak_is_clipped_at_the_image_border():
    whole, part = line((60, 60), (30, 30), 40, 25, 1.0), line((60, 60), (-5, 30), 40, 25, 1.0)
    np.testing.assert_allclose(part[:25], whole[35:], atol=1e-6)
    assert not line((60, 60), (-40, 30), 40, 25, 1.0).any()


@pytest.mark.parametrize("angle", [-30.0, 0.0, 40.0])
def test_many_streaks_have_the_given_direction(angle):
    parameters = RainParameters(angle=angle, angle_spread=0.0, length=60, width=6, density=2, intensity=0.5, layers=1)
    opacity = streak_opacity(256, 256, parameters)
    down, right = np.gradient(opacity)
    # Opacity hardly changes along a streak: it has the direction of the structure tensor's smaller eigenvalue.
    tensor = np.array([[(down * down).sum(), (down * right).sum()], [(down * right).sum(), (right * right).sum()]])
    along = np.linalg.eigh(tensor)[1][:, 0]
    assert math.degrees(math.atan(along[1] / along[0])) == pytest.approx(angle, abs=2)


def test_mean_opacity_is_number_times_length_times_width_times_intensity():
    parameters = RainParameters(angle=15, length=15, width=3, density=20, intensity=0.05, layers=1)
    means = [streak_opacity(500, 500, dataclasses.replace(parameters, seed=seed)).mean() for seed in range(8)]
    low, high = rain.DIAMETERS
    diameter = low + math.exp(-low) - math.exp(-high)  # mean of an exponential of mean 1, clipped to [low, high]
    across = 3 * math.sqrt(math.pi / (4 * math.log(2)))  # integral of a Gaussian of height 1 and this width
    one = 0.05 * across * 15 * (1 - rain.SOFT_END) * diameter  # opacity and length each contain sqrt(diameter)
    assert np.mean(means) == pytest.approx(20 / 10_000 * one, rel=0.03)


def test_mean_opacity_grows_with_density_intensity_length_and_width():
    for name, values in {
        "density": (2, 5, 12),
        "intensity": (0.2, 0.4, 0.8),
        "length": (10, 20, 40),
        "width": (0.8, 1.6, 3.2),
    }.items():
        means = [streak_opacity(256, 256, dataclasses.replace(PLAIN, **{name: value})).mean() for value in values]
        assert means[0] < means[1] < means[2], name


def test_farther_layers_increase_the_opacity():
    one, two = (streak_opacity(128, 128, dataclasses.replace(PLAIN, layers=layers)) for layers in (1, 2))
    assert (two >= one - 1e-6).all()
    assert two.mean() > 1.2 * one.mean()


def test_width_is_the_full_width_at_half_the_opacity(monkeypatch):
    """The profile of a vertical streak through the center of a pixel is a Gaussian of the given width."""
    monkeypatch.setattr(rain, "DIAMETERS", (1.0, 1.0))
    drawn = []
    original = rain._draw_lines

    def one_line(shape, centers, lengths, angles, weights, soft_end):
        drawn.append(weights[0])
        return original(shape, np.array([[30.0, 30.0]]), lengths[:1], angles[:1] * 0, weights[:1], soft_end)

    monkeypatch.setattr(rain, "_draw_lines", one_line)
    parameters = RainParameters(angle=0, length=50, width=6, density=20, intensity=0.5, layers=1)
    profile = streak_opacity(61, 61, parameters)[30]
    assert profile[30] == pytest.approx(0.5, rel=0.02)
    assert profile[27] == pytest.approx(0.25, rel=0.02) and profile[33] == pytest.approx(0.25, rel=0.02)


def test_veil_blends_image_and_light():
    image = np.full((4, 5, 3), 0.4, np.float32)
    veiled = add_rain(image, dataclasses.replace(PLAIN, density=0, veil=0.25, light=0.8))
    np.testing.assert_allclose(veiled, 0.75 * 0.4 + 0.25 * 0.8, rtol=1e-6)


def test_streaks_and_veil_blend_scene_and_light():
    image = gradient(64, 48)
    opacity = streak_opacity(64, 48, PLAIN)[..., None]
    streaks = image * (1 - opacity) + opacity * 0.9
    np.testing.assert_allclose(add_rain(image, PLAIN), streaks * 0.9 + 0.1 * 0.9, atol=1e-6)
    # A scene as bright as the drops does not change.
    np.testing.assert_allclose(add_rain(np.full((64, 48, 3), 0.9, np.float32), PLAIN), 0.9, atol=1e-6)


@pytest.mark.parametrize("nothing", [{"intensity": 0}, {"density": 0}])
def test_no_rain_is_the_identity(nothing):
    image = gradient(33, 20)
    result = add_rain(image, dataclasses.replace(PLAIN, veil=0, **nothing))
    assert np.array_equal(result, image)
    assert not np.shares_memory(result, image)


def test_strength_0_is_the_identity():
    image = gradient(33, 20)
    assert np.array_equal(add_rain(image, draw_rain(np.random.default_rng(1), 0).showers[0]), image)


def test_additive_streaks_add_light():
    image = gradient(64, 48) * np.float32(0.5)
    parameters = dataclasses.replace(PLAIN, additive=True, veil=0)
    opacity = streak_opacity(64, 48, parameters)[..., None]
    np.testing.assert_allclose(add_rain(image, parameters), np.minimum(image + 0.9 * opacity, 1), atol=1e-6)
    # Blending hides the scene, so it is nowhere brighter than adding.
    assert (add_rain(image, parameters) >= add_rain(image, dataclasses.replace(PLAIN, veil=0)) - 1e-6).all()


def test_streak_with_sharp_ends_matches_manual_computation():
    """Without fading, the four points of a streak of four pixels have equal weights."""
    drawn = rain._draw_lines((5, 4), np.array([[2.0, 2.0]]), np.array([4.0]), np.zeros(1), np.ones(1), 0.0)
    np.testing.assert_allclose(drawn[:, 2], [0.5, 1, 1, 1, 0.5], rtol=1e-6)


def test_defocus_keeps_the_mean_opacity_and_blurs():
    sharp = streak_opacity(200, 200, dataclasses.replace(PLAIN, intensity=0.1))
    blurred = streak_opacity(200, 200, dataclasses.replace(PLAIN, intensity=0.1, defocus=2.5))
    assert blurred.mean() == pytest.approx(sharp.mean(), rel=0.01)
    assert blurred.std() < 0.6 * sharp.std()


def test_mist_is_applied_first_and_then_the_showers_in_order():
    image = gradient(40, 50)
    first, second = PLAIN, dataclasses.replace(PLAIN, angle=-30, seed=9, additive=True)
    mist = HazeParameters(beta=1.0, relief=0.1, seed=4)
    wanted = add_rain(add_rain(add_haze(image, mist), first), second)
    assert np.array_equal(add_rain(image, Rain((first, second), mist)), wanted)


def test_equal_seeds_give_equal_bytes():
    image = gradient(120, 90)
    before = image.copy()
    first, second = (add_rain(image, draw_rain(np.random.default_rng(5))) for _ in range(2))
    assert digest(first) == digest(second)
    assert digest(first) != digest(add_rain(image, draw_rain(np.random.default_rng(6))))
    assert np.array_equal(image, before)
    other_places = [digest(add_rain(image, dataclasses.replace(PLAIN, seed=seed))) for seed in range(5)]
    assert len(set(other_places)) == 5


def test_many_streaks_are_drawn_in_slices(monkeypatch):
    """This saves memory and gives the same result."""
    shower = RainParameters(angle=10, length=60, width=2, density=600, intensity=0.05, layers=2, seed=3)
    peaks, drawn = [], []
    for most in (10**7, 10**4, 1):
        monkeypatch.setattr(rain, "MAX_POINTS", most)
        tracemalloc.start()
        drawn.append(rain.streak_opacity(120, 160, shower))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert 0.2 < drawn[0].mean() < 0.95
    for other in drawn[1:]:
        np.testing.assert_allclose(other, drawn[0], rtol=0, atol=1e-6)
    assert peaks[1] < peaks[0] / 5


def test_strength_scales_streaks_veil_and_mist():
    generators = [np.random.default_rng(11) for _ in range(2)]  # a draw with mist
    light, heavy = (draw_rain(rng, strength) for rng, strength in zip(generators, (0.2, 1.0), strict=True))
    assert len(light.showers) == len(heavy.showers)
    for weak, strong in zip(light.showers, heavy.showers, strict=True):
        assert weak.density == pytest.approx(0.2 * strong.density) and weak.veil == pytest.approx(0.2 * strong.veil)
        assert (weak.angle, weak.length, weak.seed) == (strong.angle, strong.length, strong.seed)
    assert light.mist.beta == pytest.approx(0.2**0.5 * heavy.mist.beta)
    assert light.mist == dataclasses.replace(heavy.mist, beta=light.mist.beta)
    assert len({rng.integers(2**62) for rng in generators}) == 1


def test_draws_cover_the_range_of_the_public_datasets():
    """The inputs of Rain100L have 26.9 dB, those of Rain100H 13.6 dB; light rain has more, heavy rain less."""
    rng = np.random.default_rng(0)
    image = np.full((96, 96, 3), 0.4, np.float32)
    drawn = [draw_rain(rng) for _ in range(300)]
    decibels = [-10 * np.log10(np.mean((add_rain(image, one) - image) ** 2) + 1e-9) for one in drawn]
    low, median, high = np.percentile(decibels, (10, 50, 90))
    assert low < 14.5 and 18 < median < 27 and high > 32
    showers = [shower for one in drawn for shower in one.showers]
    for name, least, most in (
        ("length", 10, 80),
        ("width", 1, 4),
        ("intensity", 0.2, 0.8),
        ("angle_spread", 0.5, 8),
        ("angle", -40, 40),
        ("light", 0.55, 0.95),
    ):
        values = [getattr(shower, name) for shower in showers]
        assert min(values) < least and max(values) > most, name
    assert {len(one.showers) for one in drawn} == {1, 2, 3, 4}
    assert 0.1 < np.mean([one.mist is not None for one in drawn]) < 0.22
    assert 0.35 < np.mean([shower.additive for shower in showers]) < 0.5
    assert 0.4 < np.mean([shower.veil == 0 for shower in showers]) < 0.8
    assert all(shower.length >= 4 * shower.width for shower in showers)


@settings(max_examples=40)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32 - 1),
    value=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_dtype_shape_and_range_are_kept(height, width, channels, seed, value):
    image = np.full((height, width, channels), value, np.float32)
    parameters = dataclasses.replace(draw_rain(np.random.default_rng(seed), 1.0).showers[0], additive=False)
    result = add_rain(image, parameters)
    assert result.dtype == np.float32 and result.shape == image.shape
    low, high = min(value, parameters.light), max(value, parameters.light)
    assert low - 1e-6 <= result.min() and result.max() <= min(high + 1e-6, 1)


def test_gray_result_equals_one_channel_of_the_color_result():
    image = gradient(40, 30, 1)
    color = add_rain(np.repeat(image, 3, axis=2), PLAIN)
    assert np.array_equal(add_rain(image, PLAIN)[..., 0], color[..., 1])


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), TypeError, "float32 array, got uint8"),
        ([[0.0]], TypeError, "float32 array, got list"),
        (np.zeros((4, 4), np.float32), ValueError, r"got \(4, 4\)"),
        (np.zeros((3, 4, 4), np.float32), ValueError, r"got \(3, 4, 4\)"),
        (np.zeros((0, 4, 3), np.float32), ValueError, r"got \(0, 4, 3\)"),
        (np.full((2, 2, 1), 255, np.float32), ValueError, r"in \[0, 1\], got \[255, 255\]"),
        (np.full((2, 2, 1), np.nan, np.float32), ValueError, r"got \[nan, nan\]"),
    ],
)
def test_invalid_images(image, error, message):
    with pytest.raises(error, match=message):
        add_rain(image, PLAIN)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("intensity", 1.5, r"intensity must be in \[0, 1\], got 1.5"),
        ("light", -0.1, r"light must be in \[0, 1\], got -0.1"),
        ("veil", math.nan, r"veil must be in \[0, 1\], got nan"),
        ("length", 0, "length must be positive, got 0"),
        ("width", -2, "width must be positive, got -2"),
        ("density", -1, "density must not be negative, got -1"),
        ("angle_spread", -3, "angle_spread must not be negative, got -3"),
        ("seed", -4, "seed must not be negative, got -4"),
        ("defocus", -1, "defocus must not be negative, got -1"),
        ("soft_end", 0.6, r"soft_end must be in \[0, 0.5\], got 0.6"),
        ("layers", 0, "layers must be at least 1, got 0"),
    ],
)
def test_invalid_parameters(name, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **{name: value})
