"""The options of models and datasets are those of BasicSR's own parser, if it supports the case."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.config.check import Request, read_request
from restormixer_arch.errors import UserError

compat.apply()

from basicsr.utils.options import parse_options  # noqa: E402

from restormixer_arch.training.options import fit_to_machine, make_folders, make_opt, reject_cuda_models  # noqa: E402


def upstream(monkeypatch, arguments, is_train):
    monkeypatch.setattr("sys.argv", ["train.py", *arguments])
    return parse_options("/root_path", is_train)


@pytest.mark.parametrize("debug", [False, True])
def test_training_options_match_basicsr(pairs, train_options, write, monkeypatch, debug):
    train_options["datasets"]["train"]["dataroot_gt"] = "~/x"
    train_options["path"] = {"pretrain_network_g": "~/y.pth", "strict_load_g": True}
    name = write(train_options)
    request = Request(name, Path(name), train_options, is_train=True, auto_resume=True, debug=debug)
    opt = make_opt(request, "/root_path")
    expected, _ = upstream(monkeypatch, ["-opt", name, "--auto_resume", *["--debug"] * debug], True)
    for dataset in opt["datasets"].values():
        assert not dataset.pop("persistent_workers")
        dataset.pop("pin_memory", None)
    assert opt["val"].pop("suffix") is None and opt["val"].pop("pbar") is False
    assert opt == expected


def test_testing_options_match_basicsr(pairs, test_options, write, monkeypatch):
    test_options["val"].update(suffix="s", pbar=False)
    test_options["datasets"]["test_1"].update(pin_memory=False, persistent_workers=False)
    name = write(test_options)
    opt = make_opt(Request(name, Path(name), test_options, is_train=False), "/root_path")
    expected, _ = upstream(monkeypatch, ["-opt", name], False)
    assert opt == expected


def test_seed_of_force_yml_is_used(pairs, train_options, write):
    request = read_request(write(train_options), is_train=True, force_yml=["manual_seed=7"])
    opt = make_opt(request, "/root_path")
    drawn = random.random(), torch.rand(1).item()
    random.seed(7)
    torch.manual_seed(7)
    assert opt["manual_seed"] == 7 and drawn == (random.random(), torch.rand(1).item())


def test_missing_seed_is_drawn_without_changing_the_request(pairs, train_options, write):
    del train_options["manual_seed"]
    request = read_request(write(train_options), is_train=True)
    opt = make_opt(request, "/root_path")
    assert 1 <= opt["manual_seed"] <= 10000
    assert request.options == train_options


def test_parent_folder_of_results_can_be_chosen(pairs, train_options, write):
    train_options["path"] = {"experiments_root": "/elsewhere", "results_root": "/unused"}
    request = read_request(write(train_options), is_train=True)
    assert make_opt(request, "/root_path")["path"] == {
        "experiments_root": "/elsewhere/tiny",
        "log": "/elsewhere/tiny",
        "models": "/elsewhere/tiny/models",
        "training_states": "/elsewhere/tiny/training_states",
        "visualization": "/elsewhere/tiny/visualization",
    }
    opt = make_opt(replace(request, is_train=False), "/root_path")
    assert opt["path"]["results_root"] == "/unused/tiny" and "experiments_root" not in opt["path"]


def loader_options():
    train = {"phase": "train", "prefetch_mode": "cuda", "pin_memory": True, "persistent_workers": True}
    val = {"phase": "val", "pin_memory": True, "persistent_workers": True}
    return {"num_gpu": 1, "datasets": {"train": train | {"num_worker_per_gpu": 1}, "val": val}, "val": {"pbar": True}}


def test_options_that_need_a_gpu_are_changed_with_a_warning_without_one(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    opt = loader_options()
    fit_to_machine(opt)
    train, val = opt["datasets"]["train"], opt["datasets"]["val"]
    assert opt["num_gpu"] == 0 and train["prefetch_mode"] is None and not train["pin_memory"] and not val["pin_memory"]
    assert train["persistent_workers"] and not val["persistent_workers"]
    assert opt["val"] == {"pbar": False, "suffix": None}
    assert capsys.readouterr().err.splitlines() == [
        "basicsr: warning: num_gpu: 1 was asked for, but there is no CUDA device; running on the CPU",
        "basicsr: warning: datasets.train.prefetch_mode: 'cuda' needs a CUDA device; loading without prefetching",
    ]


@pytest.mark.parametrize("model", ["RealESRNetModel", "RealESRGANModel", "RealESRGANModel_basicsr"])
@pytest.mark.parametrize("is_train", [True, False])
def test_models_that_degrade_images_on_a_gpu_are_rejected_without_one(
    train_options, monkeypatch, tmp_path, model, is_train
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    request = Request("x.yml", Path("x.yml"), {**train_options, "model_type": model}, is_train=is_train)
    with pytest.raises(UserError) as error:
        make_opt(request, str(tmp_path))
    text = f"model_type: {model!r} needs a CUDA device, and none is used here; expected a GPU"
    assert str(error.value) == text
    reject_cuda_models({"model_type": model, "num_gpu": 1})
    reject_cuda_models({"model_type": "SRModel", "num_gpu": 0})


def test_options_that_need_a_gpu_are_kept_with_one(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    opt = loader_options()
    fit_to_machine(opt)
    expected = loader_options()
    expected["datasets"]["val"]["persistent_workers"] = False
    expected["val"] = {"pbar": False, "suffix": None}
    assert opt == expected and capsys.readouterr().err == ""


def test_earlier_runs_are_archived_even_within_the_same_second(folder, capsys):
    path = str(folder / "experiments/x")
    for number in range(3):
        make_folders({"rank": 0, "is_train": False, "path": {"log": path}}, folder / "x.yml")
        assert os.listdir(path) == []
        Path(path, str(number)).touch()
    archived = sorted(folder.glob("experiments/x_archived_*"))
    assert sorted(file.name for run in archived for file in run.iterdir()) == ["0", "1"]
    lines = capsys.readouterr().err.splitlines()
    kept = "experiments/x exists from an earlier run, which was renamed to experiments/x_archived_"
    assert len(lines) == 2 and all(line.startswith(f"basicsr: note: {kept}") for line in lines)


@pytest.mark.parametrize(
    ("change", "option_file", "message"),
    [
        ({}, "experiments/x/x.yml", "-opt: experiments/x/x.yml is in experiments/x, which a new run of that name"),
        (
            {"pretrain_network_g": "experiments/x/models/g.pth"},
            "x.yml",
            "path.pretrain_network_g: experiments/x/",
        ),
    ],
)
def test_folder_with_files_that_the_run_reads_is_not_renamed(folder, change, option_file, message):
    weights = folder / "experiments/x/models/g.pth"
    weights.parent.mkdir(parents=True)
    weights.touch()
    opt = {"rank": 0, "is_train": True, "path": {"log": str(folder / "experiments/x"), **change}}
    with pytest.raises(UserError, match=f"^{message}"):
        make_folders(opt, Path(option_file))
    assert weights.is_file()
