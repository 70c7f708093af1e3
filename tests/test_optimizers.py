"""Optimizers of other packages; testing, saving and resuming with a schedule-free optimizer."""

from __future__ import annotations

import sys

import pytest
import torch
from test_exact_resume import assert_resumes_as_if_not_stopped
from training_cases import batch, build, step
from training_runs import EXPERIMENT, architecture, load, same, several_batches, train

from restormixer_arch import cli
from restormixer_arch.cnn_blocks import RDCNN
from restormixer_arch.errors import UserError
from restormixer_arch.models import optimizers
from restormixer_arch.models.optimizers import MAX_NORM_BATCHES

FREE = {"type": "AdamWScheduleFree", "lr": 2e-3, "weight_decay": 0.1, "warmup_steps": 2}


def free(tmp_path, network=None, **train):
    pytest.importorskip("schedulefree")
    return build(tmp_path, network, optim_g=dict(FREE), **train)


def tensors(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_nested_network_can_exempt_parameters_from_weight_decay():
    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()
            self.other = torch.nn.Linear(1, 1)

    class Inner(torch.nn.Linear):
        def __init__(self):
            super().__init__(2, 2)

        def no_weight_decay(self):
            return {"bias"}

    network = Outer()
    decayed, exempt = optimizers.parameter_groups(network)
    assert [p.shape for p in decayed["params"]] == [(2, 2), (1, 1), (1,)]
    assert exempt == {"params": [network.inner.bias], "weight_decay": 0.0}


# --- schedule-free ---------------------------------------------------------------------------------------------------


def test_skipped_batch_does_not_affect_the_norm_statistics(tmp_path):
    model = free(tmp_path)
    step(model, 1)
    bad = batch(2)
    bad["lq"][0, 0, 0, 0] = float("nan")
    step(model, 2, bad)
    step(model, 3)
    model.save(0, 3)
    saved = torch.load(tmp_path / "net_g_3.pth", weights_only=True)["params"]
    assert all(torch.isfinite(tensor).all() for tensor in saved.values() if tensor.is_floating_point())


def test_averaged_weights_are_tested_and_saved(tmp_path):
    """The averaged weights x are the weighted mean of z in float64, and the trained weights are 0.1 z + 0.9 x."""
    model = free(tmp_path, grad_clip=0)
    optimizer = model.optimizer_g
    name, parameter = next(iter(model.net_g.named_parameters()))
    z = x = parameter.detach().double().clone()
    weights = 0.0
    for iteration in range(1, 6):
        step(model, iteration)
        rate = FREE["lr"] * min(1.0, iteration / 2)
        state = optimizer.state[parameter]
        z, weights = state["z"].double(), weights + rate**2
        share = rate**2 / weights
        x = (1 - share) * x + share * z
    trained = tensors(model.net_g)
    torch.testing.assert_close(parameter.detach().double(), 0.1 * z + 0.9 * x, rtol=0, atol=1e-5)
    assert (parameter.detach().double() - x).abs().max() > 1e-5
    with model.schedule_free.averaged():
        torch.testing.assert_close(parameter.detach().double(), x, rtol=0, atol=1e-5)
        averaged = tensors(model.net_g)
        restored = model.net_g.eval().forward(batch()["lq"])
        model.net_g.train()
    assert same(tensors(model.net_g), trained)
    model.feed_data(batch())
    model.test()
    torch.testing.assert_close(model.output, restored, rtol=1e-5, atol=1e-5)
    assert same(tensors(model.net_g), trained)
    assert model.net_g.training and optimizer.param_groups[0]["train_mode"]
    model.save(0, 5)
    saved = torch.load(tmp_path / "net_g_5.pth", weights_only=True)["params"]
    assert same(saved, averaged) and not torch.equal(saved[name], trained[name])
    assert same(tensors(model.net_g), trained)


def test_norm_statistics_are_recomputed_for_the_averaged_weights(tmp_path):
    """With momentum None, BatchNorm's statistics are the mean over batches; only the first norm is compared."""
    model = free(tmp_path)
    for iteration in range(1, MAX_NORM_BATCHES + 3):
        step(model, iteration)
    conv, norm = model.net_g.encoder.stem[0].conv, model.net_g.encoder.stem[0].norm
    trained, momentum = norm.running_mean.clone(), norm.momentum
    with model.schedule_free.averaged(), torch.no_grad():
        features = [conv(batch(iteration)["lq"]) for iteration in range(3, MAX_NORM_BATCHES + 3)]
        wanted = torch.stack([feature.mean((0, 2, 3)) for feature in features]).mean(0)
        torch.testing.assert_close(norm.running_mean, wanted)
    assert torch.equal(norm.running_mean, trained) and norm.momentum == momentum


def test_stored_batches_are_limited_in_size(tmp_path, monkeypatch):
    monkeypatch.setattr(optimizers, "MAX_NORM_BYTES", 3 * batch()["lq"].nbytes)
    model = free(tmp_path)
    for iteration in range(1, 6):
        step(model, iteration)
    inputs = model.schedule_free.extra_state()["inputs"]
    assert [torch.equal(x, batch(number)["lq"]) for x, number in zip(inputs, (3, 4, 5), strict=True)] == [True] * 3


def test_frozen_norms_are_not_changed(tmp_path):
    model = free(tmp_path, freeze_norms_after=0.2)
    for iteration in range(1, 5):
        step(model, iteration)
    norm = model.net_g.encoder.stem[0].norm
    frozen = norm.running_mean.clone()
    for _ in range(2):
        model.feed_data(batch())
        model.test()
        with model.schedule_free.averaged():
            assert torch.equal(norm.running_mean, frozen)


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # BasicSR's SwinIR
def test_switching_to_averaged_weights_keeps_the_random_state(tmp_path):
    model = free(tmp_path)
    block = next(module for module in model.net_g.modules() if isinstance(module, RDCNN))
    block.register_forward_hook(lambda _, inputs, output: torch.nn.functional.dropout(output, 0.2))
    step(model)
    state = torch.get_rng_state()
    with model.schedule_free.averaged():
        pass
    assert torch.equal(torch.get_rng_state(), state)


def schedule_free_options(options, network="RestorMixer"):
    pytest.importorskip("schedulefree")
    options = architecture(several_batches(options), network)
    options["model_type"] = "RestorMixerModel"
    if network == "RestorMixer":
        options["network_g"]["num_blocks"] = [1, 0, 0]  # only BatchNorm matters here
    options["train"] |= {"optim_g": dict(FREE), "ema_decay": 0, "warmup_iter": -1}
    options["train"]["scheduler"] = {"type": "MultiStepLR", "milestones": [100]}
    options["val"]["val_freq"] = 3
    return options


@pytest.mark.parametrize(("network", "killed"), [("RestorMixer", 6), ("EDSR", 7)])
def test_resumed_schedule_free_run_equals_uninterrupted_run(pairs, train_options, write, monkeypatch, network, killed):
    """The uninterrupted run also validates both before and after the iteration of the interruption."""
    file = write(schedule_free_options(train_options, network))
    assert_resumes_as_if_not_stopped(file, monkeypatch, killed)


def test_changed_optimizer_options_are_used_when_resuming(pairs, train_options, write):
    options = schedule_free_options(train_options, "EDSR")
    assert train(write(options), "--force_yml", "train:total_iter=4") == 0
    assert train(write(options), "--auto_resume", "--force_yml", "train:optim_g:weight_decay=0.5") == 0
    group = load("training_states/8.state")["optimizers"][0]["param_groups"][0]
    assert (group["weight_decay"], group["k"], group["train_mode"]) == (0.5, 8, True)
    log = sorted(EXPERIMENT.glob("train_*.log"))[-1].read_text()
    assert "train.optim_*.weight_decay: 0.1 -> 0.5" in log and "optim_*.k" not in log


def test_ema_with_schedule_free_optimizer_is_rejected(pairs, train_options, write, capsys):
    options = schedule_free_options(train_options)
    options["train"]["ema_decay"] = 0.9
    assert cli.main(["train", "-opt", write(options)]) == 2
    assert "train.ema_decay: must be 0 with a schedule-free optimizer" in capsys.readouterr().err


# --- Muon ------------------------------------------------------------------------------------------------------------


def muon(tmp_path, **options):
    optimizer = {"type": "Muon", "lr": 0.02, "adamw_lr": 1e-3, "weight_decay": 0.1, **options}
    return build(tmp_path, optim_g=optimizer, ema_decay=0, grad_clip=0)


def test_muon_step_is_orthogonal_for_matrices_and_adamw_for_others(tmp_path):
    """In the first step, Nesterov momentum has the gradient's direction, and AdamW's step is the gradient's sign."""
    model = muon(tmp_path)
    before = {name: value.detach().clone() for name, value in model.net_g.named_parameters()}
    step(model)
    names = {id(parameter): name for name, parameter in model.net_g.named_parameters()}
    exempt, matrices = model.net_g.no_weight_decay(), 0
    for group in model.optimizer_g.param_groups:
        for parameter in group["params"]:
            name, decay = names[id(parameter)], 0.0 if names[id(parameter)] in exempt else 0.1
            assert (group["weight_decay"], group["lr"]) == (decay, 0.02 if group["use_muon"] else 1e-3)
            moved = before[name].double() * (1 - group["lr"] * decay) - parameter.detach().double()
            gradient = parameter.grad.double()
            if not group["use_muon"]:
                clear = gradient.abs() > 1e-6
                torch.testing.assert_close(moved[clear], 1e-3 * gradient.sign()[clear], rtol=0, atol=2e-5)
                continue
            matrices += 1
            u, values, v = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
            new, strong = values / gradient.norm().clamp_min(1e-7), values > 0.05 * values.sum()
            for _ in range(5):  # Muon's Newton-Schulz polynomial
                new = 3.4445 * new - 4.7750 * new**3 + 2.0315 * new**5
            assert ((new[strong] > 0.6) & (new[strong] < 1.3)).all()
            scale = max(1.0, len(gradient) / gradient[0].numel()) ** 0.5
            # bfloat16 would be wrong by about 0.01.
            torch.testing.assert_close(moved.flatten(1) / 0.02, scale * (u * new) @ v, rtol=0, atol=1e-3)
    assert matrices > 10


def test_muon_matrices_are_weights_of_linear_layers_and_full_convolutions():
    network = torch.nn.ModuleDict(
        {
            "linear": torch.nn.Linear(8, 9),
            "conv": torch.nn.Conv2d(16, 8, 3),
            "depthwise": torch.nn.Conv2d(16, 16, 3, groups=16),
            "colors": torch.nn.Conv2d(16, 3, 3),
            "norm": torch.nn.LayerNorm(8),
        }
    )
    named = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = optimizers.mark_matrices([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], 0.1, 0.2)
    shown = [(g["use_muon"], g["weight_decay"], [named[id(p)] for p in g["params"]]) for g in groups]
    rest = ["linear.bias", "conv.bias", "depthwise.bias", "colors.bias", "norm.weight", "norm.bias"]
    assert shown == [
        (True, 0.1, ["linear.weight", "conv.weight"]),
        (False, 0.2, ["depthwise.weight", "colors.weight"]),
        (False, 0.0, rest),
    ]


@pytest.mark.parametrize(("options", "decays"), [({}, [0.1, 0.1]), ({"adamw_wd": 0.3}, [0.1, 0.3])])
def test_muon_weight_decay_of_other_parameters(options, decays):
    layer = torch.nn.Linear(8, 9)
    groups = [{"params": list(layer.parameters())}]
    made = optimizers.build_optimizer("Muon", groups, 0.02, weight_decay=0.1, **options)
    assert [group["weight_decay"] for group in made.param_groups] == decays


# --- pytorch-optimizer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        {"type": "Lion", "lr": 1e-4, "betas": [0.9, 0.99]},
        {"type": "Adan", "lr": 1e-3, "betas": [0.98, 0.92, 0.99]},
        {"type": "Prodigy", "lr": 1.0, "d0": 1e-5},
        {"type": "Muon", "lr": 0.02, "adamw_lr": 1e-3, "adamw_betas": [0.9, 0.95]},
        {"type": "ScheduleFreeAdamW", "lr": 1e-3},
        {"type": "ASGD", "lr": 1e-3},  # it modifies its option theta
    ],
    ids=lambda optimizer: optimizer["type"],
)
def test_optimizers_train_and_resume_from_option_files(pairs, train_options, write, monkeypatch, capsys, optimizer):
    options = several_batches(train_options)
    options["model_type"] = "RestorMixerModel"
    options["train"] |= {"optim_g": optimizer, "warmup_iter": -1}
    if optimizer["type"].startswith("ScheduleFree"):
        options["train"]["ema_decay"] = 0
    assert_resumes_as_if_not_stopped(write(options), monkeypatch, 6)
    assert load("training_states/8.state")["optimizer_types"] == [optimizer["type"]]
    assert "has changed" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"type": "AdmW"}, "'AdmW' is none of Adam, AdamW. Did you mean 'AdamW'?"),
        (
            {"type": "Muon", "adam_lr": 1e-3},
            "train.optim_g.adam_lr: Muon has no such argument. Did you mean 'adamw_lr'?",
        ),
        ({"type": "Lyon"}, "'Lyon' is none of Adam, AdamW. Did you mean 'Lion'?"),
        ({"type": "Lion", "beta": [0.9, 0.99]}, "train.optim_g.beta: Lion has no such argument. Did you mean 'betas'?"),
        ({"type": "Lion", "betas": [0.9, 2.0]}, "Lion cannot be used with these options ("),
        ({"type": "AdaHessian"}, "AdaHessian cannot be used with these options ("),
        ({"type": "A2Grad"}, "A2Grad cannot be used with these options (it has no learning rate, which the schedule"),
        ({"type": "AliG"}, "AliG cannot be used with these options ("),
        ({"type": "SCION"}, "(state['param_groups'][0]['norm_type'] is of LMONorm, which a checkpoint cannot hold)"),
        ({"type": "Kron"}, "['precondition_dtype'] is of dtype, which a checkpoint cannot hold)"),
        ({"type": "AdaShift"}, "['grad_queue'] is of deque, which a checkpoint cannot hold)"),
        ({"type": "AdamWScheduleFree", "warmup": 2}, "AdamWScheduleFree has no such argument. Did you mean 'warmup_s"),
    ],
)
def test_unusable_optimizers_and_options_are_rejected(pairs, train_options, write, capsys, optimizer, message):
    pytest.importorskip("schedulefree")
    train_options["model_type"] = "RestorMixerModel"
    train_options["train"]["optim_g"] = {"lr": 1e-4, **optimizer}
    assert cli.main(["train", "-opt", write(train_options)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_missing_schedulefree_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(UserError) as caught:
        build(tmp_path, optim_g={"type": FREE["type"], "lr": 1e-3})
    assert str(caught.value) == (
        "train.optim_g.type: 'AdamWScheduleFree' needs schedulefree, which is not installed. "
        "Run: pip install 'restormixer[optimizers]'"
    )


def test_unknown_keys_of_torch_optimizers_are_rejected(pairs, train_options, write, capsys):
    train_options["train"]["optim_g"] |= {"weight_dacay": 0.1}
    assert cli.main(["train", "-opt", write(train_options)]) == 2
    assert "train.optim_g.weight_dacay: unknown key. Did you mean 'weight_decay'?" in capsys.readouterr().err
