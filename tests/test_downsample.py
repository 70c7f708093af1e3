"""Downsampling equals BasicSR's imresize, which equals MATLAB's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.data.degradations.downsample import (
    DownsampleParameters,
    add_downsample,
    taps,
)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_downsample_equals_basicsr_imresize(scale, channels):
    compat.apply()
    from basicsr.utils.matlab_functions import imresize

    image = np.random.default_rng(0).uniform(0, 1, (36, 48, channels)).astype(np.float32)
    wanted = np.clip(imresize(image, 1 / scale), 0, 1)
    result = add_downsample(image, DownsampleParameters(scale))
    assert result.dtype == np.float32 and result.shape == (36 // scale, 48 // scale, channels)
    np.testing.assert_allclose(result, wanted, atol=2e-6)


def test_weights_for_scale_2_equal_the_cubic_kernel():
    """Cubic kernel (a = -0.5) at distances of 0.25 to 1.75 output pixels from the new center, halved."""
    weights, places = taps(16, 2)
    inner = np.zeros(16)
    np.add.at(inner, places[4], weights[4])

    def cubic(x):
        return 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2

    half = [cubic(0.25) / 2, cubic(0.75) / 2, cubic(1.25) / 2, cubic(1.75) / 2]
    np.testing.assert_allclose(inner[5:13], half[::-1] + half, atol=1e-6)
    assert not inner[:5].any() and not inner[13:].any()


@settings(max_examples=30)
@given(scale=st.integers(1, 4), height=st.integers(1, 9), width=st.integers(1, 9), channels=st.sampled_from([1, 3]))
def test_uniform_gray_is_preserved_at_every_size(scale, height, width, channels):
    """BasicSR's imresize fails if the kernel reaches beyond the mirrored image."""
    image = np.full((height * scale, width * scale, channels), 0.4, np.float32)
    result = add_downsample(image, DownsampleParameters(scale))
    assert result.shape == (height, width, channels)
    np.testing.assert_allclose(result, 0.4, atol=1e-6)


def test_scale_1_returns_an_equal_copy():
    image = np.random.default_rng(0).uniform(0, 1, (5, 7, 3)).astype(np.float32)
    result = add_downsample(image, DownsampleParameters(1))
    assert np.array_equal(result, image) and not np.shares_memory(result, image)
