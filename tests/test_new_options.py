"""``basicsr init``: what it writes is read again as it was meant, and it tries less where memory runs out."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.config.yaml_file import load_yaml
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
def test_text_comes_back_as_it_was(text):
    assert load_yaml(f"name: {new_options.quoted(text)}") == {"name": text}


def test_plain_names_have_no_quotes():
    assert new_options.quoted("datasets/mine/train_gt.lmdb") == "datasets/mine/train_gt.lmdb"


@pytest.fixture
def wanted(tmp_path):
    return new_options.Wanted(tmp_path, tmp_path / "x.yml", "x", None, "s", 1.0)


def test_norms_are_by_the_batch_at_first_where_nothing_is_trained_yet(wanted):
    data = new_options._Data(train="", val="", scale=1, side=None, falls=False)
    texts = [new_options._fill(replace(wanted, task=task), data, "~", 64, 16, 1000, 0.5) for task in (None, "derain")]
    nothing, weights = (load_yaml(text)["train"] for text in texts)
    assert (nothing["frozen_norms"], weights["frozen_norms"]) == (0.1, 0)
    muon = {"type": "Muon", "lr": 0.0424, "adamw_lr": 2.83e-3, "adamw_betas": [0.9, 0.95], "weight_decay": 1e-4}
    assert nothing["optim_g"] == muon
    assert weights["optim_g"] == {"type": "AdamW", "lr": 1.41e-3, "betas": [0.9, 0.999], "weight_decay": 1e-4}


def test_pairs_of_another_format_are_not_passed_over(tmp_path):
    for place in ("train_gt.lmdb", "val_pairs/lq"):
        (tmp_path / place).mkdir(parents=True)
    record = {**dict.fromkeys(OPTIONS), "degradations": ["rain"], "scale": 1}
    (tmp_path / "val_pairs/made_with.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match=r"^--data: .*val_pairs has no lq\.lmdb, unlike train_gt\.lmdb; remove it"):
        new_options._read_data(tmp_path)


def test_smaller_patches_are_tried_where_memory_runs_out(wanted, monkeypatch, capsys):
    tried = []

    def measure(request):
        tried.append(load_yaml(request)["datasets"]["train"]["gt_size"])
        if tried[-1] > 48:
            raise OutOfMemory("out of memory at iteration 1: lower ...")
        return Measured([0.5], {}, None)

    monkeypatch.setattr(new_options, "read_request", lambda file, is_train: Path(file).read_text("utf-8"))
    monkeypatch.setattr(new_options, "measure", measure)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    data = new_options._Data(train="", val="", scale=1, side=None, falls=False)
    assert new_options._choose(wanted, data, None) == (48, 4, 0.5)
    assert tried == [96, 64, 64, 48]
    assert capsys.readouterr().err.count("not enough memory") == 3
    assert not list(wanted.file.parent.glob(".*"))
