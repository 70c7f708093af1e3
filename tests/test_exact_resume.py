"""A training run that is stopped and resumed gives bitwise the same results as an uninterrupted one."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch
from training_runs import EXPERIMENT, Killed, architecture, load, same, several_batches, train

from restormixer_arch.basicsr_adapter import compat

compat.apply()

from basicsr.models.sr_model import SRModel  # noqa: E402

from restormixer_arch.training import checkpoint as checkpoints  # noqa: E402


def kill_at(monkeypatch, iteration):
    original = SRModel.update_learning_rate

    def update_learning_rate(self, current_iter, warmup_iter=-1):
        if current_iter == iteration:
            raise Killed
        original(self, current_iter, warmup_iter)

    monkeypatch.setattr(SRModel, "update_learning_rate", update_learning_rate)
    return lambda: monkeypatch.setattr(SRModel, "update_learning_rate", original)


def at_once(file):
    """Train without interruption; delete the experiment, and return the last state, weights and losses."""
    assert train(file) == 0
    losses = (EXPERIMENT / "losses.csv").read_text()
    expected = load("training_states/8.state"), load("models/net_g_8.pth"), load("models/net_g_latest.pth"), losses
    shutil.rmtree(EXPERIMENT)
    return expected


def assert_same_end(expected):
    state, weights, latest, losses = expected
    assert (EXPERIMENT / "losses.csv").read_text() == losses
    assert same(load("models/net_g_8.pth"), weights) and same(load("models/net_g_latest.pth"), latest)
    found = load("training_states/8.state")
    assert [key for key in state if not same(found[key], state[key])] == []


def assert_resumes_as_if_not_stopped(file, monkeypatch, killed):
    expected = at_once(file)
    revive = kill_at(monkeypatch, killed)
    with pytest.raises(Killed):
        train(file)
    revive()
    assert train(file, "--auto_resume") == 0
    assert_same_end(expected)


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # BasicSR's SwinIR
@pytest.mark.parametrize(
    ("network", "workers", "killed"),
    [("EDSR", 0, 6), ("EDSR", 2, 6), ("EDSR", 0, 7), ("SwinIR", 0, 4), ("SwinIR", 2, 6), ("RestorMixer", 2, 6)],
)
def test_resumed_run_equals_uninterrupted_run(pairs, train_options, write, monkeypatch, network, workers, killed):
    train_options["logger"]["print_freq"] = 3  # one row averages losses from before and after resuming
    options = architecture(several_batches(train_options), network)
    options["datasets"]["train"]["num_worker_per_gpu"] = workers
    options["val"]["val_freq"] = 2
    assert_resumes_as_if_not_stopped(write(options), monkeypatch, killed)


@pytest.mark.parametrize("killed", [4, 6])
def test_resumed_run_with_frozen_norms_equals_uninterrupted_run(pairs, train_options, write, monkeypatch, killed):
    options = architecture(several_batches(train_options), "RestorMixer")
    options["train"]["freeze_norms_after"] = 0.5  # after iteration 4 of 8
    assert_resumes_as_if_not_stopped(write(options), monkeypatch, killed)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # the first optimizer step comes later
def test_resumed_run_with_accumulated_gradients_equals_uninterrupted_run(pairs, train_options, write, monkeypatch):
    """This includes the gradient norm of the last step, which every row of the losses contains until the next step."""
    options = architecture(several_batches(train_options), "RestorMixer")
    options["train"]["accumulate"] = 3
    assert_resumes_as_if_not_stopped(write(options), monkeypatch, 6)  # resumes from 4, after the step at 3


@pytest.mark.parametrize("write_number", range(3, 7))
def test_run_killed_while_saving_resumes_exactly(pairs, train_options, write, monkeypatch, write_number):
    """The third to sixth files that are written are the weights and states of iterations 4 and 6."""
    file = write(several_batches(train_options))
    expected = at_once(file)
    replace, written = checkpoints.os.replace, []

    def dying(source, target):
        written.append(target)
        if len(written) == write_number:
            Path(source).write_bytes(Path(source).read_bytes()[:100])
            raise Killed
        replace(source, target)

    monkeypatch.setattr(checkpoints.os, "replace", dying)
    with pytest.raises(Killed):
        train(file)
    monkeypatch.setattr(checkpoints.os, "replace", replace)
    assert any(EXPERIMENT.rglob("*.tmp"))
    assert train(file, "--auto_resume") == 0
    assert_same_end(expected)
    assert not any(EXPERIMENT.rglob("*.tmp"))


@pytest.mark.parametrize("damaged", ["training_states/6.state", "models/net_g_6.pth"])
def test_damaged_newest_checkpoint_falls_back_to_the_previous_one(pairs, train_options, write, capsys, damaged):
    file = write(several_batches(train_options))
    expected = at_once(file)
    assert train(file, "--force_yml", "train:total_iter=6") == 0
    path = EXPERIMENT / damaged
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"\0" * (len(content) - len(content) // 2))
    assert train(file, "--auto_resume") == 0
    assert f"{path.name}: " in (err := capsys.readouterr().err) and "trying the previous checkpoint" in err
    assert_same_end(expected)


def test_checkpoint_saved_on_a_signal_resumes_exactly(pairs, train_options, write, monkeypatch):
    file = write(several_batches(train_options))
    expected = at_once(file)
    original = SRModel.feed_data

    def feed_data(self, data):
        original(self, data)
        seen.append(1)
        if len(seen) == 5:
            signal.raise_signal(signal.SIGTERM)

    seen = []
    monkeypatch.setattr(SRModel, "feed_data", feed_data)
    assert train(file) == 143
    assert load("training_states/5.state")["position"] == {"epoch": 1, "consumed": 4, "size": 6, "images": 6}
    assert train(file, "--auto_resume") == 0
    assert_same_end(expected)


@pytest.mark.parametrize("kind", ["PairedImageDataset", "PairedRestorationDataset"])
def test_epochs_differ_and_depend_only_on_the_seed(pairs, train_options, write, monkeypatch, kind):
    options = several_batches(train_options, total=4)
    del options["val"], options["datasets"]["val"]
    options["datasets"]["train"].update(type=kind, batch_size_per_gpu=6)  # one batch per epoch
    file = write(options)
    epochs = batches_of(file, monkeypatch)
    sums = {tuple(sorted(epoch.flatten(1).sum(1).tolist())) for epoch in epochs}
    assert len(sums) == 4
    assert torch.equal(batches_of(file, monkeypatch, "datasets:train:num_worker_per_gpu=2"), epochs)
    assert not torch.equal(batches_of(file, monkeypatch, "manual_seed=1"), epochs)


def batches_of(file, monkeypatch, *overrides):
    """Train; return the degraded crops (iterations, batch, channels, height, width)."""
    seen, original = [], SRModel.feed_data

    def feed_data(self, data):
        seen.append(data["lq"].clone())
        original(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(SRModel, "feed_data", feed_data)
        assert train(file, *(["--force_yml", *overrides] if overrides else [])) == 0
    return torch.stack(seen)


def test_resuming_does_not_load_consumed_samples(pairs, train_options, write, monkeypatch):
    from basicsr.data.paired_image_dataset import PairedImageDataset

    file = write(several_batches(train_options))
    assert train(file, "--force_yml", "train:total_iter=5", "logger:save_checkpoint_freq=5") == 0
    loaded, original = [], PairedImageDataset.__getitem__

    def getitem(self, index):
        if self.opt["phase"] == "train":
            loaded.append(int(index))
        return original(self, index)

    monkeypatch.setattr(PairedImageDataset, "__getitem__", getitem)
    assert train(file, "--auto_resume") == 0
    assert len(loaded) == 3 * 2


def test_random_seed_is_kept_when_resuming(pairs, train_options, write):
    options = several_batches(train_options)
    del options["manual_seed"]
    file = write(options)
    assert train(file) == 0
    seed = load("training_states/8.state")["manual_seed"]
    (EXPERIMENT / "training_states/8.state").unlink()
    assert train(file, "--auto_resume") == 0
    assert load("training_states/8.state")["manual_seed"] == seed


def test_changed_dataset_restarts_the_epoch_and_changed_seed_is_reported(pairs, train_options, write, capsys):
    file = write(several_batches(train_options))
    assert train(file) == 0
    command = ["--auto_resume", "--force_yml", "train:total_iter=9", "manual_seed=3"]
    assert train(file, *command, "datasets:train:dataset_enlarge_ratio=2") == 0
    err = capsys.readouterr().err
    assert "the dataset size has changed; the epoch starts again" in err
    assert "manual_seed was 0: from now on, 3 is used for shuffling and augmentation" in err


def test_total_iter_below_the_completed_iterations_is_rejected(pairs, train_options, write, capsys):
    file = write(several_batches(train_options))
    assert train(file) == 0
    assert train(file, "--auto_resume", "--force_yml", "train:total_iter=7") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("train.total_iter: is 7, but the training to resume has done 8 iterations; raise it")
