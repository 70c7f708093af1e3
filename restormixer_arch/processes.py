"""Processes of their own for modules of this package, and how many cores there are for them."""

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
    """Return the command that runs a module of this package as it is installed.

    ``python -m`` would look into the working directory first. In a clone that is the package's source, which lacks the
    compiled library and the folders that installing maps.
    """
    installed = "import runpy, sys; sys.path = [place for place in sys.path if place]"
    return [sys.executable, "-c", f"{installed}; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"]


def utf8() -> dict[str, str]:
    """Return an environment in which Python writes UTF-8, whatever the system's encoding is."""
    return {**os.environ, "PYTHONIOENCODING": "utf-8:backslashreplace"}


def run_in_process(module: str, job: dict[str, Any], label: str) -> Any:
    """Run a module in a process of its own, so that its memory and settings are its own.

    It reads the job as JSON on stdin and prints its result as its last line.

    Args:
        module: whose main part does it.
        job: what to do.
        label: of the work, for messages.

    Raises:
        UserError: it failed; the message is that of the user's mistake, or names the work and ends with its last line.
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
    """Return how many cores this process may use: those of its affinity, fewer by a quota of a container or job."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [allowed, slurm_cores() or allowed]
    for group in groups("cpu"):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            quota, _, period = " ".join(read(group / name) for name in names).partition(" ")
            if quota.isdecimal() and period.isdecimal():  # not "max" or -1
                limits.append(math.ceil(int(quota) / int(period)))
    return max(1, min(limits))


def slurm_cores() -> int | None:
    """Return how many cores srun gave this process by ``--cpus-per-task``, None where it did not start it alone."""
    number = os.environ.get("SLURM_CPUS_PER_TASK", "")
    alone = "SLURM_STEP_ID" in os.environ and "LOCAL_WORLD_SIZE" not in os.environ  # which torchrun sets
    return int(number) if alone and number.isdecimal() and int(number) else None


def omp_threads() -> int | None:
    """Return the first number of OMP_NUM_THREADS, whose others are for nested work; None where none is above 0."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) or None if first.isdecimal() else None
