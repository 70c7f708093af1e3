"""Validation of compare files, and the options of ``basicsr train`` that are derived from them."""

import pytest
from compare_cases import EDSR, compare_options
from option_cases import MISSING, put

from restormixer_arch import cli
from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.compare.options import is_trained, name_problems_of, read_compare_file, training_options
from restormixer_arch.errors import UserError

compat.apply()

# key in the file, its value (None: the key is removed), and the beginning of a line of the error message
FAULTS = [
    ("competitors.edsr.wieghts", "x", "competitors.edsr.wieghts: unknown key. Did you mean 'weights'?"),
    ("competitors.edsr.weights", "", "competitors.edsr.weights: got '', expected the name of a file or folder, or ~"),
    ("competitors.edsr.weights", "pairs/net.pth", "competitors.edsr.weights: 'pairs/net.pth' does not exist."),
    ("competitors.edsr.run", "pairs", "competitors.edsr.run: cannot be combined with network_g, weights or param_key"),
    ("competitors.old", {"run": "experiments/old"}, "competitors.old.run: 'experiments/old' does not exist (there is "
     "no 'experiments' in {folder})."),
    ("competitors.none", {}, "competitors.none: expected network_g, weights, both, or run"),
    ("competitors.a/b", {"network_g": EDSR}, "competitors.a/b: is used as a file name: must not contain / or "
     "\\ or start with ."),
    ("competitors.edsr.checkpoint", "best", "competitors.edsr.checkpoint: needs 'run'"),
    ("competitors.edsr.param_key", "params", "competitors.edsr.param_key: is for 'weights' of a 'network_g'"),
    ("competitors.old", {"weights": "pairs", "train": {"grad_clip": 0}}, "competitors.old.train: is not trained here: "
     "it has weights, or the file has no section 'train'"),
    ("competitors.edsr.train", {"optim_g": {"lr": "fast"}}, "competitors.edsr.train.optim_g.lr: got 'fast', expected "
     "a number"),
    ("train", None, "competitors.edsr.weights: required key is missing, since the file has no section 'train'"),
    ("train.budget", None, "train.budget: required key is missing ('iterations: N' or 'minutes: N')"),
    ("train.budget", {}, "train.budget: got {}, expected one of 'iterations' and 'minutes'"),
    ("train.budget.minutes", 1, "train.budget: got {'iterations': 4, 'minutes': 1}, expected one of 'iterations' and "
     "'minutes'"),
    ("train.budget", {"iterations": None}, "train.budget: got {'iterations': None}, expected one of 'iterations' and "
     "'minutes'"),
    ("datasets.test.mean", [0.5], "datasets.test.mean: pictures are compared in [0, 1], without mean and std"),
    ("train.budget.minutes", 0, "train.budget.minutes: got 0, expected more than 0"),
    ("train.total_iter", 4, "train.total_iter: unknown key."),
    ("train.optim_g", None, "train.optim_g: required key is missing (type and lr of the optimizer)"),
    ("datasets.val", {"name": "pairs_test"}, "datasets.val.name: 'pairs_test' is the name of datasets.test already; "
     "results are shown under it"),
    ("datasets.test.name", "a/b", "datasets.test.name: got 'a/b', expected a name of at most 150 "
     "bytes that every system can store"),
    ("datasets.test", None, "datasets: no dataset to measure on, expected 'test', 'test_<n>' or 'val'"),
    ("datasets.test", {"name": "real", "type": "SingleImageDataset", "dataroot_lq": "pairs/lq"}, "datasets.test.type: "
     "'SingleImageDataset' has no ground truth for val.metrics (calculate_psnr)"),
    ("datasets.train", None, "datasets.train: required section is missing (the images to train on)"),
    ("val.metrics", {}, "val.metrics: got {}, expected 1 or more values"),
    ("measure.size", 0, "measure.size: got 0, expected at least 1"),
]  # fmt: skip


def changed(options, key, value):
    put(options, key, MISSING if value is None else value)
    return options


@pytest.mark.parametrize(("key", "value", "message"), FAULTS, ids=[f"{key}-{i}" for i, (key, *_) in enumerate(FAULTS)])
def test_invalid_options_are_rejected(pairs, write, key, value, message):
    file = write(changed(compare_options(), key, value))
    with pytest.raises(UserError) as error:
        read_compare_file(file)
    expected = message.replace("{folder}", str(pairs)).rstrip(".")
    assert any(line.startswith(f"x.yml: {expected}") for line in str(error.value).splitlines()), str(error.value)


def test_train_section_without_a_competitor_to_train_is_rejected(pairs, write):
    options = compare_options()
    options["competitors"] = {"old": {"weights": "pairs"}}
    with pytest.raises(UserError, match="x.yml: train: every competitor already has weights, so there is nothing to"):
        read_compare_file(write(options))


def test_duplicate_competitor_name_is_rejected(pairs, write, capsys):
    path = pairs / write(compare_options())
    path.write_text(path.read_text(encoding="utf-8").replace("  ridnet:", "  edsr:"), encoding="utf-8")
    assert cli.main(["compare", "-opt", "x.yml"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "'edsr'" in error and "x.yml:12:3" in error


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"type": "EDSRR"}, "x.yml: competitors.ridnet.network_g.type: 'EDSRR' is not a known architecture"),
        ({**EDSR, "num_feats": 4}, "x.yml: competitors.ridnet.network_g.num_feats: EDSR has no such argument. Did you"),
    ],
)
def test_unknown_network_type_or_argument_is_rejected(pairs, write, capsys, network, message):
    options = changed(compare_options(), "competitors.ridnet.network_g", network)
    assert cli.main(["compare", "-opt", write(options)]) == 2
    assert capsys.readouterr().err.startswith(f"basicsr: error: {message}")
    assert not (pairs / "results").exists()


def test_missing_spandrel_is_reported_with_its_install_command(pairs, write, capsys, monkeypatch):
    from restormixer_arch.basicsr_adapter import spandrel_networks

    monkeypatch.setattr(spandrel_networks, "find_spec", lambda name: None)
    options = changed(compare_options(), "competitors.ridnet.network_g", {"type": "SCUNet_spandrel"})
    assert cli.main(["compare", "-opt", write(options)]) == 2
    assert capsys.readouterr().err == (
        "basicsr: error: x.yml: competitors.ridnet.network_g.type: 'SCUNet_spandrel' needs the package spandrel: pip "
        "install spandrel spandrel-extra-arches\n"
    )


def test_defaults_and_overrides(pairs, write):
    file = write(changed(compare_options(), "measure", None))
    options = read_compare_file(file, ["train:budget={minutes: 0.5}", "manual_seed=7"])
    assert options["measure"] == {"size": 256, "rounds": 7} and options["scale"] == 1
    assert options["train"]["budget"] == {"minutes": 0.5} and options["manual_seed"] == 7
    assert all(is_trained(options, name) for name in ("edsr", "ridnet"))


def test_competitor_loss_of_another_type_replaces_the_common_loss(pairs, write):
    options = compare_options()
    options["train"]["pixel_opt"] = {"type": "MultiScaleDualDomainLoss", "fft_weight": 0.5}
    options["competitors"]["edsr"]["train"] = {"pixel_opt": {"type": "CharbonnierLoss", "eps": 1e-6}}
    options["competitors"]["ridnet"]["train"] = {"pixel_opt": {"loss_weight": 2.0}}
    read = read_compare_file(write(options))
    assert name_problems_of(read, ".") == []
    losses = [training_options(read, name, 60, "here")["train"]["pixel_opt"] for name in ("edsr", "ridnet")]
    assert losses[0] == {"type": "CharbonnierLoss", "eps": 1e-6}
    assert losses[1] == {"type": "MultiScaleDualDomainLoss", "fft_weight": 0.5, "loss_weight": 2.0}
    options["competitors"]["edsr"]["train"] = {"optim_g": {"type": "AdamW"}}
    with pytest.raises(
        UserError, match=r"^x\.yml: competitors\.edsr\.train\.optim_g\.lr: required key is missing \(lea"
    ):
        read_compare_file(write(options))


def test_steps_without_a_trained_competitor_is_rejected(pairs, write, capsys):
    options = compare_options()
    options["competitors"] = {"old": {"network_g": EDSR, "weights": "pairs"}}
    del options["train"], options["datasets"]["train"]
    assert cli.main(["compare", "-opt", write(options), "--steps"]) == 2
    assert capsys.readouterr().err == (
        "basicsr: error: x.yml: --steps: no competitor is trained, so there is no step to measure\n"
    )


def test_training_options_of_each_competitor(pairs, write):
    own = {"optim_g": {"lr": 0.5}, "eta_min": 0.25}
    options = read_compare_file(write(changed(compare_options(), "competitors.ridnet.train", own)))
    assert name_problems_of(options, ".") == []
    edsr, ridnet = (training_options(options, name, 60, "here") for name in ("edsr", "ridnet"))
    assert edsr["train"]["optim_g"] == {"type": "Adam", "lr": 0.001}
    assert ridnet["train"]["optim_g"] == {"type": "Adam", "lr": 0.5}
    schedule = {"type": "CosineAnnealingRestartLR", "periods": [60], "restart_weights": [1], "eta_min": 0.25}
    assert ridnet["train"]["scheduler"] == schedule and edsr["train"]["scheduler"]["eta_min"] == 0.0
    assert ridnet["train"]["total_iter"] == 60 and "budget" not in ridnet["train"]
    assert ridnet["logger"]["save_checkpoint_freq"] == 3
    assert list(ridnet["datasets"]) == ["train"] and ridnet["path"] == {"experiments_root": "here"}
    assert edsr["network_g"] == EDSR and edsr["manual_seed"] == ridnet["manual_seed"] == 0
