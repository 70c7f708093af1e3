"""Run ``basicsr train --dry-run``: a few iterations in a temporary folder, and an estimate for the training run."""

from __future__ import annotations

import tempfile
import time
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch

from restormixer_arch.config.check import Request
from restormixer_arch.errors import UserError
from restormixer_arch.memory import peak_bytes
from restormixer_arch.protocol import MeasuresInputs
from restormixer_arch.training.options import gpus_of_one_process
from restormixer_arch.training.trainer import Training

STEPS = 3  # iterations of each progressive stage; the first one is a warm-up and is not counted


def dry_run(request: Request) -> list[str]:
    """Build data, network and optimizer, train a few iterations, and restore one image of each validation dataset.

    Returns:
        Lines that report memory and time.

    Raises:
        UserError: if a launcher is used, or on any user error of the training run itself.
    """
    measured = measure(request)
    return report(request.options, measured.stages, measured.restoring, measured.memory)


@dataclass(frozen=True)
class Measured:
    """The time and memory of a few iterations.

    Args:
        stages: seconds per iteration of each progressive stage.
        restoring: validation dataset -> (seconds for its first image, number of images).
        memory: peak memory in bytes, or None if the system does not report it.
    """

    stages: list[float]
    restoring: dict[str, tuple[float, int]]
    memory: int | None


def measure(request: Request) -> Measured:
    """Train a few iterations in a temporary folder, and return time and memory; see :func:`dry_run`."""
    if request.launcher != "none":
        raise UserError(f"--dry-run: runs in one process, got --launcher {request.launcher}")
    train = request.options["train"]
    iterations = (train.get("progressive") or {}).get("iters") or [train["total_iter"]]
    with tempfile.TemporaryDirectory(prefix="basicsr_dry_run_") as folder:
        options = shorten_options(request.options, folder, len(iterations))
        run, seconds = time_training(replace(request, options=options, auto_resume=False))
        stages = [min(seconds[STEPS * stage + 1 : STEPS * (stage + 1)]) for stage in range(len(iterations))]
        restoring = {loader.dataset.opt["name"]: _restoring_seconds(run, loader) for loader in run.val_loaders}
        memory = torch.cuda.max_memory_reserved() if run.opt["num_gpu"] else peak_bytes()
    return Measured(stages, restoring, memory)


def time_training(request: Request) -> tuple[Training, list[float]]:
    """Train, and return the training run and the seconds of each iteration, including data loading."""
    times: list[float] = []

    def keep_time(iteration: int) -> None:
        if run.opt["num_gpu"]:
            torch.cuda.synchronize()  # wait for the step, which is only queued
        times.append(time.perf_counter())

    run = Training(request, on_iteration=keep_time, kept=False)
    run.run()
    return run, [end - begin for begin, end in zip(times, times[1:], strict=False)]


def shorten_options(options: dict[str, Any], folder: str, stages: int) -> dict[str, Any]:
    """Return the options of a training run with ``STEPS`` iterations per stage that writes only to ``folder``."""
    options = deepcopy(options)
    options["num_gpu"] = gpus_of_one_process(options["num_gpu"], options.get("device"))
    options["path"] = {**options["path"], "experiments_root": folder, "resume_state": None}
    options["logger"] = {**options["logger"], "use_tb_logger": False, "wandb": None}
    if options.get("val"):
        options["val"]["val_freq"] = STEPS * stages + 1
    train = options["train"]
    train["total_iter"] = STEPS * stages
    if periods := (train.get("scheduler") or {}).get("periods"):
        periods[-1] += max(0, STEPS * stages - sum(periods))  # after its periods, a schedule has no rate
    if train.get("progressive"):
        train["progressive"]["iters"] = [STEPS] * stages
    return options


def report(
    options: dict[str, Any], stages: list[float], restoring: dict[str, tuple[float, int]], memory: int | None
) -> list[str]:
    """Return lines with the measurements and an estimate for the complete training run.

    Args:
        options: options of the complete training run.
        stages, restoring, memory: see :class:`Measured`.
    """
    train, total = options["train"], options["train"]["total_iter"]
    lasting, left = [], total
    for count in (train.get("progressive") or {}).get("iters") or [total]:
        lasting.append(min(count, left))
        left -= lasting[-1]
    lasting[-1] += left  # the last stage lasts until the end
    training = sum(count * each for count, each in zip(lasting, stages, strict=True))
    lines = [f"options, data and {STEPS * len(stages)} iterations are OK; nothing was saved"]
    if memory:
        lines.append(f"memory: {memory / 2**30:.2f} GiB at most")
    each = ", then ".join(f"{seconds:.3f} s" for seconds in stages)
    lines.append(f"training: {total} iterations of {each}: {_duration(training)}")
    freq = (options.get("val") or {}).get("val_freq")
    times = -(-total // freq) if freq else 0
    for name, (seconds, images) in restoring.items() if times else ():
        taken = times * images * seconds
        training += taken
        lines.append(f"validation: {times} times {images} images of {name}, {seconds:.3f} s each: {_duration(taken)}")
    lines.append(f"total: about {_duration(training)}")
    return lines


def _restoring_seconds(run: Training, loader: Any) -> tuple[float, int]:
    """Return the seconds for a validation image, and the number of images.

    On a GPU, the image is restored twice, since kernels are compiled the first time.
    """
    item = next(iter(loader))
    if isinstance(run.model, MeasuresInputs):
        run.model.validating = True  # tile by tile, according to val.tile
    for _ in range(2 if run.opt["num_gpu"] else 1):
        begin = time.perf_counter()
        run.model.feed_data(item)
        run.model.test()
        run.model.get_current_visuals()  # waits for the result and copies it to the CPU
    return time.perf_counter() - begin, len(loader)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
