"""Lookup of option files in the working directory, then in the package, and detection of those for other commands."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from restormixer_arch import cli
from restormixer_arch.config import yaml_file
from restormixer_arch.config.check import read_request
from restormixer_arch.errors import UserError


@pytest.fixture
def package(tmp_path_factory, monkeypatch):
    """A stand-in for the installed package with one option file and one data folder."""
    root = tmp_path_factory.mktemp("installed")
    (root / "options").mkdir()
    (root / "data/set").mkdir(parents=True)
    (root / "options/demo.yml").touch()
    monkeypatch.setattr(yaml_file, "package_folders", lambda top: [root / top])
    return root


def test_files_missing_in_the_working_directory_are_read_from_the_package(folder, package, train_options, capsys):
    for dataset in train_options["datasets"].values():
        dataset.update(dataroot_gt="data/set", dataroot_lq="data/set")
    (package / "options/demo.yml").write_text(yaml.safe_dump(train_options), encoding="utf-8")
    request = read_request("options/demo.yml", is_train=True)
    assert request.path == package / "options/demo.yml"
    assert request.options["datasets"]["val"]["dataroot_lq"] == str(package / "data/set")
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.endswith(": options/demo.yml, data/set\n")


def test_working_directory_has_priority(folder, package):
    Path("options").mkdir()
    Path("options/demo.yml").touch()
    assert yaml_file.locate_option_file("options/demo.yml") == Path("options/demo.yml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.yaml", r"^x\.yaml: no such option file\. Did you mean 'x\.yml'\?$"),
        (
            "options/dmo.yml",
            r"^options/dmo\.yml: no such option file\. Did you mean 'options/demo\.yml', which is inst",
        ),
        ("zzzzzz", r"^zzzzzz: no such option file\.$"),
        (".", r"^\.: is a folder, an option file was expected \(x\.yml\)$"),
        ("../options/demo.yml", r"no such option file"),
    ],
)
def test_missing_option_file_is_reported_with_a_similar_name(folder, package, name, message):
    Path("x.yml").touch()
    with pytest.raises(UserError, match=message):
        read_request(name, is_train=True)


def test_option_files_are_found_in_the_installed_package():
    assert yaml_file.find_in_package("options/__init__.py").is_file()
    assert yaml_file.find_in_package("data/../options") is None
    assert yaml_file.find_in_package("elsewhere/x.yml") is None


@pytest.mark.parametrize(
    ("change", "asked", "kind"),
    [
        (lambda o: o, "test", "train"),
        (lambda o: o.update(competitors={}), "train", "compare"),
        (lambda o: (o.pop("train"), o["datasets"].pop("train")), "train", "test"),
        (lambda o: o.pop("train"), "train", None),  # reported as a missing section
        (lambda o: o["datasets"].pop("train"), "train", None),
        (lambda o: o, "compare", "train"),
        (lambda o: (o.pop("network_g"), o.update(competitor={})), "compare", None),
    ],
)
def test_option_file_for_another_command_is_reported(pairs, train_options, write, capsys, change, asked, kind):
    change(train_options)
    assert cli.main([asked, "-opt", write(train_options)]) == 2
    errors = capsys.readouterr().err.splitlines()
    text = f"basicsr: error: x.yml: is an option file for 'basicsr {kind}'"
    assert errors == [text] if kind else not any("is an option file for" in line for line in errors)
