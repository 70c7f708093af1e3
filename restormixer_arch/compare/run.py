"""Run a complete comparison: train, restore, measure, and combine the results."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from restormixer_arch.benchmark.suite import machine
from restormixer_arch.compare import results
from restormixer_arch.compare.differences import mean_per_photograph, paired_difference
from restormixer_arch.compare.networks import Entry, build, entry_of_run
from restormixer_arch.compare.options import crop_side, is_trained, testing_options
from restormixer_arch.compare.results import Comparison, Competitor, DataSet, Metric, Picture, Training
from restormixer_arch.compare.training import JOBS, train_all, weights_of
from restormixer_arch.config.rules import better
from restormixer_arch.errors import UserError
from restormixer_arch.folder_lock import FolderLock
from restormixer_arch.output import note, shown_path, user_path
from restormixer_arch.processes import cores, omp_threads, run_in_process
from restormixer_arch.training.options import move_aside, usable_gpus


def compare(options: dict[str, Any], *, resume: bool, reuse: bool = False) -> tuple[Comparison, Path]:
    """Run the comparison of a checked option file; BasicSR and the plug-ins must have been imported.

    Args:
        options: options from :func:`.options.read_compare_file`.
        resume: whether to resume in the folder of an earlier run, which is renamed otherwise.
        reuse: with ``resume``, whether to return existing results if settings and training runs are unchanged.

    Returns:
        The results, and the folder of the images.

    Raises:
        UserError: if weights, data or a training run make part of the comparison impossible.
        ComparisonInterrupted: if a signal ended a training run.
    """
    folder = user_path(options["path"]["results_root"] or "results") / options["name"]
    threads = threads_of(options)
    earlier = [_find_entry(options, name) for name in options["competitors"]]
    for entry in filter(None, earlier):
        build(entry)  # weights that do not fit are reported before anything is trained
    with folder_of_results(folder, resume=resume):
        trained = train_all(options, folder, threads) if options.get("train") else {}
        names = options["competitors"]
        entries = [entry or trained_entry(options, name, folder) for name, entry in zip(names, earlier, strict=True)]
        if resume and reuse and (found := _earlier_results(folder, settings_of(options, entries, trained))):
            return found, folder
        return measure(options, entries, trained, folder, threads), folder


@contextmanager
def folder_of_results(folder: Path, *, resume: bool) -> Iterator[None]:
    """Create a folder and keep other processes out of it; rename that of an earlier run unless it is resumed.

    Raises:
        UserError: if another process is writing to it.
    """
    with closing(FolderLock()) as lock:
        lock.take(folder)
        if not resume and (aside := move_aside(str(folder))):
            note(f"{folder} already exists and was renamed to {shown_path(aside)}; use --auto_resume to resume it")
        folder.mkdir(parents=True, exist_ok=True)
        lock.take(folder)
        yield


def threads_of(options: dict[str, Any]) -> int:
    """Return the number of threads of each process of a comparison."""
    return options.get("num_threads") or omp_threads() or cores()


def _earlier_results(folder: Path, settings: dict[str, Any]) -> Comparison | None:
    """Return the earlier results in this folder if they were measured with these settings, else None."""
    try:
        found = results.read(folder)
    except UserError:
        return None
    return found if found.settings == settings else None


def settings_of(options: dict[str, Any], entries: list[Entry], trained: dict[str, Training]) -> dict[str, Any]:
    """Return the settings that the values of a comparison depend on, as JSON types."""
    settings = {
        **{key: options.get(key) for key in ("scale", "val", "measure")},
        "datasets": {phase: section for phase, section in options["datasets"].items() if phase != "train"},
        "competitors": [entry.as_job() for entry in entries],
        "training": {name: training.model_dump() for name, training in trained.items()},
    }
    return json.loads(json.dumps(settings))


def _find_entry(options: dict[str, Any], name: str) -> Entry | None:
    """Return a competitor whose weights already exist, or None if it is trained in this comparison."""
    if is_trained(options, name):
        return None
    given = options["competitors"][name]
    multiple = given.get("multiple_of")
    try:
        if given.get("run"):
            return entry_of_run(name, given["run"], given.get("checkpoint"), multiple)
    except UserError as error:
        raise UserError(f"competitors.{name}.run: {error}") from error
    weights = str(user_path(given["weights"]))
    return Entry(name, given.get("network_g"), weights, given.get("param_key"), multiple)


def trained_entry(options: dict[str, Any], name: str, folder: Path) -> Entry:
    """Return a competitor that was trained in the comparison in ``folder``."""
    given = options["competitors"][name]
    return Entry(name, given["network_g"], str(weights_of(name, folder)), None, given.get("multiple_of"))


def measure(
    options: dict[str, Any], entries: list[Entry], trained: dict[str, Training], folder: Path, threads: int
) -> Comparison:
    """Restore all images with all competitors and measure their costs, each job in a separate process."""
    size, rounds, device = options["measure"]["size"], options["measure"]["rounds"], restoring_device(options)
    whole = {entry.name: entry.as_job() for entry in entries}
    pictures = {"options": {**testing_options(options), "file": options["file"]}, "folder": str(folder)}
    restoring = {"size": size, **pictures, "device": device}
    jobs = [("inputs", "the inputs", pictures)]
    jobs += [("restored", name, {"entry": entry, **restoring}) for name, entry in whole.items()]
    crops = {name: crop_side(options) if name in trained else None for name in whole}
    jobs.append(("costs", "costs", {"entries": list(whole.values()), "size": size, "rounds": rounds, "crops": crops}))
    inputs, *restored, costs = (
        run_in_process(JOBS, {"kind": kind, "threads": threads, "arguments": arguments}, f"compare: {label}")
        for kind, label, arguments in tqdm(jobs, desc="measuring", unit="job", disable=not sys.stderr.isatty())
    )
    restored = dict(zip(whole, restored, strict=True))
    competitors = [
        Competitor(
            name=entry.name,
            weights=entry.weights,
            training=_with_flops(trained.get(entry.name), costs[entry.name].pop("crop_flops")),
            **costs[entry.name],
            peak_bytes=restored[entry.name]["peak_bytes"],
        )
        for entry in entries
    ]
    return Comparison(
        name=options["name"],
        machine=machine(threads, "cuda" if device == "cuda" else "cpu"),
        size=size,
        budget=format_budget(options) if trained else None,
        metrics={name: _metric(section) for name, section in options["val"]["metrics"].items()},
        competitors=competitors,
        datasets=combine_images(inputs, {name: found["pictures"] for name, found in restored.items()}),
        settings=settings_of(options, entries, trained),
    )


def _with_flops(training: Training | None, flops: float | None) -> Training | None:
    return training and training.model_copy(update={"flops": flops})


def combine_images(inputs: dict[str, list[Any]], restored: dict[str, dict[str, list[Any]]]) -> list[DataSet]:
    """Combine the images of all competitors, and compare each with the first one, photograph by photograph.

    Args:
        inputs: dataset -> name, values and paths of each image.
        restored: competitor -> the same for its restored images.
    """
    first, *others = restored
    sets = []
    for where, rows in inputs.items():
        pictures = []
        for index, row in enumerate(rows):
            own = {name: found[where][index] for name, found in restored.items()}
            values = {m: {name: found["values"][m] for name, found in own.items()} for m in row["values"]}
            places = {name: found["restored"] for name, found in own.items()}
            paths = {"input": row["input"], "truth": row["truth"]}
            pictures.append(
                Picture(name=row["name"], **paths, restored=places, input_values=row["values"], values=values)
            )
        difference, names = {}, [picture.name for picture in pictures]
        for metric in rows[0]["values"]:
            values = np.array([[picture.values[metric][name] for picture in pictures] for name in restored])
            means = dict(zip(restored, mean_per_photograph(names, values).tolist(), strict=True))
            difference[metric] = {name: paired_difference(means[name], means[first]) for name in others}
        sets.append(DataSet(name=where, pictures=pictures, difference=difference))
    return sets


def restoring_device(options: dict[str, Any]) -> str:
    """Return the device for restoring images; costs are always measured on the CPU."""
    if options.get("device"):
        return options["device"]
    return "cuda" if torch.cuda.is_available() and usable_gpus(options["num_gpu"], None) else "cpu"


def format_budget(options: dict[str, Any]) -> str:
    """Return the budget of each training run as text; minutes are estimated from step times measured earlier."""
    budget = options["train"]["budget"]
    if budget.get("iterations"):
        return f"{budget['iterations']} iterations"
    return f"the iterations that fill {budget['minutes']:g} minutes, by step times measured before"


def _metric(section: dict[str, Any]) -> Metric:
    arguments = {key: value for key, value in section.items() if key not in ("type", "better")}
    return Metric(type=section["type"], arguments=arguments, better=better(section))
