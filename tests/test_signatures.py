"""The check of names and arguments against the registries and signatures of BasicSR and its plug-ins."""

from __future__ import annotations

import math

import pytest

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.errors import OptionErrors

compat.apply()

from restormixer_arch.basicsr_adapter import register  # noqa: E402, F401 - registers RestorMixer and its loss
from restormixer_arch.basicsr_adapter.signatures import argument_problems, check_names  # noqa: E402


def problems_of(options, is_train=True):
    with pytest.raises(OptionErrors) as caught:
        check_names(options, "x.yml", is_train)
    return caught.value.lines


def test_valid_options_pass(train_options, test_options):
    check_names(train_options, "x.yml", True)
    check_names(test_options, "x.yml", False)


@pytest.mark.parametrize(
    ("path", "name", "text"),
    [
        ("model_type", "SRModl", "'SRModl' is not a known model. Did you mean 'SRModel'? Known: "),
        ("datasets.val.type", "PairdImageDataset", "not a known dataset. Did you mean 'PairedImageDataset'? Known: "),
        ("network_g.type", "msrresnet", "'msrresnet' is not a known architecture. Did you mean 'MSRResNet'? Known: "),
        ("train.pixel_opt.type", "L1", "'L1' is not a known loss. Known: CharbonnierLoss, GANLoss, L1Loss, "),
        ("val.metrics.psnr.type", "calculate_pnsr", "metric. Did you mean 'calculate_psnr'? Known: calculate_dists, "),
        ("train.optim_g.type", "SGDX", "'SGDX' is not a known optimizer of SRModel. "),
    ],
)
def test_unknown_name_is_reported_with_the_known_names(train_options, path, name, text):
    *sections, last = path.split(".")
    place = train_options
    for section in sections:
        place = place[section]
    place[last] = name
    (line,) = problems_of(train_options)
    assert line.startswith(f"x.yml: {path}: {name!r} is not a known ") and text in line


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("network_g.base_channels", [1, 2], "got [1, 2], expected a whole number"),
        ("network_g.base_channels", True, "got True, expected a whole number"),
        ("network_g.num_blocks", ["x", 2, 2], "got ['x', 2, 2], expected a whole number"),
        ("network_g.num_blocks", [2, 2], "got [2, 2], expected 3 values"),
        ("network_g.upscale", "2", "got '2', expected a whole number"),
        ("train.pixel_opt.loss_weight", "a", "got 'a', expected a number"),
        ("train.pixel_opt.fft_weight", "a", "got 'a', expected a number"),
    ],
)
def test_values_are_compared_with_annotations_and_defaults(train_options, path, value, text):
    train_options["network_g"] = {"type": "RestorMixer", "mlp_ratio": 2, "num_blocks": [2, 2, 2]}
    if path.endswith("fft_weight"):
        train_options["train"]["pixel_opt"]["type"] = "MultiScaleDualDomainLoss"
        train_options["train"]["pixel_opt"].pop("reduction", None)
    check_names(train_options, "x.yml", True)
    section, key = path.rsplit(".", 1)
    place = train_options
    for name in section.split("."):
        place = place[name]
    place[key] = value
    (line,) = problems_of(train_options)
    assert line == f"x.yml: {path}: {text}"


def test_size_may_be_a_pair_but_not_a_weight():
    def target(img_size=64, loss_weight=1.0):
        return img_size, loss_weight

    assert not list(argument_problems(target, {"img_size": [8, 8]}, ()))
    assert [str(problem) for problem in argument_problems(target, {"loss_weight": [1, 2]}, ())] == [
        "loss_weight: got [1, 2], expected a number"
    ]
    assert [str(problem) for problem in argument_problems(target, {"img_size": "8", "loss_weight": math.inf}, ())] == [
        "img_size: got '8', expected a number",
        "loss_weight: got inf, expected a finite number",
    ]


@pytest.mark.parametrize("value", ["yes", "false", [True], {}])
def test_other_types_are_rejected_for_true_or_false(train_options, value):
    train_options["val"]["metrics"]["psnr"]["test_y_channel"] = value
    assert problems_of(train_options) == [
        f"x.yml: val.metrics.psnr.test_y_channel: got {value!r}, expected true or false"
    ]


def test_number_instead_of_a_list_is_rejected(train_options):
    train_options["train"]["optim_g"]["betas"] = 0.9
    (line,) = problems_of(train_options)
    assert line.startswith("x.yml: train.optim_g.betas: got 0.9, expected a list")


def test_optimizer_that_basicsr_cannot_build_is_reported(train_options):
    """BasicSR 1.4.2 builds only Adam; later versions build more optimizers, but none named Lion."""
    train_options["train"]["optim_g"]["type"] = "Lion"
    (line,) = problems_of(train_options)
    known = line.removeprefix("x.yml: train.optim_g.type: 'Lion' is not a known optimizer of SRModel. Known: ")
    assert "Adam" in known.split(", ")


def test_arguments_are_compared_with_the_signature(train_options):
    train_options["network_g"]["num_feats"] = train_options["network_g"].pop("num_in_ch")
    train_options["train"]["pixel_opt"]["reductio"] = "mean"
    train_options["train"]["optim_g"]["momentum"] = 0.9
    metric = train_options["val"]["metrics"]["psnr"]
    metric.update(better="higher", test_y_chanel=True, for_another=1)  # the metric accepts **kwargs
    del metric["crop_border"]
    assert [line.partition(" Known:")[0] for line in problems_of(train_options)] == [
        "x.yml: network_g.num_feats: EDSR has no such argument. Did you mean 'num_feat'?",
        "x.yml: network_g.num_in_ch: required argument of EDSR is missing",
        "x.yml: train.pixel_opt.reductio: L1Loss has no such argument. Did you mean 'reduction'?",
        "x.yml: train.optim_g.momentum: Adam has no such argument.",
        "x.yml: val.metrics.psnr.test_y_chanel: calculate_psnr has no such argument. Did you mean 'test_y_channel'?",
        "x.yml: val.metrics.psnr.crop_border: required argument of calculate_psnr is missing",
    ]


def test_keyword_only_arguments_and_kwargs():
    def target(first, *, width=1, **rest):
        return first, width, rest

    found = [
        str(problem) for problem in argument_problems(target, {"widht": 1, "anything": 1}, ("n",), given=["first"])
    ]
    assert found == ["n.widht: target has no such argument. Did you mean 'width'?"]
    assert [str(problem) for problem in argument_problems(target, {}, ("n",))] == [
        "n.first: required argument of target is missing"
    ]


def test_name_with_the_suffix_of_basicsr_is_found(train_options):
    train_options["network_g"] = {"type": "SRVGGNetCompact", "num_feat": 8}
    check_names(train_options, "x.yml", True)
