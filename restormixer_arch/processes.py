"""Run modules of this package in processes of their own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

from restormixer_arch.errors import UserError


def module_command(module: str) -> list[str]:
    """Return the command that runs a module of this package as it is installed.

    ``python -m`` would look into the working directory first. In a clone that is the package's source, which lacks the
    compiled library and the folders that installing maps.
    """
    installed = "import runpy, sys; sys.path = [place for place in sys.path if place]"
    return [sys.executable, "-c", f"{installed}; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"]


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
    done = subprocess.run(module_command(module), input=json.dumps(job), capture_output=True, text=True, check=False)
    mistakes = re.findall(r"^basicsr: error: (.*)$", done.stderr, re.MULTILINE)
    if done.returncode == 2 and mistakes:
        raise UserError("\n".join(mistakes))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{label} failed with exit code {done.returncode}: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])
