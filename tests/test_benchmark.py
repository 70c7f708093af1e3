"""The benchmark's calculations with example times, and its counters with real networks. No times are asserted."""

import json
from pathlib import Path

import pytest
import torch
import torchvision

from restormixer_arch import cli, processes
from restormixer_arch.benchmark import measure, suite
from restormixer_arch.benchmark.networks import COMPETITORS, SMALL
from restormixer_arch.benchmark.tables import figures, markdown, summarize
from restormixer_arch.errors import UserError

RESULT = {
    "machine": {
        "processor": "a processor",
        "threads": 2,
        "cpu_capability": "AVX2",
        "scan_kernel": "avx2",
        "versions": {"python": "3.11"},
    },
    "times": {
        "matrix product": {"float32 2048": [0.1]},
        "forward 256": {"RestorMixer": [0.9, 0.5, 0.4], "NAFNet-32": [0.25], "Restormer": [8.0]},
        "forward 1024": {"RestorMixer": [9.6]},
        "training step": {"RestorMixer": [3.0], "NAFNet-32": [2.0]},
        "scan, forward and backward": {"native": [0.02], "mambapy": [1.0]},
    },
    "memory": {"RestorMixer, training step": {"peak_bytes": 3 * 2**30}},
    "networks": {"RestorMixer": {"parameters": 3_195_406, "operations": 51.2e9, "thop": [24.9e9, 2.8e6]}},
    "left_out": {"SwinIR-light": "basicsr is not installed"},
    "failed": [],
    "stopped": "",
}


def test_summarize_returns_median_and_quartiles():
    assert summarize([5.0, 1.0, 4.0, 2.0, 3.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert summarize([2.0]) == {"median": 2.0, "low": 2.0, "high": 2.0}


def test_figures_are_ratios_of_medians():
    assert figures(RESULT) == {
        "forward 256, RestorMixer / NAFNet-32": "2.00",
        "forward 256, Restormer / RestorMixer": "16.00",
        "training step, RestorMixer / NAFNet-32": "1.50",
        "RestorMixer, time per pixel, 1024 / 256": "1.20",
        "scan, forward and backward, mambapy / native": "50.00",
        # 51.2 GFLOP in 0.5 s; 2 * 2048^3 FLOP in 0.1 s
        "GFLOP/s of RestorMixer's forward 256 / of the matrix product": "102 / 172 = 0.60",
    }


def test_markdown_shows_times_memory_and_skipped_networks():
    text = markdown(RESULT)
    assert "| forward 256 | RestorMixer | 500.0 ms | 400.0 ms to 900.0 ms | 1.00 |" in text
    assert "| forward 256 | Restormer | 8.00 s | 8.00 s to 8.00 s | 16.00 |" in text
    assert "| RestorMixer | 3.195 M | 51.2 | 24.90 G, 2.80 M |" in text
    assert "| RestorMixer, training step | 3.00 GiB |" in text
    assert "Left out: SwinIR-light: basicsr is not installed." in text


def test_operations_cover_the_complete_network():
    """GFLOP at 256x256: 22.5 for convolutions, 22.1 for matrix products, 4.0 for attention and 2.6 for scans.

    A scan is one operator with its own FLOP formula, regardless of the backend.
    """
    assert measure.operations(measure.forward_work("RestorMixer", 256)) == pytest.approx(
        (22.5 + 22.1 + 4.0 + 2.6) * 1e9, rel=0.005
    )


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0)

    def forward(self, x):
        return self.layer(x.mean(1).reshape(len(x), -1, 8))


class Deformable(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torchvision.ops.DeformConv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return self.layer(x, torch.zeros(1, 18, *x.shape[-2:]))


def test_operations_of_fused_attention_and_deformable_convolutions():
    """Expected for 32 tokens: projections, two attention products, output, MLP; for the convolution: nine taps."""
    tokens = 16 * 16 // 8
    attention = 2 * tokens * 8 * 24 + 2 * 2 * tokens**2 * 8 + 2 * tokens * 8 * 8 + 2 * 2 * tokens * 8 * 16
    assert measure.operations(measure.restoring(Attention().eval(), 16)) == attention
    assert torch.backends.mha.get_fastpath_enabled()
    assert measure.operations(measure.restoring(Deformable().eval(), 16)) == 2 * 16 * 16 * 4 * 27


def test_works_are_timed_alternately_after_two_warmup_runs():
    calls = []
    works = {name: lambda name=name: calls.append(name) for name in "ab"}
    taken = measure.times(works, rounds=3)
    assert "".join(calls) == "aabb" + "ababab"
    assert [len(seconds) for seconds in taken.values()] == [3, 3]


@pytest.mark.parametrize(
    ("job", "keys"),
    [
        ({"kind": "times", "rounds": 1, "works": {"x": ["gemm", {"size": 8}]}}, {"x"}),
        (
            {
                "kind": "times",
                "rounds": 1,
                "works": {"x": ["scan", {"backend": "torch", "batch": 1, "channels": 2, "length": 5, "states": 3}]},
            },
            {"x"},
        ),
        ({"kind": "memory", "work": "gemm", "arguments": {"size": 8}}, {"peak_bytes"}),
        ({"kind": "times", "rounds": 1, "busy": 2, "works": {"x": ["gemm", {"size": 8}]}}, {"x"}),
        ({"kind": "times", "rounds": 1, "works": {"x": ["start", {"command": "restore"}]}}, {"x"}),
        (
            {
                "kind": "times",
                "rounds": 1,
                "works": {"x": ["picture", {"task": "derain", "height": 40, "width": 400}]},
            },
            {"x"},
        ),
    ],
)
def test_run_job_returns_the_expected_keys(job, keys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # would affect later tests
    assert measure.run_job({"threads": 1, **job}).keys() == keys


@pytest.mark.parametrize(("name", "parameters"), list(zip(SMALL, (542_220, 645_427, 588_640, 519_507), strict=True)))
def test_small_networks_have_the_parameter_counts_of_the_comparison(name, parameters):
    """options/compare_equal_budget.yml contains the same numbers."""
    pytest.importorskip(COMPETITORS[name].package)
    assert sum(parameter.numel() for parameter in COMPETITORS[name].build().parameters()) == parameters
    text = (Path(__file__).parents[1] / "options" / "compare_equal_budget.yml").read_text(encoding="utf-8")
    assert f"{parameters:,}" in text


def test_training_step_runs_at_the_smallest_size():
    measure.step_work("RestorMixer", size=16, batch=1)()


def test_networks_that_are_not_installed_are_skipped(monkeypatch):
    ran = []
    monkeypatch.setattr(suite, "missing", lambda name: None if name == "RestorMixer" else COMPETITORS[name].package)
    monkeypatch.setattr(suite, "_run", lambda job, label: ran.append(label) or {})
    result = suite.run_suite(threads=1, rounds=1, quick=True)
    assert result["left_out"]["NAFNet-32"] == "spandrel is not installed"
    assert list(result["networks"]) == ["RestorMixer"] and "training step" in ran


def test_native_scan_is_skipped_without_the_kernel(monkeypatch):
    jobs = {}
    monkeypatch.setattr(suite, "available_backends", lambda: {"native": "the library was not built"})
    monkeypatch.setattr(suite, "_run", lambda job, label: jobs.setdefault(label, job) and {})
    result = suite.run_suite(threads=1, rounds=1, quick=False)
    assert result["left_out"]["the scan by native"] == "the library was not built"
    works = jobs["scan, forward and backward"]["works"]
    assert "torch" in works and "native" not in works


def test_failed_job_is_skipped_and_its_reason_is_shown(monkeypatch, capsys):
    def run(module, job, label):
        if job["kind"] == "memory":
            raise UserError(f"{label} failed with exit code -9: no message")
        return {"x": [1.0]} if job["kind"] == "times" else {"parameters": 1, "operations": 1.0, "thop": None}

    monkeypatch.setattr(suite, "missing", lambda name: None if name == "RestorMixer" else COMPETITORS[name].package)
    monkeypatch.setattr(suite, "run_in_process", run)
    assert cli.main(["bench", "--quick", "--threads", "1"]) == 2
    out = capsys.readouterr().out
    assert "| training step | x | 1.00 s |" in out and "| RestorMixer | 0.000 M | 0.0 |" in out
    assert "Left out: RestorMixer, forward 256: failed with exit code -9: no message." in out


def test_ctrl_c_prints_and_writes_the_results_so_far(monkeypatch, tmp_path, capsys):
    def run(module, job, label):
        if label == "bench: training step":
            raise KeyboardInterrupt
        return {name: [1.0] for name in job["works"]}

    monkeypatch.setattr(suite, "run_in_process", run)
    file = tmp_path / "bench.json"
    assert cli.main(["bench", "--quick", "--threads", "1", "--json", str(file)]) == 130
    out, err = capsys.readouterr()
    assert "| forward 256 | RestorMixer | 1.00 s |" in out
    assert err == "basicsr: stopped while measuring training step; showing the results so far\n"
    written = json.loads(file.read_text())
    assert written["stopped"] == "training step" and list(written["times"]) == [
        "matrix product",
        "forward 256",
        "forward 256, default malloc",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--rounds", "0"],
            "basicsr bench: argument --rounds: expected a positive whole number, got '0'. See 'basicsr bench --help'",
        ),
        (
            ["--device", "cuda"],
            "--device: 'cuda' is not available here, torch finds no CUDA device; expected cpu",
        ),
        (
            ["--threads", "-1"],
            "basicsr bench: argument --threads: expected a positive whole number, got '-1'. See 'basicsr bench --help'",
        ),
        (["--json", "no/such/folder.json"], "--json: there is no folder 'no/such'"),
    ],
)
def test_invalid_arguments(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", *arguments]) == 2
    assert capsys.readouterr().err == f"basicsr: error: {message}\n"


def test_command_prints_tables_and_writes_json(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        suite, "run_suite", lambda threads, rounds, quick, device: {**RESULT, "asked": [threads, rounds, quick]}
    )
    file = tmp_path / "bench.json"
    assert cli.main(["bench", "--rounds", "3", "--threads", "2", "--quick", "--json", str(file)]) == 0
    assert "| training step | RestorMixer |" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["asked"] == [2, 3, True] and len(written["figures"]) == 6
    assert cli.main(["bench", "--json", str(file)]) == 2  # never overwritten


# ------------------------------------------------------------------ GPU jobs, tested without a GPU


@pytest.mark.parametrize(
    ("work", "arguments"),
    [
        ("forward", {"name": "RestorMixer", "size": 16, "dtype": "float32"}),
        ("step", {"name": "RestorMixer", "size": 16, "batch": 1}),
        ("gemm", {"size": 8}),
    ],
)
def test_works_use_only_the_given_device(work, arguments):
    """Tensors on torch's meta device cannot be combined with those of other devices."""
    measure.WORKS[work](**arguments, device="meta")()


def test_gpu_job_synchronizes_and_reports_gpu_memory(monkeypatch):
    waited = []
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(1))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 77)
    monkeypatch.setattr(measure, "WORKS", {"x": lambda device: lambda: waited.append(device)})
    job = {"threads": 1, "device": "cuda", "kind": "times", "rounds": 1, "works": {"one": ["x", {}]}}
    assert measure.run_job(job).keys() == {"one"} and waited == ["cuda", 1] * 3
    memory = {"threads": 1, "device": "cuda", "kind": "memory", "work": "x", "arguments": {}}
    assert measure.run_job(memory) == {"peak_bytes": 77}


def test_gpu_suite_runs_all_jobs_on_the_gpu(monkeypatch):
    jobs = {}
    reasons = {"triton": None, "cuda": "mamba-ssm is not installed"}
    monkeypatch.setattr(suite, "available_backends", lambda: reasons)
    monkeypatch.setattr(suite, "backend_report", lambda: "cpu: native\ncuda:0: triton")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card")
    monkeypatch.setattr(suite, "_run", lambda job, label: jobs.setdefault(label, job) and {})
    result = suite.run_suite(threads=1, rounds=1, quick=True, device="cuda")
    assert {job["device"] for job in jobs.values()} == {"cuda"} and "forward 256, default malloc" not in jobs
    assert "triton" in jobs["scan, forward and backward"]["works"]
    assert not {"native", "cuda", "torch"} & jobs["scan, forward and backward"]["works"].keys()
    assert (result["machine"]["gpu"], result["machine"]["scan_on_gpu"]) == ("Card", "cuda:0: triton")
    text = markdown({**RESULT, "machine": {**RESULT["machine"], "gpu": "Card", "scan_on_gpu": "cuda:0: triton"}})
    assert text.startswith("Card, scan cuda:0: triton; times and memory are the GPU's.\na processor, ")


def test_jobs_ignore_a_package_in_the_working_directory(tmp_path, monkeypatch):
    """In a clone, that package is the source, which lacks the files that installation adds."""
    (tmp_path / "restormixer_arch").mkdir()
    (tmp_path / "restormixer_arch/__init__.py").write_text("raise ImportError('the source')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    job = {"kind": "operations", "network": "RestorMixer-S", "size": 32, "threads": 1}
    found = processes.run_in_process("restormixer_arch.benchmark.measure", job, "operations")
    assert found["parameters"] == 542_220


def test_user_error_of_a_job_is_shown_unchanged(tmp_path):
    """It is not reported as a failed job with an exit code."""
    data = {"name": "x", "type": "PairedImageDataset", "dataroot_gt": "no", "dataroot_lq": "no"}
    data |= {"io_backend": {"type": "disk"}}
    options = {"name": "x", "datasets": {"test": data}, "val": {"metrics": {}}, "file": "x.yml"}
    job = {"kind": "inputs", "threads": 1, "arguments": {"options": options, "folder": str(tmp_path)}}
    with pytest.raises(UserError) as error:
        processes.run_in_process("restormixer_arch.compare.jobs", job, "compare: the inputs")
    assert str(error.value).startswith("x.yml: datasets.test: ") and "exit code" not in str(error.value)
