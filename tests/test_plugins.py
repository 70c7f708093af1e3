"""Plug-ins are found by their entry points, and a broken one does not affect the others."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

import pytest

from restormixer_arch.basicsr_adapter import compat, register

compat.apply()

from basicsr.utils.registry import ARCH_REGISTRY  # noqa: E402


@pytest.fixture
def found(monkeypatch):
    """A function that adds plug-ins to a list that replaces the installed ones; registrations are undone afterwards."""
    entries = []
    monkeypatch.setattr(register, "entry_points", lambda group: entries if group == "basicsr.plugins" else [])
    monkeypatch.setattr(register, "_loaded", {})
    monkeypatch.setattr(ARCH_REGISTRY, "_obj_map", dict(ARCH_REGISTRY._obj_map))

    def add(name, value):
        entries.append(EntryPoint(name, value, "basicsr.plugins"))

    return add


@pytest.fixture
def package(monkeypatch):
    """An importable module ``fake_plugin`` with a function that registers a network and counts its calls."""
    module = ModuleType("fake_plugin")
    module.calls = 0

    class FakeNet:
        pass

    def register():
        module.calls += 1
        ARCH_REGISTRY.register(FakeNet)

    module.register = register
    monkeypatch.setitem(sys.modules, "fake_plugin", module)
    return module


def test_plugin_function_is_called_once(found, package):
    found("fake", "fake_plugin:register")
    found("fake", "fake_plugin:register")  # an editable install may list it twice
    assert [plugin.error for plugin in register.load_plugins()] == [None]
    assert "FakeNet" in ARCH_REGISTRY
    register.load_plugins()
    assert package.calls == 1


def test_plugin_module_is_imported(found, tmp_path, monkeypatch):
    (tmp_path / "fake_module.py").write_text(
        "from basicsr.utils.registry import ARCH_REGISTRY\n@ARCH_REGISTRY.register()\nclass ByImport: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found("fake", "fake_module")
    register.load_plugins()
    assert "ByImport" in ARCH_REGISTRY


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_plugin_module", "ModuleNotFoundError: No module named 'no_such_plugin_module'"),
        ("fake_plugin:nothing", "AttributeError: module 'fake_plugin' has no attribute 'nothing'"),
        ("fake_plugin:fail", "RuntimeError: two lines"),
    ],
)
def test_broken_plugin_is_reported_and_the_others_are_loaded(found, package, capsys, value, reason):
    def fail():
        raise RuntimeError("two\nlines")

    package.fail = fail
    found("a_broken", value)
    found("works", "fake_plugin:register")
    assert [(plugin.name, plugin.error) for plugin in register.load_plugins()] == [
        ("a_broken", reason),
        ("works", None),
    ]
    assert "FakeNet" in ARCH_REGISTRY
    expected = f"basicsr: warning: plug-in 'a_broken' of an unknown package was left out: {value}: {reason}\n"
    assert capsys.readouterr().err == expected
    register.load_plugins()
    assert capsys.readouterr().err == ""


def test_restormixer_is_installed_as_a_plugin():
    (entry,) = {entry.value for entry in entry_points(group="basicsr.plugins") if entry.name == "restormixer"}
    assert entry == "restormixer_arch.basicsr_adapter.register"


def test_restormixer_plugin_registers_all_classes():
    from basicsr.utils.registry import DATASET_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY

    from restormixer_arch import RestorMixer
    from restormixer_arch.basicsr_adapter import register

    register.register()  # a second time, after the import
    assert dict(iter(ARCH_REGISTRY))["RestorMixer"] is RestorMixer
    assert "RestorMixerModel" in MODEL_REGISTRY
    assert "MultiScaleDualDomainLoss" in LOSS_REGISTRY
    assert "PairedRestorationDataset" in DATASET_REGISTRY
