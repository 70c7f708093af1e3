"""Sdist and wheel: contents, and installation with the native scan (wheel: no compiler). Needs the package index."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
TOOLS = ("build", "twine", "cibuildwheel")
pytestmark = [
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in TOOLS), reason="pip install build twine cibuildwheel"
    ),
    pytest.mark.timeout(1800),
]


def output_of(*command, cwd=ROOT, env=None):
    result = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """An sdist of the repository's files, and the wheel that is built from it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    output_of(
        sys.executable, "-m", "build", "--outdir", out, source, env=os.environ | {"RESTORMIXER_REQUIRE_NATIVE": "1"}
    )
    return out


def environment(folder):
    """Create a virtual environment with its own pip and the packages of the current one; return its Python."""
    output_of(sys.executable, "-m", "venv", folder)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    places = output_of(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(places) / "others.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return python


def run_installed(python, folder, env):
    """Run the native scan and the command line outside the repository."""
    said = output_of(python, ROOT / "tests/native/check_installed.py", cwd=folder, env=env)
    assert said.startswith("native scan of ") and str(python.parents[1]) in said
    assert "cpu: native" in output_of(python, "-m", "restormixer_arch.cli", "doctor", cwd=folder, env=env)


@pytest.mark.slow
def test_metadata_and_contents(dist):
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    assert output_of(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist).count("PASSED") == 2
    assert "-cp310-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (place,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = BytesParser().parsebytes(archive.read(place))
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["Description-Content-Type"] == "text/markdown"
    assert len(metadata.get_all("Classifier")) >= 10 and metadata["Keywords"] and metadata["License-File"] == "LICENSE"
    assert {name.split("/")[0].split("-")[0] for name in names} == {"restormixer_arch", "restormixer"}
    wanted = (
        "weights/MODEL_CARD.md",
        "options/train_derain_s.yml",
        "native/_kernel.abi3.so",
        "export/comfyui_node.py",
    )
    assert {f"restormixer_arch/{name}" for name in wanted} <= set(names) or os.name == "nt"
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    assert not any(name.startswith("tests") for name in sources)  # they need files that only a clone has
    assert {"CHANGELOG.md", "CONTRIBUTING.md", "restormixer_arch/compare/STUDY.md"} <= sources
    kernel = {path.relative_to(ROOT).as_posix() for path in (ROOT / "restormixer_arch").rglob("kernel*.[ch]")}
    assert kernel and kernel <= sources and "LICENSE" in sources


@pytest.mark.slow
def test_wheel_installs_without_a_compiler(dist, tmp_path):
    python = environment(tmp_path / "venv")
    (wheel,) = dist.glob("*.whl")
    env = os.environ | {"PATH": str(python.parent), "CC": "/bin/false", "CXX": "/bin/false"}
    output_of(python, "-m", "pip", "install", "--no-deps", wheel, env=env)
    assert shutil.which("gcc", path=env["PATH"]) is None
    run_installed(python, tmp_path, env)


@pytest.mark.slow
def test_sdist_installs(dist, tmp_path):
    python = environment(tmp_path / "venv")
    (sdist,) = dist.glob("*.tar.gz")
    env = os.environ | {"RESTORMIXER_REQUIRE_NATIVE": "1"}
    output_of(python, "-m", "pip", "install", "--no-deps", sdist, env=env)
    run_installed(python, tmp_path, env)


@pytest.mark.parametrize(
    ("platform", "wanted"),
    [
        ("linux", {"cp310-manylinux_x86_64", "cp310-manylinux_aarch64"}),
        ("macos", {"cp310-macosx_arm64"}),
        ("windows", {"cp310-win_amd64"}),
    ],
)
def test_one_wheel_for_each_system(platform, wanted):
    """This includes architectures other than the current machine's if the configuration requests them."""
    archs = {"linux": "x86_64,aarch64", "macos": "x86_64,arm64", "windows": "AMD64,ARM64"}[platform]
    command = ("-m", "cibuildwheel", "--print-build-identifiers", "--platform", platform, "--archs", archs)
    assert set(output_of(sys.executable, *command).split()) == wanted
