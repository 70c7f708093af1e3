"""From which state a training goes on, on a machine without CUDA and after a run that was killed while saving."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.errors import UserError

compat.apply()

import basicsr.train  # noqa: E402

from restormixer_arch.basicsr_adapter.resume import load_resume_state, saved_states  # noqa: E402


@pytest.fixture
def experiment(folder):
    """Options of an experiment with states and weights of iterations 9 and 10."""
    path = {key: str(folder / "experiments/x" / key) for key in ("models", "training_states", "visualization")}
    for key in ("models", "training_states"):
        os.makedirs(path[key])
    for iteration in (9, 10):
        state = {"epoch": 1, "iter": iteration, "optimizers": [], "schedulers": [{"milestones": Counter([3])}]}
        torch.save(state, f"{path['training_states']}/{iteration}.state")
        Path(path["models"], f"net_g_{iteration}.pth").touch()
    return {"path": path, "auto_resume": True, "network_g": {}}


def test_the_newest_state_is_resumed_without_cuda(experiment, capsys):
    assert basicsr.train.load_resume_state is load_resume_state
    state = load_resume_state(experiment)
    assert state["iter"] == 10 and state["schedulers"][0]["milestones"] == Counter([3])  # 10 > 9, not "10" < "9"
    assert experiment["path"]["resume_state"].endswith("training_states/10.state")
    assert experiment["path"]["pretrain_network_g"].endswith("models/net_g_10.pth")


def test_a_damaged_newest_state_gives_way_to_the_one_before(experiment, capsys):
    newest, before = saved_states(experiment["path"]["training_states"])
    newest.write_bytes(newest.read_bytes()[:50])
    assert load_resume_state(experiment)["iter"] == 9
    assert "10.state: cannot be read as a training state" in capsys.readouterr().err
    torch.save({"x": 1}, before)
    with pytest.raises(UserError, match=r"9\.state: is no training state of BasicSR"):
        load_resume_state(experiment)


def test_without_a_state_training_starts_afresh(experiment, capsys):
    for state in saved_states(experiment["path"]["training_states"]):
        state.unlink()
    assert load_resume_state(experiment) is None
    assert "nothing to resume in experiments/x/training_states" in capsys.readouterr().err
    assert load_resume_state(experiment | {"auto_resume": False}) is None


def test_another_experiment_s_state_brings_its_own_weights(experiment, folder):
    other = {key: str(folder / "experiments/y" / key) for key in ("models", "training_states", "visualization")}
    other["resume_state"] = f"{experiment['path']['training_states']}/9.state"
    opt = {"path": other, "auto_resume": False, "network_g": {}}
    assert load_resume_state(opt)["iter"] == 9
    assert opt["path"]["pretrain_network_g"] == f"{experiment['path']['models']}/net_g_9.pth"
    assert os.path.isdir(other["models"])


def test_missing_weights_are_named(experiment):
    Path(experiment["path"]["models"], "net_g_10.pth").unlink()
    with pytest.raises(
        UserError, match=r"10\.state: the weights saved with it are needed, .*net_g_10\.pth does not exi"
    ):
        load_resume_state(experiment)
