"""Complete small comparisons through the command line: killed, resumed, and with existing weights."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from compare_cases import EDSR, RIDNET, compare_options

from restormixer_arch import cli
from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.compare import results, training
from restormixer_arch.compare.options import read_compare_file
from restormixer_arch.config.yaml_file import load_yaml
from restormixer_arch.errors import UserError

compat.apply()

from basicsr.archs import build_network  # noqa: E402 - BasicSR can be imported only now
from basicsr.metrics.psnr_ssim import calculate_psnr  # noqa: E402

from restormixer_arch.compare import jobs, run  # noqa: E402

RESULTS = Path("results/tiny")
PLACE = RESULTS / "training"


def until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def says(file, text):
    return file.is_file() and text in file.read_text(encoding="utf-8")


@pytest.fixture
def here(monkeypatch):
    """Run all jobs in this process except the one for the inputs, since starting a process takes seconds."""
    away = run.run_in_process

    def in_process(module, job, label):
        return away(module, job, label) if job["kind"] == "inputs" else jobs.run_job(job)

    monkeypatch.setattr(run, "run_in_process", in_process)


@pytest.mark.slow
@pytest.mark.timeout(600)  # five processes are started one after another
@pytest.mark.filterwarnings("ignore:distutils Version")  # thop
def test_killed_comparison_resumes(pairs, write, capsys, here):
    """Killed during the second training run: the first is kept, the second resumes, and everything is measured."""
    options = compare_options()
    options["train"]["budget"]["iterations"] = 300
    options["competitors"]["edsr"]["train"] = {"pixel_opt": {"loss_weight": 0.5}}
    file, log = write(options), PLACE / "ridnet.log"
    command = [sys.executable, "-m", "restormixer_arch.cli", "compare", "-opt", file]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: says(log, "Saving models and training states"))
    finally:
        process.kill()
        process.wait()
    until(lambda: says(log, "SIGTERM: stopped after iteration"))  # the training run has stopped
    weights = training.weights_of("edsr", RESULTS)
    before = weights.stat().st_mtime_ns
    assert not training.weights_of("ridnet", RESULTS).exists()

    assert cli.main(["compare", "-opt", file, "--auto_resume"]) == 0
    said = capsys.readouterr()
    assert "note: edsr is already trained: 300 iterations" in said.err and weights.stat().st_mtime_ns == before
    assert "Resuming training from epoch" in log.read_text(encoding="utf-8")
    found = results.read(RESULTS)
    assert [one.name for one in found.competitors] == ["edsr", "ridnet"] and found.budget == "300 iterations"
    assert said.out.startswith((RESULTS / "table.md").read_text(encoding="utf-8"))
    written = ("results.json", "table.md", "table.csv", "report.html")
    assert said.out.endswith(f"results: {', '.join(f'results/tiny/{name}' for name in written)}\n")
    check_costs(found)
    check_pictures(found)


def check_costs(found):
    """Compare with a manual count: EDSR has five 3x3 convolutions, 3 -> 4, three times 4 -> 4, and 4 -> 3 channels."""
    edsr, ridnet = found.competitors
    assert edsr.parameters == (3 * 4 + 3 * 4 * 4 + 4 * 3) * 9 + 4 * 4 + 3
    assert edsr.macs == (3 * 4 + 3 * 4 * 4 + 4 * 3) * 9 * 16 * 16
    assert edsr.training.iterations == ridnet.training.iterations == 300 and edsr.training.seconds > 0
    assert 0 < edsr.latency.low <= edsr.latency.median <= edsr.latency.high < ridnet.latency.median * 100
    assert edsr.latency.runs == 2 and edsr.peak_bytes > 2**27


def check_pictures(found):
    """The written images are the network's results for the inputs, and the metrics are those of the written images."""
    (dataset,) = found.datasets
    assert dataset.name == "pairs_test" and [p.name for p in dataset.pictures] == list("012345")
    weights = torch.load(training.weights_of("ridnet", RESULTS), weights_only=True)
    network = build_network(dict(RIDNET)).eval()
    network.load_state_dict(weights["params_ema"])
    for picture in dataset.pictures:
        given, truth = (cv2.imread(f"pairs/{kind}/{picture.name}.png") for kind in ("lq", "gt"))
        assert np.array_equal(cv2.imread(str(RESULTS / picture.input)), given)
        assert np.array_equal(cv2.imread(str(RESULTS / picture.truth)), truth)
        assert picture.input_values["psnr"] == pytest.approx(calculate_psnr(given, truth, 0))
        with torch.no_grad():
            x = torch.from_numpy(given[..., ::-1].copy()).permute(2, 0, 1)[None] / 255
            expected = network(x)[0].clamp(0, 1).permute(1, 2, 0).numpy()[..., ::-1] * 255
        restored = cv2.imread(str(RESULTS / picture.restored["ridnet"]))
        assert np.abs(restored - expected).max() <= 0.51
        assert picture.values["psnr"]["ridnet"] == pytest.approx(calculate_psnr(restored, truth, 0))


@pytest.mark.filterwarnings("ignore:distutils Version")  # thop
def test_existing_weights_and_runs_are_compared_without_training(pairs, write, capsys, here):
    """An existing results folder of the same name is renamed."""
    Path("old/models").mkdir(parents=True)
    Path("old/x.yml").write_text(json.dumps({"network_g": EDSR}), encoding="utf-8")
    torch.save({"params": build_network(dict(EDSR)).state_dict()}, "old/models/net_g_7.pth")
    options = compare_options()
    options["competitors"] = {
        "run": {"run": "old"},
        "weights": {"network_g": EDSR, "weights": "old/models/net_g_7.pth"},
    }
    del options["train"], options["datasets"]["train"]
    RESULTS.mkdir(parents=True)
    (RESULTS / "mine.txt").write_text("kept")
    assert cli.main(["compare", "-opt", write(options)]) == 0
    (aside,) = RESULTS.parent.glob("tiny_archived_*")
    assert (aside / "mine.txt").read_text() == "kept" and not (RESULTS / "mine.txt").exists()
    assert "was renamed to results/tiny_archived_" in capsys.readouterr().err
    found = results.read(RESULTS)
    assert found.budget is None and [one.training for one in found.competitors] == [None, None]
    assert found.datasets[0].difference["psnr"]["weights"] == results.Difference(mean=0, low=0, high=0)


def test_weights_that_do_not_fit_are_reported_before_training(pairs, write, capsys):
    torch.save(build_network(dict(RIDNET)).state_dict(), "net.pth")
    options = compare_options()
    options["competitors"]["old"] = {"network_g": EDSR, "weights": "net.pth"}
    assert cli.main(["compare", "-opt", write(options)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("basicsr: error: net.pth: does not fit competitors.old: missing: ")
    assert not RESULTS.exists()


def test_changed_options_of_a_started_training_run_are_rejected(pairs, write):
    options = read_compare_file(write(compare_options()))
    file = training.option_file(options, "edsr", 4, pairs)
    assert training.option_file(options, "edsr", 4, pairs) == file
    with pytest.raises(UserError, match=r"edsr.yml: competitors.edsr was started with other options \(train, logger\)"):
        training.option_file(options, "edsr", 100, pairs)


def test_minutes_are_converted_to_iterations(pairs, write, monkeypatch):
    """Median step times of 0.5 and 2 seconds give 180 and 45 iterations in 90 seconds. Measured times are reused."""
    options = read_compare_file(write(compare_options()), ["train:budget={minutes: 1.5}"])
    taken = {"edsr": [0.5, 9.0, 0.5], "ridnet": [2.0, 1.0, 3.0]}

    def in_process(module, job, label):
        name = label.rpartition(".")[2]
        assert job["kind"] == "step_seconds" and Path(job["arguments"]["file"]).is_file()
        return taken[name]

    monkeypatch.setattr(training, "run_in_process", in_process)
    assert training.iterations(options, ["edsr", "ridnet"], pairs, 1) == {"edsr": 180, "ridnet": 45}
    taken.clear()
    assert training.iterations(options, ["edsr", "ridnet"], pairs, 1) == {"edsr": 180, "ridnet": 45}


def test_training_run_uses_one_of_several_gpus(pairs, write, monkeypatch):
    options = read_compare_file(write(compare_options() | {"num_gpu": "auto"}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("restormixer_arch.training.options.pick_device", lambda *_, **__: torch.device("cuda"))
    monkeypatch.setattr(training, "_train", lambda options, name, total, file, place: load_yaml(file.read_text()))
    assert {name: own["num_gpu"] for name, own in training.train_all(options, pairs, 1).items()} == {
        "edsr": 1,
        "ridnet": 1,
    }


def test_measuring_step_times_leaves_no_files(pairs, write):
    options = read_compare_file(write(compare_options()))
    file = training.option_file(options, "edsr", 1000, pairs)
    before = sorted(pairs.rglob("*"))
    begin = time.monotonic()
    seconds = jobs.run_job({"kind": "step_seconds", "threads": 1, "arguments": {"file": str(file), "steps": 4}})
    assert len(seconds) == 4 and min(seconds) > 0  # an epoch has three steps
    assert sum(seconds) < time.monotonic() - begin
    assert sorted(pairs.rglob("*")) == before


def test_failed_training_run_is_reported(pairs, write, capsys, monkeypatch):
    monkeypatch.setattr(training, "FOLLOWER", "restormixer_arch.compare.nothing")
    assert cli.main(["compare", "-opt", write(compare_options())]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    start = "basicsr: error: the training of competitors.edsr failed with exit code 1, see results/tiny/training/"
    assert error.startswith(start) and error.endswith("No module named restormixer_arch.compare.nothing")


def test_signals_end_the_comparison_with_a_resume_hint(pairs, write, capsys, monkeypatch):
    """SIGTERM during a measurement, and a training run that was ended by Ctrl-C."""
    again = "basicsr: stopped; resume with: basicsr compare -opt x.yml --auto_resume"
    file = write(compare_options())
    with monkeypatch.context() as patch:
        patch.setattr(run, "train_all", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert cli.main(["compare", "-opt", file]) == 143
    assert capsys.readouterr().err.splitlines()[-1] == again
    wait, ending = (
        training.run_and_wait,
        [sys.executable, "-c", "import os, signal; signal.signal(2, signal.SIG_DFL); os.kill(os.getpid(), 2)"],
    )
    monkeypatch.setattr(training, "run_and_wait", lambda command, log: wait(ending, log))
    assert cli.main(["compare", "-opt", file, "--auto_resume"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == again


SAVING = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
signal.signal(signal.SIGINT, {})
print(os.getpid(), flush=True)
for _ in range(600):
    time.sleep(0.1)
"""
SIGINT_HANDLERS = {"alone": "signal.SIG_IGN", "together": "lambda *_: sys.exit(130)"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM that a process can handle")
@pytest.mark.parametrize("sent", SIGINT_HANDLERS)
def test_sigint_to_the_command_stops_its_training_run(tmp_path, capsys, sent):
    """A scheduler sends SIGINT to the command, a terminal to both. The training run saves; the exit code is 130."""
    log, ended = tmp_path / "log", threading.Event()

    def interrupt():
        until(lambda: says(log, "\n"))
        if sent == "together":
            os.kill(int(log.read_text(encoding="utf-8")), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        if not ended.wait(60):  # otherwise the test would wait until the process has slept for a minute
            os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=interrupt)
    sender.start()
    assert training.run_and_wait([sys.executable, "-c", SAVING.format(SIGINT_HANDLERS[sent])], log) == 130
    ended.set()
    sender.join()
    assert capsys.readouterr().err.startswith("basicsr: note: stopping after this iteration with a checkpoint")
