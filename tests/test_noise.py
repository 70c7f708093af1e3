"""Noise has the documented variance and correlation."""

import numpy as np
import pytest

from restormixer_arch.data.degradations.noise import (
    CameraNoiseParameters,
    GaussianNoiseParameters,
    PoissonNoiseParameters,
    add_camera_noise,
    add_gaussian_noise,
    add_poisson_noise,
    draw_gaussian_noise,
    draw_poisson_noise,
    poisson_signal,
)


def test_gaussian_noise_has_the_given_deviation_and_independent_channels():
    image = np.full((200, 200, 3), 0.5, np.float32)
    noise = add_gaussian_noise(image, GaussianNoiseParameters(sigma=25 / 255, seed=1)) - image
    assert noise.std() == pytest.approx(25 / 255, rel=0.01)
    assert abs(noise.mean()) < 1e-3
    channels = noise.reshape(-1, 3)
    assert np.abs(np.corrcoef(channels.T)[0, 1]) < 0.02  # channels are independent


@pytest.mark.parametrize("value", [0.1, 0.5, 0.7])
@pytest.mark.parametrize("photon", [1 / 20, 1 / 400])
def test_poisson_variance_is_proportional_to_the_signal(value, photon):
    image = np.full((200, 200, 3), value, np.float32)
    noisy = poisson_signal(np.random.default_rng(0), image, photon)
    assert noisy.mean() == pytest.approx(value, rel=0.01)
    assert noisy.var() == pytest.approx(photon * value, rel=0.03)
    counts = noisy / photon
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)  # integer numbers of photons


def test_poisson_noise_is_the_clipped_poisson_signal():
    image = np.full((50, 50, 3), 0.9, np.float32)
    noisy = add_poisson_noise(image, PoissonNoiseParameters(photon=1 / 20, seed=4))
    wanted = np.clip(poisson_signal(np.random.default_rng(4), image, 1 / 20), 0, 1)
    assert np.array_equal(noisy, wanted) and noisy.max() == 1


def test_poisson_noise_leaves_black_unchanged():
    black = np.zeros((20, 20, 1), np.float32)
    assert not add_poisson_noise(black, PoissonNoiseParameters(photon=0.05)).any()


def test_strength_1_is_sigma_55_and_20_photons():
    rng = np.random.default_rng(0)
    assert draw_gaussian_noise(rng, 25 / 55).sigma == pytest.approx(25 / 255)
    assert draw_gaussian_noise(rng, 1.0).sigma == pytest.approx(55 / 255)
    assert draw_poisson_noise(rng, 1.0).photon == pytest.approx(1 / 20)
    assert draw_poisson_noise(rng, 0.5).photon == pytest.approx(1 / 80)  # half the standard deviation


def test_gaussian_noise_can_be_left_unclipped():
    image = np.full((64, 64, 3), 0.98, np.float32)
    clipped, free = (add_gaussian_noise(image, GaussianNoiseParameters(0.2, clip, seed=1)) for clip in (True, False))
    assert np.array_equal(clipped, np.clip(free, 0, 1)) and free.max() > 1.2
    assert (free - image).std() == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.2])
def test_camera_noise_deviation_does_not_depend_on_its_spread(spread):
    parameters = CameraNoiseParameters(photon=0.01, read=0.02, spread=spread, common=0.3, seed=2)
    for value in (0.3, 0.6):
        noise = add_camera_noise(np.full((256, 256, 3), value, np.float32), parameters) - np.float32(value)
        assert noise.std() == pytest.approx(np.sqrt(0.01 * value + 0.02**2), rel=0.03)
        assert noise.mean() == pytest.approx(0, abs=0.004)


def test_camera_noise_is_correlated_between_neighbors_and_channels():
    image = np.full((256, 256, 3), 0.5, np.float32)

    def correlations(spread, common):
        noise = add_camera_noise(image, CameraNoiseParameters(0, 0.05, spread, common, seed=3)) - image
        return np.corrcoef(noise[:, 1:, 0].ravel(), noise[:, :-1, 0].ravel())[0, 1], np.corrcoef(
            noise[..., 0].ravel(), noise[..., 1].ravel()
        )[0, 1]

    # Filtered by a Gaussian of standard deviation s, white noise has the correlation exp(-d^2 / (4 s^2)) at distance d.
    assert correlations(0.0, 0.0) == pytest.approx((0, 0), abs=0.02)
    assert correlations(1.0, 0.5) == pytest.approx((np.exp(-1 / 4), 0.5), abs=0.04)
