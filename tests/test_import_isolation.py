"""Restoring in a new process does not import BasicSR or torchvision, and changes nothing in other packages."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

HEAVY = ("basicsr", "torchvision", "cv2", "matplotlib", "pydantic", "scipy", "sympy", "tifffile", "torch._dynamo")

NOTHING_REPLACED = """
import importlib, sys
import numpy as np

NAMES = ("torch", "torch.nn", "torch.nn.functional", "torch.optim", "torch.utils.data", "torch.cuda", "cv2", "numpy",
         "PIL.Image", "PIL.ImageOps", "PIL.ImageFile", "warnings", "multiprocessing", "signal")
modules = {name: importlib.import_module(name) for name in NAMES}
modules |= {f"torch.nn.{name}": getattr(modules["torch.nn"], name) for name in ("Module", "Conv2d", "Linear")}
modules |= {"torch.Tensor": modules["torch"].Tensor}
before = {name: dict(vars(module)) for name, module in modules.items()}

import restormixer_arch

image = np.random.default_rng(0).integers(0, 256, (16, 24, 4), np.uint8)
assert restormixer_arch.restore(image).shape == image.shape
print("replaced", *(
    f"{module}.{name}"
    for module, old in before.items()
    for name, value in old.items()
    if name not in ("filters", "_filters_version", "_onceregistry", "__warningregistry__")
    and vars(modules[module]).get(name) is not value
))
"""

LOADED = """
import sys
import numpy as np
import restormixer_arch

assert restormixer_arch.restore(np.zeros((16, 24, 3), np.uint8)).shape == (16, 24, 3)
print("loaded", *sys.modules)
"""

COMMAND = """
import sys
from restormixer_arch.cli import main

assert main(["restore", "a.png", "-o", "out"]) == 0
print("loaded", *sys.modules)
"""


def run(code, folder):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, cwd=folder, check=True
    )
    return done.stdout.splitlines()[-1].split()[1:]


def test_attributes_of_other_packages_are_not_replaced(tmp_path):
    assert run(NOTHING_REPLACED, tmp_path) == []


def test_torch_is_not_imported_by_a_dry_run_of_prepare(tmp_path):
    """It takes seconds to import."""
    code = """
import sys
from restormixer_arch import cli
assert cli.main(["prepare", "derain", "--root", ".", "--dry-run"]) == 2  # no set is there
print("loaded", *sys.modules)
"""
    loaded = run(code, tmp_path)
    assert "restormixer_arch.data.degradations.downsample" in loaded
    assert [name for name in loaded if name.partition(".")[0] in ("torch", "torchvision", "basicsr")] == []


@pytest.mark.parametrize("code", [LOADED, COMMAND], ids=["function", "command"])
def test_heavy_packages_are_not_imported(tmp_path, code):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((16, 24, 3), np.uint8))
    loaded = run(code, tmp_path)
    assert "torch" in loaded and "restormixer_arch.inference.restorer" in loaded
    assert [name for name in loaded if name in HEAVY or name.startswith(("basicsr.", "torchvision."))] == []
    assert [name for name in loaded if name.startswith("restormixer_arch.models")] == []
