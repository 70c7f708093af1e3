"""The installed weights perform as the model card states, on photographs that they were not trained on."""

from __future__ import annotations

import csv
import json

import cv2
import numpy as np
import pytest
from test_samples import SAMPLES

import restormixer_arch
from restormixer_arch.data.degradations.compose import add_composition, compositions_of
from restormixer_arch.data.images.picture import read_picture
from restormixer_arch.data.preparation.sub_images import reduce_image
from restormixer_arch.inference.installed import BF16_TASKS, WEIGHTS_FOLDER, installed_tasks, installed_weights
from restormixer_arch.inference.weights import load_network

PHOTOGRAPHS = ("budgie-backgrounds__perched-osprey", "budgie-backgrounds__roman-colosseum")


def sample(kind, name):
    return read_picture(SAMPLES / "pictures" / kind / f"{name}.png").pixels / np.float32(255)


def reduced(name, scale):
    """Return a clean sample whose sides are multiples of the scale, and the same image downsampled."""
    clean = sample("clean", name)
    clean = clean[: clean.shape[0] // scale * scale, : clean.shape[1] // scale * scale]
    return clean, reduce_image(np.round(clean * 255).astype(np.uint8), scale).astype(np.float32) / 255


def psnr(image, truth):
    return 10 * np.log10(1 / np.mean((image.astype(np.float64) - truth) ** 2))


def test_installed_tasks_have_the_expected_network_size_and_scale():
    enlarging = {"sr_x2": (543_534, 2), "sr_x3": (545_724, 3), "sr_x4": (548_790, 4)}
    assert installed_tasks() == ["deblur", "dehaze", "denoise", "derain", "desnow", "low_light", "mixed", *enlarging]
    for task in installed_tasks():
        assert installed_weights(task).stat().st_size < 6e6
        network = load_network(installed_weights(task))
        parameters = sum(parameter.numel() for parameter in network.parameters())
        assert (parameters, network.upscale) == enlarging.get(task, (542_220, 1))
    card = (WEIGHTS_FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "`restormixer_s_<task>.safetensors`" in card and all(f"| [`{task}`](#" in card for task in installed_tasks())


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_are_held_out_from_training(name):
    with (SAMPLES.parent / "preparation" / "photos.tsv").open(encoding="utf-8", newline="") as file:
        parts = {row["file"]: row["part"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    assert parts[f"{name}.png"] == "test"


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_rain_is_removed(name):
    rainy, clean = sample("rainy", name), sample("clean", name)
    assert psnr(restormixer_arch.restore(rainy), clean) > psnr(rainy, clean) + 5


@pytest.mark.parametrize(
    ("task", "label", "least"),
    [
        ("mixed", "low", 3),
        ("mixed", "rain", 3),
        ("mixed", "low_rain", 3),
        ("desnow", "snow", 3),
        ("dehaze", "haze", 3),
        ("low_light", "low", 3),
        ("deblur", "blur", 0.3),
        ("deblur", "defocus", 1),
    ],
)
def test_degradations_are_reduced(task, label, least):
    """The parameters are those of the task's fixed test set, drawn from the same ranges as in training."""
    pairs = json.loads((SAMPLES.parent / "preparation/photos_pairs.json").read_text(encoding="utf-8"))
    recorded = compositions_of(pairs[f"test_{task}"])[label]
    gains = []
    for name in PHOTOGRAPHS:
        clean = sample("clean", name)
        degraded = add_composition(clean, recorded[name])
        restored = restormixer_arch.restore(degraded.astype(np.float32), task=task)
        gains.append(psnr(restored, clean) - psnr(degraded, clean))
    assert np.mean(gains) > least


def test_real_haze_is_reduced():
    """The dark channel (He et al., CVPR 2009) is 0 in a clear image, and the light of the haze in a hazy one."""
    hazy = read_picture(SAMPLES / "pictures/hazy/aerial.jpg").pixels / np.float32(255)
    clear = np.clip(restormixer_arch.restore(hazy, task="dehaze"), 0, 1)
    dark = [np.median(cv2.erode(image.min(axis=2), np.ones((15, 15), np.uint8))) for image in (hazy, clear)]
    assert dark[1] < dark[0] - 0.05
    assert np.corrcoef(hazy.ravel(), clear.ravel())[0, 1] > 0.9


@pytest.mark.parametrize(("scale", "gain"), [(2, 1), (3, 0.7), (4, 0.5)])
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_super_resolution_has_a_higher_psnr_than_bicubic_interpolation(name, scale, gain):
    clean, small = reduced(name, scale)
    restored = restormixer_arch.restore(small, task=f"sr_x{scale}")
    bicubic = cv2.resize(small, (clean.shape[1], clean.shape[0]), interpolation=cv2.INTER_CUBIC)
    assert psnr(np.clip(restored, 0, 1), clean) > psnr(np.clip(bicubic, 0, 1), clean) + gain


@pytest.mark.parametrize(("sigma", "gain"), [(15, 4), (50, 8)])
def test_noise_is_removed(sigma, gain):
    clean = sample("clean", PHOTOGRAPHS[0])
    noise = np.random.default_rng(0).normal(0, sigma / 255, clean.shape)
    noisy = np.clip(clean + noise, 0, 1).astype(np.float32)
    restored = restormixer_arch.restore(noisy, task="denoise")
    assert psnr(np.clip(restored, 0, 1), clean) > psnr(noisy, clean) + gain


SLOW_IN_BF16 = {task: pytest.mark.slow for task in BF16_TASKS if task != "sr_x2"}  # sr_x2 is the fastest


@pytest.mark.parametrize("task", [pytest.param(t, marks=SLOW_IN_BF16.get(t, ())) for t in BF16_TASKS])
def test_bfloat16_loses_less_than_0_02_db(task):
    """``precision="auto"`` relies on this. CPUs without bfloat16 compute the same values, but slowly."""
    losses = []
    for name in PHOTOGRAPHS:
        clean, degraded = sample("clean", name), sample("rainy", name)
        if task.startswith("sr_"):
            clean, degraded = reduced(name, int(task[-1]))
        full, half = (restormixer_arch.restore(degraded, task=task, precision=p) for p in ("fp32", "bf16"))
        assert not np.array_equal(full, half)
        losses.append(psnr(full, clean) - psnr(half, clean))
    assert np.mean(losses) < 0.02
