"""The measurements of a comparison, each in a process of its own.

``python -m restormixer_arch.compare.jobs`` reads one job as JSON on stdin and prints its result as JSON.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from restormixer_arch.basicsr_adapter import register
from restormixer_arch.errors import UserError
from restormixer_arch.memory import keep_freed_memory
from restormixer_arch.output import print_error


def run_job(job: dict[str, Any]) -> Any:
    """Run one job: its ``kind`` names the function, ``arguments`` are handed to it."""
    keep_freed_memory()  # as the command does, for every network
    register.load_plugins()
    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    return JOBS[job["kind"]](**job["arguments"])


def measure_inputs(options: dict[str, Any], folder: str) -> dict[str, Any]:
    """Measure all pictures as they are; see :func:`.pictures.measure_pictures` for arguments and result."""
    from restormixer_arch.compare.pictures import measure_pictures

    return measure_pictures(deepcopy(options), Path(folder), None, None, torch.device("cpu"))


def restore_pictures(
    entry: dict[str, Any], size: int, options: dict[str, Any], folder: str, device: str
) -> dict[str, Any]:
    """Take the peak memory of one network, then restore and measure all pictures by it.

    Args:
        entry: of the competitor.
        size: side of the square picture for the memory.
        options: for ``basicsr test``, as :func:`.options.testing_options` makes them.
        folder: that pictures are written below.
        device: to restore on; the memory is that of the CPU.

    Returns:
        ``peak_bytes``: the most that the process held until it had restored one square picture, twice; ``pictures``:
        dataset -> list of what :func:`.pictures.measure_pictures` returns for each picture.
    """
    from restormixer_arch.benchmark.measure import peak_bytes

    work = _restore_work(entry, size)
    work()
    work()
    peak = peak_bytes()
    from restormixer_arch.compare.networks import Entry, build
    from restormixer_arch.compare.pictures import measure_pictures

    network, where = build(Entry(**entry)).network.to(device), torch.device(device)
    return {
        "peak_bytes": peak,
        "pictures": measure_pictures(deepcopy(options), Path(folder), entry["name"], network, where),
    }


def measure_costs(
    entries: list[dict[str, Any]], size: int, rounds: int, crops: dict[str, int | None]
) -> dict[str, dict[str, Any]]:
    """Count parameters and operations of all networks, by torch and by thop, and time them.

    They are timed in turn, round by round, so that a machine that slows down slows all of them.

    Args:
        entries: the competitors.
        size: side of the square picture.
        rounds: passes of each network.
        crops: competitor -> side of the crops that it was trained on, whose operations are counted too, or None.

    Returns:
        competitor -> the attributes of :class:`.results.Competitor` that were found, and ``crop_flops``.
    """
    from restormixer_arch.benchmark.measure import times
    from restormixer_arch.benchmark.tables import summarize

    found = {entry["name"]: _count(entry, size, crops[entry["name"]]) for entry in entries}
    taken = times({entry["name"]: _restore_work(entry, size) for entry in entries}, rounds)
    for name, seconds in taken.items():
        found[name]["latency"] = {**summarize(seconds), "runs": len(seconds)}
    return found


def _count(entry: dict[str, Any], size: int, crop: int | None) -> dict[str, Any]:
    from restormixer_arch.benchmark import measure
    from restormixer_arch.compare.networks import Entry, build

    built = build(Entry(**entry))
    parameters = sum(p.numel() for p in built.network.parameters())
    flops = measure.operations(_restore_work(entry, size))
    measure.restoring(built.network, size)()  # before thop leaves marks in the state that a network may look at
    thop = measure.thop_figures(built.network, size)
    return {
        "arch": built.arch,
        "arguments": built.arguments,
        "parameters": parameters,
        "flops": flops,
        "crop_flops": crop and measure.operations(_restore_work(entry, crop)),
        "thop_macs": thop[0] if thop else None,
        "thop_parameters": thop[1] if thop else None,
    }


def step_seconds(file: str, steps: int) -> list[float]:
    """Start a training in a folder that is removed, and return the seconds of each of its steps but the first two."""
    import tempfile
    from dataclasses import replace

    from restormixer_arch.config.check import read_request
    from restormixer_arch.training.dry_run import shorten_options, time_training

    request = read_request(file, is_train=True)
    with tempfile.TemporaryDirectory(prefix="basicsr_compare_") as folder:
        options = shorten_options(request.options, folder, 1)
        options["train"]["total_iter"] = steps + 2
        _, seconds = time_training(replace(request, options=options))
    return seconds[2:]


def measure_context(
    entry: dict[str, Any], options: dict[str, Any], sizes: list[int], field_file: str
) -> dict[str, Any]:
    """Measure how much of a picture a network uses, see :mod:`.context`; its gradient goes to ``field_file``."""
    from restormixer_arch.compare.context import use_of
    from restormixer_arch.compare.networks import Entry, build
    from restormixer_arch.compare.study_plots import write_field

    use, field = use_of(build(Entry(**entry)).network, deepcopy(options), sizes)
    write_field(field.numpy(), Path(field_file))
    return use.model_dump()


def _restore_work(entry: dict[str, Any], size: int) -> Callable[[], object]:
    """The pass that is measured: with BatchNorm folded where the network can do that, as one would deploy it."""
    from restormixer_arch.benchmark.measure import restoring
    from restormixer_arch.compare.networks import Entry, build
    from restormixer_arch.protocol import Fusable

    network = build(Entry(**entry)).network
    if isinstance(network, Fusable):
        network.fuse()
    return restoring(network, size)


JOBS = {
    "inputs": measure_inputs,
    "restored": restore_pictures,
    "costs": measure_costs,
    "step_seconds": step_seconds,
    "context": measure_context,
}


def main() -> int:
    try:
        result = run_job(json.load(sys.stdin))
    except UserError as error:
        for line in str(error).splitlines():
            print_error(f"error: {line}")
        return 2
    except KeyboardInterrupt as interrupt:  # Ctrl-C, which reaches the command as well
        print_error("stopped")
        return 128 + getattr(interrupt, "signal", signal.SIGINT)
    sys.stdout.write("\n" + json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
