"""The measurements of a comparison, each in a process of its own.

``python -m restormixer_arch.compare.jobs`` reads one job as JSON on stdin and prints its result as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from restormixer_arch.allocator import keep_freed_memory
from restormixer_arch.basicsr_adapter import plugins
from restormixer_arch.basicsr_adapter.output import complain
from restormixer_arch.errors import UserError


def run_job(job: dict[str, Any]) -> Any:
    """Run one job: its ``kind`` names the function, ``arguments`` are handed to it."""
    keep_freed_memory()  # as the command does, for every network
    plugins.load()
    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    return JOBS[job["kind"]](**job["arguments"])


def pictures(options: dict[str, Any], folder: str, entry: dict[str, Any] | None, device: str) -> dict[str, Any]:
    """Restore and measure all pictures by one network, or take them as they are.

    Args:
        options: for ``basicsr test``, as :func:`.options.testing_options` makes them.
        folder: that pictures are written below.
        entry: of the competitor, or None for the inputs and the truth themselves.
        device: to restore on.

    Returns:
        data set -> list of what :func:`.pictures.measured` tells of each picture.
    """
    from restormixer_arch.compare.networks import Entry, build
    from restormixer_arch.compare.pictures import measured

    network = build(Entry(**entry)).network.to(device) if entry else None
    name = entry["name"] if entry else None
    return measured(deepcopy(options), Path(folder), name, network, torch.device(device))


def cost(entry: dict[str, Any], size: int) -> dict[str, Any]:
    """Count parameters and operations of a network, by torch and by thop."""
    from restormixer_arch.benchmark import measure
    from restormixer_arch.compare.networks import Entry, build

    built = build(Entry(**entry))
    parameters = sum(p.numel() for p in built.network.parameters())
    thop = measure.thop_figures(deepcopy(built.network), size)
    flops = measure.operations(_restoring(entry, size))
    return {
        "arch": built.arch,
        "arguments": built.arguments,
        "parameters": parameters,
        "flops": flops,
        "thop_macs": thop[0] if thop else None,
        "thop_parameters": thop[1] if thop else None,
    }


def memory(entry: dict[str, Any], size: int) -> int | None:
    """Load a network, restore twice, and return the most bytes that the process has held."""
    from restormixer_arch.benchmark.measure import peak_bytes

    work = _restoring(entry, size)
    work()
    work()
    return peak_bytes()


def latency(entries: list[dict[str, Any]], size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Time all networks in turn, round by round, so that a machine that slows down slows all of them."""
    from restormixer_arch.benchmark.measure import times
    from restormixer_arch.benchmark.suite import summary

    taken = times({entry["name"]: _restoring(entry, size) for entry in entries}, rounds)
    return {name: {**summary(seconds), "runs": len(seconds)} for name, seconds in taken.items()}


def step_seconds(file: str, steps: int) -> list[float]:
    """Begin a training in a folder that is removed, and return the seconds of each of its steps but the first two."""
    import tempfile
    from dataclasses import replace

    from restormixer_arch.basicsr_adapter.option_check import read_request
    from restormixer_arch.basicsr_adapter.pipeline import run_training
    from restormixer_arch.cli.dry_run import TimedRun, shortened

    request, run = read_request(file, is_train=True), TimedRun(file)
    with tempfile.TemporaryDirectory(prefix="basicsr_compare_") as folder:
        options = shortened(request.options, folder, 1)
        options["train"]["total_iter"] = steps + 2
        run_training(replace(request, options=options), run)
    return [end - begin for begin, end in zip(run.begins, run.begins[1:], strict=False)][2:]


def _restoring(entry: dict[str, Any], size: int) -> Callable[[], object]:
    """The pass that is measured: with BatchNorm folded where the network can do that, as one would deploy it."""
    from restormixer_arch.benchmark.measure import restoring
    from restormixer_arch.compare.networks import Entry, build

    network = build(Entry(**entry)).network
    if hasattr(network, "fuse"):
        network.fuse()
    return restoring(network, size)


JOBS = {"pictures": pictures, "cost": cost, "memory": memory, "latency": latency, "step_seconds": step_seconds}


def main() -> int:
    try:
        result = run_job(json.load(sys.stdin))
    except UserError as error:
        complain(str(error).splitlines()[0])
        return 2
    sys.stdout.write("\n" + json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
