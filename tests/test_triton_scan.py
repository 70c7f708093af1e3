"""The Triton scan without a GPU: values in Triton's interpreter, compiled machine code, and availability."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from scan_cases import scan_inputs
from torch._subclasses.fake_tensor import FakeTensorMode

from restormixer_arch import selective_scan as package
from restormixer_arch.emvm import EMVM
from restormixer_arch.errors import UserError
from restormixer_arch.selective_scan import probe, selective_scan, triton_scan

HERE = Path(__file__).parent
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
REGISTERS = 255  # maximum per thread
SLOW = pytest.mark.slow
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def run(folder, *command, **environment):
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"} | environment
    found = subprocess.run([sys.executable, *command], env=environment, cwd=HERE, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-3000:]
    return found.stdout


@needs_triton
@pytest.mark.timeout(900)
def test_values_and_gradients_in_the_interpreter(tmp_path):
    run(tmp_path, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "triton_cases.py", TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_more_values_and_gradients_in_the_interpreter(tmp_path):
    command = ("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "triton_cases.py", "-m", "slow")
    run(tmp_path, *command, "--timeout=3600", TRITON_INTERPRET="1")


def check_resources(folder, capability, *dtypes):
    tool = Path(importlib.util.find_spec("triton").origin).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip("this triton has no cuobjdump")
    found = [json.loads(line) for line in run(folder, "triton_resources.py", capability, *dtypes).splitlines()]
    assert len(found) == 7 * len(dtypes)
    for kernel in found:
        assert kernel["spills"] == kernel["shared"] == 0 and kernel["registers"] < REGISTERS, kernel


@needs_triton
@pytest.mark.parametrize("capability", ["90", pytest.param("80", marks=SLOW), pytest.param("120", marks=SLOW)])
@pytest.mark.timeout(600)
def test_compiled_kernels_do_not_spill_registers(capability, tmp_path):
    """With the default configuration, no registers are spilled and no shared memory is used."""
    check_resources(tmp_path, capability, "bf16")


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "89", "90", "100", "120"])
@pytest.mark.timeout(600)
def test_more_compiled_kernels_do_not_spill_registers(capability, tmp_path):
    check_resources(tmp_path, capability, "fp32", "fp16")


# ------------------------------------------------------------------ availability


def test_reasons_why_triton_is_unusable(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert triton_scan.unusable_reason(CPU) == "it needs a CUDA tensor, this one is on cpu"
    monkeypatch.setattr(triton_scan, "package_reason", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert triton_scan.unusable_reason(GPU) == "torch finds no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(triton_scan, "probe", lambda device, dtype: f"probed {device} {dtype}")
    assert triton_scan.unusable_reason() == "probed cuda:3 torch.float32"
    assert triton_scan.unusable_reason(GPU, torch.bfloat16) == "probed cuda:0 torch.bfloat16"
    assert triton_scan.unusable_reason(GPU, torch.float64) == "probed cuda:0 torch.float32"
    monkeypatch.setattr(triton_scan, "package_reason", lambda: "gone")
    assert triton_scan.unusable_reason(GPU) == "gone"


@pytest.mark.parametrize(
    ("version", "reason"),
    [("3.8.0", None), ("3.3.1+git", None), ("4.0", None), ("3.2.0", "triton 3.2.0 is too old, 3.3 is needed")],
)
def test_old_triton_version_is_rejected(version, reason, monkeypatch):
    module = ModuleType("triton")
    module.__version__ = version
    monkeypatch.setitem(sys.modules, "triton", module)
    assert triton_scan.package_reason() == reason


def test_missing_triton_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert triton_scan.package_reason().startswith("triton cannot be imported: ModuleNotFoundError: ")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert package.available_backends()["triton"] == triton_scan.package_reason()
    monkeypatch.setattr(package.importlib.util, "find_spec", lambda name: None)  # another test may fake mamba-ssm
    assert "cuda: no device here; on a GPU, torch would be used (triton: " in package.backend_report()


def test_report_names_the_backend_that_a_gpu_would_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(triton_scan, "package_reason", lambda: None)
    assert package.backend_report().endswith(
        "cuda: no device here; on a GPU, triton would be used if it passes its probe"
    )
    monkeypatch.setattr(triton_scan, "package_reason", lambda: "too old")
    monkeypatch.setattr(package.importlib.util, "find_spec", lambda name: name)
    assert package.backend_report().endswith("on a GPU, cuda would be used if it passes its probe (triton: too old)")


def test_missing_c_compiler_is_reported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(triton_scan, "package_reason", lambda: None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(package.shutil, "which", lambda name: None)
    assert package.backend_report().endswith("; Triton needs a C compiler, and neither gcc nor clang is found")


def test_triton_with_a_cpu_tensor_is_rejected(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match="'triton' cannot be used: it needs a CUDA tensor, this one is on cpu"):
        selective_scan(**scan_inputs(dtype=torch.float32), backend="triton")


def test_kernel_that_does_not_run_fails_the_probe(monkeypatch):
    def broken(*_):
        raise RuntimeError("ptxas fatal: no such architecture\nsecond line")

    monkeypatch.setattr(triton_scan, "scan_2d_forward", broken)
    triton_scan.probe.cache_clear()
    reason = triton_scan.probe(CPU, torch.float32)
    triton_scan.probe.cache_clear()
    assert reason == "the Triton kernel does not run: RuntimeError: ptxas fatal: no such architecture"


def test_failed_probe_is_repeated_later_but_a_passed_one_is_not(monkeypatch):
    now, answers = [0.0], ["no memory", None, "never asked"]
    monkeypatch.setattr(probe.time, "monotonic", lambda: now[0])
    ask = probe.cache_result(lambda device: answers.pop(0))
    assert ask(GPU) == ask(GPU) == "no memory"
    now[0] = probe.RETRY_SECONDS - 1
    assert ask(GPU) == "no memory"
    now[0] += 1
    assert ask(GPU) is None
    now[0] = 1e9
    assert ask(GPU) is None and answers == ["never asked"]


@pytest.mark.parametrize(
    ("batch", "tokens", "tiles"),
    [(8, 128 * 128, 16), (8, 32 * 32, 4), (1, 5, 2), (1, 2000 * 2000, 256)],
)
def test_tiles_per_chunk_balance_programs_and_chunks(batch, tokens, tiles):
    assert triton_scan._tiles(batch, tokens, 2, triton_scan.CONFIG) == tiles


# ------------------------------------------------------------------ traced on a fake GPU


@pytest.fixture
def fake_gpu(monkeypatch):
    """Use fake tensors on a GPU, where the Triton scan is treated as usable."""
    monkeypatch.setattr(triton_scan, "unusable_reason", lambda device=None, dtype=None: None)
    with FakeTensorMode():
        yield


def test_emvm_block_is_compiled_to_one_graph(fake_gpu):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    with torch.device("cuda"):
        block = EMVM(16, d_state=4, expand=2, scan_merge="paper")
        x = torch.randn(1, 8, 8, 16, requires_grad=True)
    y = torch.compile(block, backend=backend, fullgraph=True)(x)
    assert y.device.type == "cuda" and y.shape == x.shape
    (graph,) = graphs
    scans = [node for node in graph.graph.nodes if node.target == torch.ops.restormixer.scan_2d.default]
    assert [node.args[-2:] for node in scans] == [("triton", True)] * 2  # S1, and the three directions of S3


@pytest.mark.parametrize("backend", ["triton", "cuda", "torch"])
def test_operator_with_tensors_on_a_fake_gpu(fake_gpu, backend):
    half = {"device": "cuda", "dtype": torch.bfloat16}
    inputs = [torch.empty(2, 5, 7, 6, **half), torch.empty(2, 5, 7, 1, 6, **half), torch.empty(1, 6, 3, device="cuda")]
    inputs += [torch.empty(2, 5, 7, 1, 3, **half) for _ in range(2)] + [torch.empty(1, 6, device="cuda")] * 2
    y, states = torch.ops.restormixer.scan_2d.default(*inputs, [1], backend, True)
    assert (y.device.type, y.dtype, y.shape) == ("cuda", torch.bfloat16, (2, 5, 7, 6))
    kept = {"triton": (2, 1, 9, 3, 6), "cuda": (0,)}  # the states of every fourth of 35 tokens
    assert states.shape == kept.get(backend, states.shape)
    grads = torch.ops.restormixer.scan_2d_backward.default(y, *inputs, states, [1], backend)
    assert [(g.shape, g.dtype, g.device) for g in grads] == [(t.shape, t.dtype, t.device) for t in inputs]
