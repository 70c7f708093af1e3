"""Join jobs of several processes, and share the cores of a machine among processes, loaders and OpenCV."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import cv2
import torch
from torch import distributed

from restormixer_arch.errors import UserError, did_you_mean
from restormixer_arch.inference.shards import gpus_are_bound, processes_here
from restormixer_arch.output import note
from restormixer_arch.processes import cores, omp_threads, slurm_cores

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
BACKENDS = ("nccl", "gloo", "mpi", "xccl")
FIRST_PORT, PORT_COUNT = 15000, 30000  # range of ports for SLURM jobs, chosen by job and step number
DEFAULT_TIMEOUT = 60  # minutes; a slow disk or a long validation of one process is not an error
LOST_PEER_PATTERN = re.compile(
    r"Connection closed by peer|Connection reset by peer|Broken pipe|remote process exited|Connection refus"
    r"|[Tt]imed out"
)


def start(
    launcher: str, dist_params: dict[str, Any], num_gpu: int | str, device: str | None = None, *, is_train: bool = True
) -> None:
    """Join the process group.

    Args:
        launcher: ``pytorch`` (torchrun sets the environment) or ``slurm`` (srun sets it).
        dist_params: options ``backend``, ``port`` (slurm) and ``timeout_minutes`` of the option file.
        num_gpu, device: values from the option file; with 0 or ``cpu``, the processes run on the CPU.
        is_train: whether messages name the command ``train`` or ``test``.

    Raises:
        UserError: if the launcher has not set the environment, the backend cannot be used, there are fewer GPUs
            than processes, or the processes cannot connect.
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
    on_gpu = torch.cuda.is_available() and (device == "cuda" or (num_gpu != 0 and device is None))
    backend = choose_backend(dist_params.get("backend"), on_gpu)
    if on_gpu:
        torch.cuda.set_device(_own_gpu(backend, launcher))
        if torch.multiprocessing.get_start_method(allow_none=True) is None:
            torch.multiprocessing.set_start_method("spawn")  # a process with CUDA must not be forked
    timeout = timedelta(minutes=dist_params.get("timeout_minutes") or DEFAULT_TIMEOUT)
    # Caused by the weights of depthwise convolutions, whose axis of length 1 may have any stride; it costs no time.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    if backend == "nccl" and distributed.is_gloo_available():
        backend = "cpu:gloo,cuda:nccl"  # values that processes agree on, such as a signal, need not wait for the GPU
    try:
        distributed.init_process_group(backend=backend, timeout=timeout)
    except (distributed.DistError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"--launcher {launcher}: the {os.environ['WORLD_SIZE']} processes of the job did not meet at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({reason}); "
            f"dist_params.timeout_minutes sets how long they wait ({timeout.total_seconds() / 60:g})"
        ) from error


def choose_backend(wanted: str | None, on_gpu: bool) -> str:
    """Return the backend to use: the one requested if it works here, by default nccl on GPUs and gloo on CPUs.

    Raises:
        UserError: if the name is unknown, or torch was built without this backend.
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


def _own_gpu(backend: str, launcher: str) -> int:
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    bound = launcher == "slurm" and gpus == 1 and gpus_are_bound(local)
    if local >= gpus and backend == "nccl" and not bound:
        raise UserError(f"process {local + 1} of this machine has no GPU of its own, there are {gpus}; start fewer")
    return local % gpus


def set_slurm_environment(port: int | None) -> None:
    """Set the environment variables that torch needs from those that srun sets.

    An existing MASTER_ADDR is kept, and without ``port`` an existing MASTER_PORT.

    Raises:
        UserError: if srun has not started this process.
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
    # Jobs that share a node need different ports.
    job, step = (int(re.sub(r"\D", "", os.environ.get(name, "")) or 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    os.environ.setdefault("MASTER_PORT", str(FIRST_PORT + (job * 10 + step) % PORT_COUNT))


def first_node(nodes: str) -> str:
    """Return the first name of a node list in SLURM's compact form: ``a[03-05,9],b1`` -> ``a03``."""
    found = re.match(r"([^,\[]*)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    prefix, number, suffix = found.groups()
    return prefix + (number or "") + (suffix or "")


def same_for_all(value: Any) -> Any:
    """Return the value of the first process in every process of the job."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def lost_peer(error: BaseException) -> bool:
    """Return True if the error only reports that another process of the job has ended."""
    return isinstance(error, RuntimeError) and LOST_PEER_PATTERN.search(str(error)) is not None


@contextmanager
def opencv_single_threaded() -> Iterator[None]:
    """Run OpenCV in a single thread, since the loader processes use the other cores.

    This must be set before they are forked: a fork does not copy threads, and OpenCV would wait for them forever.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def share(available: int, processes: int, workers: int) -> int:
    """Return the number of torch threads for one of ``processes`` with ``workers`` loader processes each.

    Loaders of small crops are idle most of the time, so the network gets at least half of the cores of a process.
    """
    own = max(available // processes, 1)
    return max(own - workers, (own + 1) // 2, 1)


def set_threads(wanted: int | None, processes: int, workers: int) -> str:
    """Set the number of torch threads on a CPU, and return a line for the log.

    Args:
        wanted: ``num_threads`` of the option file.
        processes: number of processes of the job on this machine.
        workers: number of loader processes of each.
    """
    outer = omp_threads()
    if wanted:
        torch.set_num_threads(wanted)
        reason = "num_threads of the option file"
    elif outer:
        reason = f"OMP_NUM_THREADS is {outer}" + (", which torchrun sets if nobody else does" if processes > 1 else "")
    else:
        torch.set_num_threads(share(cores(), processes, workers))
        reason = f"{cores()} cores for {processes} process{'es' * (processes > 1)} with {workers} loaders each"
    return f"Threads of torch: {torch.get_num_threads()} ({reason})."


def share_cores(opt: dict[str, Any], workers: int) -> None:
    """Set the number of torch threads of this process if it runs on the CPU, and log it.

    Args:
        opt: options of the run.
        workers: number of loader processes that run at the same time as the network.
    """
    if opt["num_gpu"] == 0:
        alone = not opt["dist"] or slurm_cores()  # srun gave each process its own cores
        processes = 1 if alone else processes_here(default=opt["world_size"])
        logging.getLogger("basicsr").info(set_threads(opt.get("num_threads"), processes, workers))
