"""``tests/gpu/timed_training.py`` with a tiny network on the CPU, and its replacements for missing packages."""

import sys
from argparse import Namespace
from pathlib import Path

import cv2
import einops
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "gpu"))

import stubs  # noqa: E402
import timed_training  # noqa: E402

from restormixer_arch.data.degradations.downsample import DownsampleParameters, add_downsample  # noqa: E402
from restormixer_arch.data.lmdb_io import LmdbImages  # noqa: E402
from restormixer_arch.inference.weights import load_network  # noqa: E402

SAMPLES = HERE.parent / "data/samples/rain_train_gt.lmdb"


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    path = tmp_path_factory.mktemp("pack") / "photos.pack"
    assert timed_training.pack(str(SAMPLES), path, 3 << 20) >= 4 and path.stat().st_size <= 3 << 20
    return path


def arguments(folder, crops, task):
    given = {"crops": crops, "out": folder, "task": task, "minutes": 10.0, "now": 0.0, "batch": 2, "side": 16}
    return Namespace(
        **given | {"lr": 1e-3, "amp": "bf16", "compile": False, "workers": 0, "network": "tiny", "seed": 0}
    )


def test_pack_is_lossless(crops):
    images, packed = LmdbImages(SAMPLES, "x"), timed_training.read_pack(crops)
    originals = [np.round(images.read(name)[..., ::-1] * 255).astype(np.uint8) for name in images.names]
    assert all(any(np.array_equal(image, original) for original in originals) for image in packed)
    with pytest.raises(SystemExit, match="is not a pack of pictures"):
        timed_training.read_pack(SAMPLES / "data.mdb")


@pytest.mark.parametrize("task", timed_training.TASKS)
def test_pairs_have_the_given_size_and_are_reproducible(crops, task):
    images = timed_training.read_pack(crops)
    threads = torch.get_num_threads()
    try:
        draws = [next(iter(timed_training.Pairs(images, task, 6, 32, [0, 1, 2]))) for _ in range(2)]
    finally:
        torch.set_num_threads(threads)
    (lq, gt), again = draws
    assert lq.shape == gt.shape == (6, 3, 32, 32) and lq.dtype == gt.dtype == np.uint8
    assert np.array_equal(lq, again[0]) and np.array_equal(gt, again[1])
    assert np.array_equal(lq, gt) == (task == "sr_x2")


def test_training_run_resumes_and_saves_weights_that_load_network_reads(crops, tmp_path):
    cpu = torch.device("cpu")
    training = timed_training.Training(arguments(tmp_path, crops, "mixed"), cpu)
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    lq, gt = torch.rand(2, 2, 3, 16, 16).unbind(0)
    losses = [training.step(lq, gt).item() for _ in range(2)]
    moved = {name for name, value in training.network.state_dict().items() if not torch.equal(value, before[name])}
    assert all(map(np.isfinite, losses)) and "decoder.head_full.norm.weight" in moved
    assert not any("running" in name for name in moved)  # BatchNorm is only a scale and a shift
    training.seconds = 30.0
    training.save()
    other = timed_training.Training(arguments(tmp_path, crops, "mixed"), cpu)
    assert (other.seconds, other.iteration) == (30.0, 2)
    for one in (training, other):
        one.step(lq, gt)
    for name, value in training.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[name]), name
    with pytest.raises(SystemExit, match="is a training of mixed, not of derain"):
        timed_training.Training(arguments(tmp_path, crops, "derain"), cpu)
    path = tmp_path / "restormixer_mixed.safetensors"
    tensors = load_file(path)
    network = load_network(path)
    assert tensors["restormixer_options.encoder_heads"].tolist() == [1, 1] and network(lq).shape == lq.shape
    saved = torch.load(tmp_path / "state.pth", weights_only=True)["average"]
    assert all(torch.equal(tensors[name], value) for name, value in saved.items())


def test_step_that_is_not_finite_does_not_change_the_network(crops, tmp_path):
    training = timed_training.Training(arguments(tmp_path, crops, "derain"), torch.device("cpu"))
    lq, gt = torch.rand(2, 2, 3, 16, 16).unbind(0)
    training.step(lq, gt)
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    training.step(lq, gt * torch.nan)
    assert all(torch.equal(value, before[name]) for name, value in training.network.state_dict().items())


def test_learning_rate_follows_the_training_time(crops, tmp_path):
    training = timed_training.Training(arguments(tmp_path, crops, "derain"), torch.device("cpu"))
    assert training.rate() == pytest.approx(1e-3 / 200)
    training.iteration = 1000
    assert training.rate() == pytest.approx(1e-3)
    training.seconds = 300.0
    assert training.rate() == pytest.approx(5e-4, rel=0.01)
    training.seconds = 900.0
    assert training.rate() == pytest.approx(1e-6)


def test_super_resolution_inputs_match_matlab_except_at_the_edges(crops):
    gt = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    array = gt.transpose(2, 0, 1)[None].copy()
    lq, same = timed_training.on_device((array, array), torch.device("cpu"), 2)
    wanted = add_downsample(gt.astype(np.float32) / 255, DownsampleParameters(2))
    difference = np.abs(lq[0].permute(1, 2, 0).numpy() - wanted)[3:-3, 3:-3]
    assert difference.max() <= 0.51 / 255 and torch.equal(same, torch.from_numpy(array).float() / 255)


# --- replacements for missing packages --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "pattern", "sizes"),
    [
        ((2, 4, 6, 5), "b (rows i) (columns j) c -> (b rows columns) (i j) c", {"i": 2, "j": 3}),
        ((2, 4, 6, 5), "b h w c -> b c h w", {}),
        ((3, 4, 5), "k e d -> (k e) d", {}),
        ((2, 3, 4, 10), "b h w (k e) -> b h w k e", {"k": 2}),
        ((3, 7, 24), "g t (three heads c) -> three g heads t c", {"three": 3, "heads": 2}),
    ],
)
def test_rearrange_matches_einops(shape, pattern, sizes):
    x = torch.randn(shape)
    assert torch.equal(stubs.rearrange(x, pattern, **sizes), einops.rearrange(x, pattern, **sizes))


def test_filters_and_resize_match_opencv():
    rng = np.random.default_rng(0)
    image, kernel = rng.random((40, 33, 3), np.float32), rng.random((7, 7), np.float32)
    for border, name in ((cv2.BORDER_REFLECT, "reflect"), (cv2.BORDER_REFLECT_101, "reflect 101")):
        pairs = [(cv2.filter2D(image, -1, kernel, borderType=border), stubs.filter2D(image, -1, kernel, name))]
        for sigma in (0.4, 1.3, 3.0):
            plane = image[..., 0]
            blurred = cv2.GaussianBlur(plane, (0, 0), sigma, borderType=border)
            pairs.append((blurred, stubs.GaussianBlur(plane, (0, 0), sigma, name)))
        for wanted, found in pairs:
            np.testing.assert_allclose(found, wanted, atol=1e-5)
    coarse = rng.standard_normal((4, 4)).astype(np.float32)
    wanted = cv2.resize(coarse, (33, 40), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(stubs.resize(coarse, (33, 40), 2), wanted, atol=1e-5)
