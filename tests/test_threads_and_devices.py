"""How CPU cores are shared by threads, loaders and processes, and how devices are selected by name."""

from __future__ import annotations

import pytest
import torch

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.errors import UserError

compat.apply()

from basicsr.models.base_model import BaseModel  # noqa: E402

from restormixer_arch import control_groups, processes  # noqa: E402
from restormixer_arch.compare.run import restoring_device, threads_of  # noqa: E402
from restormixer_arch.inference import shards  # noqa: E402
from restormixer_arch.processes import cores, omp_threads  # noqa: E402
from restormixer_arch.training import distributed as threads  # noqa: E402
from restormixer_arch.training.dry_run import shorten_options  # noqa: E402
from restormixer_arch.training.options import (  # noqa: E402
    choose_device,
    fit_to_machine,
    gpus_of_one_process,
    reject_videos_on_cpu,
    usable_gpus,
)


@pytest.mark.parametrize(
    ("cores", "processes", "workers", "expected"),
    [(8, 1, 0, 8), (8, 1, 2, 6), (8, 1, 16, 4), (2, 1, 1, 1), (2, 1, 4, 1), (8, 2, 1, 3), (1, 4, 4, 1), (7, 1, 6, 4)],
)
def test_loaders_get_at_most_half_of_the_cores(cores, processes, workers, expected):
    assert threads.share(cores, processes, workers) == expected


@pytest.fixture
def set_to(monkeypatch):
    """Record the numbers of threads that are set, without setting them."""
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: seen[-1] if seen else 5)
    monkeypatch.setattr(threads, "cores", lambda: 8)
    return seen


def test_log_line_contains_the_reason_for_the_number_of_threads(set_to, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads.set_threads(None, 2, 1) == "Threads of torch: 3 (8 cores for 2 processes with 1 loaders each)."
    assert threads.set_threads(7, 2, 1) == "Threads of torch: 7 (num_threads of the option file)."
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads.set_threads(6, 1, 1) == "Threads of torch: 6 (num_threads of the option file)."
    assert set_to == [3, 7, 6]


def test_omp_num_threads_of_the_user_is_kept(set_to, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads.set_threads(None, 1, 1) == "Threads of torch: 5 (OMP_NUM_THREADS is 5)."
    assert threads.set_threads(None, 2, 1).endswith("(OMP_NUM_THREADS is 5, which torchrun sets if nobody else does).")
    assert set_to == []


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 1),  # assumes that all eight processes are on this machine
        ({"LOCAL_WORLD_SIZE": "2"}, 3),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, 1),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_CPUS_PER_TASK": "8"}, 1),  # from sbatch, not srun
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_CPUS_PER_TASK": "8", "SLURM_STEP_ID": "0"}, 7),
    ],
)
def test_only_processes_of_this_machine_share_its_cores(set_to, monkeypatch, environment, expected):
    slurm = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_CPUS_PER_TASK", "SLURM_STEP_ID")
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", *slurm):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    threads.share_cores({"num_gpu": 0, "dist": True, "world_size": 8}, workers=1)
    assert set_to == [expected]


def test_mps_is_selected_by_name(monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    opt = {"device": "mps", "num_gpu": "auto", "dist": False, "is_train": True, "datasets": {}}
    choose_device(opt)
    fit_to_machine(opt)
    assert opt["num_gpu"] == 0 and capsys.readouterr().err == ""
    assert BaseModel(opt).device == torch.device("mps")
    with pytest.raises(UserError, match="device: 'mps' cannot be used with --launcher"):
        choose_device(opt | {"dist": True})


def test_unavailable_device_is_rejected(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("mps", "cuda"):
        with pytest.raises(UserError, match=f"device: '{device}' is not available here; expected one of: cpu$"):
            choose_device({"device": device, "num_gpu": 0, "dist": False})


def test_device_name_overrides_num_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    opt = {"device": "cuda", "num_gpu": 0, "dist": False}
    choose_device(opt)
    assert opt["num_gpu"] == 1
    opt["device"] = "cpu"
    choose_device(opt)
    assert opt["num_gpu"] == 0
    choose_device(unset := {"num_gpu": 3})
    assert unset == {"num_gpu": 3}


def test_gpu_without_kernels_is_skipped_or_rejected(monkeypatch, capsys):
    def ones(*size, device):
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert usable_gpus(0, "cpu") == usable_gpus(0, None) == 0
    monkeypatch.setattr(torch, "ones", ones)
    reason = "CUDA error: no kernel image is available"
    assert usable_gpus("auto", None) == usable_gpus("auto", "cpu") == usable_gpus(2, "mps") == 0
    assert capsys.readouterr().err == f"basicsr: note: the GPU is not used: {reason}\n"
    with pytest.raises(UserError, match=rf"^num_gpu: 'cuda' cannot be used here \({reason}\)$"):
        usable_gpus(1, None)
    for number in (1, "auto"):
        with pytest.raises(UserError, match=rf"^device: 'cuda' cannot be used here \({reason}\)$"):
            usable_gpus(number, "cuda")
    dry = shorten_options({"num_gpu": "auto", "path": {}, "logger": {}, "train": {"total_iter": 9}}, "x", 1)
    assert dry["num_gpu"] == 0 and restoring_device({"num_gpu": "auto"}) == "cpu"
    monkeypatch.setattr(torch, "ones", lambda *size, device: torch.zeros(*size))  # a GPU that works
    assert [usable_gpus(wanted, None) for wanted in ("auto", 1, 2)] == [2, 1, 2]
    assert [gpus_of_one_process(wanted, None) for wanted in ("auto", 2, 1, 0)] == [1, 1, 1, 0]
    assert gpus_of_one_process("auto", "cpu") == 0


@pytest.mark.parametrize(
    ("value", "number"), [("4,2", 4), (" 3 ", 3), ("", None), ("0", None), ("all", None), ("-1", None), (None, None)]
)
def test_first_number_of_omp_num_threads_is_used(set_to, monkeypatch, value, number):
    monkeypatch.setenv("OMP_NUM_THREADS", value or "")
    if value is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    assert omp_threads() == number
    assert threads_of({}) == (number or cores()) and threads_of({"num_threads": 7}) == 7
    assert ("OMP_NUM_THREADS is" in threads.set_threads(None, 1, 0)) is bool(number)


def test_restoring_uses_no_more_threads_than_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(shards, "cores", lambda: 4)
    taken = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    for number in ("1", "2", "9"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", number)
        shards.limit_threads()
    assert taken == [3, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    shards.limit_threads()
    assert taken == [3, 2, 1]


# --- video models ----------------------------------------------------------------------------------------------------


def test_video_models_with_metrics_are_rejected_on_cpu():
    opt = {"model_type": "VideoRecurrentModel", "num_gpu": 0, "val": {"metrics": {"psnr": {}}}}
    with pytest.raises(UserError) as error:
        reject_videos_on_cpu(opt)
    assert str(error.value) == (
        "model_type: 'VideoRecurrentModel' measures videos on a CUDA device only, and none is used here; expected a "
        "GPU, or val.metrics: null"
    )
    for changes in ({"num_gpu": 1}, {"val": None}, {"val": {"metrics": None}}, {"model_type": "SRModel"}):
        reject_videos_on_cpu(opt | changes)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu.max": "unlimited\n"}, 64),
        ({"job/cpu.max": "400000 100000\n", "job/step/cpu.max": "max 100000\n"}, 4),
        ({}, 64),
    ],
)
def test_cores_are_limited_by_the_quota_of_a_container_or_job(tmp_path, monkeypatch, files, wanted):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text("0::/job/step\n")
    monkeypatch.setattr(control_groups, "ROOT", tmp_path)
    monkeypatch.setattr(control_groups, "PROCESS_FILE", tmp_path / "own")
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda process: range(64), raising=False)
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    assert cores() == wanted
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert cores() == min(wanted, 2)
