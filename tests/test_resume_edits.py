"""Edits of the option file before a training run is resumed are applied or rejected, never ignored."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from training_runs import EXPERIMENT, load, same, several_batches, train

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.errors import UserError

compat.apply()

from basicsr.models.base_model import BaseModel  # noqa: E402 - needs compat.apply() first
from basicsr.models.lr_scheduler import MultiStepRestartLR  # noqa: E402

from restormixer_arch.models import optimizers  # noqa: E402
from restormixer_arch.training import resume  # noqa: E402
from restormixer_arch.training.resume import _move_steps, resume_training  # noqa: E402

MULTISTEP = {"type": "MultiStepLR", "milestones": [2, 6], "gamma": 0.5}


def edited(options, key, value):
    section = options["train"]
    *path, last = key.split(".")
    for name in path:
        section = section[name]
    section[last] = value
    return options


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("optim_g.lr", 0.01, "train.optim_*.lr: 0.001 -> 0.01"),
        ("scheduler.eta_min", 1e-5, "train.scheduler.eta_min: 1e-06 -> 1e-05"),
        ("scheduler.periods", [50], "train.scheduler.periods: [100] -> [50]"),
        ("scheduler", MULTISTEP, "train.scheduler.milestones: None -> {2: 1, 6: 1}"),
        ("warmup_iter", 7, "train.warmup_iter: 3 -> 7"),
    ],
)
def test_edited_schedule_is_applied_when_resuming(pairs, train_options, write, capsys, key, value, shown):
    assert train(write(several_batches(train_options, total=4))) == 0
    edited(train_options, key, value)["train"]["total_iter"] = 8
    assert train(write(train_options), "--auto_resume") == 0
    assert f"Resuming with a changed option file: {shown}" in capsys.readouterr().err
    resumed = load("training_states/8.state")
    assert train(write(train_options | {"name": "tiny"})) == 0  # with the edit from the first iteration
    expected = load("training_states/8.state")
    assert same(resumed["schedulers"], expected["schedulers"])
    for mine, other in zip(resumed["optimizers"], expected["optimizers"], strict=True):
        assert same(mine["param_groups"], other["param_groups"])


def test_edited_optimizer_option_is_applied_when_resuming(pairs, train_options, write, capsys):
    assert train(write(several_batches(train_options, total=4))) == 0
    edited(train_options, "optim_g.weight_decay", 0.125)
    assert train(write(train_options), "--auto_resume", "--force_yml", "train:total_iter=6") == 0
    assert "train.optim_*.weight_decay: 0 -> 0.125" in capsys.readouterr().err.replace("0.0 ->", "0 ->")
    assert load("training_states/6.state")["optimizers"][0]["param_groups"][0]["weight_decay"] == 0.125


def test_nothing_is_reported_without_an_edit(pairs, train_options, write, capsys):
    file = write(several_batches(train_options, total=4))
    assert train(file) == 0
    assert train(file, "--auto_resume", "--force_yml", "train:total_iter=5") == 0
    assert "changed option file" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optim_g.amsgrad", True, "train.optim_*.amsgrad: cannot change from False to True when resuming"),
        (
            "optim_g.type",
            "AdamW",
            "train.optim_*.type: the training to resume was made by Adam, AdamW cannot resume from that",
        ),
    ],
)
def test_edit_that_cannot_be_applied_is_rejected(pairs, train_options, write, capsys, key, value, message):
    several_batches(train_options, total=4).update(model_type="RestorMixerModel")
    assert train(write(train_options)) == 0
    assert train(write(edited(train_options, key, value)), "--auto_resume") == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"basicsr: error: {message}"


def test_state_saved_by_basicsr_can_be_resumed(pairs, train_options, write):
    file = write(several_batches(train_options, total=4))
    assert train(file) == 0
    state = load("training_states/4.state")
    kept = {key: state[key] for key in ("epoch", "iter", "optimizers", "schedulers")}
    torch.save(kept, "experiments/tiny/training_states/4.state")
    assert train(file, "--auto_resume", "--force_yml", "train:total_iter=6") == 0
    assert load("training_states/6.state")["schedulers"][0]["last_epoch"] == 5


def test_edited_adamw_options_of_muon_are_applied():
    """The parameter groups store them without the ``adamw_`` prefix of the class's arguments."""
    optimizer = optimizers.build_optimizer("Muon", [{"params": [torch.nn.Parameter(torch.ones(3))]}], 0.02)
    (group,) = optimizer.param_groups
    edits = resume._set_options(optimizer, group, group | {"betas": (0.8, 0.9), "eps": 1e-6}, dict(group))
    assert edits == ["train.optim_*.betas: (0.9, 0.95) -> (0.8, 0.9)", "train.optim_*.eps: 1e-10 -> 1e-06"]
    assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-6)


@pytest.mark.parametrize("resumed_at", [None, 3, 12])
def test_warmup_does_not_change_the_schedule(resumed_at):
    """lr 1, ten warm-up iterations, halved at 5 and 14: ends with 0.5, 0.25; BasicSR's own loop with 0.9, 0.45."""

    def start():
        model = BaseModel({"num_gpu": 0, "is_train": True, "train": {"warmup_iter": 10}})
        model.optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)]
        model.schedulers = [MultiStepRestartLR(model.optimizers[0], milestones=[5, 14], gamma=0.5)]
        model.optimizers[0].step()
        return model

    model, rates = start(), []
    for iteration in range(1, 18):
        if iteration == resumed_at:
            states = model.schedulers[0].state_dict(), model.optimizers[0].state_dict()
            model = start()
            model.schedulers[0].load_state_dict(states[0])
            model.optimizers[0].load_state_dict(states[1])
        resume.update_learning_rate(model, iteration)
        rates.append(model.get_current_learning_rate()[0])
    assert rates == pytest.approx([n / 10 for n in range(1, 10)] + [0.5] * 5 + [0.25] * 3)


def test_state_with_another_number_of_optimizers_is_rejected():
    model = BaseModel({"num_gpu": 0, "is_train": True})
    model.optimizers = [torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])]
    state = {"optimizers": [{}, {}], "schedulers": [], "optimizer_types": ["Adam", "Adam"]}
    with pytest.raises(UserError) as error:
        resume_training(model, state)
    assert str(error.value) == (
        "model_type: the training to resume has 2 optimizers (Adam, Adam), this model 1 optimizer (Adam): they are of "
        "different models"
    )


@pytest.mark.parametrize("fused", [None, True])
def test_step_counts_are_moved_to_the_device_of_a_fused_optimizer(fused):
    """In the state of a non-fused optimizer, they are on the CPU even if parameters are on a GPU (here: meta)."""
    parameter = torch.nn.Parameter(torch.zeros(2, device="meta"))
    optimizer = torch.optim.Adam([parameter])
    optimizer.state[parameter] = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2, device="meta")}
    optimizer.param_groups[0]["fused"] = fused
    _move_steps(optimizer)
    assert optimizer.state[parameter]["step"].device.type == ("meta" if fused else "cpu")


def test_state_of_another_experiment_starts_a_new_run(pairs, train_options, write, capsys):
    """Otherwise, its tables and checkpoints would be mixed with those of the earlier run of the same name."""
    options = several_batches(train_options, total=4)
    options["logger"] |= {"print_freq": 1, "save_checkpoint_freq": 2}
    assert train(write(options)) == 0
    shutil.copytree(EXPERIMENT, "experiments/other")
    before = {path.name for path in (EXPERIMENT / "models").iterdir()}
    state = f"path:resume_state={Path('experiments/other/training_states/2.state').as_posix()}"
    capsys.readouterr()
    assert train(write(options), "--force_yml", state, "train:total_iter=3") == 0
    (archived,) = Path("experiments").glob("tiny_archived_*")
    assert {path.name for path in (archived / "models").iterdir()} == before
    assert [line.split(",")[0] for line in (EXPERIMENT / "losses.csv").read_text().splitlines()] == ["iteration", "3"]
    assert not list((EXPERIMENT / "training_states").glob("newer_*"))
    assert "exists from an earlier run, which was renamed to" in capsys.readouterr().err


def test_failed_resume_moves_no_checkpoint(pairs, train_options, write, capsys):
    options = several_batches(train_options, total=4)
    options["logger"]["save_checkpoint_freq"] = 2
    assert train(write(options)) == 0
    before = sorted(EXPERIMENT.rglob("*.pth")) + sorted(EXPERIMENT.rglob("*.state"))
    state = f"path:resume_state={(EXPERIMENT / 'training_states/2.state').as_posix()}"
    assert train(write(options), "--force_yml", state, "train:total_iter=1") == 2
    assert "the training to resume has done 2 iterations" in capsys.readouterr().err
    assert sorted(EXPERIMENT.rglob("*.pth")) + sorted(EXPERIMENT.rglob("*.state")) == before
