"""BasicSR's own pipelines with this package's classes and options, run briefly on sample data in a fresh process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = """
import sys
import restormixer_arch.basicsr_adapter.register
from basicsr.{module} import {pipeline}
{pipeline}({root!r})
assert "restormixer_arch.training" not in sys.modules
"""
SMALL = "network_g:base_channels=8"
SHORT = [SMALL, "train:total_iter=3", "logger:print_freq=1", "logger:save_checkpoint_freq=2"]


def run(module: str, pipeline: str, folder: Path, *arguments: str) -> str:
    code = CODE.format(module=module, pipeline=pipeline, root=str(folder))
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # spinning threads are slow next to other processes
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.timeout(400)
def test_train_and_test_pipelines_measure_the_same_psnr(tmp_path):
    log = run("train", "train_pipeline", tmp_path, "-opt", "options/train_derain_demo.yml", "--force_yml", *SHORT)
    experiment = tmp_path / "experiments/restormixer_derain_demo"
    assert re.findall(r"iter: +(\d+), lr", log) == ["1", "2", "3"]
    measured = re.findall(r"# psnr: ([\d.]+)", log)
    assert len(measured) == 1 and 20 < float(measured[0]) < 30
    assert sorted(path.name for path in experiment.glob("*/*.*")) == [
        "2.state",
        "net_g_2.pth",
        "net_g_latest.pth",
    ]
    weights = f"path:pretrain_network_g={experiment}/models/net_g_latest.pth"
    tested = run(
        "test", "test_pipeline", tmp_path, "-opt", "options/test_derain_demo.yml", "--force_yml", SMALL, weights
    )
    assert re.findall(r"# psnr: ([\d.]+)", tested) == measured
    assert len(list((tmp_path / "results").rglob("*.png"))) == 10
