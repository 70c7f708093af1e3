"""A whole comparison: train, restore, measure, and put the results together."""

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
    """Compare by a checked file; BasicSR and the plug-ins are imported.

    Args:
        options: as :func:`.options.read_compare_file` returns them.
        resume: in the folder of an earlier run, which is renamed otherwise.
        reuse: with ``resume``, take existing results where all trainings were finished before.

    Returns:
        The results, and the folder that the pictures are in.

    Raises:
        UserError: weights, data or a training make a part of it impossible.
        ComparisonInterrupted: a signal has ended a training.
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
    """Keep other processes out of a folder, which is made; that of an earlier run is renamed unless it is resumed.

    Raises:
        UserError: another process is writing into it.
    """
    with closing(FolderLock()) as lock:
        lock.take(folder)
        if not resume and (aside := move_aside(str(folder))):
            note(f"{folder} already exists and was renamed to {shown_path(aside)}; use --auto_resume to resume it")
        folder.mkdir(parents=True, exist_ok=True)
        lock.take(folder)
        yield


def threads_of(options: dict[str, Any]) -> int:
    """The threads of each process of a comparison."""
    return options.get("num_threads") or omp_threads() or cores()


def _earlier_results(folder: Path, settings: dict[str, Any]) -> Comparison | None:
    """Return what was measured in this folder before, if it was measured with these settings."""
    try:
        found = results.read(folder)
    except UserError:
        return None
    return found if found.settings == settings else None


def settings_of(options: dict[str, Any], entries: list[Entry], trained: dict[str, Training]) -> dict[str, Any]:
    """What the values of a comparison follow from, as JSON holds it."""
    settings = {
        **{key: options.get(key) for key in ("scale", "val", "measure")},
        "datasets": {phase: section for phase, section in options["datasets"].items() if phase != "train"},
        "competitors": [entry.as_job() for entry in entries],
        "training": {name: training.model_dump() for name, training in trained.items()},
    }
    return json.loads(json.dumps(settings))


def _find_entry(options: dict[str, Any], name: str) -> Entry | None:
    """Return a competitor whose weights exist already, else None."""
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
    """Return a competitor that was trained in the comparison of a folder."""
    given = options["competitors"][name]
    return Entry(name, given["network_g"], str(weights_of(name, folder)), None, given.get("multiple_of"))


def measure(
    options: dict[str, Any], entries: list[Entry], trained: dict[str, Training], folder: Path, threads: int
) -> Comparison:
    """Restore all pictures by all competitors, and measure their costs, each job in a process of its own."""
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
        datasets=join_pictures(inputs, {name: found["pictures"] for name, found in restored.items()}),
        settings=settings_of(options, entries, trained),
    )


def _with_flops(training: Training | None, flops: float | None) -> Training | None:
    return training and training.model_copy(update={"flops": flops})


def join_pictures(inputs: dict[str, list[Any]], restored: dict[str, dict[str, list[Any]]]) -> list[DataSet]:
    """Put the pictures of all competitors side by side, and compare them with the first one, photograph by photograph.

    Args:
        inputs: dataset -> for each picture its name, values and paths.
        restored: competitor -> the same of what it has restored.
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
    """The device that pictures are restored on; costs are always measured on the CPU."""
    if options.get("device"):
        return options["device"]
    return "cuda" if torch.cuda.is_available() and usable_gpus(options["num_gpu"], None) else "cpu"


def format_budget(options: dict[str, Any]) -> str:
    """What each training was given. Minutes are an estimate, by steps measured before it or on another machine."""
    budget = options["train"]["budget"]
    if budget.get("iterations"):
        return f"{budget['iterations']} iterations"
    return f"the iterations of {budget['minutes']:g} minutes on an idle machine"


def _metric(section: dict[str, Any]) -> Metric:
    arguments = {key: value for key, value in section.items() if key not in ("type", "better")}
    return Metric(type=section["type"], arguments=arguments, better=better(section))
