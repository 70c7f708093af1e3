"""Train the competitors one after another, each with ``basicsr train`` in a separate process.

A budget in minutes is converted to a number of iterations before training: the step times of all competitors are
measured alternately, so a busy machine slows down all of them, and each gets the iterations that fill the minutes. The
learning rate schedule then ends exactly with training, and a run that was stopped and resumed ends with the same
weights as an uninterrupted one. Stopping by the clock would make both depend on other load on the machine. The results
record the actual training time.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import yaml

from restormixer_arch.compare.options import ANY_TOTAL, is_trained, training_options
from restormixer_arch.compare.results import Training
from restormixer_arch.errors import UserError
from restormixer_arch.hub import LATEST_WEIGHTS
from restormixer_arch.output import note, write_text_atomically
from restormixer_arch.processes import module_command, run_in_process, utf8
from restormixer_arch.training.options import gpus_of_one_process

FOLDER = "training"
STEPS, ROUNDS = 10, 2  # steps measured in a row for each competitor, and how often
JOBS = "restormixer_arch.compare.jobs"
FOLLOWER = "restormixer_arch.cli.follower"


class ComparisonInterrupted(Exception):
    """A signal ended the comparison; the current training run saved a checkpoint.

    Attributes:
        code: exit code for that signal.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"ended with exit code {code}")
        self.code = code


def train_all(options: dict[str, Any], folder: Path, threads: int) -> dict[str, Training]:
    """Train every competitor that has no weights, except those whose training has already finished.

    Args:
        options: checked compare file.
        folder: folder of the comparison.
        threads: number of threads of each process that measures step times.

    Returns:
        competitor -> how it was trained; :func:`weights_of` returns the path of its weights.

    Raises:
        UserError: if a training run fails, or the options of one that was started have changed since.
        ComparisonInterrupted: if a signal ended a training run.
    """
    options = {**options, "num_gpu": gpus_of_one_process(options["num_gpu"], options.get("device"))}
    names = [name for name in options["competitors"] if is_trained(options, name)]
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    totals = iterations(options, names, place, threads)
    files = {name: option_file(options, name, totals[name], place) for name in names}
    return {name: _train(options, name, totals[name], files[name], place) for name in names}


def weights_of(name: str, folder: Path) -> Path:
    """Return the path of the weights of a competitor that was trained in this comparison."""
    return folder / FOLDER / name / "models" / LATEST_WEIGHTS


def iterations(options: dict[str, Any], names: list[str], place: Path, threads: int) -> dict[str, int]:
    """Return the number of iterations that the budget gives each competitor; store step times that were measured."""
    budget = options["train"]["budget"]
    if budget.get("iterations"):
        return dict.fromkeys(names, budget["iterations"])
    kept = place / "step_seconds.json"
    seconds = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    given = {name: options["competitors"][name].get("step_seconds") for name in names}
    seconds |= {name: value for name, value in given.items() if value}
    missing = [name for name in names if name not in seconds]
    if missing:
        seconds |= measure_steps(options, missing, place, threads)
        write_text_atomically(kept, json.dumps(seconds, indent=1) + "\n")
    return {name: max(1, round(60 * budget["minutes"] / seconds[name])) for name in names}


def measure_steps(options: dict[str, Any], names: list[str], place: Path, threads: int) -> dict[str, float]:
    """Return the median seconds of a training step of each competitor, measured alternately."""
    note(f"measuring the training steps of {', '.join(names)}")
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            file = place / f".{name}.step.yml"
            write_text_atomically(
                file, yaml.safe_dump(training_options(options, name, ANY_TOTAL, str(place)), sort_keys=False)
            )
            job = {"kind": "step_seconds", "threads": threads, "arguments": {"file": str(file), "steps": STEPS}}
            try:
                taken[name] += run_in_process(JOBS, job, f"measuring the training steps of competitors.{name}")
            finally:
                file.unlink()
    return {name: median(seconds) for name, seconds in taken.items()}


def option_file(options: dict[str, Any], name: str, total: int, place: Path) -> Path:
    """Write the option file of a competitor, which is kept, and return its path.

    Raises:
        UserError: if the training run was started with other options.
    """
    file = place / f"{name}.yml"
    text = yaml.safe_dump(training_options(options, name, total, str(place)), sort_keys=False)
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        before = yaml.safe_load(file.read_text(encoding="utf-8"))
        now = yaml.safe_load(text)
        changed = ", ".join(key for key in [*now, *(before.keys() - now)] if before.get(key) != now.get(key))
        raise UserError(
            f"{file}: competitors.{name} was started with other options ({changed}); resume with those, or start again "
            "without --auto_resume"
        )
    write_text_atomically(file, text)
    return file


def _train(options: dict[str, Any], name: str, total: int, file: Path, place: Path) -> Training:
    record = place / f"{name}.json"
    state = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {"seconds": 0.0, "done": False}
    if state["done"]:
        note(f"{name} is already trained: {total} iterations")
    else:
        log = place / f"{name}.log"
        note(f"training {name}: {total} iterations; log: {log}")
        begin = time.monotonic()
        code = run_and_wait([*module_command(FOLLOWER), "-opt", str(file), "--auto_resume"], log)
        state = {"seconds": state["seconds"] + time.monotonic() - begin, "done": code == 0}
        write_text_atomically(record, json.dumps(state) + "\n")
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise ComparisonInterrupted(code)
        if code:
            last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"])[-1]
            raise UserError(f"the training of competitors.{name} failed with exit code {code}, see {log}: {last}")
    batch = options["datasets"]["train"]["batch_size_per_gpu"]
    return Training(iterations=total, batch_size=batch, seconds=state["seconds"])


def run_and_wait(command: list[str], log: Path) -> int:
    """Run a command that ends by itself on Ctrl-C, which the terminal sends to both processes.

    Forward SIGTERM to it, and the first SIGINT as SIGTERM, except on Windows.

    Args:
        command: command to run; its stdin is open as long as this process runs.
        log: file to which its output is appended.

    Returns:
        Its exit code, or 128 + the signal's number if a signal ended it, as in a shell; after a SIGINT, the code of
        SIGINT instead of that of SIGTERM.
    """

    def hand_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    def leave(number: int, frame: FrameType | None) -> None:
        note("stopping after this iteration with a checkpoint; Ctrl-C again quits at once")
        if sys.platform != "win32" and not interrupted:  # Windows has no SIGTERM that lets it save a checkpoint
            process.send_signal(signal.SIGTERM)  # for a SIGINT sent to this process alone; after Ctrl-C, it is ignored
        interrupted.append(number)

    with log.open("a", encoding="utf-8") as file:
        pipes = {"stdin": subprocess.PIPE, "stdout": file, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, env=utf8(), **pipes)
    interrupted: list[int] = []
    before: dict[int, Callable[..., Any] | int | None] = {}
    for number, handler in ((signal.SIGTERM, hand_on), (signal.SIGINT, leave)):
        before[number] = signal.signal(number, handler)
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        process.stdin.close()
    code = 128 - code if code < 0 else code
    return 128 + signal.SIGINT if interrupted and code == 128 + signal.SIGTERM else code
