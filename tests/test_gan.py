"""Option files that train RestorMixer with the GAN and perceptual losses of BasicSR."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import jsonschema
import pytest
import torch
import yaml
from option_cases import MISSING, put
from torchvision.models.vgg import cfgs, make_layers
from training_runs import load, same

from restormixer_arch import cli
from restormixer_arch.basicsr_adapter import register
from restormixer_arch.config.check import check_options
from restormixer_arch.config.json_schema import json_schema
from restormixer_arch.errors import OptionErrors

register.register()

from basicsr.archs import vgg_arch  # noqa: E402 - BasicSR can be imported only now

from restormixer_arch.basicsr_adapter.signatures import check_names  # noqa: E402

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


def test_shipped_gan_option_file_trains_and_resumes(demo):
    assert train(demo) == 0
    columns = losses()
    assert {"l_g_pix", "l_g_gan", "l_d_real", "l_d_fake"} <= columns.keys() and len(columns["l_g_gan"]) == 6
    assert columns["l_d_real"][0] == pytest.approx(0.69 / 2, abs=0.3)  # half of log 2 if untrained
    start, end = (load(f"models/net_d_{number}.pth", EXPERIMENT)["params"] for number in (2, 6))
    assert not same(start, end)
    whole = {name: load(f"models/net_{name}_6.pth", EXPERIMENT) for name in "gd"}
    for path in [*EXPERIMENT.glob("models/*_6.pth"), *EXPERIMENT.glob("training_states/6.state")]:
        path.unlink()
    assert train(demo, "--auto_resume") == 0
    assert all(same(load(f"models/net_{name}_6.pth", EXPERIMENT), whole[name]) for name in "gd")


MISTAKES = [
    ("network_d", MISSING, "network_d: required key is missing (type and arguments of the discriminator)"),
    ("network_d", None, "network_d: got None, expected a section of 'key: value' lines"),
    ("find_unused", True, "find_unused: unknown key. Did you mean 'find_unused_parameters'?"),
    ("path.pretrain_netwrok_d", "x", "path.pretrain_netwrok_d: unknown key. Did you mean 'pretrain_network_d'?"),
    ("val.metric", {}, "val.metric: unknown key. Did you mean 'metrics'?"),
    ("train.ema_decy", 0.9, "train.ema_decy: unknown key. Did you mean 'ema_decay'?"),
    ("train.grad_clip", 0.1, "train.grad_clip: unknown key."),  # a key of RestorMixerModel only
    (
        "train.gan_opt",
        MISSING,
        "train.gan_opt: required key is missing (the adversarial loss, such as GANLoss)",
    ),
    ("train.net_d_iters", 0, "train.net_d_iters: got 0, expected at least 1"),
    ("train.net_d_init_iters", -1, "train.net_d_init_iters: got -1, expected at least 0"),
    ("train.optim_g", None, "train.optim_g: got None, expected a section of 'key: value' lines"),
    ("train.optim_g.betas", 0.9, "train.optim_g.betas: got 0.9, expected a list"),
    ("train.optim_d", 5, "train.optim_d: got 5, expected a section of 'key: value' lines"),
    ("train.optim_d.lr", MISSING, "train.optim_d.lr: required key is missing (learning rate)"),
    (
        "train.scheduler",
        MISSING,
        "train.scheduler: required key is missing (type and keys of the learning rate's schedule)",
    ),
    (
        "train.scheduler.periods",
        MISSING,
        "train.scheduler.periods: required key is missing (iterations of each cosine)",
    ),
]


@pytest.mark.parametrize("model", ["SRGANModel", "ESRGANModel"])
def test_errors_in_gan_options_are_reported_in_one_line(demo, model):
    schema = jsonschema.Draft202012Validator(json_schema())
    for path, value, text in MISTAKES:
        wrong = {**copy.deepcopy(demo), "model_type": model}
        assert schema.is_valid(wrong)
        check_options(wrong, "x.yml", True, paths=False)
        put(wrong, path, value)
        assert not schema.is_valid(wrong), path
        with pytest.raises(OptionErrors) as error:
            check_options(wrong, "x.yml", True, paths=False)
        assert error.value.lines == [f"x.yml: {text}"]


def test_discriminator_optimizer_is_checked(demo):
    demo["train"]["optim_d"]["type"] = "Adm"
    with pytest.raises(OptionErrors) as error:
        check_names(demo, "x.yml", True)
    (line,) = error.value.lines
    assert line.startswith(
        "x.yml: train.optim_d.type: 'Adm' is not a known optimizer of ESRGANModel. Did you mean 'Adam'?"
    )


def test_gan_model_with_additional_keys_still_requires_the_gan_keys(demo):
    demo |= {"model_type": "RealESRGANModel", "gt_usm": True}
    check_options(demo, "x.yml", True, paths=False)
    del demo["train"]["optim_d"], demo["network_d"]
    with pytest.raises(OptionErrors) as error:
        check_options(demo, "x.yml", True, paths=False)
    assert error.value.lines == [
        "x.yml: train.optim_d: required key is missing (type and lr of the discriminator's optimizer)",
        "x.yml: network_d: required key is missing (type and arguments of the discriminator)",
    ]


@pytest.mark.parametrize(("model", "network"), [("ESRGANModel", "RRDBNet"), ("SRGANModel", "MSRResNet")])
def test_options_like_those_of_basicsr_are_valid(demo, model, network):
    adam = {"type": "Adam", "lr": 1e-4, "weight_decay": 0, "betas": [0.9, 0.99]}
    demo |= {
        "model_type": model,
        "scale": 4,
        "network_g": {"type": network, "num_in_ch": 3, "num_out_ch": 3, "num_feat": 64},
        "network_d": {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 64},
        "path": {"pretrain_network_g": "x.pth", "pretrain_network_d": "y.pth", "strict_load_d": True},
    }
    demo["datasets"]["train"]["gt_size"] = 128
    demo["train"] |= {
        "optim_g": adam,
        "optim_d": dict(adam),
        "scheduler": {"type": "MultiStepLR", "milestones": [2, 4], "gamma": 0.5},
        "perceptual_opt": PERCEPTUAL,
        "ldl_opt": {"type": "L1Loss"},
    }
    demo["logger"]["wandb"] = {"project": None, "resume_id": None}
    check_options(demo, "x.yml", True, paths=False)
    check_names(demo, "x.yml", True)


def test_discriminator_with_fixed_input_size_requires_crops_of_that_size(demo):
    demo["network_d"] = {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 4}
    with pytest.raises(OptionErrors) as error:
        check_options(demo, "x.yml", True, paths=False)
    text = "datasets.train.gt_size: got 32, expected 128, the input_size of network_d"
    assert error.value.lines == [f"x.yml: {text}"]
    demo["datasets"]["train"]["gt_size"] = demo["network_d"]["input_size"] = 256
    check_options(demo, "x.yml", True, paths=False)


def test_gan_options_are_valid_for_testing_with_and_without_discriminator(demo):
    demo["datasets"] = {"test_1": demo["datasets"]["val"]}
    check_options(demo, "x.yml", False, paths=False)
    del demo["network_d"], demo["train"]
    check_options(demo, "x.yml", False, paths=False)


def test_perceptual_loss_together_with_gan_loss(demo, monkeypatch):
    torch.manual_seed(0)
    features = make_layers(cfgs["E"][:6])
    monkeypatch.setattr(vgg_arch.vgg, "vgg19", lambda pretrained: SimpleNamespace(features=features))
    demo["train"] |= {"perceptual_opt": PERCEPTUAL, "total_iter": 2}
    assert train(demo) == 0
    assert all(value > 0 for name in ("l_g_percep", "l_g_style") for value in losses()[name])


@pytest.mark.parametrize("model", ["ESRGANModel", "RestorMixerModel"])
def test_failed_vgg_download_is_a_user_error(demo, monkeypatch, capsys, model):
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
    assert error.startswith(
        f"basicsr: error: PerceptualLoss: needs the weights {place}, which cannot be downloaded from"
    )
    assert "(no network); put them there yourself, or set TORCH_HOME" in error


def test_perceptual_loss_with_restormixer_model(demo, monkeypatch):
    torch.manual_seed(0)
    features = make_layers(cfgs["E"][:6])
    monkeypatch.setattr(vgg_arch.vgg, "vgg19", lambda pretrained: SimpleNamespace(features=features))
    train_section = {key: demo["train"][key] for key in ("total_iter", "optim_g", "scheduler", "pixel_opt")}
    del demo["network_d"]
    demo |= {"model_type": "RestorMixerModel", "train": {**train_section, "perceptual_opt": PERCEPTUAL}}
    assert train(demo) == 0
    assert all(value > 0 for name in ("l_pix", "l_percep", "l_style") for value in losses()[name])
