"""``basicsr train --dry-run`` finds errors of a training run, saves nothing, and estimates the time."""

import re
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
from training_cases import RESTORMIXER

from restormixer_arch import cli
from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.training.dry_run import report, shorten_options
from restormixer_arch.training.trainer import Training

compat.apply()

from basicsr.archs.edsr_arch import EDSR  # noqa: E402 - BasicSR can be imported only now


@pytest.mark.parametrize("model", ["SRModel", "RestorMixerModel"])
def test_dry_run_trains_and_saves_nothing(pairs, train_options, write, capsys, model):
    train_options.update(model_type=model)
    train_options["val"]["val_freq"] = 2
    before = sorted(Path().rglob("*"))
    file = write(train_options)
    assert cli.main(["train", "-opt", file, "--dry-run"]) == 0
    assert sorted(Path().rglob("*")) == sorted([*before, Path(file)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "options, data and 3 iterations are OK; nothing was saved"
    assert re.fullmatch(r"memory: \d+\.\d\d GiB at most", lines[1])
    assert re.fullmatch(r"training: 5 iterations of \d+\.\d{3} s: 0:\d\d:\d\d", lines[2])
    assert re.fullmatch(r"validation: 3 times 6 images of pairs_val, \d+\.\d{3} s each: 0:\d\d:\d\d", lines[3])
    assert lines[4].startswith("total: about 0:0") and len(lines) == 5


def test_every_progressive_stage_is_run(pairs, train_options, write, capsys):
    train_options.update(model_type="RestorMixerModel", network_g=RESTORMIXER)
    train_options["train"]["progressive"] = {"iters": [2, 2], "gt_sizes": [8, 16], "batch_sizes": [4, 2]}
    assert cli.main(["train", "-opt", write(train_options), "--dry-run"]) == 0
    assert re.search(r"^training: 5 iterations of \d+\.\d{3} s, then \d+\.\d{3} s: ", capsys.readouterr().out, re.M)


def test_schedule_shorter_than_the_dry_run_is_accepted(pairs, train_options, write, capsys):
    train_options["train"]["total_iter"] = 1
    schedule = {"type": "CosineAnnealingRestartLR", "periods": [1], "restart_weights": [1], "eta_min": 0.0}
    train_options["train"]["scheduler"] = schedule
    assert cli.main(["train", "-opt", write(train_options), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("options, data and 3 iterations are OK")


def test_dry_run_does_not_modify_the_resumed_training_run(pairs, train_options, write, capsys):
    assert cli.main(["train", "-opt", write(train_options)]) == 0
    state = Path("experiments/tiny/training_states/4.state")
    before = state.read_bytes()
    train_options["path"]["resume_state"] = str(state)
    assert cli.main(["train", "-opt", write(train_options), "--dry-run", "--auto_resume"]) == 0
    assert state.read_bytes() == before and len(list(Path("experiments").iterdir())) == 1


def test_crops_larger_than_the_images_are_reported(pairs, train_options, write, capsys):
    train_options["datasets"]["train"]["gt_size"] = 64
    assert cli.main(["train", "-opt", write(train_options), "--dry-run"]) == 2
    assert re.fullmatch(
        r"basicsr: error: pairs/gt/\d\.png: LQ \(20, 20\) is smaller than patch size \(64, 64\); "
        r"lower datasets\.train\.gt_size or leave the image out",
        capsys.readouterr().err.splitlines()[-1],
    )


def test_misspelled_metric_is_reported(pairs, train_options, write, capsys):
    train_options["val"]["metrics"]["psnr"]["type"] = "calculate_psnr_rbg"
    assert cli.main(["train", "-opt", write(train_options), "--dry-run"]) == 2
    assert "val.metrics.psnr.type: 'calculate_psnr_rbg' is not a known metric" in capsys.readouterr().err


def test_images_are_restored_in_tiles_as_in_validation(pairs, train_options, write, monkeypatch):
    """With val.tile, the network's input is never larger than a tile."""
    for path in Path("pairs").glob("*/*.png"):
        cv2.imwrite(str(path), np.zeros((96, 96, 3), np.uint8))
    train_options.update(model_type="RestorMixerModel")
    train_options["val"].update(tile=64, tile_overlap=0)
    seen, forward = [], EDSR.forward
    monkeypatch.setattr(EDSR, "forward", lambda self, x: seen.append(x.shape[-1]) or forward(self, x))
    assert cli.main(["train", "-opt", write(train_options), "--dry-run"]) == 0
    assert max(seen) == 64


@pytest.mark.parametrize(("asked", "tried"), [("auto", 1), (2, 1), (1, 1), (0, 0)])
def test_dry_run_uses_at_most_one_gpu(train_options, monkeypatch, asked, tried):
    """A dry run is one process, while training on several GPUs needs a process for each GPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("restormixer_arch.inference.restorer.unusable_reason", lambda name: None)
    train_options["num_gpu"] = asked
    assert shorten_options(train_options, "x", 1)["num_gpu"] == tried and train_options["num_gpu"] == asked


def test_launcher_is_rejected(pairs, train_options, write, capsys):
    assert cli.main(["train", "-opt", write(train_options), "--dry-run", "--launcher", "pytorch"]) == 2
    assert capsys.readouterr().err == "basicsr: error: --dry-run: runs in one process, got --launcher pytorch\n"


def test_estimate_is_the_sum_of_training_and_validation_time():
    options = {
        "train": {"total_iter": 1000, "progressive": {"iters": [600, 100]}},
        "val": {"val_freq": 300},
    }
    assert report(options, [0.1, 0.5], {"a": (2.0, 10)}, 3 << 29) == [
        "options, data and 6 iterations are OK; nothing was saved",
        "memory: 1.50 GiB at most",
        "training: 1000 iterations of 0.100 s, then 0.500 s: 0:04:20",  # 600 * 0.1 + 400 * 0.5
        "validation: 4 times 10 images of a, 2.000 s each: 0:01:20",
        "total: about 0:05:40",
    ]
    options = {"train": {"total_iter": 100, "progressive": {"iters": [600, 100]}}}
    assert report(options, [0.1, 0.5], {}, None)[-1] == "total: about 0:00:10"  # the second stage is never reached


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signal_stops_a_dry_run_without_a_checkpoint(pairs, train_options, write, capfd, monkeypatch, name, code):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    step = Training._step

    def interrupted(self, batch):
        step(self, batch)
        signal.raise_signal(signal.Signals[name])

    monkeypatch.setattr(Training, "_step", interrupted)
    try:
        assert cli.main(["train", "-opt", write(train_options), "--dry-run"]) == code
    finally:
        signal.signal(signal.SIGINT, before)
    error = capfd.readouterr().err
    assert error.splitlines()[-1] == "basicsr: stopped" and "saving a checkpoint" not in error
