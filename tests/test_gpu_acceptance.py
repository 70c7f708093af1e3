"""tests/gpu/acceptance.py, which a person with a GPU runs, on tiny shapes and without one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "gpu" / "acceptance.py"


def accepted(folder, *parts, **environment):
    command = [sys.executable, str(SCRIPT), "--tiny", "--out", str(folder), "--only", *parts]
    done = subprocess.run(command, env=os.environ | environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("ACCEPTED\n"), done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads((folder / "acceptance.json").read_text())
    assert list(result) == ["machine", *parts]
    text = (folder / "acceptance.md").read_text()
    assert all(f"## {part}" in text for part in parts) and text.endswith("## Faults\n\n- none\n")
    return result


@pytest.mark.timeout(600)
def test_parts_that_need_torch_alone(tmp_path):
    parts = ("accuracy", "spills", "scans", "steps", "depthwise", "distributed", "rivals")
    result = accepted(tmp_path, *parts)
    assert {row["backend"] for row in result["accuracy"]} >= {"torch"}
    assert result["steps"][0]["loss"] == pytest.approx(result["distributed"][0]["losses"][0], abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands(tmp_path):
    rows = accepted(tmp_path, "commands")["commands"]
    assert [row["code"] for row in rows] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_triton_scan_in_the_interpreter(tmp_path):
    result = accepted(tmp_path, "accuracy", "scans", TRITON_INTERPRET="1")
    assert {row["backend"] for row in result["accuracy"]} == {"triton", "torch"}


def test_without_a_gpu_only_tiny_shapes_run(tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "torch finds no CUDA device; --tiny tries" in done.stderr
