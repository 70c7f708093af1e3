"""Jobs of several processes: joining them, wrapping the network, and telling why one has ended."""

from __future__ import annotations

import os
import re
import warnings
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn

from restormixer_arch.basicsr_adapter.output import note
from restormixer_arch.errors import UserError, did_you_mean

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
BACKENDS = ("nccl", "gloo", "mpi", "xccl")
DEFAULT_PORT = 29500
DEFAULT_TIMEOUT = 60  # minutes; a slow disk or a long validation of one process is no fault
LOST = re.compile(
    r"Connection closed by peer|Connection reset by peer|Broken pipe|remote process exited|Connection refus"
)


def start(
    launcher: str, dist_params: dict[str, Any], num_gpu: int | str, device: str | None = None, *, is_train: bool = True
) -> None:
    """Join the process group.

    Args:
        launcher: ``pytorch`` (torchrun sets the environment) or ``slurm`` (srun does).
        dist_params: of the option file: ``backend``, ``port`` (slurm), ``timeout_minutes``.
        num_gpu, device: of the option file; with 0 or ``cpu`` the processes work on the CPU.
        is_train: for the command in messages.

    Raises:
        UserError: the launcher has not set the environment, or the backend cannot be used.
    """
    if launcher == "slurm":
        set_slurm_environment(dist_params.get("port"))
    absent = [name for name in LAUNCHED if name not in os.environ]
    if absent:
        command = "train" if is_train else "test"
        raise UserError(
            f"--launcher pytorch: {', '.join(absent)} not set in the environment; start with "
            f"torchrun --nproc_per_node=N $(which basicsr) {command} ... --launcher pytorch"
        )
    on_gpu = torch.cuda.is_available() and num_gpu != 0 and device != "cpu"
    backend = choose_backend(dist_params.get("backend"), on_gpu)
    if on_gpu:
        torch.cuda.set_device(_own_gpu(backend))
        if torch.multiprocessing.get_start_method(allow_none=True) is None:
            torch.multiprocessing.set_start_method("spawn")  # a process with CUDA must not be forked
    timeout = timedelta(minutes=dist_params.get("timeout_minutes") or DEFAULT_TIMEOUT)
    # Of the depthwise convolutions' weights, whose axis of length 1 may have any stride: nothing is slower for it.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    distributed.init_process_group(backend=backend, timeout=timeout)


def choose_backend(wanted: str | None, on_gpu: bool) -> str:
    """Return the backend to use: the wanted one if it works here, nccl on GPUs and gloo on CPUs if none is named.

    Raises:
        UserError: there is none of that name, or torch was built without it.
    """
    if wanted is None:
        return "nccl" if on_gpu and distributed.is_nccl_available() else "gloo"
    if wanted not in BACKENDS:
        raise UserError(
            f"dist_params.backend: {wanted!r} is none of {', '.join(BACKENDS)}.{did_you_mean(wanted, BACKENDS)}"
        )
    if wanted == "nccl" and not on_gpu:
        note("dist_params.backend: 'nccl' works between GPUs, and there are none in use; taking 'gloo'")
        return "gloo"
    if not distributed.is_backend_available(wanted):
        raise UserError(f"dist_params.backend: this build of torch has no {wanted!r}")
    return wanted


def _own_gpu(backend: str) -> int:
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= gpus and backend == "nccl":
        raise UserError(f"process {local + 1} of this machine has no GPU of its own, there are {gpus}; start fewer")
    return local % gpus


def set_slurm_environment(port: int | None) -> None:
    """Set what torch needs from what srun sets; a MASTER_ADDR or MASTER_PORT that is there is kept.

    Raises:
        UserError: srun has not started this process.
    """
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST") or ""
    nodes = nodes or os.environ.get("SLURM_JOB_NODELIST", "")
    absent = [name for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID") if name not in os.environ]
    absent += [] if nodes else ["SLURM_JOB_NODELIST"]
    if absent:
        raise UserError(
            f"--launcher slurm: {', '.join(absent)} not set in the environment; start with srun basicsr train ..."
        )
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
    os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
    os.environ.setdefault("MASTER_ADDR", first_node(nodes))
    if port is not None:
        os.environ["MASTER_PORT"] = str(port)
    os.environ.setdefault("MASTER_PORT", str(DEFAULT_PORT))


def first_node(nodes: str) -> str:
    """Return the first name of a node list in SLURM's short form: ``a[03-05,9],b1`` -> ``a03``."""
    found = re.match(r"([^,\[]*)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    prefix, number, suffix = found.groups()
    return prefix + (number or "") + (suffix or "")


def same_for_all(value: Any) -> Any:
    """Return the first process's value in every process of the job."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def wrap(model: Any, net: nn.Module) -> nn.Module:
    """Return the network of a model on its device, wrapped for training in several processes."""
    net = net.to(model.device)
    on_gpu = model.device.type == "cuda"
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in net.modules()):
        if on_gpu:
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        elif model.opt["is_train"]:
            note(
                f"{type(net).__name__} has BatchNorm: on the CPU each process takes the statistics of its own part of "
                "the batch, on GPUs of the whole"
            )
    return nn.parallel.DistributedDataParallel(
        net,
        device_ids=[torch.cuda.current_device()] if on_gpu else None,
        find_unused_parameters=model.opt.get("find_unused_parameters", False),
    )


def lost_peer(error: BaseException) -> bool:
    """True if the error only tells that another process of the job has ended."""
    return isinstance(error, RuntimeError) and LOST.search(str(error)) is not None
