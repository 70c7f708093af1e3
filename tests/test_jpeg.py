"""JPEG compression with OpenCV."""

import cv2
import numpy as np
import pytest

from restormixer_arch.data.degradations.jpeg import JpegParameters, add_jpeg, draw_jpeg


def smooth(channels=3):
    image = np.random.default_rng(0).uniform(0, 1, (48, 40, channels)).astype(np.float32)
    return cv2.GaussianBlur(image, (0, 0), 4).reshape(48, 40, channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_best_quality_changes_little(channels):
    image = smooth(channels)
    result = add_jpeg(image, JpegParameters(quality=100))
    assert np.abs(result - image).max() < (1.6 if channels == 1 else 5) / 255  # color is at half resolution
    np.testing.assert_allclose(result * 255, np.round(result * 255), atol=1e-4)


def test_color_channels_are_not_swapped():
    image = np.zeros((16, 16, 3), np.float32)
    image[..., 0] = 0.8
    np.testing.assert_allclose(add_jpeg(image, JpegParameters(95)).mean(axis=(0, 1)), [0.8, 0, 0], atol=0.02)


def test_color_is_stored_at_half_the_resolution():
    """A checkerboard of red and green of equal luma: its colors mix, which they would not with 4:4:4."""
    rows, columns = np.mgrid[:32, :32]
    red = ((rows + columns) % 2).astype(np.float32)
    image = np.stack((red * 0.587, (1 - red) * 0.299, np.zeros_like(red)), axis=2)
    result = add_jpeg(image, JpegParameters(100))
    assert result[..., 0].std() < 0.25 * image[..., 0].std()


def test_lower_quality_gives_larger_errors():
    image = smooth()
    errors = [np.mean((add_jpeg(image, JpegParameters(quality)) - image) ** 2) for quality in (95, 50, 10)]
    assert errors[0] < errors[1] < errors[2]


def test_strength_determines_the_quality():
    rng = np.random.default_rng(0)
    assert [draw_jpeg(rng, strength).quality for strength in (0.0, 0.1, 0.5, 1.0)] == [None, 91, 55, 10]
    drawn = [draw_jpeg(rng).quality for _ in range(200)]
    assert 10 <= min(drawn) < 20 and 90 < max(drawn) <= 100
