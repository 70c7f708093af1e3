"""The defocus blur, compared with the geometry of its disc."""

import numpy as np
import pytest

from restormixer_arch.data.degradations.common import linear_to_srgb, srgb_to_linear
from restormixer_arch.data.degradations.defocus import DefocusParameters, add_defocus, defocus_kernel, draw_defocus


@pytest.mark.parametrize("radius", [0.3, 1.0, 2.5, 6.0])
@pytest.mark.parametrize("blades", [0, 6])
@pytest.mark.parametrize("soft", [0.0, 0.5])
def test_kernel_sums_to_one_and_is_centered(radius, blades, soft):
    kernel = defocus_kernel(DefocusParameters(radius, blades, 0.4, soft))
    assert kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % 2 == 1
    assert kernel.sum() == pytest.approx(1, abs=1e-5) and kernel.min() >= 0
    places = np.arange(len(kernel)) - len(kernel) // 2
    assert kernel.sum(1) @ places == pytest.approx(0, abs=0.05)


def test_disc_has_a_standard_deviation_of_half_its_radius():
    places = np.arange(-7, 8)
    for soft in (0.0, 1.0):  # the Gaussian of soft=1 has the same standard deviation
        kernel = defocus_kernel(DefocusParameters(6.0, soft=soft))
        assert np.sqrt(kernel.sum(1) @ places**2) == pytest.approx(3.0, rel=0.06)


def test_disc_is_uniform_and_has_the_area_of_its_radius():
    kernel = defocus_kernel(DefocusParameters(5.3))
    assert kernel[6, 6] == pytest.approx(1 / (np.pi * 5.3**2), rel=0.01)
    assert np.count_nonzero(kernel > kernel[6, 6] / 2) == pytest.approx(np.pi * 5.3**2, rel=0.04)


def test_iris_with_six_blades_has_the_area_of_a_hexagon():
    kernel = defocus_kernel(DefocusParameters(5.0, blades=6))
    assert kernel[6, 6] == pytest.approx(1 / (1.5 * np.sqrt(3) * 25), rel=0.01)


def test_linear_light_is_blurred_by_default():
    image = np.zeros((41, 41, 3), np.float32)
    image[20, 20] = 1
    result = add_defocus(image, DefocusParameters(3.0))
    wanted = linear_to_srgb(defocus_kernel(DefocusParameters(3.0)))
    np.testing.assert_allclose(result[16:25, 16:25, 1], wanted, atol=1e-5)
    assert srgb_to_linear(result).sum() == pytest.approx(3, rel=1e-3)


def test_stored_values_are_blurred_if_linear_is_false():
    image = np.zeros((41, 41, 3), np.float32)
    image[20, 20] = 1
    result = add_defocus(image, DefocusParameters(3.0, linear=False))
    np.testing.assert_allclose(result[16:25, 16:25, 1], defocus_kernel(DefocusParameters(3.0)), atol=1e-6)


def test_draws_cover_the_parameter_ranges():
    rng = np.random.default_rng(0)
    drawn = [draw_defocus(rng) for _ in range(200)]
    assert min(one.radius for one in drawn) < 0.3 and 4.5 < max(one.radius for one in drawn) <= 6
    assert {one.blades for one in drawn} == {0, 5, 6, 7, 8}
    assert 0.6 < np.mean([one.linear for one in drawn]) < 0.8
