"""Checkpoints are either complete or missing, and load without unpickling code."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections import Counter
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import EXPERIMENT, RESTORMIXER, load, same, several_batches, train

from restormixer_arch.basicsr_adapter import compat

compat.apply()

from basicsr.models.sr_model import SRModel  # noqa: E402

from restormixer_arch import RestorMixer  # noqa: E402
from restormixer_arch.inference.weights import load_network  # noqa: E402
from restormixer_arch.models.checkpoint_values import to_plain_values  # noqa: E402
from restormixer_arch.training import checkpoint as checkpoints  # noqa: E402


def names(folder):
    return sorted(path.name for path in (EXPERIMENT / folder).iterdir())


def test_failed_write_keeps_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    assert checkpoints.write({"x": 1}, path) == checkpoints.digest(path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.write({"x": 2}, path)
    assert torch.load(path) == {"x": 1} and os.listdir(tmp_path) == ["x.pth"]


@pytest.mark.parametrize("suffix", [".pth", ".state"])
def test_full_disk_is_reported_in_one_line_and_previous_checkpoint_resumes(
    pairs, train_options, write, monkeypatch, capsys, suffix
):
    file = write(several_batches(train_options, total=5))
    assert train(file) == 0
    expected = load("models/net_g_latest.pth")
    sync, full = checkpoints.os.fsync, []

    def fsync(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}") if os.path.isdir("/proc/self/fd") else ""
        if name.endswith(f"4{suffix}.tmp"):
            full.append(name)
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "fsync", fsync)
        assert train(file) == 2 and full
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        rf"basicsr: error: \S*4{re.escape(suffix)}: the checkpoint cannot be saved \(No space left on device\); "
        r"\S*training_states/2\.state and its weights are intact",
        last,
    ), last
    assert not any(EXPERIMENT.rglob("*.tmp"))
    assert train(file, "--auto_resume") == 0
    assert same(load("models/net_g_latest.pth"), expected)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a small disk")
def test_training_run_on_a_full_tmpfs_stops_cleanly_and_resumes(pairs, train_options, write):
    disk = pairs / "experiments"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        command = [sys.executable, "-m", "restormixer_arch.cli", "train", "-opt"]
        command.append(write(several_batches(train_options, total=90)))
        ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert ended.returncode == 2, ended.stderr
        found = re.search(
            r"error: \S+: the checkpoint cannot be saved \(No space left on device\); (\S+/(\d+)\.state) and",
            ended.stderr,
        )
        assert found, ended.stderr
        command += ["--auto_resume", "--force_yml", "logger:keep_last=2"]
        resumed = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert resumed.returncode == 0, resumed.stderr
        assert f"Resuming training from epoch: {(int(found[2]) - 1) // 3}, iter: {found[2]}." in resumed.stderr
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_error_message_if_there_is_no_earlier_checkpoint(tmp_path):
    opt = {"path": {"training_states": str(tmp_path)}}
    with pytest.raises(checkpoints.UserError, match=r"\(No such file or directory\); there is no earlier one"):
        checkpoints.write_checkpoint_file({}, tmp_path / "absent/x.pth", opt)


def test_newest_and_best_checkpoints_are_kept(pairs, train_options, write):
    options = several_batches(train_options)
    options["logger"].update(save_checkpoint_freq=1, keep_last=2)
    options["val"]["val_freq"] = 4
    assert train(write(options)) == 0
    assert names("training_states") == ["7.state", "8.state"]
    best = "net_g_best_pairs_val_psnr.pth"
    assert names("models") == ["net_g_7.pth", "net_g_8.pth", best, "net_g_latest.pth"]
    record = load("training_states/8.state")
    assert record["validated"] is False and record["best"]["pairs_val"]["psnr"]["iter"] == 4
    assert type(record["best"]["pairs_val"]["psnr"]["val"]) is float
    assert load(f"models/{best}").keys() == {"params", "params_ema"}


def test_averaged_weights_of_basicsr_models_have_averaged_batch_norm_statistics(pairs, train_options, write):
    """BasicSR averages parameters alone, so the averages would be saved with the initial statistics."""
    options = several_batches(train_options, total=3)
    options.update(model_type="SRModel", network_g={**RESTORMIXER, "deep_supervision": False})
    options["train"]["ema_decay"] = 0.75
    options["logger"]["save_checkpoint_freq"] = 1
    assert train(write(options)) == 0
    saved = [load(f"models/net_g_{number}.pth") for number in (1, 2, 3)]
    found = [name for name in saved[0]["params"] if name.endswith(("running_mean", "running_var"))]
    assert len(found) > 10
    for name in found:
        initial = torch.zeros_like if name.endswith("mean") else torch.ones_like
        average = initial(saved[0]["params"][name])
        for weights in saved:
            average = 0.75 * average + 0.25 * weights["params"][name]
            torch.testing.assert_close(weights["params_ema"][name], average)
    counts = [name for name in saved[2]["params"] if name.endswith("num_batches_tracked")]
    assert {int(saved[2][key][name]) for key in ("params", "params_ema") for name in counts} == {3}


def test_weight_file_rebuilds_the_trained_network(pairs, train_options, write):
    """Window size, heads and scan merge affect no tensor shape, so the file stores them with the weights."""
    own = {
        "deep_supervision": False,
        "window_size": 4,
        "scan_merge": "official",
        "encoder_heads": [1, 2],
        "decoder_heads": [2, 1],
    }
    train_options["network_g"] = {"type": "RestorMixer", "base_channels": 4, "num_blocks": [1, 2, 2], **own}
    train_options["train"]["total_iter"] = 1
    assert train(write(train_options)) == 0
    file = EXPERIMENT / "models/net_g_latest.pth"
    network = load_network(file)
    assert (network.window_size, network.scan_merge) == (4, "official")
    assert (network.encoder_heads, network.decoder_heads) == ((1, 2), (2, 1))
    options = {key: value for key, value in train_options["network_g"].items() if key != "type"}
    expected = RestorMixer(**options)
    expected.load_state_dict(load("models/net_g_latest.pth")["params"])
    x = torch.rand(1, 3, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected.fuse()(x))


def test_checkpoints_of_later_iterations_are_not_deleted(tmp_path):
    for folder in ("models", "training_states"):
        (tmp_path / folder).mkdir()
    for number in (1, 2, 3, 9):
        (tmp_path / f"training_states/{number}.state").touch()
        for network in ("g", "d"):
            (tmp_path / f"models/net_{network}_{number}.pth").touch()
    path = {key: str(tmp_path / key) for key in ("models", "training_states")}
    best = tmp_path / "models/net_g_best_val_psnr_2.pth"  # best checkpoint of a metric psnr_2
    best.touch()
    checkpoints.prune({"path": path, "logger": {}}, 3)
    assert len(os.listdir(path["models"])) == 9
    checkpoints.prune({"path": path, "logger": {"keep_last": 1}}, 3)
    assert sorted(os.listdir(path["training_states"])) == ["3.state", "9.state"]
    kept = ["net_d_3.pth", "net_d_9.pth", "net_g_3.pth", "net_g_9.pth", best.name]
    assert sorted(os.listdir(path["models"])) == kept


def test_extra_state_of_a_model_is_saved_and_restored(pairs, train_options, write, monkeypatch):
    seen = []
    monkeypatch.setattr(SRModel, "extra_state", lambda self: {"scale": np.float64(7), "n": 3}, raising=False)
    monkeypatch.setattr(SRModel, "load_extra_state", lambda self, state: seen.append(state), raising=False)
    file = write(several_batches(train_options, total=2))
    assert train(file) == 0 and not seen
    assert train(file, "--auto_resume") == 0
    assert seen == [{"scale": 7.0, "n": 3}]


class Kind(str, Enum):
    ONE = "one"


def test_state_is_converted_to_tensors_and_plain_values():
    state = {"a": [np.int64(2), (1, None)], "b": Counter({3: 1}), "c": np.arange(2.0), "d": torch.ones(1)}
    found = to_plain_values(state)
    assert found["a"] == [2, (1, None)] and type(found["a"][0]) is int
    assert found["b"] == {3: 1} and type(found["b"]) is dict
    assert found["c"].tolist() == [0.0, 1.0] and found["d"] is state["d"]
    with pytest.raises(TypeError, match=r"state\['x'\]\[0\] is of Path|state\['x'\]\[0\] is of PosixPath"):
        to_plain_values({"x": [Path("y")]})
    with pytest.raises(TypeError, match=r"state\['x'\] is of Kind"):
        to_plain_values({"x": Kind.ONE})


def test_wrapper_names_are_removed_from_weight_names():
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    net._modules["_orig_mod"] = net._modules.pop("0")
    assert list(checkpoints._weights(net))[:2] == ["weight", "bias"]
