"""GAN and perceptual losses of BasicSR with RestorMixer, by option files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
import yaml
from torchvision.models.vgg import cfgs, make_layers
from whole_trainings import load, same

from restormixer_arch import cli
from restormixer_arch.basicsr_adapter import register

register.register()

from basicsr.archs import vgg_arch  # noqa: E402 - BasicSR can be imported only now

DEMO = Path(__file__).parent.parent / "options/train_sr_x2_gan_demo.yml"
EXPERIMENT = Path("experiments/restormixer_sr_x2_gan_demo")
PERCEPTUAL = {"type": "PerceptualLoss", "layer_weights": {"conv1_2": 1, "conv2_2": 0.5}, "style_weight": 1.0}


def train(options, *arguments):
    Path("gan.yml").write_text(yaml.safe_dump(options))
    return cli.main(["train", "-opt", "gan.yml", *arguments])


@pytest.fixture
def demo(folder):
    """The shipped option file, with a smaller network and six iterations."""
    options = yaml.safe_load(DEMO.read_text())
    options["network_g"] |= {"base_channels": 4, "num_blocks": [1, 0, 0]}
    options["network_d"]["num_feat"] = 4
    options["datasets"]["train"] |= {"gt_size": 32, "batch_size_per_gpu": 2, "num_worker_per_gpu": 0}
    options["train"] |= {"total_iter": 6}
    options["val"] |= {"val_freq": 6, "save_img": False}
    options["logger"] |= {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False}
    return options


def losses():
    rows = [line.split(",") for line in (EXPERIMENT / "losses.csv").read_text().splitlines()]
    return {name: [float(row[number]) for row in rows[1:]] for number, name in enumerate(rows[0])}


def test_the_shipped_gan_file_trains_and_resumes(demo):
    assert train(demo) == 0
    columns = losses()
    assert {"l_g_pix", "l_g_gan", "l_d_real", "l_d_fake"} <= columns.keys() and len(columns["l_g_gan"]) == 6
    assert columns["l_d_real"][0] == pytest.approx(0.69 / 2, abs=0.3)  # half of log 2, where it knows nothing
    start, end = (load(f"models/net_d_{number}.pth", EXPERIMENT)["params"] for number in (2, 6))
    assert not same(start, end)
    whole = {name: load(f"models/net_{name}_6.pth", EXPERIMENT) for name in "gd"}
    for path in [*EXPERIMENT.glob("models/*_6.pth"), *EXPERIMENT.glob("training_states/6.state")]:
        path.unlink()
    assert train(demo, "--auto_resume") == 0
    assert all(same(load(f"models/net_{name}_6.pth", EXPERIMENT), whole[name]) for name in "gd")


def test_a_perceptual_loss_beside_it(demo, monkeypatch):
    torch.manual_seed(0)
    features = make_layers(cfgs["E"][:6])
    monkeypatch.setattr(vgg_arch.vgg, "vgg19", lambda pretrained: SimpleNamespace(features=features))
    demo["train"] |= {"perceptual_opt": PERCEPTUAL, "total_iter": 2}
    assert train(demo) == 0
    assert all(value > 0 for name in ("l_g_percep", "l_g_style") for value in losses()[name])


@pytest.mark.parametrize("model", ["ESRGANModel", "RestorMixerModel"])
def test_vgg_that_cannot_be_fetched_is_one_line(demo, monkeypatch, capsys, model):
    def fail(url, *arguments, **options):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", "torch")
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    demo["train"]["perceptual_opt"] = PERCEPTUAL
    if model == "RestorMixerModel":
        del demo["network_d"], demo["train"]["gan_opt"], demo["train"]["optim_d"]
        del demo["train"]["net_d_iters"], demo["train"]["net_d_init_iters"]
    demo["model_type"] = model
    assert train(demo) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    place = Path("torch/hub/checkpoints/vgg19-dcbb9e9d.pth")
    assert error.startswith(f"basicsr: error: PerceptualLoss: needs the weights {place}, which cannot be fetched from")
    assert "(no network); put them there yourself, or set TORCH_HOME" in error


def test_perceptual_losses_in_restormixers_model(demo, monkeypatch):
    torch.manual_seed(0)
    features = make_layers(cfgs["E"][:6])
    monkeypatch.setattr(vgg_arch.vgg, "vgg19", lambda pretrained: SimpleNamespace(features=features))
    train_section = {key: demo["train"][key] for key in ("total_iter", "optim_g", "scheduler", "pixel_opt")}
    del demo["network_d"]
    demo |= {"model_type": "RestorMixerModel", "train": {**train_section, "perceptual_opt": PERCEPTUAL}}
    assert train(demo) == 0
    assert all(value > 0 for name in ("l_pix", "l_percep", "l_style") for value in losses()[name])
