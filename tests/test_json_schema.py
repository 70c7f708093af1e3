"""The JSON Schema for editors agrees with the option check of the command line."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from option_cases import MISSING, put

from restormixer_arch import options
from restormixer_arch.compare.options import read_compare_file
from restormixer_arch.config.check import check_options
from restormixer_arch.config.json_schema import json_schema
from restormixer_arch.errors import UserError

FOLDER = Path(options.__file__).parent
FILES = sorted(FOLDER.glob("*.yml"))


@pytest.fixture(scope="module")
def validator():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_published_schema_is_current():
    assert json.loads((FOLDER / "schema.json").read_text(encoding="utf-8")) == json_schema()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_included_option_files_are_valid(validator, path):
    assert [error.message for error in validator.iter_errors(load(path))] == []


def change(options, key, value):
    options = copy.deepcopy(options)
    put(options, key, MISSING if value is None else value)
    return options


MISTAKES = [
    ("batchsize", 4),
    ("name", 3),
    ("datasets.train.gtsize", 64),
    ("datasets.train.gt_size", None),
    ("datasets.train.io_backend.type", "disc"),
    ("datasets.training", {"name": "x", "type": "PairedImageDataset"}),
    ("network_g.type", None),
    ("train.ema_dekay", 0.9),
    ("train.total_iter", 0),
    ("train.amp", "fp8"),
    ("train.optim_g.learning_rate", 1e-3),
    ("train.scheduler.period", [10]),
    ("train.scheduler.type", "Cosine"),
    ("val.val_freq", "1e3"),
    ("path.pretrained", "x"),
    ("logger.print_freq", 0),
]


@pytest.mark.parametrize(("key", "value"), MISTAKES, ids=[key for key, _ in MISTAKES])
def test_invalid_options_are_rejected_by_schema_and_check(validator, key, value):
    wrong = change(load(FOLDER / "train_mixed_demo.yml"), key, value)
    assert not validator.is_valid(wrong)
    with pytest.raises(UserError, match=key.rpartition(".")[2]):
        check_options(wrong, "x.yml", True, paths=False)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"type": "Muon", "lr": 0.03, "adamw_lr": 2e-3, "adamw_betas": [0.9, 0.95]},
        {"type": "Adan", "lr": 1e-3, "betas": [0.98, 0.92, 0.99]},
        {"type": "AdamW", "lr": 1e-3, "betas": [0.9, 0.99], "amsgrad": True},
    ],
    ids=lambda optimizer: optimizer["type"],
)
def test_optimizers_of_other_packages_may_have_their_own_keys(validator, optimizer):
    options = load(FOLDER / "train_derain_demo.yml")
    assert validator.is_valid(change(options, "train.optim_g", optimizer))
    assert not validator.is_valid(change(options, "train.optim_g", {**optimizer, "lr": "fast"}))


COMPARE_MISTAKES = [
    ("competitor", {}),
    ("competitors.EDSR.network_g.type", None),
    ("competitors.EDSR.weight", "x.pth"),
    ("datasets.val.io_backend.type", "disc"),
    ("train.total_iter", 10),
    ("train.budget.hours", 1),
    ("val.metrics.psnr.type", None),
    ("measure.size", 0),
]


@pytest.mark.parametrize(("key", "value"), COMPARE_MISTAKES, ids=[key for key, _ in COMPARE_MISTAKES])
def test_invalid_compare_options_are_rejected_by_schema_and_check(validator, key, value, folder):
    wrong = change(load(FOLDER / "compare_derain_demo.yml"), key, value)
    assert not validator.is_valid(wrong)
    Path("x.yml").write_text(yaml.safe_dump(wrong), encoding="utf-8")
    with pytest.raises(UserError, match=key.rpartition(".")[2]):
        read_compare_file("x.yml")


def test_plugin_models_may_have_their_own_keys(validator):
    options = load(FOLDER / "train_derain_demo.yml")
    assert validator.is_valid(change(change(options, "model_type", "MyModel"), "train.my_loss", {"weight": 1}))
    assert not validator.is_valid(change(change(options, "model_type", "MyModel"), "train.total_iter", None))
