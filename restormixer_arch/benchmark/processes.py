"""Run a piece of work in a process of its own, so that its memory and its settings are its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from restormixer_arch.errors import UserError


def in_process(module: str, job: dict[str, Any], label: str) -> Any:
    """Run ``python -m module``, which reads the job as JSON on stdin and prints its result as its last line.

    Args:
        module: whose main part does it.
        job: what to do.
        label: of the work, for messages.

    Raises:
        UserError: it failed; the message ends with its last line.
    """
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{label} failed with exit code {done.returncode}: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])
