"""The ``basicsr`` command: exit codes, messages and result lines, and training and testing with BasicSR's classes."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from restormixer_arch import __version__, cli, output
from restormixer_arch.errors import UserError

CHECK_WHAT_IS_IMPORTED = """
import sys
from restormixer_arch.cli import main
code = main(sys.argv[1:])
print(code, sorted({"torch", "torchvision", "basicsr", "cv2", "numpy", "lmdb"} & sys.modules.keys()))
"""


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


def errors(capsys) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix("basicsr: error: ") for line in lines if line.startswith("basicsr: error: ")]


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], f"unknown command 'trian'. Did you mean 'train'? Commands: {', '.join(cli.COMMANDS)}"),
        (
            ["compare", "--pages", "x", "--steps"],
            "basicsr compare: --steps needs -opt. See 'basicsr compare --help'",
        ),
        (
            ["compare", "--report", "x", "--out", "y"],
            "basicsr compare: --out needs --pages or --join. See 'basicsr compare --help'",
        ),
        (
            ["compare", "--report", ""],
            "basicsr compare: argument --report: expected a name, got an empty string. See 'basicsr compare --help'",
        ),
        (
            ["compare"],
            "basicsr compare: expected one of -opt, --pages, --join and --report. See 'basicsr compare --help'",
        ),
        (["train"], "basicsr train: the following arguments are required: -opt/--opt. See 'basicsr train --help'"),
        (
            ["train", "-opt", "x", "--auto_resum"],
            "basicsr train: unrecognized arguments: --auto_resum. Did you mean '--auto_resume'? "
            "See 'basicsr train --help'",
        ),
        (["test", "-opt", "x.yml"], "x.yml: no such option file."),
        (["doctor", "x"], "basicsr doctor: unrecognized arguments: x. See 'basicsr doctor --help'"),
    ],
)
def test_invalid_argument_is_reported_in_one_line_with_exit_code_2(folder, capsys, arguments, message):
    assert run(*arguments) == 2
    assert errors(capsys) == [message]


def test_help_and_version(capsys):
    assert run("--version") == 0 and capsys.readouterr().out == f"basicsr command of restormixer {__version__}\n"
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert run() == 2 and capsys.readouterr().out == text
    for command in cli.COMMANDS:
        assert f"  {command}" in text
        with pytest.raises(SystemExit) as left:
            run(command, "--help")
        assert left.value.code == 0 and f"usage: basicsr {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ["restore", "export", "init", "card", "compare", "prepare", "prepare pairs", "degrade sheet"]
)
def test_output_option_has_the_same_names_in_all_commands(command, capsys):
    with pytest.raises(SystemExit):
        run(*command.split(), "--help")
    text = capsys.readouterr().out
    assert all(f" {name} " in text for name in ("-o", "--output", "--out"))


def test_help_describes_the_switches_of_basicsr_scripts(capsys):
    texts = {}
    for command in ("train", "test"):
        with pytest.raises(SystemExit):
            run(command, "--help")
        texts[command] = " ".join(capsys.readouterr().out.split())
    assert "--auto_resume resume from the newest checkpoint" in texts["train"]
    assert (
        "--debug name the run debug_NAME, log every iteration, validate and save every 8 iterations, no"
        in texts["train"]
    )
    assert "--auto_resume no effect; accepted for compatibility with BasicSR's test script" in texts["test"]
    assert "--debug write to results/debug_NAME" in texts["test"]


def test_only_multi_process_jobs_suppress_output(folder, capsys, monkeypatch):
    """In a pod of a cluster, RANK is set for every command."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(output, "_shared_job", False)  # as in a new process
    assert run("--version") == 0 and capsys.readouterr().out.startswith("basicsr command of restormixer ")
    assert run("train", "-opt", "x.yml") == 2 and not output.is_first_process()
    assert run("doctor", "x") == 2 and output.is_first_process()
    monkeypatch.setattr("restormixer_arch.cli.doctor.SECTIONS", {})
    assert run("doctor") == 0 and capsys.readouterr().out.endswith("ready to train\n")
    for command in ("test", "compare"):
        assert run(command, "-opt", "x.yml") == 2 and not output.is_first_process()
    monkeypatch.setenv("RANK", "0")
    assert output.is_first_process()


def test_no_heavy_imports_before_the_option_file_is_checked(pairs, train_options, write):
    train_options["train"]["totl_iter"] = train_options["train"].pop("total_iter")
    command = [sys.executable, "-c", CHECK_WHAT_IS_IMPORTED, "train", "-opt", write(train_options)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "2 []\n"
    assert done.stderr == "basicsr: error: x.yml: train.totl_iter: unknown key. Did you mean 'total_iter'?\n"


def test_module_can_be_run_as_the_command(folder):
    (folder / "x.yml").write_text("a: [1\n")
    command = [sys.executable, "-m", "restormixer_arch.cli", "train", "-opt", "x.yml", "--local-rank=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"basicsr: error: x\.yml:2:1: .*expected ',' or '\]'.*\n", done.stderr)


# --- training and testing with BasicSR's own classes -----------------------------------------------------------------


@pytest.fixture
def train_file(pairs, train_options, write):
    train_options["val"]["val_freq"] = 5
    return write(train_options)


def iterations(log: str) -> list[int]:
    return [int(number) for number in re.findall(r"iter: +(\d+), lr", log)]


def test_train_resume_and_test(train_file, test_options, write, capsys):
    assert run("train", "-opt", train_file) == 0
    out, log = capsys.readouterr()
    assert iterations(log) == [1, 2, 3, 4, 5]  # six images in batches of four: the last two are dropped
    assert log.count("Validation pairs_val") == 1 and "@ 5 iter" in log  # not again at the end, and not at 6
    assert "it/s" not in log  # no progress bar without a terminal
    assert re.fullmatch(r"pairs_val: PSNR \d+\.\d\d dB; weights: experiments/tiny/models/net_g_latest\.pth\n", out)
    states = Path("experiments/tiny/training_states")
    assert sorted(file.name for file in states.iterdir()) == ["2.state", "4.state"]

    assert run("train", "-opt", train_file, "--auto_resume", "--force_yml", "train:total_iter=7") == 0
    out, log = capsys.readouterr()
    assert iterations(log) == [5, 6, 7]
    assert re.findall(r"@ (\d+) iter", log) == ["5", "7"]

    assert run("test", "-opt", write(test_options)) == 0
    images = "results/tiny/visualization/pairs_test"
    out = capsys.readouterr().out
    assert out == f"pairs_test: PSNR {last_psnr(log):.2f} dB; images: {images}\n"
    assert len(list(Path(images).glob("*_tiny.png"))) == 6
    assert run("test", "-opt", "x.yml") == 0
    assert "basicsr: note: results/tiny exists from an earlier run, which was renamed to" in capsys.readouterr().err


def test_network_without_weights_is_tested_with_a_warning(pairs, test_options, write, capsys):
    test_options["path"]["pretrain_network_g"] = None
    assert run("test", "-opt", write(test_options)) == 0
    warning = "x.yml: path.pretrain_network_g names no weights: the network is measured as it starts"
    assert f"basicsr: warning: {warning}\n" in capsys.readouterr().err


def last_psnr(log: str) -> float:
    return float(re.findall(r"# psnr: ([\d.]+)", log)[-1])


def test_resuming_a_finished_run_does_no_further_iteration(train_file, capsys):
    assert run("train", "-opt", train_file, "--force_yml", "train:total_iter=4") == 0
    before = torch.load("experiments/tiny/models/net_g_latest.pth")["params"]
    capsys.readouterr()
    assert run("train", "-opt", train_file, "--auto_resume", "--force_yml", "train:total_iter=4") == 0
    log = capsys.readouterr().err
    assert iterations(log) == [] and re.findall(r"@ (\d+) iter", log) == ["4"]
    after = torch.load("experiments/tiny/models/net_g_latest.pth")["params"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_overrides_are_used_and_saved(train_file, capsys):
    overrides = ["train:optim_g:lr=2e-4", "train:total_iter=1", "manual_seed=3", "val=~"]
    assert run("train", "-opt", train_file, "--force_yml", *overrides) == 0
    out, log = capsys.readouterr()
    assert "lr:(2.000e-04,)" in log and "manual_seed: 3" in log
    kept = yaml.safe_load(Path("experiments/tiny/x.yml").read_text())  # read by 'basicsr compare'
    assert (kept["train"]["optim_g"]["lr"], kept["manual_seed"], kept["val"]) == (2e-4, 3, None)
    assert out == "weights: experiments/tiny/models/net_g_latest.pth\n"


@pytest.mark.parametrize("workers", [0, 1])
def test_undecodable_image_is_named(train_file, capsys, workers):
    Path("pairs/lq/3.png").write_bytes(b"no image")
    overrides = [f"datasets:train:num_worker_per_gpu={workers}", "train:total_iter=9", "val=~"]
    assert run("train", "-opt", train_file, "--force_yml", *overrides) == 2
    assert errors(capsys) == ["pairs/lq/3.png: cannot be decoded as an image (8 bytes)"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "network_g:type=EDSRX",
            "network_g.type: 'EDSRX' is not a known architecture. Did you mean 'EDSR'? Known: BasicVSR",
        ),
        ("datasets:train:batch_size_per_gpu=7", "datasets.train: 6 images do not fill a batch of 7; lower batch_size"),
        ("datasets:val:dataroot_lq=pairs", "datasets.val: lq and gt datasets have different number of images: 0, 6."),
        ("datasets:val:dataroot_lq=pair", "datasets.val.dataroot_lq: 'pair' does not exist. Did you mean 'pairs'?"),
    ],
)
def test_option_error_is_reported_in_one_line_with_exit_code_2(train_file, capsys, override, message):
    assert run("train", "-opt", train_file, "--force_yml", override) == 2
    (line,) = errors(capsys)
    assert line.startswith(f"x.yml: {message}")


def test_force_yml_may_be_repeated(train_file, capsys):
    assert run("train", "-opt", train_file, "--force_yml", "train:totl=3", "--force_yml", "scale=0") == 2
    assert {line.split(": ")[1] for line in errors(capsys)} == {"train.totl", "scale"}


def test_empty_dataset_is_a_user_error(pairs, test_options, write, capsys):
    Path("empty").mkdir()
    test_options["datasets"]["test_1"].update(dataroot_lq="empty", dataroot_gt="empty")
    test_options["path"] = {}
    assert run("test", "-opt", write(test_options)) == 2
    assert errors(capsys) == ["x.yml: datasets.test_1: has no image ('empty')"]


def test_unexpected_error_is_not_caught(train_file, monkeypatch):
    from basicsr.models.sr_model import SRModel

    monkeypatch.setattr(SRModel, "feed_data", lambda self, data: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run("train", "-opt", train_file)


# --- messages --------------------------------------------------------------------------------------------------------


def test_ctrl_c_outside_of_training_is_reported_in_one_line(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "wait", ("waiting", ""))
    monkeypatch.setitem(sys.modules, "waiting", SimpleNamespace(run=interrupted))
    assert run("wait") == 130 and capsys.readouterr().err == "basicsr: stopped\n"


def test_closed_stdout_pipe_causes_no_traceback():
    command = [sys.executable, "-m", "restormixer_arch.cli", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # as head does
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_message_of_a_loader_worker_is_extracted_from_its_traceback():
    from torch._utils import ExceptionWrapper

    try:
        raise UserError("x.png: bad. UserError: quoted")
    except UserError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(UserError) as caught:
        wrapped.reraise()
    assert str(caught.value).startswith("Caught UserError in DataLoader worker process 0.")
    assert caught.value.lines == ["x.png: bad. UserError: quoted"]
    assert UserError("Caught in the act").lines == ["Caught in the act"]


def test_result_lines_and_table_show_the_gain(folder):
    from restormixer_arch.training import results

    gain = {"rain": {"psnr": (24.104, 29.314), "ssim": (0.7804, 0.9101)}}
    path = {"models": str(folder / "m"), "visualization": str(folder / "v"), "results_root": str(folder)}
    opt = {"path": path, "val": {"save_img": False}, "datasets": {"a": {"name": "rain"}, "b": {"name": "none"}}}
    done = SimpleNamespace(model=SimpleNamespace(gain=lambda: gain), opt=opt, images={"rain": 10})
    text = "rain: PSNR 24.10 -> 29.31 dB (+5.21), SSIM 0.780 -> 0.910"
    assert results.training_lines(done) == [f"{text}; weights: m"]
    assert results.test_lines(done) == [text, "none: no metrics"]
    row = "| rain | 10 | 24.10 -> 29.31 | 0.7804 -> 0.9101 |"
    assert (folder / "results.md").read_text().splitlines()[2:] == [row]
    gain["snow"] = {"psnr": (20.0, 30.0), "ssim": (0.5, 0.9)}
    average = "PSNR 22.05 -> 29.66 dB (+7.61), SSIM 0.640 -> 0.905"
    assert results.test_lines(done)[-1] == f"average of 2 sets: {average}; table: results.md"


def test_no_gain_is_shown_for_infinite_or_nan_values():
    from restormixer_arch.training import results

    for before, after, text in (
        (math.inf, math.inf, "PSNR inf -> inf dB"),
        (30.0, math.inf, "PSNR 30.00 -> inf dB"),
        (30.0, math.nan, "PSNR 30.00 -> nan dB"),
        (30.0, 31.5, "PSNR 30.00 -> 31.50 dB (+1.50)"),
    ):
        model = SimpleNamespace(gain=lambda before=before, after=after: {"set": {"psnr": (before, after)}})
        assert results.result_lines(model) == {"set": text}


@pytest.mark.parametrize(
    ("chosen", "wanted"),
    [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active"), ({"GOMP_SPINCOUNT": "7"}, "None")],
)
def test_openmp_threads_wait_passively_unless_configured(chosen, wanted):
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | chosen
    code = "import os, restormixer_arch.cli; print(os.environ.get('OMP_WAIT_POLICY'))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == wanted


def test_missing_system_library_is_reported_in_one_line(monkeypatch, capsys):
    def lacking(arguments):
        raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr("restormixer_arch.cli.doctor.run", lacking)
    assert run("doctor") == 2
    (line,) = errors(capsys)
    assert line.startswith("a library of the system is missing: libGL.so.1") and "apt install libgl1" in line


def test_lack_of_shared_memory_is_explained(pairs, train_options, write, monkeypatch, capsys):
    from restormixer_arch.training.trainer import Training

    def killed(self):
        raise RuntimeError(
            "DataLoader worker (pid 1) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit."
        )

    monkeypatch.setattr(Training, "run", killed)
    assert run("train", "-opt", write(train_options)) == 2
    (line,) = errors(capsys)
    assert "Bus error; shared memory ran out: in a container start it with more (docker run --shm-size=2g)" in line
