"""A training that was stopped and resumed ends bit by bit where it would have ended."""

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
    """Train without a break; return the last state and weights."""
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


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # by BasicSR's SwinIR
@pytest.mark.parametrize(
    ("network", "workers", "killed"),
    [("EDSR", 0, 6), ("EDSR", 2, 6), ("EDSR", 0, 7), ("SwinIR", 0, 4), ("SwinIR", 2, 6), ("RestorMixer", 2, 6)],
)
def test_resuming_is_as_not_having_stopped(pairs, train_options, write, monkeypatch, network, workers, killed):
    train_options["logger"]["print_freq"] = 3  # losses of iterations before and after the break make one row
    options = architecture(several_batches(train_options), network)
    options["datasets"]["train"]["num_worker_per_gpu"] = workers
    options["val"]["val_freq"] = 2
    assert_resumes_as_if_not_stopped(write(options), monkeypatch, killed)


@pytest.mark.parametrize("killed", [4, 6])
def test_frozen_norms_resume_as_they_were(pairs, train_options, write, monkeypatch, killed):
    options = architecture(several_batches(train_options), "RestorMixer")
    options["train"]["freeze_norms_after"] = 0.5  # after iteration 4 of 8
    assert_resumes_as_if_not_stopped(write(options), monkeypatch, killed)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # the first step of the weights comes later
def test_gathered_gradients_resume_as_they_were(pairs, train_options, write, monkeypatch):
    """Also the norm of the last step's gradient, which each row of the losses shows until the next step."""
    options = architecture(several_batches(train_options), "RestorMixer")
    options["train"]["accumulate"] = 3
    assert_resumes_as_if_not_stopped(write(options), monkeypatch, 6)  # from 4, after the step of 3


@pytest.mark.parametrize("write_number", range(3, 7))
def test_being_killed_while_saving_loses_nothing(pairs, train_options, write, monkeypatch, write_number):
    """The third to sixth file to be written are the weights and the states of iterations 4 and 6."""
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
def test_a_damaged_newest_checkpoint_costs_two_iterations_only(pairs, train_options, write, capsys, damaged):
    file = write(several_batches(train_options))
    expected = at_once(file)
    assert train(file, "--force_yml", "train:total_iter=6") == 0
    path = EXPERIMENT / damaged
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"\0" * (len(content) - len(content) // 2))
    assert train(file, "--auto_resume") == 0
    assert f"{path.name}: " in (err := capsys.readouterr().err) and "trying the previous checkpoint" in err
    assert_same_end(expected)


def test_a_signal_s_checkpoint_is_as_good_as_any(pairs, train_options, write, monkeypatch):
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
def test_every_epoch_varies_and_follows_the_seed_alone(pairs, train_options, write, monkeypatch, kind):
    options = several_batches(train_options, total=4)
    del options["val"], options["datasets"]["val"]
    options["datasets"]["train"].update(type=kind, batch_size_per_gpu=6)  # an epoch is a batch
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


def test_skipped_samples_are_not_loaded(pairs, train_options, write, monkeypatch):
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


def test_a_drawn_seed_is_kept(pairs, train_options, write):
    options = several_batches(train_options)
    del options["manual_seed"]
    file = write(options)
    assert train(file) == 0
    seed = load("training_states/8.state")["manual_seed"]
    (EXPERIMENT / "training_states/8.state").unlink()
    assert train(file, "--auto_resume") == 0
    assert load("training_states/8.state")["manual_seed"] == seed


def test_another_data_set_starts_its_epoch_again_and_another_seed_is_reported(pairs, train_options, write, capsys):
    file = write(several_batches(train_options))
    assert train(file) == 0
    command = ["--auto_resume", "--force_yml", "train:total_iter=9", "manual_seed=3"]
    assert train(file, *command, "datasets:train:dataset_enlarge_ratio=2") == 0
    err = capsys.readouterr().err
    assert "the dataset size has changed; the epoch starts again" in err
    assert "manual_seed was 0: from now on, 3 is used for shuffling and augmentation" in err


def test_fewer_iterations_than_are_done_are_refused(pairs, train_options, write, capsys):
    file = write(several_batches(train_options))
    assert train(file) == 0
    assert train(file, "--auto_resume", "--force_yml", "train:total_iter=7") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("train.total_iter: is 7, but the training to resume has done 8 iterations; raise it")
