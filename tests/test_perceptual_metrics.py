"""LPIPS, DISTS and NIQE: their definitions, and their use in option files. The backbones have random weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from test_metrics import measure, noisy_pair
from torchvision.models.vgg import cfgs, make_layers

from restormixer_arch import cli
from restormixer_arch.basicsr_adapter import register
from restormixer_arch.compare import results
from restormixer_arch.config.rules import better
from restormixer_arch.errors import UserError
from restormixer_arch.models import metrics

register.register()

from basicsr.metrics.niqe import calculate_niqe  # noqa: E402 - BasicSR can be imported only after register()

LPIPS = {"lpips": {"type": "calculate_lpips"}}


def alexnet_features():
    """Return AlexNet's features up to the last ReLU, without the classifier's 59 million parameters."""
    torch.manual_seed(0)
    conv, relu, pool = torch.nn.Conv2d, torch.nn.ReLU, torch.nn.MaxPool2d
    layers = [conv(3, 64, 11, 4, 2), relu(), pool(3, 2), conv(64, 192, 5, 1, 2), relu(), pool(3, 2)]
    layers += [conv(192, 384, 3, 1, 1), relu(), conv(384, 256, 3, 1, 1), relu(), conv(256, 256, 3, 1, 1), relu()]
    return torch.nn.Sequential(*layers)


def vgg_features():
    torch.manual_seed(0)
    return make_layers(cfgs["D"])


@pytest.fixture
def backbones(monkeypatch):
    """Replace torchvision's networks with untrained ones, which need no download."""
    pytest.importorskip("torchmetrics")
    from torchmetrics.functional.image import dists

    monkeypatch.setattr(torchvision.models, "alexnet", lambda weights: SimpleNamespace(features=alexnet_features()))
    monkeypatch.setattr(torchvision.models, "vgg16", lambda weights: SimpleNamespace(features=vgg_features()))
    monkeypatch.setattr(dists, "vgg16", lambda weights: SimpleNamespace(features=vgg_features()))
    forget()
    yield
    forget()


def forget():
    metrics._load_lpips.cache_clear()
    metrics._load_dists.cache_clear()


def unit(features):
    return features / torch.sqrt(1e-8 + (features**2).sum(1, keepdim=True))


def rgb(image):
    return torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255


def taps(layers, x, at):
    found = []
    for number, layer in enumerate(layers):
        x = layer(x)
        if number in at:
            found.append(x)
    return found


@torch.no_grad()
def test_lpips_is_the_weighted_distance_of_normalized_features(backbones):
    first, second = noisy_pair(20)
    weights = torch.load(
        Path(__import__("torchmetrics").__file__).parent / "functional/image/lpips_models/alex.pth", map_location="cpu"
    )
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    tapped = [
        taps(alexnet_features(), (2 * rgb(image) - 1 - shift[:, None, None]) / scale[:, None, None], (1, 4, 7, 9, 11))
        for image in (first, second)
    ]
    expected = sum(
        float(F.conv2d((unit(a) - unit(b)) ** 2, weights[f"lin{level}.model.1.weight"]).mean())
        for level, (a, b) in enumerate(zip(*tapped, strict=True))
    )
    assert expected > 1e-4
    assert measure("calculate_lpips", first, second) == pytest.approx(expected, rel=1e-4)
    assert measure("calculate_lpips", first, first) == 0


@torch.no_grad()
def test_dists_compares_means_and_covariances_of_features(backbones):
    from torchmetrics.functional.image.dists import _PATH_WEIGHT_DISTS, L2pooling

    first, second = noisy_pair(20)
    layers = vgg_features()
    for number, channels in ((4, 64), (9, 128), (16, 256), (23, 512)):
        layers[number] = L2pooling(channels=channels)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    tapped = [
        [rgb(image), *taps(layers, (rgb(image) - mean[:, None, None]) / std[:, None, None], (3, 8, 15, 22, 29))]
        for image in (first, second)
    ]
    a, b = (torch.cat([_moments(x) for x in images]) for images in tapped)
    products = torch.cat([(x * y).mean((0, 2, 3)) for x, y in zip(*tapped, strict=True)])
    weights = torch.load(_PATH_WEIGHT_DISTS, map_location="cpu")
    alpha, beta = weights["alpha"].flatten(), weights["beta"].flatten()
    structure = (2 * (products - a[:, 0] * b[:, 0]) + 1e-6) / (a[:, 1] + b[:, 1] + 1e-6)
    texture = (2 * a[:, 0] * b[:, 0] + 1e-6) / (a[:, 0] ** 2 + b[:, 0] ** 2 + 1e-6)
    expected = 1 - float((alpha * texture + beta * structure).sum() / (alpha.sum() + beta.sum()))
    assert expected > 1e-3
    assert measure("calculate_dists", first, second) == pytest.approx(expected, abs=2e-5)
    assert measure("calculate_dists", first, first) == pytest.approx(0, abs=1e-5)


def _moments(x):
    return torch.stack([x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)], dim=1)


@pytest.mark.parametrize("kind", ["calculate_lpips", "calculate_dists"])
def test_crop_border_gray_images_and_channel_order(backbones, kind):
    first, second = noisy_pair(20)
    inner = [np.ascontiguousarray(image[3:-3, 3:-3]) for image in (first, second)]
    assert measure(kind, first, second, crop_border=3) == pytest.approx(measure(kind, *inner), rel=1e-5)
    gray = [image[..., 0] for image in (first, second)]
    as_rgb = [np.repeat(image[..., None], 3, axis=2) for image in gray]
    assert measure(kind, *gray) == pytest.approx(measure(kind, *as_rgb), rel=1e-5)
    turned = [image[..., ::-1] for image in (first, second)]
    assert measure(kind, *turned) != measure(kind, first, second)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("calculate_lpips", {"net": "alexnet"}, "net of LPIPS is 'alexnet', expected alex, vgg, squeeze. Did you mean"),
        ("calculate_lpips", {"crop_border": 20}, "LPIPS needs images of at least 32x32, got 24x40"),
        ("calculate_dists", {"crop_border": 20}, "DISTS needs images of at least 32x32, got 24x40"),
    ],
)
def test_unknown_networks_and_too_small_images_are_rejected(backbones, kind, options, message):
    with pytest.raises(UserError, match=message):
        measure(kind, *noisy_pair(20), **options)


# --- in option files -------------------------------------------------------------------------------------------------


@pytest.fixture
def larger(pairs, train_options):
    """Two pairs that are large enough for the networks and for NIQE's blocks."""
    rng = np.random.default_rng(0)
    for number in range(2):
        image = cv2.resize(rng.integers(0, 256, (40, 40, 3), np.uint8), (104, 200), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(f"pairs/gt/{number}.png", image)
        noise = rng.normal(0, 20, image.shape)
        cv2.imwrite(f"pairs/lq/{number}.png", np.clip(image + noise, 0, 255).astype(np.uint8))
    for number in range(2, 6):
        Path(f"pairs/gt/{number}.png").unlink()
        Path(f"pairs/lq/{number}.png").unlink()
    train_options["datasets"]["train"]["batch_size_per_gpu"] = 2


def all_metrics():
    return {
        "psnr": {"type": "calculate_psnr_rgb"},
        "lpips": {"type": "calculate_lpips"},
        "dists": {"type": "calculate_dists", "crop_border": 4},
        "niqe": {"type": "calculate_niqe", "crop_border": 4},
    }


@pytest.mark.parametrize("model", ["SRModel", "RestorMixerModel"])
def test_training_run_validates_and_keeps_the_weights_with_the_lowest_values(
    larger, backbones, train_options, write, capsys, model
):
    train_options["val"] |= {"metrics": all_metrics(), "val_freq": 1, "save_img": True}
    train_options["train"] |= {"total_iter": 2, "optim_g": {"type": "Adam", "lr": 0.02}}
    train_options["model_type"] = model
    assert cli.main(["train", "-opt", write(train_options)]) == 0
    rows = Path("experiments/tiny/validations.csv").read_text().splitlines()
    values = {}
    names = rows[0].split(",")
    for row in rows[1:]:
        values[int(row.split(",")[0])] = dict(zip(names, row.split(","), strict=True))
    log = next(Path("experiments/tiny").glob("train_*.log")).read_text()
    for metric in ("lpips", "dists", "niqe"):
        column = {iteration: float(row[metric]) for iteration, row in values.items()}
        best = min(column, key=column.get)
        assert f"Best: {column[best]:.4f} @ {best} iter" in log
        assert Path(f"experiments/tiny/models/net_g_best_pairs_val_{metric}.pth").is_file()
    image = cv2.imread("experiments/tiny/visualization/0/0_2.png")
    other = cv2.imread("experiments/tiny/visualization/1/1_2.png")
    mean = (calculate_niqe(image, 4) + calculate_niqe(other, 4)) / 2
    assert float(values[2]["niqe"]) == pytest.approx(mean)


@pytest.mark.filterwarnings("ignore:distutils Version")  # thop
def test_test_and_compare_commands_measure_perceptual_metrics(
    larger, backbones, train_options, test_options, write, capsys, monkeypatch
):
    from compare_cases import compare_options

    from restormixer_arch.compare import jobs, run

    assert cli.main(["train", "-opt", write(train_options)]) == 0
    test_options["val"]["metrics"] = all_metrics()
    assert cli.main(["test", "-opt", write(test_options)]) == 0
    out = capsys.readouterr().out
    assert "LPIPS 0." in out and "DISTS 0." in out and "NIQE " in out
    options = compare_options()
    options["val"]["metrics"] = all_metrics()
    weights = "experiments/tiny/models/net_g_latest.pth"
    options["competitors"] = {"a": {"network_g": train_options["network_g"], "weights": weights}}
    del options["train"], options["datasets"]["train"]
    monkeypatch.setattr(run, "run_in_process", lambda module, job, label: jobs.run_job(job))
    assert cli.main(["compare", "-opt", write(options)]) == 0
    comparison = results.read(Path("results/tiny"))
    assert {name: metric.better for name, metric in comparison.metrics.items()} == {
        "psnr": "higher", "lpips": "lower", "dists": "lower", "niqe": "lower",
    }  # fmt: skip
    restored = cv2.imread("results/tiny/restored/pairs_test/a/0.png")
    truth = cv2.imread("pairs/gt/0.png")
    value = comparison.datasets[0].pictures[0].values["lpips"]["a"]
    assert value == pytest.approx(metrics.calculate_lpips(restored, truth), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "file"), [("calculate_lpips", "alexnet-owt-7be5be79.pth"), ("calculate_dists", "vgg16-397923af.pth")]
)
@pytest.mark.parametrize("command", ["train", "test"])
def test_failed_download_of_weights_is_reported(
    pairs, train_options, test_options, write, capsys, monkeypatch, kind, file, command
):
    pytest.importorskip("torchmetrics")

    def fail(url, *arguments, **options):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(pairs / "torch"))
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    forget()
    options = train_options if command == "train" else test_options
    options["model_type"], options["val"]["metrics"] = "RestorMixerModel", {"deep": {"type": kind}}
    options["path"] = {}
    assert cli.main([command, "-opt", write(options)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    place = f"{pairs}/torch/hub/checkpoints/{file}"
    assert error.startswith(
        f"basicsr: error: {kind[10:].upper()}: needs the weights {place}, which cannot be downloaded"
    )
    assert "(no network); put them there yourself, or set TORCH_HOME" in error
    assert not list(Path("experiments").rglob("net_g_*.pth")) if command == "train" else True


@pytest.mark.parametrize("kind", ["calculate_lpips", "calculate_dists"])
def test_missing_torchmetrics_is_reported(kind, monkeypatch):
    forget()
    for name in ("torchmetrics", "torchmetrics.image.lpip", "torchmetrics.functional.image.dists"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(UserError, match="needs torchmetrics; pip install 'restormixer\\[metrics\\]'"):
        measure(kind, *noisy_pair(20))


def test_lower_is_better_unless_set_otherwise():
    assert [better({"type": f"calculate_{name}"}) for name in ("lpips", "dists", "niqe", "psnr")] == [
        "lower", "lower", "lower", "higher",
    ]  # fmt: skip
    assert better({"type": "calculate_lpips", "better": "higher"}) == "higher"
