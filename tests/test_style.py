"""Habits of the code base that a reader relies on: short files, documented modules, one place for each thing."""

import ast
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SOURCES = [p for top in ("restormixer_arch", "models", "data", "options") for p in (ROOT / top).rglob("*.py")]
KERNELS = "restormixer_arch/selective_scan/triton_kernels.py"  # where a function's arguments are not counted


def relative(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    assert lines <= 400, f"{relative(path)} has {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            start = node.body[0].lineno if relative(path) == KERNELS else node.lineno
            length = node.end_lineno - start + 1
            documentation = ast.get_docstring(node) or ""
            body = length - len(documentation.splitlines())
            assert body <= 60, f"{relative(path)}:{node.lineno}: {node.name} has {body} lines"


def test_every_module_of_the_network_tells_its_shapes():
    from restormixer_arch import RestorMixer

    kinds = {type(m) for m in RestorMixer(base_channels=8, num_blocks=(1, 2, 2), encoder_heads=(4, 4)).modules()}
    own = [kind for kind in kinds if kind.__module__.startswith("restormixer_arch")]
    assert len(own) >= 10
    for kind in own:
        assert issubclass(kind, torch.nn.Module)
        assert "Shape:" in (kind.__doc__ or ""), f"{kind.__name__} has no 'Shape:' in its docstring"


@pytest.mark.parametrize("name", ["class Mlp", "class ConvNormAct", "def pad_to_multiple", "class UserError"])
def test_each_part_is_defined_once(name):
    pattern = re.compile(rf"^{name}\b", re.M)
    places = [relative(path) for path in SOURCES if pattern.search(path.read_text(encoding="utf-8"))]
    assert len(places) == 1, places


def test_imports_point_one_way():
    """The network knows neither models nor data nor basicsr; models and data do not know the command line."""
    lower = [p for p in SOURCES if p.parent == ROOT / "restormixer_arch" or "selective_scan" in p.parts]
    lower.remove(ROOT / "restormixer_arch" / "__init__.py")  # the front door names all, and imports when asked
    assert len(lower) >= 8
    for path in lower:
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"^\s*(from|import) (basicsr|restormixer_arch\.(models|data|cli|basicsr_adapter))\b", text, re.M
        ), path
    for top in ("models", "data"):
        for path in (ROOT / top).rglob("*.py"):
            assert "restormixer_arch.cli" not in path.read_text(encoding="utf-8"), path
