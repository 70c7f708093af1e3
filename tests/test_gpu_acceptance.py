"""tests/gpu/acceptance.py, which users run on a GPU; here with tiny shapes and without a GPU."""

import importlib
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
    assert all(f"## {part}" in text for part in parts) and text.endswith("## Failures\n\n- none\n")
    return result


@pytest.mark.timeout(600)
def test_parts_that_need_only_torch(tmp_path):
    parts = ("accuracy", "spills", "wide", "scans", "steps", "depthwise", "distributed", "rivals", "sanitizer")
    result = accepted(tmp_path, *parts)
    assert {row["backend"] for row in result["accuracy"]} >= {"torch"}
    assert result["steps"][0]["loss"] == pytest.approx(result["distributed"][0]["losses"][0], abs=1e-4)


BARE = """
import runpy, sys
for name in ("einops", "cv2", "basicsr", "safetensors", "lmdb", "scipy", "torchvision", "pydantic", "yaml", "PIL"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
"""


def bare(folder, code, *arguments):
    command = [sys.executable, "-c", BARE + code, str(SCRIPT.parent), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.timeout(600)
def test_script_needs_only_torch_and_numpy(tmp_path):
    run = "sys.argv = ['acceptance.py', '--tiny', '--only', 'accuracy', 'steps', 'commands']\n"
    bare(tmp_path, run + f"runpy.run_path({str(SCRIPT)!r})['main']()")
    result = json.loads((tmp_path / "acceptance.json").read_text())
    assert result["commands"] == [{"command": "basicsr", "left out": "basicsr is not installed"}]
    assert all(row["ok"] for row in result["accuracy"]) and result["steps"][0]["loss"] > 0


@pytest.mark.timeout(600)
def test_timed_training_needs_only_torch_and_numpy(tmp_path):
    code = """
from argparse import Namespace
from pathlib import Path
import timed_training, numpy as np, torch
image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
for task in timed_training.TASKS:
    args = Namespace(task=task, network="tiny", seed=0, lr=1e-3, amp="off", compile=False, out=Path(task), minutes=1.0)
    args.out.mkdir()
    training = timed_training.Training(args, torch.device("cpu"))
    pair = next(iter(timed_training.Pairs([image], task, 2, 16, [0])))
    assert torch.isfinite(training.step(*timed_training.on_device(pair, training.device, training.scale)))
    training.save()
"""
    bare(tmp_path, code)
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_commands_part(tmp_path):
    rows = accepted(tmp_path, "commands")["commands"]
    assert [row["code"] for row in rows] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_scan_in_the_interpreter(tmp_path):
    result = accepted(tmp_path, "accuracy", "wide", "scans", TRITON_INTERPRET="1")
    assert [row["ok"] for row in result["wide"]] == [True]
    assert {row["backend"] for row in result["accuracy"]} == {"triton", "torch"}


def test_missing_gpu_without_tiny_is_rejected(tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "torch finds no CUDA device; --tiny tries" in done.stderr


def test_crashed_process_is_reported_as_a_failure(tmp_path, monkeypatch):
    """The rows written before a crash are kept, with an error added; without a crash, the rows are unchanged."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    acceptance = importlib.import_module("acceptance")
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, sys\n"
        "folder, *names = [a for a in sys.argv[1:] if not a.startswith('--')]\n"
        "sys.exit(1) if 'scans' in names else None\n"
        "open(os.path.join(folder, 'acceptance.json'), 'w').write(json.dumps({names[0]: [{'ok': True}]}))\n"
        "os._exit(9) if 'wide' in names else sys.exit(1)\n"
    )
    monkeypatch.setattr(acceptance, "__file__", str(script))
    assert acceptance.run_apart(["accuracy", "spills"], tiny=True) == {"accuracy": [{"ok": True}], "spills": []}
    assert acceptance.run_apart(["wide"], tiny=True) == {"wide": [{"ok": True}, {"error": "the process ended with 9"}]}
    assert acceptance.run_apart(["scans"], tiny=True) == {"scans": [{"error": "the process ended with 1"}]}
