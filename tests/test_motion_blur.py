"""Motion blur: camera paths, kernels and blurred images."""

import dataclasses

import numpy as np
import pytest

from restormixer_arch.data.degradations.common import srgb_to_linear
from restormixer_arch.data.degradations.motion_blur import (
    MotionBlurParameters,
    add_motion_blur,
    blur_kernel,
    camera_path,
    draw_motion_blur,
)

PLAIN = MotionBlurParameters(extent=11, shake=0.2, jerk=0.03, seed=7)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("extent", [0.5, 6.0, 23.5])
def test_kernel_sums_to_1_and_has_its_center_of_mass_in_the_middle(seed, extent):
    kernel = blur_kernel(dataclasses.replace(PLAIN, extent=extent, seed=seed))
    assert kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % 2 == 1
    assert kernel.min() >= 0 and kernel.sum() == pytest.approx(1, abs=1e-5)
    rows, columns = np.mgrid[: kernel.shape[0], : kernel.shape[1]] - kernel.shape[0] // 2
    assert abs((kernel * rows).sum()) < 1e-4 and abs((kernel * columns).sum()) < 1e-4


def test_path_has_the_given_extent_and_no_jumps():
    for seed in range(5):
        rows, columns = camera_path(dataclasses.replace(PLAIN, seed=seed))
        assert max(np.ptp(rows), np.ptp(columns)) == pytest.approx(11, rel=0.02)
        steps = np.hypot(np.diff(rows), np.diff(columns))
        assert steps.max() < 0.5


def test_path_without_shake_and_jerk_is_straight():
    """Without random pushes and turns, the path is a line traversed at constant speed."""
    rows, columns = camera_path(MotionBlurParameters(extent=10, shake=0, jerk=0, seed=3))
    assert np.abs(np.linalg.svd(np.stack((rows, columns)))[1][1]) < 1e-6
    steps = np.hypot(np.diff(rows), np.diff(columns))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


@pytest.mark.parametrize("linear", [True, False])
def test_blurred_point_equals_the_kernel(linear):
    kernel = blur_kernel(PLAIN)
    half = kernel.shape[0] // 2
    image = np.zeros((41, 41, 3), np.float32)
    image[20, 20] = 1
    blurred = add_motion_blur(image, dataclasses.replace(PLAIN, linear=linear))
    light = srgb_to_linear(blurred) if linear else blurred
    wanted = np.zeros((41, 41), np.float32)
    wanted[20 - half : 21 + half, 20 - half : 21 + half] = kernel
    np.testing.assert_allclose(light, np.repeat(wanted[..., None], 3, axis=2), atol=2e-6)


def test_uniform_gray_is_unchanged():
    image = np.full((20, 30, 1), 0.6, np.float32)
    np.testing.assert_allclose(add_motion_blur(image, PLAIN), 0.6, atol=1e-5)


def test_bright_point_leaves_a_larger_trace_in_linear_light():
    image = np.full((41, 41, 3), 0.1, np.float32)
    image[20, 20] = 1
    stored, linear = (add_motion_blur(image, dataclasses.replace(PLAIN, linear=kind)) for kind in (False, True))
    assert (linear > 0.2).sum() > (stored > 0.2).sum()


def test_draws_have_the_documented_ranges():
    rng = np.random.default_rng(0)
    drawn = [draw_motion_blur(rng) for _ in range(600)]
    assert min(one.extent for one in drawn) < 1 and 28 < max(one.extent for one in drawn) <= 36
    assert 0.6 < np.mean([one.linear for one in drawn]) < 0.8
    straight = [one for one in drawn if one.shake == 0 and one.jerk == 0]
    assert 0.2 < len(straight) / 600 < 0.4 and min(one.shake for one in drawn if one not in straight) >= 0.02
    weak = [draw_motion_blur(np.random.default_rng(seed), 0.1).extent for seed in range(50)]
    assert 0.4 <= min(weak) and max(weak) <= 3.6
