"""Haze compared with Koschmieder's equation."""

import math

import numpy as np
import pytest

from restormixer_arch.data.degradations.haze import HazeParameters, add_haze, depth_map, draw_haze


def test_constant_distance_matches_the_equation():
    """With ``near=1``, the distance is 1 everywhere."""
    parameters = HazeParameters(beta=0.7, airlight=(0.9, 0.8, 0.7), near=1.0)
    image = np.full((5, 4, 3), 0.3, np.float32)
    t = math.exp(-0.7)
    wanted = [0.3 * t + a * (1 - t) for a in (0.9, 0.8, 0.7)]
    np.testing.assert_allclose(add_haze(image, parameters), np.broadcast_to(wanted, (5, 4, 3)), rtol=1e-6)
    gray = add_haze(image[..., :1], parameters)
    np.testing.assert_allclose(gray, 0.3 * t + 0.8 * (1 - t), rtol=1e-6)


def test_depth_of_a_ground_plane():
    """With ``near=1/4``, the depth is 1 / (1 + 3 s), where s grows from 0 at the horizon to 1 at the lower edge."""
    depth = depth_map(8, 3, HazeParameters(beta=1, horizon=0.5, near=0.25))
    below = [(row + 0.5) / 8 / 0.5 - 1 for row in range(4, 8)]
    wanted = [1.0] * 4 + [1 / (1 + 3 * s) for s in below]
    np.testing.assert_allclose(depth, np.repeat(np.array(wanted)[:, None], 3, axis=1), rtol=1e-6)


def test_depth_with_the_horizon_above_the_image():
    parameters = HazeParameters(beta=1, horizon=-0.5, near=0.25)
    wanted = np.array([4 / 9, 4 / 11, 4 / 13, 4 / 15])
    np.testing.assert_allclose(depth_map(4, 1, parameters)[:, 0], wanted, rtol=1e-6)


def test_background_is_hazier_than_foreground():
    image = np.zeros((64, 64, 3), np.float32)
    hazy = add_haze(image, HazeParameters(beta=1.5, near=0.1))
    assert hazy[:8].mean() > 3 * hazy[-8:].mean()


def test_dense_haze_equals_the_airlight():
    hazy = add_haze(np.zeros((4, 4, 3), np.float32), HazeParameters(beta=100, airlight=(0.9, 0.8, 0.7), near=1.0))
    np.testing.assert_allclose(hazy, np.broadcast_to([0.9, 0.8, 0.7], (4, 4, 3)), rtol=1e-6)


def test_relief_varies_around_the_plane_within_bounds():
    plain = depth_map(80, 80, HazeParameters(beta=1, near=0.2))
    relief = depth_map(80, 80, HazeParameters(beta=1, near=0.2, relief=0.3, seed=4))
    assert np.std(np.log(relief / plain)) == pytest.approx(0.3, abs=0.15)
    assert 0.01 <= relief.min() and relief.max() <= 1


def test_drawn_haze_is_as_strong_as_in_dehazing_datasets():
    """The inputs of SOTS outdoor have a PSNR of about 16 dB; drawn haze is similar on average."""
    rng = np.random.default_rng(0)
    image = np.full((96, 96, 3), 0.4, np.float32)
    decibels = [
        -10 * np.log10(np.mean((add_haze(image, draw_haze(rng, rng.uniform(0.4, 1))) - image) ** 2)) for _ in range(60)
    ]
    assert 9 < np.mean(decibels) < 19
