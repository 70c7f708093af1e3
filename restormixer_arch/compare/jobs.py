"""Run the measurements of a comparison, each in a separate process.

``python -m restormixer_arch.compare.jobs`` reads one job as JSON from stdin and prints its result as JSON.
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
from restormixer_arch.errors import UserError, print_user_error
from restormixer_arch.memory import keep_freed_memory
from restormixer_arch.output import print_error


def run_job(job: dict[str, Any]) -> Any:
    """Run one job: call the function of its ``kind`` with its ``arguments``, and return the result."""
    keep_freed_memory()  # for every network, as the command does
    register.load_plugins()
    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    return JOBS[job["kind"]](**job["arguments"])


def measure_inputs(options: dict[str, Any], folder: str) -> dict[str, Any]:
    """Measure all input images unrestored; see :func:`.pictures.measure_pictures` for arguments and result."""
    from restormixer_arch.compare.pictures import measure_pictures

    return measure_pictures(deepcopy(options), Path(folder), None, None, torch.device("cpu"))


def restore_pictures(
    entry: dict[str, Any], size: int, options: dict[str, Any], folder: str, device: str
) -> dict[str, Any]:
    """Measure the peak memory of one network, then restore and measure all images with it.

    Args:
        entry: fields of the competitor's :class:`.networks.Entry`.
        size: side in pixels of the square image for the memory measurement.
        options: options of ``basicsr test``, from :func:`.options.testing_options`.
        folder: folder below which the images are written.
        device: device for restoring; the memory is always that on the CPU.

    Returns:
        ``peak_bytes``: peak memory of the process after restoring one square image twice; ``pictures``: dataset ->
        list of what :func:`.pictures.measure_pictures` returns for each image.
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
    """Count parameters and operations of all networks, with torch and with thop, and time the networks.

    Each round times every network once, so a slowdown of the machine affects all of them.

    Args:
        entries: fields of each competitor's :class:`.networks.Entry`.
        size: side of the square image in pixels.
        rounds: number of timed passes of each network.
        crops: competitor -> side of its training crops, whose operations are counted too, or None.

    Returns:
        competitor -> the measured attributes of :class:`.results.Competitor`, and ``crop_flops``.
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
    measure.restoring(built.network, size)()  # before thop adds buffers to the state, which a network may inspect
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
    """Run a short training in a temporary folder, and return the seconds of each step except the first two."""
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
    """Measure how much of an image a network uses, see :mod:`.context`, and write its gradient to ``field_file``."""
    from restormixer_arch.compare.context import measure_context_use
    from restormixer_arch.compare.networks import Entry, build
    from restormixer_arch.compare.study_plots import write_field

    use, field = measure_context_use(build(Entry(**entry)).network, deepcopy(options), sizes)
    write_field(field.numpy(), Path(field_file))
    return use.model_dump()


def _restore_work(entry: dict[str, Any], size: int) -> Callable[[], object]:
    """Return the measured pass, with BatchNorm folded if the network supports it, as in deployment."""
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
        print_user_error(error)
        return 2
    except KeyboardInterrupt as interrupt:  # Ctrl-C, which the command receives too
        print_error("stopped")
        return 128 + getattr(interrupt, "signal", signal.SIGINT)
    sys.stdout.write("\n" + json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
