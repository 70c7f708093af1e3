"""The state that a training run resumes from, also without CUDA or after a run was killed while saving."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.errors import UserError

compat.apply()

from restormixer_arch.training.checkpoint import digest, saved_states  # noqa: E402
from restormixer_arch.training.resume import archive_newer, continues_own_run, load_resume_state  # noqa: E402


@pytest.fixture
def experiment(folder):
    """Options of an experiment with the states and weights of iterations 9 and 10."""
    path = {key: str(folder / "experiments/x" / key) for key in ("models", "training_states", "visualization")}
    for key in ("models", "training_states"):
        os.makedirs(path[key])
    for iteration in (9, 10):
        state = {"epoch": 1, "iter": iteration, "optimizers": [], "schedulers": [{"milestones": Counter([3])}]}
        torch.save(state, f"{path['training_states']}/{iteration}.state")
        torch.save({"params": {}}, f"{path['models']}/net_g_{iteration}.pth")
    return {"path": path, "auto_resume": True, "network_g": {}}


def test_newest_state_is_resumed_without_cuda(experiment, capsys):
    state = load_resume_state(experiment)
    assert state["iter"] == 10 and state["schedulers"][0]["milestones"] == Counter([3])  # sorted as numbers
    assert experiment["path"]["resume_state"].endswith("training_states/10.state")
    assert experiment["path"]["pretrain_network_g"].endswith("models/net_g_10.pth")


def test_previous_state_is_used_if_the_newest_is_damaged(experiment, capsys):
    newest, before = saved_states(experiment["path"]["training_states"])
    newest.write_bytes(newest.read_bytes()[:50])
    assert load_resume_state(experiment)["iter"] == 9
    assert "10.state: cannot be read as a training state" in capsys.readouterr().err
    torch.save({"x": 1}, before)
    with pytest.raises(UserError, match=r"9\.state: is not a training state of BasicSR"):
        load_resume_state(experiment)


def test_without_a_state_training_starts_from_the_beginning(experiment, capsys):
    for state in saved_states(experiment["path"]["training_states"]):
        state.unlink()
    assert load_resume_state(experiment) is None
    assert "nothing to resume in experiments/x/training_states" in capsys.readouterr().err
    assert load_resume_state(experiment | {"auto_resume": False}) is None


def test_state_of_another_experiment_is_resumed_with_its_own_weights(experiment, folder):
    other = {key: str(folder / "experiments/y" / key) for key in ("models", "training_states", "visualization")}
    other["resume_state"] = f"{experiment['path']['training_states']}/9.state"
    opt = {"path": other, "auto_resume": False, "network_g": {}}
    assert load_resume_state(opt)["iter"] == 9
    assert opt["path"]["pretrain_network_g"] == f"{experiment['path']['models']}/net_g_9.pth"
    assert not continues_own_run(opt)  # make_folders() then creates the folders of a new run


def test_weights_next_to_the_state_are_preferred_to_those_of_this_experiment(experiment, folder):
    other = {key: str(folder / "experiments/y" / key) for key in ("models", "training_states", "visualization")}
    os.makedirs(other["models"])
    Path(other["models"], "net_g_9.pth").write_bytes(b"of another run")
    other["resume_state"] = f"{experiment['path']['training_states']}/9.state"
    opt = {"path": other, "auto_resume": False, "network_g": {}}
    assert load_resume_state(opt)["iter"] == 9
    assert opt["path"]["pretrain_network_g"] == f"{experiment['path']['models']}/net_g_9.pth"


def test_missing_weights_are_reported(experiment):
    path = experiment["path"] | {"resume_state": f"{experiment['path']['training_states']}/10.state"}
    Path(path["models"], "net_g_10.pth").unlink()
    with pytest.raises(UserError, match=r"10\.state: the weights saved with it are needed, .*net_g_10\.pth does not"):
        load_resume_state(experiment | {"path": path, "auto_resume": False})


def test_previous_state_is_used_if_the_newest_weights_are_damaged(experiment, capsys):
    weights = Path(experiment["path"]["models"], "net_g_10.pth")
    weights.write_bytes(weights.read_bytes()[:50])
    assert load_resume_state(experiment)["iter"] == 9
    assert "net_g_10.pth: cannot be read as weights" in capsys.readouterr().err


def test_weights_that_were_not_saved_with_the_state_are_rejected(experiment, capsys):
    weights, state = (Path(experiment["path"][key]) for key in ("models", "training_states"))
    content = torch.load(state / "10.state", weights_only=True)
    content["weights"] = {"net_g_10.pth": digest(weights / "net_g_10.pth")}
    torch.save(content, state / "10.state")
    assert load_resume_state(experiment)["iter"] == 10
    torch.save({"params": {"x": torch.ones(1)}}, weights / "net_g_10.pth")
    assert load_resume_state(experiment)["iter"] == 9
    assert "net_g_10.pth: is damaged, or not the one that was saved with 10.state" in capsys.readouterr().err


def test_partly_written_files_of_a_killed_run_are_removed(experiment):
    models = Path(experiment["path"]["models"])
    for name in ("net_g_11.pth.tmp", "notes.tmp"):
        (models / name).touch()
    load_resume_state(experiment)
    assert sorted(path.name for path in models.iterdir()) == ["net_g_10.pth", "net_g_9.pth", "notes.tmp"]


def resume(opt):
    """Do what a training run does that resumes; return the iteration."""
    iteration = load_resume_state(opt)["iter"]
    archive_newer(opt, iteration)
    return iteration


def test_newer_checkpoints_are_moved_when_an_older_one_is_resumed(experiment, capsys):
    """The run writes checkpoints with the same names, from which a later --auto_resume must resume."""
    states, models = (Path(experiment["path"][key]) for key in ("training_states", "models"))
    (models / "net_g_best_val_psnr_10.pth").touch()
    experiment["path"]["resume_state"] = str(states / "9.state")
    assert resume(experiment | {"auto_resume": False}) == 9
    assert [path.name for path in saved_states(states)] == ["9.state"]
    assert sorted(path.name for path in models.iterdir()) == ["net_g_9.pth", "net_g_best_val_psnr_10.pth"]
    (aside,) = states.glob("newer_*")
    assert (
        "checkpoints newer than iteration 9 were moved to experiments/x/training_states/newer_"
        in capsys.readouterr().err
    )
    path = {**experiment["path"], "resume_state": str(aside / "10.state")}
    opt = experiment | {"path": path, "auto_resume": False}
    assert load_resume_state(opt)["iter"] == 10
    assert opt["path"]["pretrain_network_g"] == str(aside / "net_g_10.pth")


@pytest.mark.parametrize("key", [None, "params_ema", "state_dict"])
def test_trained_weights_are_resumed_regardless_of_param_key(experiment, key):
    experiment["path"]["param_key_g"] = key
    load_resume_state(experiment)
    assert experiment["path"]["param_key_g"] == "params"


def test_ignored_networks_keep_their_weights_and_nothing_is_printed(experiment, capsys):
    own = {"pretrain_network_d": "d.pth", "param_key_d": "params_ema", "ignore_resume_networks": ["network_d"]}
    experiment["path"] |= own
    load_resume_state(experiment | {"network_d": {}})
    assert experiment["path"].items() >= own.items()
    assert experiment["path"]["pretrain_network_g"].endswith("models/net_g_10.pth")
    assert capsys.readouterr().out == ""


def test_latest_and_best_weights_and_tables_are_kept_when_resuming_an_older_state(experiment):
    states, models = (Path(experiment["path"][key]) for key in ("training_states", "models"))
    for name in ("models/net_g_latest.pth", "models/net_g_best_val_psnr.pth", "losses.csv", "validations.csv"):
        (models.parent / name).write_text(name)
    experiment["path"]["resume_state"] = str(states / "9.state")
    assert resume(experiment | {"auto_resume": False}) == 9
    (aside,) = states.glob("newer_*")
    kept = {path.name for path in aside.iterdir()}
    assert kept == {
        *("10.state", "net_g_10.pth", "net_g_latest.pth", "net_g_best_val_psnr.pth", "losses.csv", "validations.csv")
    }
    assert (aside / "losses.csv").read_text() == "losses.csv" and (models.parent / "losses.csv").is_file()
    assert sorted(path.name for path in models.iterdir()) == ["net_g_9.pth", "net_g_best_val_psnr.pth"]


def test_newer_latest_weights_are_moved_if_the_last_state_is_set_explicitly(experiment):
    states, latest = Path(experiment["path"]["training_states"]), Path(experiment["path"]["models"], "net_g_latest.pth")
    latest.touch()
    assert resume(experiment) == 10 and latest.is_file()  # --auto_resume uses the newest
    experiment["path"]["resume_state"] = str(states / "10.state")
    resume(experiment | {"auto_resume": False})
    (aside,) = states.glob("newer_*")
    assert [path.name for path in aside.iterdir()] == ["net_g_latest.pth"] and not latest.exists()
