"""Reading option files: numbers of YAML 1.2, duplicate keys, and the position of errors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from restormixer_arch.config.yaml_file import apply_overrides, copy_option_file, read_options
from restormixer_arch.errors import UserError


def read(folder: Path, text: str) -> dict:
    Path(folder, "x.yml").write_text(text, encoding="utf-8")
    return read_options(Path("x.yml"), "x.yml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E5", 1e5), ("-2.5e+3", -2500.0), (".5e1", 5.0), ("1.0e-4", 1e-4), ("!!float 1e-3", 1e-3)]
    + [("100", 100), ("1_000", 1000), ("1e", "1e"), ("e5", "e5"), ("v1e5", "v1e5"), ("'1e-3'", "1e-3")],
)
def test_numbers_of_yaml_1_2_are_numbers(folder, text, value):
    read_value = read(folder, f"x: {text}")["x"]
    assert read_value == value and type(read_value) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", r"^x\.yml:3:2: .*expected ',' or '\]'"),
        ("train:\n  lr: 1\n  it: 2\n  lr: 3\n", r"^x\.yml:4:3: key 'lr' is given twice, first in line 2$"),
        ("a: 1\n\tb: 2\n", r"^x\.yml:2:1: .*'\\t'"),
        ("- a\n- b\n", r"^x\.yml: .*'key: value' were expected at the top, got list"),
        ("", r"^x\.yml: .*got nothing"),
        ("a: !!python/name:os.system x\n", r"^x\.yml:1:4: could not determine a constructor"),
        ("a: \x07\n", r"^x\.yml: is not YAML"),
    ],
)
def test_invalid_option_file_is_rejected_with_the_position(folder, text, message):
    with pytest.raises(UserError, match=message):
        read(folder, text)


def test_merged_key_may_be_overridden_and_an_alias_may_be_used_twice(folder):
    options = read(folder, "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a, x: 4}\nd: *a\n")
    assert options["b"] == {"x": 3, "y": 2} and options["c"] == {"x": 4, "y": 2} and options["d"] == options["a"]


def test_changing_an_anchored_section_does_not_change_its_alias(folder):
    options = read(folder, "g: &adam {lr: 1, betas: [0, 1]}\nd: *adam\n")
    apply_overrides(options, ["g:lr=5"])
    options["g"]["betas"].append(2)
    assert options == {"g": {"lr": 5, "betas": [0, 1, 2]}, "d": {"lr": 1, "betas": [0, 1]}}


def test_copy_of_an_option_file_keeps_its_comments(folder):
    text = "# Привет\nname: ü  # a name\ntrain: {lr: 1.0e-4}\n"
    read(folder, text)
    Path("run").mkdir()
    copy_option_file(Path("x.yml"), [], Path("run"))
    copied = Path("run", "x.yml").read_bytes().decode("utf-8")
    assert copied.startswith("# GENERATE TIME: ") and copied.endswith(f"\n\n{text}")


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\x85", "\u2028"])
def test_copy_of_an_option_file_has_the_command_in_one_line(folder, monkeypatch, line_break):
    read(folder, "name: a\n")
    Path("run").mkdir()
    monkeypatch.setattr(sys, "argv", ["basicsr", "train", "--force_yml", f"val={line_break}  x: 1{line_break}"])
    copy_option_file(Path("x.yml"), [], Path("run"))
    assert read_options(Path("run", "x.yml"), "x.yml") == {"name": "a"}
    assert "# basicsr train --force_yml val= x: 1\n\n" in Path("run", "x.yml").read_text(encoding="utf-8")


def test_copy_of_an_option_file_contains_the_overrides(folder):
    options = read(folder, "name: ü\ntrain: {lr: 1.0e-4, steps: [1, 2]}\nval: {x: 1}\n")
    overrides = ["train:lr=3e-4", "val=~"]
    Path("run").mkdir()
    copy_option_file(Path("x.yml"), overrides, Path("run"))
    apply_overrides(options, overrides)
    copied = read_options(Path("run", "x.yml"), "x.yml")
    assert copied == options == {"name": "ü", "train": {"lr": 3e-4, "steps": [1, 2]}, "val": None}
    assert list(copied) == list(options)


def test_overrides_have_yaml_types(folder):
    options = {"train": {"optim_g": {"lr": 1}}, "name": "a"}
    entries = ["train:optim_g:lr=1e-4", "train:total_iter=-1", "train:list=[1, 2]", "name=x=y", "train:none=~"]
    apply_overrides(options, entries)
    assert options["train"] == {"optim_g": {"lr": 1e-4}, "total_iter": -1, "list": [1, 2], "none": None}
    assert options["name"] == "x=y"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("trian:lr=1", r"'trian:lr=1': the option file has no section 'trian'\. Did you mean 'train'\?"),
        ("train.lr=1", "'train.lr=1': ':' was expected between keys: train:lr=1"),
        ("train:lr", r"'section:key=value' was expected, got 'train:lr'"),
        ("name=2024-02-30", "'name=2024-02-30': day is out of range for month"),
        ("name=" + "[" * 5000, "name: is nested too deeply for an option"),
        ("train:lr=[1", r"'train:lr=\[1': .*expected"),
        ("runs:0:minutes=3", r"'runs:0:minutes=3': 'runs' is a list; give all of it, as runs=\[\.\.\.\]"),
    ],
)
def test_invalid_override_is_reported(entry, message):
    with pytest.raises(UserError, match=f"^--force_yml: .*{message}"):
        apply_overrides({"train": {}, "runs": [{"minutes": 6}]}, [entry])
