"""Ctrl-C on a real training, and going on from what it left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from restormixer_arch import cli
from restormixer_arch.basicsr_adapter import compat

compat.apply()  # the tests import basicsr


@pytest.fixture(autouse=True)
def sigint_is_heeded():
    """A shell that starts the tests in the background has SIGINT ignored, here and in every child."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def train_file(pairs, train_options, write):
    return write(train_options)


@pytest.mark.parametrize(("at", "saved"), [(1, None), (3, "2.state")])
def test_ctrl_c_tells_what_was_saved_and_how_to_go_on(train_file, capsys, monkeypatch, at, saved):
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
        assert line == f"{begin}saved last: {place}; go on with: basicsr train -opt x.yml --auto_resume"
    else:
        assert line == f"{begin}nothing was saved yet"


def test_ctrl_c_is_not_lost_in_a_destructor(train_file, capsys, monkeypatch):
    from basicsr.models.sr_model import SRModel

    class Dying:
        def __del__(self):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                pass  # as Python itself does, with a message

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
def test_an_interrupted_training_goes_on_from_its_last_checkpoint(pairs, train_options, write):
    train_options["datasets"]["train"]["num_worker_per_gpu"] = 1
    train_options["train"]["total_iter"] = 1_000_000
    train_options["logger"].update(print_freq=10, save_checkpoint_freq=5)
    command = [sys.executable, "-m", "restormixer_arch.cli", "train", "-opt", write(train_options)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    states = Path("experiments/tiny/training_states")
    deadline = time.monotonic() + 60
    while not (states.is_dir() and len(list(states.iterdir())) >= 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and out == ""
    assert "Traceback" not in err or "Exception ignored in" in err
    last = err.splitlines()[-1]
    found = re.fullmatch(
        r"basicsr: stopped after iteration (\d+) of 1000000; "
        r"saved last: experiments/tiny/training_states/(\d+)\.state; "
        r"go on with: basicsr train -opt x\.yml --auto_resume",
        last,
    )
    assert found, last
    total = int(found[1]) + 10
    command += ["--auto_resume", "--force_yml", f"train:total_iter={total}", "logger:print_freq=1"]
    resumed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert resumed.returncode == 0, resumed.stderr
    numbers = [int(number.replace(",", "")) for number in re.findall(r"iter: +([\d,]+), lr", resumed.stderr)]
    start = int(re.search(r"Resuming training from epoch: \d+, iter: (\d+)\.", resumed.stderr)[1])
    assert numbers == list(range(start + 1, total + 1)) and int(found[2]) - 5 <= start <= int(found[2])
