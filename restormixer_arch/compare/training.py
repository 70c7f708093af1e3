"""Train the competitors one after the other, each by ``basicsr train`` in a process of its own.

A budget of minutes becomes a number of iterations before anything is trained: the steps of all competitors are
measured in turn, so that a busy machine slows all of them, and each gets the iterations that fill the minutes. The
learning rate schedule then ends exactly with training, and a run that was stopped and resumed ends with the same
weights as an uninterrupted one. Stopping by the clock would make both depend on other load on the machine. The results
record the actual training time.
"""

from __future__ import annotations

import json
import signal
import subprocess
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
STEPS, ROUNDS = 10, 2  # steps of each competitor that are measured at once, and how often
JOBS = "restormixer_arch.compare.jobs"
FOLLOWER = "restormixer_arch.cli.follower"


class ComparisonInterrupted(Exception):
    """A signal ended the comparison; a running training saved its checkpoint.

    Attributes:
        code: the exit code that says so.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"ended with exit code {code}")
        self.code = code


def train_all(options: dict[str, Any], folder: Path, threads: int) -> dict[str, Training]:
    """Train every competitor that has no weights; one that is finished already is left as it is.

    Args:
        options: a checked compare file.
        folder: of the comparison.
        threads: of each process.

    Returns:
        competitor -> how it was trained. Its weights are those of :func:`weights_of`.

    Raises:
        UserError: a training failed, or the options of one that was started have changed since.
        ComparisonInterrupted: a signal has come.
    """
    options = {**options, "num_gpu": gpus_of_one_process(options["num_gpu"], options.get("device"))}
    names = [name for name in options["competitors"] if is_trained(options, name)]
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    totals = iterations(options, names, place, threads)
    files = {name: option_file(options, name, totals[name], place) for name in names}
    return {name: _train(options, name, totals[name], files[name], place) for name in names}


def weights_of(name: str, folder: Path) -> Path:
    """Return the weights of a competitor that was trained in this comparison."""
    return folder / FOLDER / name / "models" / LATEST_WEIGHTS


def iterations(options: dict[str, Any], names: list[str], place: Path, threads: int) -> dict[str, int]:
    """Return how many iterations the budget gives each competitor; what had to be measured for it is kept."""
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
    """Return the median seconds of a training step of each competitor, measured in turn."""
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
    """Write the option file of a competitor, which stays, and return it.

    Raises:
        UserError: the training was started with other options.
    """
    file = place / f"{name}.yml"
    text = yaml.safe_dump(training_options(options, name, total, str(place)), sort_keys=False)
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        before = yaml.safe_load(file.read_text(encoding="utf-8"))
        changed = ", ".join(key for key, value in yaml.safe_load(text).items() if before.get(key) != value)
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
    """Run a command that ends by itself on Ctrl-C, which the terminal sends to both; SIGTERM is handed on.

    Args:
        command: its stdin is open as long as this process lives.
        log: what it says is written at the end of this file.

    Returns:
        Its exit code; that of a shell where a signal has ended it.
    """

    def hand_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    def leave(number: int, frame: FrameType | None) -> None:
        note("stopping after this iteration with a checkpoint; Ctrl-C again quits at once")

    with log.open("a", encoding="utf-8") as file:
        pipes = {"stdin": subprocess.PIPE, "stdout": file, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, env=utf8(), **pipes)
    before: dict[int, Callable[..., Any] | int | None] = {}
    for number, handler in ((signal.SIGTERM, hand_on), (signal.SIGINT, leave)):
        before[number] = signal.signal(number, handler)
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        process.stdin.close()
    return 128 - code if code < 0 else code
