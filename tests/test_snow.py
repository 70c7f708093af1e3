"""The snow model against manually computed values."""

import dataclasses
import math

import numpy as np
import pytest

from restormixer_arch.data.degradations import snow
from restormixer_arch.data.degradations.snow import SnowParameters, add_snow, draw_snow, flake_opacity, line_kernel

PLAIN = SnowParameters(angle=10, size=8, density=1.5, opacity=0.9, streak=4, defocus=1, layers=3, light=0.95, veil=0.1)


def test_snow_brightens_a_darker_image():
    image = np.full((96, 96, 3), 0.3, np.float32)
    snowy = add_snow(image, PLAIN)
    assert (snowy > image).all()
    assert snowy.max() > 0.8


def test_flakes_and_veil_mix_scene_and_light():
    image = np.linspace(0, 1, 64 * 48 * 3, dtype=np.float32).reshape(64, 48, 3)
    opacity = flake_opacity(64, 48, PLAIN)[..., None]
    flakes = image * (1 - opacity) + opacity * 0.95
    np.testing.assert_allclose(add_snow(image, PLAIN), flakes * 0.9 + 0.1 * 0.95, atol=1e-6)
    # An image as bright as the flakes does not change.
    np.testing.assert_allclose(add_snow(np.full((9, 9, 3), 0.95, np.float32), PLAIN), 0.95, atol=1e-6)


def test_veil_mixes_image_and_light():
    image = np.full((4, 5, 3), 0.4, np.float32)
    veiled = add_snow(image, dataclasses.replace(PLAIN, density=0, veil=0.25, light=0.8))
    np.testing.assert_allclose(veiled, 0.75 * 0.4 + 0.25 * 0.8, rtol=1e-6)


@pytest.mark.parametrize("nothing", [{"opacity": 0}, {"density": 0}])
def test_no_snow_leaves_the_image_unchanged(nothing):
    image = np.linspace(0, 1, 300, dtype=np.float32).reshape(10, 10, 3)
    assert np.array_equal(add_snow(image, dataclasses.replace(PLAIN, veil=0, **nothing)), image)


def test_flake_points_sum_to_area_times_thickness():
    """The points are around the flake's center, and their amounts sum to its area times its thickness."""
    rng = np.random.default_rng(0)
    rows, columns, amounts = snow._flake_points(rng, np.array([[50.0, 60.0]]), np.array([6.0]))
    assert amounts.sum() == pytest.approx(math.pi * 36 * snow.THICKNESS)
    assert np.hypot(rows.mean() - 50, columns.mean() - 60) < 6
    assert np.hypot(rows - 50, columns - 60).max() < 4 * 6


def test_mean_opacity_of_thin_flakes(monkeypatch):
    """For thin flakes 1 - exp(-thickness) is about the thickness, so the mean is number times area times thickness."""
    monkeypatch.setattr(snow, "THICKNESS", 0.01)
    monkeypatch.setattr(snow, "DIAMETERS", (1.0, 1.0))
    parameters = SnowParameters(angle=0, size=8, density=3, opacity=1, defocus=0, layers=1)
    means = [flake_opacity(300, 300, dataclasses.replace(parameters, seed=seed)).mean() for seed in range(12)]
    assert np.mean(means) == pytest.approx(3 / 10_000 * math.pi * 16 * 0.01, rel=0.06)


def test_farther_layers_have_more_and_smaller_flakes():
    coverages, edges = [], []
    for layers in (1, 4):
        opacity = flake_opacity(200, 200, dataclasses.replace(PLAIN, layers=layers, defocus=0, streak=0))
        coverages.append(opacity.mean())
        edges.append(np.abs(np.diff(opacity, axis=1)).sum())
    assert coverages[1] > 1.5 * coverages[0]
    assert edges[1] / edges[0] > coverages[1] / coverages[0]  # small flakes have more edge per area


def test_defocus_softens_flakes_and_keeps_their_coverage():
    """Over several draws, since a flake at the border may move out of the image."""
    cases = [dataclasses.replace(PLAIN, defocus=d, density=4, layers=1, streak=0) for d in (0, 4)]
    sharp, soft = (
        np.stack([flake_opacity(200, 200, dataclasses.replace(case, seed=seed)) for seed in range(16)])
        for case in cases
    )
    assert soft.max() < sharp.max()
    assert np.abs(np.diff(soft)).max() < 0.6 * np.abs(np.diff(sharp)).max()
    assert soft.mean() == pytest.approx(sharp.mean(), rel=0.1)


def test_streak_kernel_blurs_only_along_its_direction():
    kernel = line_kernel(9.0, np.radians(30))
    assert kernel.sum() == pytest.approx(1) and kernel.shape[0] % 2 == 1
    rows, columns = np.mgrid[: kernel.shape[0], : kernel.shape[1]] - kernel.shape[0] // 2
    assert abs((kernel * rows).sum()) < 1e-5 and abs((kernel * columns).sum()) < 1e-5
    along = math.cos(math.radians(30)) * rows + math.sin(math.radians(30)) * columns
    # Variance of 18 points with a spacing of 1/2: (18^2 - 1) / 12 / 4. Bilinear splatting of a point at a fraction f of
    # a pixel adds f (1 - f) per axis, at most 1/4.
    points = (18**2 - 1) / 12 * 0.25
    assert points < (kernel * along**2).sum() < points + 0.25
    across = -math.sin(math.radians(30)) * rows + math.cos(math.radians(30)) * columns
    assert (kernel * across**2).sum() < 0.25


def test_drawn_snow_is_as_strong_as_in_desnowing_datasets():
    """The inputs of Snow100K, SRRS and CSD have a PSNR of about 14 to 25 dB."""
    rng = np.random.default_rng(0)
    image = np.full((128, 128, 3), 0.4, np.float32)
    decibels = [
        -10 * np.log10(np.mean((add_snow(image, draw_snow(rng, rng.uniform(0.5, 1))) - image) ** 2)) for _ in range(80)
    ]
    assert 14 < np.mean(decibels) < 25
