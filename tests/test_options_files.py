"""Every option file is valid and builds its network and losses; its schedule has the length of the training run."""

import copy
import re
import shlex
from pathlib import Path

import pytest
import torch

from restormixer_arch.basicsr_adapter import register
from restormixer_arch.compare import options as compare_options
from restormixer_arch.config import rules
from restormixer_arch.config.check import check_options, read_request
from restormixer_arch.config.yaml_file import read_options

register.register()

from basicsr.archs import build_network  # noqa: E402 - needs register() first
from basicsr.losses import build_loss  # noqa: E402
from basicsr.utils.registry import LOSS_REGISTRY, METRIC_REGISTRY  # noqa: E402

from restormixer_arch.basicsr_adapter import signatures  # noqa: E402

ROOT = Path(__file__).parent.parent
COMPARISONS = sorted((ROOT / "options").rglob("compare_*.yml"))
FILES = sorted(set((ROOT / "options").rglob("*.yml")) - set(COMPARISONS))
# Small values with which the network is built quickly; all other keys of the file are kept.
SHRUNKEN = {"base_channels": 8, "num_blocks": [1, 2, 2]}


def name(path):
    return path.name


def read(path, monkeypatch):
    """Return the checked options of a file; paths, such as public datasets, may be missing."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(rules, "missing_paths", lambda options: ())
    options = read_options(path, str(path))
    check_options(options, str(path), is_train="train" in options)
    return options


def test_option_files_exist_for_every_task():
    tasks = ("derain", "desnow", "deblur", "sr_x2", "sr_x3", "sr_x4", "mixed", "derain_demo", "sr_demo", "mixed_demo")
    tasks += ("derain_s", "mixed_s")
    assert {f"{kind}_{task}.yml" for kind in ("train", "test") for task in tasks} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_option_file_is_valid_and_builds_network_and_losses(path, monkeypatch):
    options = read(path, monkeypatch)
    signatures.check_names(options, str(path), "train" in options)
    network = build_network({**copy.deepcopy(options["network_g"]), **SHRUNKEN}).eval()
    scale = options["scale"]
    with torch.no_grad():
        restored = network(torch.rand(1, 3, 16, 24))
    assert restored.shape == (1, 3, 16 * scale, 24 * scale)
    for key, section in options.get("train", {}).items():
        if key.endswith("_opt") and key != "gan_opt":  # the GAN loss needs the output of a discriminator
            loss = build_loss(copy.deepcopy(section))(restored, torch.rand_like(restored))
            assert loss.isfinite() and loss > 0


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # BasicSR's SwinIR
@pytest.mark.parametrize("path", COMPARISONS, ids=name)
def test_comparison_file_is_valid_and_its_networks_are_of_similar_size(path, monkeypatch):
    if "_spandrel" in path.read_text(encoding="utf-8"):
        pytest.importorskip("spandrel_extra_arches")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(rules, "missing_paths", lambda options: ())
    options = compare_options.read_compare_file(str(path))
    assert compare_options.name_problems_of(options, ".") == []
    sizes = {}
    for competitor, section in options["competitors"].items():
        network = build_network(copy.deepcopy(section["network_g"]))
        sizes[competitor] = sum(p.numel() for p in network.parameters())
    shapes = path.stem == "compare_shape_sr_x2"
    for competitor, size in sizes.items():  # some networks lack parts
        less = shapes or path.stem == "compare_ablation" or competitor.startswith("no scan")
        assert (300_000 if less else 500_000) <= size <= (1_500_000 if shapes else 650_000)
    assert len(sizes) >= 5
    for stated, size in re.findall(r"^  (\S+):  # ([\d,]+)", path.read_text(encoding="utf-8"), re.M):
        assert sizes[stated] == int(size.replace(",", ""))


@pytest.mark.parametrize("task", ["mixed", "sr_x2"])
def test_learning_rate_comparison_trains_like_the_study(task):
    """Each network is trained as in the study except for the learning rate; the study's rate is one of those tried."""
    rates, study = (read_options(ROOT / "options" / f"compare_{kind}_{task}.yml", kind) for kind in ("rates", "study"))
    assert rates["datasets"]["train"] == study["datasets"]["train"] and rates["train"] == study["train"]
    assert rates["datasets"]["test"]["dataroot_gt"].startswith("datasets/photos/val_")
    tried = {}
    for name, section in rates["competitors"].items():
        network, rate = name.rsplit(" ", 1)
        own = copy.deepcopy(section.get("train") or {})
        assert own.pop("optim_g", rates["train"]["optim_g"])["lr"] == float(rate)
        tried.setdefault(network, {})[float(rate)] = {**section, "train": own}
    assert list(tried) == list(study["competitors"])
    for network, section in study["competitors"].items():
        own = copy.deepcopy(section.get("train") or {})
        rate = own.pop("optim_g", study["train"]["optim_g"])["lr"]
        assert tried[network][rate] == {**section, "train": own} and set(tried[network]) - {3e-3} == {1e-2, 3e-2}


def test_equal_budget_trains_like_train_mixed_s_except_for_the_learning_rate(monkeypatch):
    files = [read_options(ROOT / "options" / f"{file}.yml", file) for file in ("compare_equal_budget", "train_mixed_s")]
    compared, alone = files
    assert compared["competitors"]["RestorMixer-S"]["network_g"] == alone["network_g"]
    assert compared["datasets"]["train"].pop("degradations") == ["rain"]
    alone["datasets"]["train"].pop("degradations")
    assert compared["datasets"]["train"] == alone["datasets"]["train"]
    for key in ("grad_clip", "pixel_opt", "warmup_iter"):
        assert compared["train"][key] == alone["train"][key]
    rates = [train["optim_g"].pop("lr") for train in (compared["train"], alone["train"])]
    assert compared["train"]["optim_g"] == alone["train"]["optim_g"]
    assert rates[0] > rates[1]  # minutes of training need a higher rate than hours, see the model card


@pytest.mark.parametrize("path", [p for p in FILES if p.name.startswith("train_")], ids=name)
def test_scheduler_periods_sum_to_total_iter(path, monkeypatch):
    train = read(path, monkeypatch)["train"]
    assert sum(train["scheduler"]["periods"]) == train["total_iter"]


@pytest.mark.parametrize("path", [p for p in [*FILES, *COMPARISONS] if "demo" in p.name], ids=name)
def test_demo_data_is_included(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = read_options(path, str(path))
    for dataset in options["datasets"].values():
        roots = [value for key, value in dataset.items() if key.startswith("dataroot")]
        assert len(roots) in (1, 2) and all(Path(root).is_dir() for root in roots)


def test_test_files_match_their_training_files():
    for path in FILES:
        if path.name.startswith("test_") and not path.name.startswith("test_public_"):
            test, train = (
                read_options(p, p.name) for p in (path, path.with_name(path.name.replace("test_", "train_", 1)))
            )
            assert test["network_g"] == train["network_g"], path.name
            weights = test["path"]["pretrain_network_g"]
            if weights.endswith(".safetensors"):  # included: restormixer_s_derain for restormixer_derain_s
                network, *task, size = train["name"].split("_")
                assert Path(weights).stem == "_".join([network, size, *task]) and (ROOT / weights).is_file()
            else:
                assert train["name"] in weights


def test_commands_in_losses_and_metrics_md_are_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(rules, "missing_paths", lambda options: ())
    text = (ROOT / "options/LOSSES_AND_METRICS.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [shlex.split(line)[1:] for line in re.findall(r"^basicsr .+$", text, re.M)]
    assert len(commands) >= 5
    for command, _, file, *rest in commands:
        overrides = rest[1:]
        assert rest[:1] in ([], ["--force_yml"])
        request = read_request(file, is_train=command == "train", force_yml=overrides)
        signatures.check_names(request.options, file, command == "train")
    for name in re.findall(r"`(calculate_\w+|\w+Loss)`", text):
        assert name in METRIC_REGISTRY or name in LOSS_REGISTRY, name
