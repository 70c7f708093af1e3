"""Run modules of this package in separate processes, and count the available CPU cores."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from typing import Any

from restormixer_arch.control_groups import groups, read
from restormixer_arch.errors import UserError


def module_command(module: str) -> list[str]:
    """Return the command that runs a module of the installed package.

    ``python -m`` would search the working directory first. In a clone, that is the source of the package, which lacks
    the compiled library and the folders that are mapped during installation.
    """
    installed = "import runpy, sys; sys.path = [place for place in sys.path if place]"
    return [sys.executable, "-c", f"{installed}; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"]


def utf8() -> dict[str, str]:
    """Return an environment in which Python writes UTF-8 regardless of the system's encoding."""
    return {**os.environ, "PYTHONIOENCODING": "utf-8:backslashreplace"}


def run_in_process(module: str, job: dict[str, Any], label: str) -> Any:
    """Run a module in a separate process, so its memory and settings are separate, and return its result.

    The module reads the job as JSON from stdin and prints the result as JSON in its last line.

    Args:
        module: name of a module that runs as ``__main__``.
        job: input of the module.
        label: name of the job for error messages.

    Raises:
        UserError: if the process fails. The message is that of its user errors, or else ``label`` with the exit code
            and the last line of stderr.
    """
    command, text = module_command(module), {"encoding": "utf-8", "errors": "replace"}
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, env=utf8(), check=False, **text)
    mistakes = re.findall(r"^basicsr: error: (.*)$", done.stderr, re.MULTILINE)
    if done.returncode == 2 and mistakes:
        raise UserError(*mistakes)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{label} failed with exit code {done.returncode}: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def cores() -> int:
    """Return the number of cores this process may use, limited by CPU affinity, SLURM and control-group quotas."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [allowed, slurm_cores() or allowed]
    for group in groups("cpu"):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            quota, _, period = " ".join(read(group / name) for name in names).partition(" ")
            if quota.isdecimal() and period.isdecimal():  # not "max" or -1
                limits.append(math.ceil(int(quota) / int(period)))
    return max(1, min(limits))


def slurm_cores() -> int | None:
    """Return the cores that srun assigned with ``--cpus-per-task``, or None without srun or under torchrun."""
    number = os.environ.get("SLURM_CPUS_PER_TASK", "")
    alone = "SLURM_STEP_ID" in os.environ and "LOCAL_WORLD_SIZE" not in os.environ  # torchrun sets the latter
    return int(number) if alone and number.isdecimal() and int(number) else None


def omp_threads() -> int | None:
    """Return the first number in OMP_NUM_THREADS (others are for nested parallelism), or None if it is not positive."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) or None if first.isdecimal() else None
