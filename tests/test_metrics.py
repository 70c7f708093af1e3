"""The metrics compared with scikit-image, plain formulas and manually computed values."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from restormixer_arch import cli
from restormixer_arch.basicsr_adapter import register
from restormixer_arch.errors import UserError
from restormixer_arch.models import metrics

register.register()

from basicsr.metrics import calculate_metric  # noqa: E402 - BasicSR can be imported only now
from basicsr.utils.matlab_functions import imresize  # noqa: E402

NAMES = [
    "calculate_psnr_y_matlab",
    "calculate_ssim_y_matlab",
    "calculate_psnr_rgb",
    "calculate_ssim_skimage",
    "calculate_ssim_pooled",
]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_enlarge_matches_imresize_of_matlab(scale):
    """The result equals BasicSR's imresize except near the edges, where MATLAB mirrors the image."""
    image = noisy_pair(20)[0].astype(np.float32) / 255
    lq = torch.from_numpy(image).permute(2, 0, 1)[None]
    size = (scale * image.shape[0], scale * image.shape[1])
    enlarged = metrics.enlarge(lq, size)[0].permute(1, 2, 0).numpy()
    inner = np.s_[2 * scale : -2 * scale, 2 * scale : -2 * scale]
    np.testing.assert_allclose(enlarged[inner], imresize(image, scale)[inner], atol=1e-5)
    assert metrics.enlarge(lq, image.shape[:2]) is lq


def noisy_pair(sigma, shape=(64, 80, 3), seed=0):
    """Return a smooth image with and without noise, BGR uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    waves = [110 + 60 * np.sin(rows / 9 + k) * np.cos(columns / 11 - k) for k in range(3)]
    clean = np.stack(waves, axis=2)[..., : shape[2] if len(shape) == 3 else 1]
    noise = rng.normal(0, sigma, clean.shape)
    first, second = (np.clip(np.round(image), 0, 255).astype(np.uint8) for image in (clean + noise, clean))
    return first, second


def measure(kind, first, second, **options):
    return calculate_metric({"img": first, "img2": second}, {"type": kind, **options})


# --- luma ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rgb", "value"),
    [((0, 0, 0), 16), ((255, 255, 255), 235), ((255, 0, 0), 81), ((0, 255, 0), 145), ((0, 0, 255), 41)],
)
def test_luma_matches_matlab(rgb, value):
    """Red, green and blue: 16 + 65.481 = 81.48, 16 + 128.553 = 144.55 and 16 + 24.966 = 40.97, each rounded."""
    assert metrics.luma(np.array([[rgb[::-1]]], dtype=np.uint8)).tolist() == [[value]]


def test_psnr_y_uses_the_rounded_luma():
    """Black and (10, 10, 10) have luma 16 and 16 + 219 * 10 / 255 = 24.59, rounded to 25: error 9, not 8.59."""
    black, grey = np.zeros((12, 12, 3), np.uint8), np.full((12, 12, 3), 10, np.uint8)
    assert measure("calculate_psnr_y_matlab", black, grey) == pytest.approx(20 * math.log10(255 / 9), abs=1e-9)
    unrounded = measure("calculate_psnr", black, grey, crop_border=0, test_y_channel=True)
    assert unrounded == pytest.approx(20 * math.log10(255 / (219 * 10 / 255)), abs=1e-4)


@pytest.mark.parametrize(("sigma", "level", "offset"), [(7.9, 35, 0.03), (1.96, 47, 0.5)])
def test_psnr_of_basicsr_with_unrounded_luma_is_higher(sigma, level, offset):
    """Rounding adds an error with variance 1/12 to each image, and with variance 1/6 to their difference."""
    pair = noisy_pair(sigma)
    rounded = measure("calculate_psnr_y_matlab", *pair)
    unrounded = measure("calculate_psnr", *pair, crop_border=0, test_y_channel=True)
    assert rounded == pytest.approx(level, abs=0.7)
    expected = 10 * math.log10(1 + 1 / 6 / (255**2 / 10 ** (unrounded / 10)))
    assert expected == pytest.approx(offset, rel=0.25)
    assert unrounded - rounded == pytest.approx(expected, rel=0.25)


# --- against other implementations ----------------------------------------------------------------------------------


def test_psnr_rgb_matches_scikit_image():
    first, second = noisy_pair(7.0)
    assert measure("calculate_psnr_rgb", first, second) == pytest.approx(peak_signal_noise_ratio(second, first))


@pytest.mark.parametrize("shape", [(64, 80, 3), (7, 9, 3), (31, 32, 1)])
def test_ssim_skimage_matches_scikit_image(shape):
    first, second = noisy_pair(12.0, shape)
    expected = structural_similarity(first, second, channel_axis=2, data_range=255)
    assert measure("calculate_ssim_skimage", first, second) == pytest.approx(expected, abs=1e-9)


def test_ssim_y_matches_scikit_image_with_an_11x11_gaussian():
    first, second = (metrics.luma(image) for image in noisy_pair(12.0))
    options = {"gaussian_weights": True, "sigma": 1.5, "truncate": 3.5, "use_sample_covariance": False}
    expected = structural_similarity(first, second, data_range=255, **options)
    assert measure("calculate_ssim_y_matlab", *noisy_pair(12.0)) == pytest.approx(expected, abs=1e-9)


def plain_pooled_ssim(first, second, ratio):
    """Compute the formula with torch's convolutions on RGB (1, C, H, W) in [0, 1]."""
    x, y = (torch.from_numpy(image[..., ::-1] / 255.0).permute(2, 0, 1)[None] for image in (first, second))
    size = (x.shape[2] // ratio, x.shape[3] // ratio)
    x, y = F.adaptive_avg_pool2d(x, size), F.adaptive_avg_pool2d(y, size)
    line = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(line, line)
    window = (window / window.sum()).expand(3, 1, 11, 11)

    def mean(image):
        return F.conv2d(image, window, groups=3)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    values = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    return float(values.mean())


@pytest.mark.parametrize(("size", "ratio"), [((60, 70), 1), ((384, 500), 2), ((640, 641), 2), ((700, 801), 3)])
def test_pooled_ssim_downsamples_by_the_rounded_ratio(size, ratio):
    """384 / 256 = 1.5 and 640 / 256 = 2.5 are both rounded to 2, since Python rounds half to even."""
    pair = noisy_pair(20.0, (*size, 3))
    value = measure("calculate_ssim_pooled", *pair)
    assert value == pytest.approx(plain_pooled_ssim(*pair, ratio), abs=1e-9)


# --- edge cases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_identical_images_have_infinite_psnr_and_ssim_1(name):
    image, _ = noisy_pair(5.0)
    assert measure(name, image, image.copy(), better="higher") == (math.inf if "psnr" in name else 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_crop_border_is_removed(name):
    first, second = noisy_pair(5.0)
    inner = measure(name, first[4:-4, 4:-4], second[4:-4, 4:-4])
    assert measure(name, first, second, crop_border=4) == inner != measure(name, first, second)


@pytest.mark.parametrize("name", NAMES)
def test_gray_image_is_its_own_luma(name):
    first, second = (image[..., 0] for image in noisy_pair(5.0, (40, 40, 1)))
    assert measure(name, first, second) == measure(name, first[..., None], second[..., None])
    if "psnr" in name:
        assert measure(name, first, second) == pytest.approx(peak_signal_noise_ratio(second, first))


@pytest.mark.parametrize("name", NAMES)
def test_invalid_images_are_rejected(name):
    image = np.zeros((20, 21, 3), np.uint8)
    with pytest.raises(UserError, match=r"shape \(20, 21, 3\), the ground truth \(20, 20, 3\)"):
        measure(name, image, image[:, :20])
    with pytest.raises(UserError, match="must be uint8, got float32"):
        measure(name, image.astype(np.float32), image)
    with pytest.raises(UserError, match=r"crop_border is 10, which leaves no pixels of an image \(20, 21\)"):
        measure(name, image, image, crop_border=10)
    if "ssim" in name:
        with pytest.raises(UserError, match=r"SSIM needs images of at least \d+x\d+, got 6x21"):
            measure(name, image[:6], image[:6])


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"type": "calculate_psnr", "crop_border": 10}, (20, 30), "crop_border 10 leaves no pixels"),
        ({"type": "calculate_ssim", "crop_border": -1}, (20, 30), "crop_border -1 leaves no pixels"),
        ({"type": "calculate_niqe", "crop_border": 0}, (95, 400), "NIQE needs at least 96 x 192 pixels, got 95 x 400"),
        ({"type": "calculate_niqe", "crop_border": 1}, (97, 400), "NIQE needs at least 96 x 192 pixels, got 95 x 398"),
        ({"type": "calculate_niqe", "crop_border": 0}, (191, 96), "NIQE needs at least 96 x 192 pixels, got 191 x 96"),
    ],
)
def test_images_too_small_for_a_metric_are_rejected(options, size, message):
    image = np.zeros((*size, 3), np.uint8)
    with pytest.raises(UserError) as error:
        metrics.measure({"m": options}, image, image, "a", "set")
    assert str(error.value) == f"val.metrics.m: cannot measure 'a' of set {size}: {message}"


def fails_with(error, monkeypatch):
    """Make every metric raise ``error``, and return the reason in the resulting message."""

    def fail(data, options):
        raise error

    monkeypatch.setattr(metrics, "calculate_metric", fail)
    image = np.zeros((8, 9, 3), np.uint8)
    with pytest.raises(UserError) as said:
        metrics.measure({"m": {"type": "x"}}, image, image, "a")
    return str(said.value).removeprefix("val.metrics.m: cannot measure 'a' (8, 9): ")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            AttributeError("'numpy.ndarray' object has no attribute 'to'"),
            "'numpy.ndarray' object has no attribute 'to'",
        ),
        (TypeError("'<' not supported"), "'<' not supported"),
        (
            cv2.error("OpenCV(4.9) a.cpp:1: error: (-215)\n> Overload:\n"),
            "OpenCV(4.9) a.cpp:1: error: (-215) > Overload:",
        ),
    ],
    ids=["AttributeError", "TypeError", "cv2.error"],
)
def test_failing_metric_is_reported_in_one_line(monkeypatch, error, reason):
    assert fails_with(error, monkeypatch) == reason


@pytest.mark.parametrize("kind", ["psnr", "ssim"])
def test_tensor_metrics_are_rejected_before_training(pairs, train_options, write, capsys, kind):
    train_options["val"]["metrics"] = {"m": {"type": f"calculate_{kind}_pt", "crop_border": 0}}
    assert cli.main(["train", "-opt", write(train_options)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        f"val.metrics.m.type: 'calculate_{kind}_pt' is not a known metric of images. Did you mean 'calculate_{kind}'?"
        in last
    )


def test_niqe_of_the_smallest_image_is_finite():
    image = np.random.default_rng(0).integers(0, 256, (192, 96, 3), dtype=np.uint8)
    assert 0 < metrics.measure({"m": {"type": "calculate_niqe", "crop_border": 0}}, image, None, "a")["m"] < 1000


def test_nan_result_gives_a_warning(monkeypatch, capsys):
    monkeypatch.setattr(metrics, "calculate_metric", lambda data, options: math.nan)
    image = np.zeros((8, 8, 3), np.uint8)
    assert math.isnan(metrics.measure({"m": {"type": "x"}}, image, image, "a", "d")["m"])
    wanted = "basicsr: warning: val.metrics.m: cannot measure 'a' of d: the result is not a number (NaN)\n"
    assert capsys.readouterr().err == wanted


def test_undefined_niqe_of_a_flat_image_gives_a_warning(capsys):
    flat = np.zeros((192, 192, 3), np.uint8)
    assert math.isnan(metrics.measure({"m": {"type": "calculate_niqe", "crop_border": 0}}, flat, None, "a")["m"])
    assert "val.metrics.m: cannot measure 'a'" in capsys.readouterr().err
