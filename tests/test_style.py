"""Conventions of the code: short files, documented modules, single definitions, and the direction of imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SOURCES = [p for top in ("restormixer_arch", "models", "data", "options") for p in (ROOT / top).rglob("*.py")]
MAX_LINES, MAX_FUNCTION_LINES = 400, 60
KERNELS = "restormixer_arch/selective_scan/triton_kernels.py"  # its functions' arguments are not counted as lines


def relative(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    assert lines <= MAX_LINES, f"{relative(path)} has {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            start = node.body[0].lineno if relative(path) == KERNELS else node.lineno
            length = node.end_lineno - start + 1
            documentation = ast.get_docstring(node) or ""
            body = length - len(documentation.splitlines())
            assert body <= MAX_FUNCTION_LINES, f"{relative(path)}:{node.lineno}: {node.name} has {body} lines"


def test_network_modules_document_their_shapes():
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


# A folder may import folders of its own rank or below. restormixer_arch/__init__.py is exempt.
RANKS = {
    "config": 0,
    "network": 1,
    "native": 1,
    "selective_scan": 1,
    "data/images": 1,
    "inference": 2,
    "basicsr_adapter": 2,
    "data": 3,
    "data/degradations": 3,
    "models": 3,
    "data/preparation": 4,
    "training": 4,
    "benchmark": 5,
    "export": 5,
    "compare": 6,
    "cli": 7,
}
EVERYBODYS = ("control_groups", "errors", "output", "folder_lock", "memory", "processes", "protocol")


def imports_of(path):
    """Yield the project's modules that a file imports, also inside functions, as tuples of name parts."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("restormixer_arch."):
                yield tuple(name.split(".")[1:])


def rank(parts):
    """Return the rank of a module's folder; files of the top folder belong to the network."""
    if parts[0] in EVERYBODYS:
        return 0
    return RANKS.get("/".join(parts[:2]), RANKS.get(parts[0], RANKS["network"]))


def parts_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1:] if parts[0] == "restormixer_arch" else parts


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_do_not_point_to_a_higher_rank(path):
    own = parts_of(path)
    if own == ("__init__",) or own[0] == "options":
        return
    upwards = [".".join(parts) for parts in imports_of(path) if rank(parts) > rank(own)]
    assert not upwards, f"{relative(path)} imports {', '.join(upwards)}"


def test_there_are_no_import_cycles():
    files = {parts_of(path): path for path in SOURCES}
    files |= {parts[:-1]: path for parts, path in files.items() if parts[-1] == "__init__" and len(parts) > 1}
    graph = {}
    for parts, path in files.items():
        found = {name if name in files else name[:-1] for name in imports_of(path)}
        graph[parts] = {name for name in found if name in files and files[name] != path}
    assert sum(map(len, graph.values())) > 200
    while graph:  # remove modules that import none of the remaining ones
        done = [name for name, found in graph.items() if not found & graph.keys()]
        assert done, f"a circle among {sorted('.'.join(name) for name in graph)}"
        for name in done:
            del graph[name]


def test_only_some_folders_import_basicsr():
    allowed = {"models", "data", "training", "basicsr_adapter", "compare"}
    within_functions = {"restormixer_arch/benchmark/networks.py", "restormixer_arch/cli/doctor.py"}
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if found := re.search(r"^( *)(from|import) basicsr\b", text, re.M):
            of_function = bool(found[1]) and relative(path) in within_functions
            assert parts_of(path)[0] in allowed or of_function, relative(path)


def test_folders_have_at_most_16_files():
    folders = {path.parent for path in SOURCES}
    for folder in folders:
        names = sorted(path.name for path in folder.glob("*.py"))
        assert len(names) <= 16, f"{relative(folder)}: {len(names)} files"


def test_files_named_in_contributing_md_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:restormixer_arch|models|data|options|tests)/[\w/.-]*)`", text)
    assert len(named) >= 40
    for name in named:
        assert (ROOT / name).exists(), name


def test_inference_and_image_files_do_not_import_basicsr():
    """Restoring needs torch; reading image files does not."""
    images = r"basicsr|torch|torchvision|restormixer_arch\.(models|inference|cli|selective_scan)"
    inference = r"basicsr|torchvision|restormixer_arch\.(models|cli|basicsr_adapter)"
    for folder, forbidden in (("data/images", images), ("restormixer_arch/inference", inference)):
        paths = list((ROOT / folder).glob("*.py"))
        assert len(paths) >= 4
        for path in paths:
            assert not re.search(rf"^\s*(from|import) ({forbidden})\b", path.read_text(encoding="utf-8"), re.M), path


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_check_and_format_pass(command):
    pytest.importorskip("ruff")
    done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
