"""Properties of all degradations: same seed, same bytes; identity at strength 0; dtype, shape and range preserved."""

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restormixer_arch.data.degradations.common import smooth_noise, splat
from restormixer_arch.data.degradations.compose import DEGRADATIONS
from restormixer_arch.data.degradations.defocus import DefocusParameters
from restormixer_arch.data.degradations.downsample import DownsampleParameters, add_downsample
from restormixer_arch.data.degradations.haze import HazeParameters
from restormixer_arch.data.degradations.jpeg import JpegParameters
from restormixer_arch.data.degradations.low_light import LowLightParameters
from restormixer_arch.data.degradations.motion_blur import MotionBlurParameters
from restormixer_arch.data.degradations.noise import (
    CameraNoiseParameters,
    GaussianNoiseParameters,
    PoissonNoiseParameters,
)
from restormixer_arch.data.degradations.snow import SnowParameters

DRAWN = [name for name in DEGRADATIONS if name != "down"]  # its scale is given, and it changes the size
# jpeg and defocus are deterministic; each shower of rain and each order of blind has its own seed.
OWN_CHANCE = [name for name in DRAWN if name not in ("jpeg", "defocus", "rain", "blind")]


def ramp(height, width, channels=3):
    return np.linspace(0, 1, height * width * channels, dtype=np.float32).reshape(height, width, channels)


def degraded(name, image, seed=5, strength=None):
    draw, add = DEGRADATIONS[name]
    return add(image, draw(np.random.default_rng(seed), strength))


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.parametrize("name", DRAWN)
def test_same_seed_gives_the_same_bytes(name):
    image = ramp(60, 45)
    before = image.copy()
    results = [degraded(name, image, seed) for seed in (5, 5, 6)]
    assert digest(results[0]) == digest(results[1]) != digest(results[2])
    assert np.array_equal(image, before)


@pytest.mark.parametrize("name", OWN_CHANCE)
def test_seed_of_the_parameters_determines_the_result(name):
    draw, add = DEGRADATIONS[name]
    parameters = draw(np.random.default_rng(1), 1.0)
    image = np.full((48, 48, 3), 0.5, np.float32)
    image[20:24, 10:30] = 0.2
    assert len({digest(add(image, dataclasses.replace(parameters, seed=seed))) for seed in range(4)}) == 4


@pytest.mark.parametrize("name", DRAWN)
def test_strength_0_changes_nothing(name):
    for image in (ramp(33, 20), ramp(7, 9, 1)):
        result = degraded(name, image, strength=0.0)
        assert np.array_equal(result, image) and result.dtype == np.float32
        assert not np.shares_memory(result, image)


@pytest.mark.parametrize("name", DRAWN)
def test_error_increases_with_strength(name):
    image = np.full((96, 96, 3), 0.35, np.float32)
    image[30:60, 30:60] = (0.8, 0.6, 0.1)
    distances = [
        np.mean([np.mean((degraded(name, image, seed, strength) - image) ** 2) for seed in range(4)])
        for strength in (0.1, 0.4, 1.0)
    ]
    assert 0 < distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("name", DRAWN)
def test_generator_advances_equally_for_any_strength(name):
    draw, _ = DEGRADATIONS[name]
    generators = [np.random.default_rng(3) for _ in range(3)]
    drawn = [draw(rng, strength) for rng, strength in zip(generators, (None, 0.0, 0.8), strict=True)]
    assert len({rng.integers(2**62) for rng in generators}) == 1
    assert drawn[0] == draw(np.random.default_rng(3), None)
    assert drawn[1] != drawn[2]


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_invalid_strength(name, strength):
    with pytest.raises(ValueError, match=rf"strength must be in \[0, 1\], got {strength}"):
        DEGRADATIONS[name][0](np.random.default_rng(0), strength)


@settings(max_examples=60)
@given(
    name=st.sampled_from(DRAWN),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32 - 1),
    value=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_dtype_shape_and_range_are_preserved(name, height, width, channels, seed, value):
    image = np.full((height, width, channels), value, np.float32)
    result = degraded(name, image, seed, strength=1.0)
    assert result.dtype == np.float32 and result.shape == image.shape
    assert 0 <= result.min() and result.max() <= 1


@pytest.mark.parametrize("name", list(DEGRADATIONS))
def test_invalid_images(name):
    draw, add = DEGRADATIONS[name]
    parameters = draw(np.random.default_rng(0), 0.5) if draw else DownsampleParameters(2)
    with pytest.raises(TypeError, match="float32 array, got uint8"):
        add(np.zeros((4, 4, 3), np.uint8), parameters)
    with pytest.raises(ValueError, match=r"got \(4, 4\)"):
        add(np.zeros((4, 4), np.float32), parameters)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got \[0, 255\]"):
        add(np.array([[[0.0], [255.0]]], np.float32), parameters)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HazeParameters(beta=-1), "beta must not be negative, got -1"),
        (lambda: HazeParameters(beta=np.inf), "beta must not be negative, got inf"),
        (lambda: HazeParameters(1, near=0), "near must be at least 0.01, got 0"),
        (lambda: HazeParameters(1, near=2), r"near must be in \[0, 1\], got 2"),
        (lambda: HazeParameters(1, horizon=1), "horizon must be less than 1, got 1"),
        (lambda: HazeParameters(1, airlight=(0.5, 2, 0)), r"airlight must be three values in \[0, 1\], got \(0.5, 2"),
        (lambda: SnowParameters(0, size=0, density=1, opacity=1), "size must be positive, got 0"),
        (lambda: SnowParameters(0, 5, density=-1, opacity=1), "density must not be negative, got -1"),
        (lambda: SnowParameters(0, 5, 1, opacity=1.5), r"opacity must be in \[0, 1\], got 1.5"),
        (lambda: SnowParameters(0, 5, 1, 1, layers=0), "layers must be at least 1, got 0"),
        (lambda: LowLightParameters(stops=-2), "stops must not be negative, got -2"),
        (lambda: LowLightParameters(2, read=float("nan")), "read must not be negative, got nan"),
        (lambda: GaussianNoiseParameters(sigma=-0.5), "sigma must not be negative, got -0.5"),
        (lambda: PoissonNoiseParameters(photon=-0.5), "photon must not be negative, got -0.5"),
        (lambda: CameraNoiseParameters(0.1, -1), "read must not be negative, got -1"),
        (lambda: CameraNoiseParameters(0.1, 0.1, common=2), r"common must be in \[0, 1\], got 2"),
        (lambda: DefocusParameters(radius=-1), "radius must not be negative, got -1"),
        (lambda: DefocusParameters(1, blades=2), "blades must be 0 or at least 3, got 2"),
        (lambda: MotionBlurParameters(extent=-3), "extent must not be negative, got -3"),
        (lambda: MotionBlurParameters(3, jerk=2), r"jerk must be in \[0, 1\], got 2"),
        (lambda: JpegParameters(quality=0), "quality must be from 1 to 100, got 0"),
        (lambda: JpegParameters(quality=101), "quality must be from 1 to 100, got 101"),
        (lambda: DownsampleParameters(scale=0), "scale must be at least 1, got 0"),
        (lambda: add_downsample(ramp(6, 7), DownsampleParameters(2)), "multiples of scale 2, got 6x7"),
    ],
)
def test_invalid_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_splat_distributes_a_point_bilinearly():
    drawn = splat((3, 4), np.array([1.25]), np.array([2.5]), np.array([8.0]))
    wanted = np.zeros((3, 4))
    wanted[1, 2:] = 3.0
    wanted[2, 2:] = 1.0
    np.testing.assert_allclose(drawn, wanted, rtol=1e-6)
    assert splat((3, 4), np.array([-0.5]), np.array([0.0]), np.array([1.0])).sum() == pytest.approx(0.5)
    assert not splat((3, 4), np.array([7.0]), np.array([0.0]), np.array([1.0])).any()
    assert not splat((4, 4), np.array([np.nextafter(4.0, 0)]), np.array([0.0]), np.array([1.0])).any()  # + 1 gives 5


def test_smooth_noise_is_smooth_and_has_the_requested_size():
    noise = smooth_noise(np.random.default_rng(0), 120, 90, cells=4)
    assert noise.shape == (120, 90) and noise.dtype == np.float32
    assert noise.std() > 0.3
    assert np.abs(np.diff(noise, axis=0)).max() < 0.15
