"""Second-order blind degradation: each step against an independent computation, and properties of the result."""

import dataclasses
import json

import cv2
import numpy as np
import pytest

from restormixer_arch.data.degradations.blind import BlindParameters, Order, add_blind, blur_kernel, draw_blind
from restormixer_arch.data.degradations.compose import (
    add_composition,
    compositions_of,
    compositions_text,
    draw_composition,
)
from restormixer_arch.data.degradations.jpeg import JpegParameters, add_jpeg
from restormixer_arch.errors import UserError

NONE = Order()
GRAY = np.full((64, 64, 3), 0.5, np.float32)


def picture(height=48, width=60):
    image = cv2.GaussianBlur(np.random.default_rng(0).uniform(0, 1, (height, width, 3)), (0, 0), 2)
    return ((image - image.min()) / (image.max() - image.min())).astype(np.float32)


def test_gaussian_kernel_is_an_outer_product():
    """At angle 0, the first standard deviation is the horizontal one."""
    places = np.arange(-10, 11)
    lines = [np.exp(-(places**2) / (2 * sigma**2)) for sigma in (2.0, 0.7)]
    wanted = np.outer(lines[1], lines[0])
    assert np.allclose(blur_kernel(Order(sigma=(2.0, 0.7))), wanted / wanted.sum(), atol=1e-6)


@pytest.mark.parametrize("kernel", ["gaussian", "generalized", "plateau"])
def test_blur_preserves_the_sum_and_spreads_a_point_symmetrically(kernel):
    image = np.zeros((61, 61, 1), np.float32)
    image[30, 30] = 1
    result = add_blind(image, BlindParameters(Order(kernel=kernel, sigma=(1.5, 0.5), angle=0.4, beta=1.5), NONE))
    assert result.sum() == pytest.approx(1, abs=1e-4)
    assert np.allclose(result, result[::-1, ::-1], atol=1e-6)


def test_color_and_gray_noise_have_the_given_standard_deviation():
    result = add_blind(GRAY, BlindParameters(NONE, Order(noise=0.1, seed=3))) - GRAY
    assert result.std() == pytest.approx(0.1, rel=0.03) and not np.array_equal(result[..., 0], result[..., 1])
    result = add_blind(GRAY, BlindParameters(Order(photon=0.01, gray=True, seed=3), NONE)) - GRAY
    assert result.std() == pytest.approx(np.sqrt(0.01 * 0.5), rel=0.05) and np.allclose(result[..., 0], result[..., 2])


def test_resizing_matches_opencv():
    image = picture()
    small = cv2.resize(image, (30, 24), interpolation=cv2.INTER_AREA)
    wanted = np.clip(cv2.resize(small, (60, 48), interpolation=cv2.INTER_CUBIC), 0, 1)
    # The second order restores the size with its own interpolation, so the final resizing has no effect.
    parameters = BlindParameters(Order(factor=0.5, interpolation="area"), NONE, interpolation="bilinear")
    assert np.allclose(add_blind(image, parameters), wanted)


@pytest.mark.parametrize("sinc_first", [True, False])
def test_final_sinc_filter_is_applied_before_or_after_the_second_jpeg(sinc_first):
    def ring(image):
        return add_blind(image, BlindParameters(NONE, NONE, cutoff=1.2))

    image, jpeg = picture(), JpegParameters(20)
    assert not np.allclose(ring(image), image, atol=0.01)
    found = add_blind(image, BlindParameters(NONE, Order(quality=20), cutoff=1.2, sinc_first=sinc_first))
    assert np.allclose(found, add_jpeg(ring(image), jpeg) if sinc_first else ring(add_jpeg(image, jpeg)), atol=1e-6)


def test_draws_have_the_documented_ranges_and_advance_the_generator_equally():
    drawn = [draw_blind(np.random.default_rng(seed), 1.0) for seed in range(200)]
    orders = [one.first for one in drawn]
    assert 0.05 < np.mean([order.kernel == "sinc" for order in orders]) < 0.16
    assert np.pi / 5 < min(order.cutoff for order in orders) < np.pi / 3 < max(order.cutoff for order in orders)
    assert min(one.cutoff for one in drawn if one.cutoff is not None) > np.pi / 3
    assert min(order.factor for order in orders) >= 0.15 and max(order.factor for order in orders) <= 1.5
    assert all((order.noise > 0) != (order.photon > 0) for order in orders)
    assert all(30 <= order.quality <= 95 for order in orders)
    assert 0.7 < np.mean([one.cutoff is not None for one in drawn]) < 0.9
    generators = [np.random.default_rng(4) for _ in range(3)]
    for rng, strength in zip(generators, (None, 0.0, 0.7), strict=True):
        draw_blind(rng, strength)
    assert all(rng.bit_generator.state == generators[0].bit_generator.state for rng in generators)


def test_isotropic_kernels_have_the_shares_of_basicsr():
    """BasicSR's kernel_prob: isotropic and anisotropic Gaussians 0.45 and 0.25, each of the others 0.12 and 0.03."""
    drawn = [draw_blind(np.random.default_rng(seed), 1.0) for seed in range(3000)]
    orders = [order for one in drawn for order in (one.first, one.second) if order.kernel != "sinc"]
    for kernel, share in (("gaussian", 0.45 / 0.7), ("generalized", 0.12 / 0.15), ("plateau", 0.12 / 0.15)):
        found = [
            order.sigma[0] == order.sigma[1] for order in orders if order.kernel == kernel and max(order.sigma) > 0
        ]
        assert len(found) > 600 and abs(np.mean(found) - share) < 3.5 * np.sqrt(share * (1 - share) / len(found))


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_output_size_value_range_and_json_round_trip(scale):
    image = picture(40, 52)
    for seed in range(6):
        composition = draw_composition(np.random.default_rng(seed), "blind", 1.0, scale)
        result = add_composition(image, composition)
        assert result.shape == (40 // scale, 52 // scale, 3) and result.dtype == np.float32
        assert result.min() >= 0 and result.max() <= 1
        text = compositions_text({"blind": {"a": composition}})
        assert compositions_of(json.loads(text))["blind"]["a"] == composition


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": "box"}, "kernel must be one of gaussian, generalized, plateau, sinc, got 'box'"),
        ({"interpolation": "nearest"}, "interpolation must be one of area, bilinear, bicubic, got 'nearest'"),
        ({"sigma": (1.0, -1.0)}, "sigma must not be negative"),
        ({"factor": 0.0}, "factor must be positive, got 0"),
    ],
)
def test_invalid_parameters(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(NONE, **change)


def test_invalid_scales_and_labels():
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        BlindParameters(NONE, NONE, scale=0)
    with pytest.raises(ValueError, match="multiples of scale 3, got 64x64"):
        add_blind(GRAY, BlindParameters(NONE, NONE, scale=3))
    with pytest.raises(UserError, match="'down_blind' is not a degradation label: 'blind' downsamples itself"):
        draw_composition(np.random.default_rng(0), "down_blind", scale=2)
