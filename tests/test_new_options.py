"""``basicsr init``: the option file written for the user's own dataset, the choice of its values, and user errors."""

import json
import shlex
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from paired_folders import init, names, picture, prepare

from restormixer_arch import cli
from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.config.check import read_request
from restormixer_arch.config.yaml_file import load_yaml
from restormixer_arch.data.degradations.labels import CDD11
from restormixer_arch.data.lmdb_io import smallest_side
from restormixer_arch.data.preparation.fixed_set import OPTIONS
from restormixer_arch.errors import UserError

compat.apply()

from restormixer_arch.models.memory import OutOfMemory  # noqa: E402
from restormixer_arch.training import new_options  # noqa: E402
from restormixer_arch.training.dry_run import Measured  # noqa: E402


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1))
@example("2024")
@example("set #1")
@example("true")
@example("~")
@example("a: b")
@example("- x")
@example("datasets/mine")
def test_quoted_text_round_trips_through_yaml(text):
    assert load_yaml(f"name: {new_options.quoted(text)}") == {"name": text}


def test_plain_names_are_not_quoted():
    assert new_options.quoted("datasets/mine/train_gt.lmdb") == "datasets/mine/train_gt.lmdb"


@pytest.fixture
def wanted(tmp_path):
    return new_options.InitRequest(tmp_path, tmp_path / "x.yml", "x", None, "s", 1.0)


def test_frozen_norms_and_optimizer_depend_on_pretrained_weights(wanted):
    data = new_options._Data(train="", val="", scale=1, side=None, has_falling_weather=False)
    trials = [replace(wanted, task=task) for task in (None, "derain")]
    texts = [new_options._fill(trial, data, "~", 0, (64, 16, 0.5), 1000) for trial in trials]
    nothing, weights = (load_yaml(text)["train"] for text in texts)
    assert (nothing["freeze_norms_after"], weights["freeze_norms_after"]) == (0.1, 0)
    muon = {"type": "Muon", "lr": 0.0424, "adamw_lr": 2.83e-3, "adamw_betas": [0.9, 0.95], "weight_decay": 1e-4}
    assert nothing["optim_g"] == muon
    assert weights["optim_g"] == {"type": "AdamW", "lr": 1.41e-3, "betas": [0.9, 0.999], "weight_decay": 1e-4}


def test_validation_pairs_in_another_format_are_rejected(tmp_path):
    for place in ("train_gt.lmdb", "val_pairs/lq"):
        (tmp_path / place).mkdir(parents=True)
    record = {**dict.fromkeys(OPTIONS), "degradations": ["rain"], "scale": 1}
    (tmp_path / "val_pairs/made_with.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match=r"^--data: .*val_pairs has no lq\.lmdb, unlike train_gt\.lmdb; remove it"):
        new_options._read_data(tmp_path)


def test_smaller_patches_are_tried_if_memory_runs_out(wanted, monkeypatch, capsys):
    tried = []

    @contextmanager
    def trial(text):
        yield text

    def measure(text):
        tried.append(load_yaml(text)["datasets"]["train"]["gt_size"])
        if tried[-1] > 48:
            raise OutOfMemory("out of memory at iteration 1: lower ...")
        return Measured([0.5], {}, None)

    monkeypatch.setattr(new_options, "_trial", trial)
    monkeypatch.setattr(new_options, "measure", measure)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    data = new_options._Data(train="", val="", scale=1, side=None, has_falling_weather=False)
    assert new_options._choose(wanted, data, None, 0) == (48, 4, 0.5)
    assert tried == [96, 64, 64, 48]
    assert capsys.readouterr().err.count("not enough memory") == 3


# --- from images to an option file ------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Replace the measurement: an iteration takes 3 s for patches of more than 60 pixels, otherwise 0.5 s."""
    tried = []

    def measured(request):
        assert "val" not in request.options["datasets"]  # only the cost of patches is measured
        side = request.options["datasets"]["train"]["gt_size"]
        tried.append(side)
        return Measured([3.0 if side > 60 else 0.5], {}, None)

    monkeypatch.setattr(new_options, "measure", measured)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return tried


def test_init_chooses_the_patch_size_by_measured_time(own, capsys, quick):
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "sets/mine") == 0
    assert init("--data", "sets/mine", "-o", "my.yml", "--hours", "0.5", "--task", "derain") == 0
    assert quick == [64, 64, 48]  # at most the image size; the first fast one is chosen
    options = read_request("my.yml", is_train=True).options
    assert options["train"]["total_iter"] == options["train"]["scheduler"]["periods"][0] == 3600
    assert options["train"]["optim_g"]["lr"] == pytest.approx(1e-3 * 0.5**0.5, rel=1e-2)  # a batch of 4
    assert options["path"]["pretrain_network_g"].endswith("restormixer_s_derain.safetensors")
    assert options["datasets"]["train"]["gt_size"] == 48 and options["datasets"]["val"]["name"] == "val_mine"
    assert [path.name for path in Path().glob("*my.yml*")] == ["my.yml"]
    capsys.readouterr()
    assert init("--data", "sets/mine", "-o", "my.yml") == 2
    assert "my.yml: already exists; choose another --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "given", "turned"),
    [
        ("derain", ["--lq", "lq"], False),
        ("desnow", ["--lq", "lq"], False),
        ("mixed", ["--lq", "lq"], False),
        ("denoise", ["--lq", "lq"], True),
        ("denoise", ["--degrade", "haze_rain"], False),
        ("derain", ["--degrade", "noise,clean"], False),
    ],
)
def test_init_disables_rotation_for_rain_and_snow(own, quick, task, given, turned):
    """``clean`` may be one of the given labels and is added otherwise."""
    assert prepare("--gt", "gt", *given, "--out", "set", "--val", "1") == 0
    assert init("--data", "set", "-o", "my.yml", "--task", task) == 0
    train = read_request("my.yml", is_train=True).options["datasets"]["train"]
    assert train["use_rot"] is turned
    if given[0] == "--degrade":
        assert train["degradations"] == {label: {"weight": 1} for label in (given[1].split(",")[0], "clean")}


def test_suggested_commands_are_quoted_for_the_shell(own, quick, capsys):
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "set") == 0
    capsys.readouterr()
    assert init("--data", "set", "-o", "my file.yml") == 0
    head = Path("my file.yml").read_text(encoding="utf-8").splitlines()
    assert head[1:4] == [
        "#   basicsr train -opt 'my file.yml'",
        "#   basicsr train -opt 'my file.yml' --auto_resume   (to resume)",
        "#   basicsr restore IMAGE -o restored --weights 'experiments/my file/models/net_g_latest.pth'",
    ]
    assert capsys.readouterr().out.endswith("next: basicsr train -opt 'my file.yml'\n")


def test_suggested_command_starts_one_process_per_gpu(own, quick, capsys, monkeypatch):
    monkeypatch.setattr(new_options, "usable_gpus", lambda *_: 2)
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "set") == 0
    assert init("--data", "set", "-o", "my.yml") == 0
    command = "torchrun --nproc_per_node=2 $(which basicsr) train -opt my.yml --launcher pytorch"
    assert Path("my.yml").read_text(encoding="utf-8").splitlines()[1] == f"#   {command}"
    options = read_request("my.yml", is_train=True).options
    train = options["datasets"]["train"]
    assert (train["batch_size_per_gpu"], train["dataset_enlarge_ratio"]) == (4, 8)  # the ratio is for both GPUs
    assert options["train"]["optim_g"]["lr"] == pytest.approx(0.03)  # for a batch of 8
    assert capsys.readouterr().out.endswith(f"next: {command}\n")


def test_init_for_super_resolution(own, quick):
    assert prepare("--gt", "gt", "--degrade", "down", "--scale", "2", "--out", "sets/sr") == 0
    assert init("--data", "sets/sr", "-o", "sr.yml") == 0
    options = read_request("sr.yml", is_train=True).options
    assert options["scale"] == options["network_g"]["upscale"] == 2
    assert options["train"]["pixel_opt"]["type"] == "L1Loss" and options["path"]["pretrain_network_g"] is None


def test_too_few_hours_give_a_note_and_100_iterations(own, capsys, monkeypatch):
    monkeypatch.setattr(new_options, "measure", lambda request: Measured([0.5], {}, None))
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "sets/mine") == 0
    assert init("--data", "sets/mine", "-o", "my.yml", "--hours", "0.001") == 0
    assert "--hours: 0.001 is too short, 100 iterations are taken" in capsys.readouterr().err
    assert "total_iter: 100  # 0.014 h at 0.50 s, measured" in Path("my.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("given", [["--lq", "lq"], ["--degrade", "rain"]], ids=["pairs", "drawn"])
def test_written_option_file_trains(own, given, capsys, monkeypatch):
    if given[0] == "--degrade":  # the measurement is slow, and the same as for pairs
        monkeypatch.setattr(new_options, "measure", lambda request: Measured([0.5], {}, None))
    assert prepare("--gt", "gt", *given, "--out", "sets/mine", "--format", "folder") == 0
    assert init("--data", "sets/mine", "-o", "my.yml", "--hours", "0.001", "--task", "derain") == 0
    settings = ["train:total_iter=2", "val:val_freq=2", "logger:use_tb_logger=false"]
    assert cli.main(["train", "-opt", "my.yml", "--force_yml", *settings]) == 0
    assert Path("experiments/my/models/net_g_latest.pth").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nothing", "-o", "a.yml"], "--data: nothing is not a folder"),
        (["--data", "", "-o", "a.yml"], "argument --data: expected a name, got an empty string"),
        (["--data", "gt", "-o", ""], "argument -o/--output/--out: expected a name, got an empty string"),
        (["--data", "gt", "-o", "a.yml"], "--data: gt has no train_gt.lmdb or train_gt"),
        (["--data", "gt", "-o", "a.txt"], "--output: expected a name that ends in .yml"),
        (["--data", "gt", "-o", "a.yml", "--hours", "0"], "--hours: expected a positive number"),
        (
            ["--data", "gt", "-o", "a.yml", "--name", "x/y"],
            "--name: got 'x/y', expected a name of at most 150 bytes",
        ),
        (
            ["--data", "gt", "-o", "a.yml", "--name", ""],
            "--name: got '', expected a name of at most 150 bytes",
        ),
        (
            ["--data", "gt", "-o", "a\\b.yml"],
            "--output: got 'a\\\\b', expected a name of at most 150 bytes",
        ),
        (
            ["--data", "gt", "-o", "a.yml", "--task", ""],
            "argument --task: expected a task such as derain, got an empty string",
        ),
        (["--data", "gt", "-o", "a.yml", "--task", "derian"], "Did you mean 'derain'?"),
        (["--data", "gt", "-o", "a.yml", "--task", "derain", "--network", "base"], "--task: installed weights exist"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(own, capsys, arguments, message):
    assert init(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not Path("a.yml").exists()


def test_commands_of_the_own_pairs_page_succeed(own, quick, capsys):
    """Run each command of data/OWN_PAIRS.md, with training runs of two iterations."""
    page = Path(__file__).parents[1] / "data" / "OWN_PAIRS.md"
    commands = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("basicsr ")]
    Path("photos").mkdir()
    Path("gt").rename("photos/clean")
    Path("lq").rename("photos/rainy")
    assert len(commands) == 6
    for command in commands:
        arguments = shlex.split(command)[1:]
        if arguments[0] == "train":
            arguments += ["--force_yml", "train:total_iter=2", "val:val_freq=2", "logger:use_tb_logger=false"]
        assert cli.main(arguments) == 0, (command, capsys.readouterr().err)
    assert len(list(Path("restored").iterdir())) == 12
    assert len(names("datasets/sr/val_pairs/lq.lmdb")) == 1


def spoil(kind):
    """Damage the dataset in the folder ``set``. Return the expected message."""
    if kind == "list":
        Path("set/train_gt.lmdb/meta_info.txt").write_bytes(b"\xff\xfe.png (64,64,3) 1\n")
        return "set/train_gt.lmdb/meta_info.txt: cannot be read as text ("
    if kind == "no data":
        Path("set/train_gt.lmdb/data.mdb").unlink()
        return "--data: datasets.train.dataroot_gt: 'set/train_gt.lmdb' is not a BasicSR LMDB: data.mdb is missing"
    if kind == "no LMDB":
        Path("set/train_gt.lmdb/data.mdb").write_bytes(b"x" * 9000)
        return "set/train_gt.lmdb: cannot be opened as an LMDB ("
    record = Path("set/val_pairs/made_with.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "degradations": 5}))
    return "set/val_pairs: is not a fixed set of pairs: made_with.json cannot be read ("


@pytest.mark.parametrize("kind", ["list", "no data", "no LMDB", "record"])
def test_damaged_dataset_is_reported_in_one_line(own, capsys, kind):
    assert prepare("--gt", "gt", "--degrade", "rain", "--out", "set", "--val", "1") == 0
    message = spoil(kind)
    Path(".my.yml.partial").write_text("mine")
    capsys.readouterr()
    assert init("--data", "set", "-o", "my.yml") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "yml" not in error
    assert Path(".my.yml.partial").read_text() == "mine" and not Path("my.yml").exists()


def test_training_uses_the_labels_of_the_validation_pairs(own, quick):
    assert prepare("--gt", "gt", "--degrade", "rain", "--out", "set", "--val", "1") == 0
    shutil.rmtree("set/val_pairs")
    assert cli.main(["degrade", "set", "--gt", "set/val_gt.lmdb", "--out", "set/val_pairs", "--lmdb"]) == 0
    shutil.rmtree("set/val_gt.lmdb")
    assert init("--data", "set", "-o", "my.yml") == 0
    train = read_request("my.yml", is_train=True).options["datasets"]["train"]
    assert list(train["degradations"]) == [*CDD11, "clean"] and train["use_rot"] is False


@pytest.mark.parametrize("source", ["record", "headers"])
def test_patches_are_not_larger_than_the_images_of_a_folder(own, quick, source):
    """Two images have 50x64 and 64x44 pixels; the one with the smallest side is neither the first nor the last."""
    for kind in ("gt", "lq"):
        cv2.imwrite(f"{kind}/05.png", picture(5)[:50])
        cv2.imwrite(f"{kind}/06 (1,2,3).png", picture(6)[:, :44])
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "set", "--val", "0", "--format", "folder") == 0
    if source == "headers":
        Path("set/train.jsonl").unlink()
    assert init("--data", "set", "-o", "my.yml") == 0
    assert quick == [44] and read_request("my.yml", is_train=True).options["datasets"]["train"]["gt_size"] == 44


def test_smallest_side_is_read_from_lists_of_images():
    lines = ["a.png (64,80,3) 1", "b (1,2,3).png (48, 70, 3) 9\r", "no size.png", ""]
    assert smallest_side(lines) == 48 and smallest_side(lines[2:]) is None


def test_failed_init_creates_no_folder(own, capsys):
    assert init("--data", "gt", "-o", "deep/er/my.yml") == 2
    assert "--data: gt has no train_gt.lmdb" in capsys.readouterr().err and not Path("deep").exists()
