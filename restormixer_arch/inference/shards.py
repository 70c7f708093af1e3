"""Shard the files of ``basicsr restore`` over machines or processes: ``--shard i/n``, torchrun and SLURM.

A hash of a file's path below the output folder determines its shard. Each machine can therefore compute its own shard
in any listing order, and even while files are added, removed or finished; in a sorted list, a single file would change
all positions after it. The drawback is that shards are only approximately equal: within half a percent for a million
files on ten machines.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import time
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from restormixer_arch.errors import UserError
from restormixer_arch.output import note, set_shared_job
from restormixer_arch.processes import cores, omp_threads, slurm_cores

LAUNCHERS = {  # name -> environment variables of this process's number, from 0, and of the number of processes
    "torchrun": ("RANK", "WORLD_SIZE"),
    "SLURM": ("SLURM_PROCID", "SLURM_NTASKS"),
}
SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Shard:
    """Shard ``index`` of ``count``, counted from 1."""

    index: int = 1
    count: int = 1

    def holds(self, name: str | PurePath) -> bool:
        """Return whether a file belongs to this shard.

        Args:
            name: path of its result, relative to the output folder. Composed and decomposed Unicode, as on macOS, are
                the same.
        """
        if self.count == 1:
            return True
        text = unicodedata.normalize("NFC", PurePath(name).as_posix())
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1


def parse_shard(text: str) -> Shard:
    """Parse a shard such as ``2/8``, the second of eight (argparse type)."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"expected i/n with i from 1 to n, such as 1/4, got {text!r}")
    return Shard(int(found[1]), int(found[2]))


def shard_of_process(environment: Mapping[str, str] = os.environ) -> Shard:
    """Return the shard of a process started by torchrun or srun, else all files; report the shard in a note.

    SLURM also sets its variables in a batch script, where they count processes that have not been started yet. Such a
    process has no SLURM_STEP_ID and gets all files.

    Raises:
        UserError: if the variables are not consistent numbers.
    """
    for launcher, names in LAUNCHERS.items():
        texts = [environment.get(name, "") for name in names]
        if not all(texts):
            continue
        if not all(re.fullmatch(r"\d{1,9}", text, re.ASCII) for text in texts) or int(texts[0]) >= int(texts[1]):
            shown = ", ".join(f"{name}={text!r}" for name, text in zip(names, texts, strict=True))
            raise UserError(f"{shown}: expected a rank from 0 and a larger number of processes; or use --shard i/n")
        shard = Shard(int(texts[0]) + 1, int(texts[1]))
        if shard.count == 1:
            continue
        if launcher == "SLURM" and "SLURM_STEP_ID" not in environment:
            note(f"{names[1]} is {shard.count}, but srun has not started this process: it restores all files")
            continue
        set_shared_job(True)
        note(f"{shard.count} processes of {launcher} share the files; this is {shard.index}/{shard.count}")
        return shard
    return Shard()


def processes_here(environment: Mapping[str, str] = os.environ, default: int = 1) -> int:
    """Return how many processes of torchrun or srun share this machine, ``default`` if neither states it."""
    number = environment.get("LOCAL_WORLD_SIZE") or environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    found = re.match(r"[1-9]\d{0,8}", number)  # SLURM writes 4(x2) for four on each of two machines
    return int(found[0]) if found else default


def limit_threads() -> None:
    """Limit torch's threads to this process's share of the cores that a container or job allows.

    torch considers neither a quota of cores nor the other processes of torchrun or srun. If OMP_NUM_THREADS is set,
    nothing is changed.
    """
    import torch

    if omp_threads() is None:
        processes = 1 if slurm_cores() else processes_here()  # srun gave each process its own cores
        torch.set_num_threads(min(torch.get_num_threads(), max(cores() // processes, 1)))


def gpus_are_bound(local: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether srun shows each process only its own GPU, with ``--gpus-per-task=1`` or ``--gpu-bind=single:1``.

    Args:
        local: number of this process on its machine, from 0.
    """
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    return "SLURM_GPUS_PER_TASK" in environment or (gpus.isdecimal() and int(gpus) > local)


def gpu_of_process(environment: Mapping[str, str] = os.environ) -> str:
    """Return the name of the GPU that this process uses among those of its machine."""
    import torch

    local = environment.get("LOCAL_RANK", environment.get("SLURM_LOCALID", ""))
    number = torch.cuda.device_count() if local.isdecimal() else 0
    return f"cuda:{int(local) % number}" if number > 1 else "cuda"


def processes_per_gpu(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many processes of torchrun or srun share a GPU."""
    import torch

    number = processes_here(environment)
    return 1 if gpus_are_bound(number - 1, environment) else -(-number // torch.cuda.device_count())


def wait_for_all(environment: Mapping[str, str] = os.environ) -> None:
    """Wait until every process of torchrun is done, since it stops all of them when one exits with an error."""
    if "TORCHELASTIC_RUN_ID" not in environment or "MASTER_ADDR" not in environment:
        return
    import torch.distributed as distributed

    store, _, number = next(distributed.rendezvous("env://"))
    key = f"restored_{environment.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    store.add(key, 1)
    while store.add(key, 0) < number:
        time.sleep(SECONDS_BETWEEN_LOOKS)
