"""Ctrl-C and other signals during a training run, and resuming it afterwards."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from restormixer_arch import cli
from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.training.interrupt import Interrupt

compat.apply()  # the tests import basicsr


@pytest.fixture(autouse=True)
def sigint_is_handled():
    """Handle SIGINT, which is ignored here and in child processes if a shell starts the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def train_file(pairs, train_options, write):
    return write(train_options)


@pytest.mark.parametrize(("at", "saved"), [(1, None), (3, "2.state")])
def test_ctrl_c_reports_the_last_checkpoint_and_how_to_resume(train_file, capsys, monkeypatch, at, saved):
    from basicsr.models.sr_model import SRModel

    original = SRModel.optimize_parameters

    def optimize_parameters(self, current_iter):
        if current_iter == at:
            raise KeyboardInterrupt
        original(self, current_iter)

    monkeypatch.setattr(SRModel, "optimize_parameters", optimize_parameters)
    assert cli.main(["train", "-opt", train_file]) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    begin = f"basicsr: stopped after iteration {at - 1} of 5; "
    if saved:
        place = f"experiments/tiny/training_states/{saved}"
        assert line == f"{begin}last checkpoint: {place}; resume with: basicsr train -opt x.yml --auto_resume"
    else:
        assert line == f"{begin}nothing was saved yet"


@pytest.mark.parametrize("freq", [2, 5])
def test_last_validation_finishes_after_ctrl_c(pairs, train_options, write, capfd, monkeypatch, freq):
    """This holds whether or not ``val_freq`` divides the last iteration."""
    from restormixer_arch.training import trainer

    train_options["val"]["val_freq"] = freq
    train_file = write(train_options)

    original = trainer.run_validation

    def run_validation(model, loader, iteration, *others):
        if iteration == 5:
            signal.raise_signal(signal.SIGINT)
        return original(model, loader, iteration, *others)

    monkeypatch.setattr(trainer, "run_validation", run_validation)
    assert cli.main(["train", "-opt", train_file]) == 0
    said = capfd.readouterr().err
    assert "SIGINT: the last validation is running and will finish; Ctrl-C again quits at once" in said
    assert "saving a checkpoint" not in said


def at_iteration(monkeypatch, number, action):
    """Call ``action`` during iteration ``number``."""
    from basicsr.models.sr_model import SRModel

    original = SRModel.optimize_parameters

    def optimize_parameters(self, current_iter):
        if current_iter == number:
            action()
        original(self, current_iter)

    monkeypatch.setattr(SRModel, "optimize_parameters", optimize_parameters)


@pytest.mark.parametrize(
    ("name", "code", "hint"),
    [("SIGINT", 130, "; Ctrl-C again quits at once"), ("SIGTERM", 143, ""), ("SIGHUP", 129, "")],
)
def test_signal_saves_after_the_iteration_and_sets_the_exit_code(train_file, capfd, monkeypatch, name, code, hint):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    at_iteration(monkeypatch, 3, lambda: signal.raise_signal(number))
    assert cli.main(["train", "-opt", train_file]) == code
    lines = capfd.readouterr().err.splitlines()
    assert f"basicsr: {name}: saving a checkpoint after this iteration{hint}" in lines
    saved = "experiments/tiny/training_states/3.state"
    assert lines[-1] == (
        f"basicsr: {name}: stopped after iteration 3 of 5; last checkpoint: {saved}; "
        "resume with: basicsr train -opt x.yml --auto_resume"
    )
    assert Path(saved).exists() and Path("experiments/tiny/models/net_g_3.pth").exists()
    assert signal.getsignal(number) is before


def test_second_ctrl_c_quits_immediately(train_file, capfd, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_iteration(monkeypatch, 4, twice)
    assert cli.main(["train", "-opt", train_file]) == 130
    assert (
        capfd.readouterr().err.splitlines()[-1].startswith("basicsr: stopped after iteration 3 of 5; last checkpoint: ")
    )
    assert not Path("experiments/tiny/training_states/4.state").exists()


def test_second_sigint_from_a_launcher_is_treated_as_the_same_ctrl_c():
    interrupt = Interrupt(running=True, has_launcher=True)
    interrupt.notice(signal.SIGINT, None)
    interrupt.notice(signal.SIGINT, None)
    assert interrupt.signal == signal.SIGINT and not interrupt.quits_at_once
    interrupt._when -= 10
    with pytest.raises(KeyboardInterrupt):
        interrupt.notice(signal.SIGINT, None)


@pytest.fixture
def job(monkeypatch):
    """Simulate a job of two processes; ``job.other(flag)`` is called while they agree on a signal."""
    job = SimpleNamespace(other=lambda flag: None)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flag, op: job.other(flag))
    return job


def test_signal_during_the_agreement_of_processes_is_not_lost(job):
    interrupt = Interrupt(running=True, has_launcher=True)
    job.other = lambda flag: interrupt.notice(signal.SIGTERM, None)
    assert interrupt.agree_on_signal() == 0 and interrupt.signal == signal.SIGTERM
    job.other = lambda flag: None
    assert interrupt.agree_on_signal() == signal.SIGTERM


def test_sigint_received_first_by_another_process_is_the_same_ctrl_c(job):
    interrupt = Interrupt(running=True, has_launcher=True)
    job.other = lambda flag: flag.fill_(int(signal.SIGINT))
    assert interrupt.agree_on_signal() == signal.SIGINT
    interrupt.notice(signal.SIGINT, None)
    assert not interrupt.quits_at_once


def test_signal_before_the_first_iteration_quits_immediately(train_file, capfd, monkeypatch):
    from restormixer_arch.training import trainer

    original = trainer.MessageLogger

    def logger(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(trainer, "MessageLogger", logger)
    assert cli.main(["train", "-opt", train_file]) == 143
    last = "basicsr: SIGTERM: stopped after iteration 0 of 5; nothing was saved yet"
    assert capfd.readouterr().err.splitlines()[-1] == last


def test_aborted_validation_is_repeated_after_resuming(pairs, train_options, write, capfd, monkeypatch):
    from basicsr.models.sr_model import SRModel

    train_options["val"]["val_freq"] = 2
    original, seen = SRModel.test, []

    def test(self):
        seen.append(1)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGTERM)
        original(self)

    monkeypatch.setattr(SRModel, "test", test)
    command = ["train", "-opt", write(train_options)]
    assert cli.main(command) == 143
    assert len(seen) == 3  # of six images
    assert not list(Path("experiments/tiny/models").glob("net_g_best*"))
    monkeypatch.setattr(SRModel, "test", original)
    assert cli.main([*command, "--auto_resume"]) == 0
    log = next(Path("experiments/tiny").glob("train_tiny_*.log")).read_text() + capfd.readouterr().err
    assert "@ 2 iter" in log


def test_ctrl_c_is_not_lost_in_a_destructor(train_file, capsys, monkeypatch):
    from basicsr.models.sr_model import SRModel

    class Dying:
        def __del__(self):
            try:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                pass  # Python does the same, with a message

    original = SRModel.feed_data

    def feed_data(self, data):
        Dying()
        original(self, data)

    monkeypatch.setattr(SRModel, "feed_data", feed_data)
    assert cli.main(["train", "-opt", train_file]) == 130
    assert "stopped after iteration 0 of 5" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process group")
def test_interrupted_run_resumes_from_its_last_checkpoint(pairs, train_options, write):
    train_options["datasets"]["train"]["num_worker_per_gpu"] = 1
    train_options["train"]["total_iter"] = 1_000_000
    train_options["logger"].update(print_freq=10, save_checkpoint_freq=5)
    command = [sys.executable, "-m", "restormixer_arch.cli", "train", "-opt", write(train_options)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    states = Path("experiments/tiny/training_states")
    deadline = time.monotonic() + 60
    while not (states.is_dir() and len(list(states.iterdir())) >= 2):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and out == ""
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    found = re.fullmatch(
        r"basicsr: SIGINT: stopped after iteration (\d+) of 1000000; "
        r"last checkpoint: experiments/tiny/training_states/(\d+)\.state; "
        r"resume with: basicsr train -opt x\.yml --auto_resume",
        last,
    )
    assert found, last
    total = int(found[1]) + 10
    command += ["--auto_resume", "--force_yml", f"train:total_iter={total}", "logger:print_freq=1"]
    resumed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert resumed.returncode == 0, resumed.stderr
    numbers = [int(number.replace(",", "")) for number in re.findall(r"iter: +([\d,]+), lr", resumed.stderr)]
    start = int(re.search(r"Resuming training from epoch: \d+, iter: (\d+)\.", resumed.stderr)[1])
    assert numbers == list(range(start + 1, total + 1)) and start == int(found[1]) == int(found[2])


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="has no SIGHUP")
def test_sighup_is_handled_although_the_terminal_is_gone(monkeypatch):
    """SIGHUP means that the terminal is gone, and writing to it fails."""

    def gone(descriptor, text):
        raise OSError(5, "Input/output error")

    interrupt = Interrupt(running=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", gone)
        interrupt.notice(signal.SIGHUP, None)
    assert interrupt.signal == signal.SIGHUP and interrupt.agree_on_signal() == signal.SIGHUP
