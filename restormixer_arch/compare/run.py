"""A whole comparison: train, restore, measure, and put the results together."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from scipy import stats
from tqdm import tqdm

from restormixer_arch.benchmark.measure import run_in_process
from restormixer_arch.benchmark.suite import machine
from restormixer_arch.compare import results
from restormixer_arch.compare.networks import Entry, build, entry_of_run
from restormixer_arch.compare.options import is_trained, testing_options
from restormixer_arch.compare.results import Comparison, Competitor, DataSet, Difference, Metric, Picture, Training
from restormixer_arch.compare.training import JOBS, train_all, weights_of
from restormixer_arch.config.rules import better
from restormixer_arch.errors import UserError
from restormixer_arch.output import note
from restormixer_arch.training.distributed import cores
from restormixer_arch.training.options import FolderLock

CONFIDENCE = 0.95  # of the interval of a difference


def compare(options: dict[str, Any], *, resume: bool, reuse: bool = False) -> tuple[Comparison, Path]:
    """Compare by a checked file; BasicSR and the plug-ins are imported.

    Args:
        options: as :func:`.options.read_compare_file` returns them.
        resume: in the folder of an earlier run, which is renamed otherwise.
        reuse: with ``resume``, take the results that are there already where all trainings were finished before.

    Returns:
        The results, and the folder that the pictures are in.

    Raises:
        UserError: weights, data or a training make a part of it impossible.
        Ended: a signal has ended a training.
    """
    folder = Path(options["path"]["results_root"] or "results").expanduser() / options["name"]
    threads = threads_of(options)
    earlier = [_find_entry(options, name) for name in options["competitors"]]
    for entry in filter(None, earlier):
        build(entry)  # weights that do not fit are reported before anything is trained
    with closing(FolderLock()) as lock:
        lock.take(folder)
        if folder.exists() and not resume:
            _put_aside(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock.take(folder)
        trained = train_all(options, folder, threads) if options.get("train") else {}
        names = options["competitors"]
        entries = [entry or _trained_entry(options, name, folder) for name, entry in zip(names, earlier, strict=True)]
        if resume and reuse and (found := _earlier_results(options, trained, folder)):
            return found, folder
        return measure(options, entries, trained, folder, threads), folder


def threads_of(options: dict[str, Any]) -> int:
    """The threads of each process of a comparison."""
    return options.get("num_threads") or int(os.environ.get("OMP_NUM_THREADS", cores()))


def _earlier_results(options: dict[str, Any], trained: dict[str, Training], folder: Path) -> Comparison | None:
    """Return what was measured in this folder before, if it is of the same competitors, data sets and metrics."""
    try:
        found = results.read(folder)
    except (OSError, ValueError):  # pydantic's error is a ValueError
        return None
    sets = [section["name"] for phase, section in options["datasets"].items() if phase != "train"]
    same = (
        [competitor.name for competitor in found.competitors] == list(options["competitors"])
        and [dataset.name for dataset in found.datasets] == sets
        and list(found.metrics) == list(options["val"]["metrics"])
        and {c.name: c.training for c in found.competitors if c.training} == trained
    )
    return found if same else None


def _find_entry(options: dict[str, Any], name: str) -> Entry | None:
    """Return a competitor whose weights are there already, else None."""
    if is_trained(options, name):
        return None
    given = options["competitors"][name]
    multiple = given.get("multiple_of")
    try:
        if given.get("run"):
            return entry_of_run(name, given["run"], given.get("checkpoint"), multiple)
    except UserError as error:
        raise UserError(f"competitors.{name}.run: {error}") from error
    weights = str(Path(given["weights"]).expanduser())
    return Entry(name, given.get("network_g"), weights, given.get("param_key"), multiple)


def _trained_entry(options: dict[str, Any], name: str, folder: Path) -> Entry:
    given = options["competitors"][name]
    return Entry(name, given["network_g"], str(weights_of(name, folder)), None, given.get("multiple_of"))


def _put_aside(folder: Path) -> None:
    """Rename the folder of an earlier run, as BasicSR does for its own."""
    aside = folder.with_name(f"{folder.name}_archived_{time.strftime('%Y%m%d_%H%M%S')}")
    folder.rename(aside)
    note(f"{folder} is there already and becomes {aside}; --auto_resume would resume it")


def measure(
    options: dict[str, Any], entries: list[Entry], trained: dict[str, Training], folder: Path, threads: int
) -> Comparison:
    """Restore all pictures by all competitors, and measure their costs, each job in a process of its own."""
    size, rounds = options["measure"]["size"], options["measure"]["rounds"]
    whole = {entry.name: entry.as_job() for entry in entries}
    pictures = {"options": testing_options(options), "folder": str(folder)}
    restoring = {"size": size, **pictures, "device": restoring_device(options)}
    jobs = [("inputs", "the inputs", pictures)]
    jobs += [("restored", name, {"entry": entry, **restoring}) for name, entry in whole.items()]
    jobs.append(("costs", "costs", {"entries": list(whole.values()), "size": size, "rounds": rounds}))
    inputs, *restored, costs = (
        run_in_process(JOBS, {"kind": kind, "threads": threads, "arguments": arguments}, f"compare: {label}")
        for kind, label, arguments in tqdm(jobs, desc="measuring", unit="job", disable=not sys.stderr.isatty())
    )
    restored = dict(zip(whole, restored, strict=True))
    competitors = [
        Competitor(
            name=entry.name,
            weights=entry.weights,
            training=trained.get(entry.name),
            **costs[entry.name],
            peak_bytes=restored[entry.name]["peak_bytes"],
        )
        for entry in entries
    ]
    return Comparison(
        name=options["name"],
        machine=machine(threads),
        size=size,
        budget=budget_in_words(options) if trained else None,
        metrics={name: _metric(section) for name, section in options["val"]["metrics"].items()},
        competitors=competitors,
        datasets=join_pictures(inputs, {name: found["pictures"] for name, found in restored.items()}),
    )


def paired_difference(values: Sequence[float], first: Sequence[float]) -> Difference:
    """Compare two competitors on the same pictures.

    The interval is Student's t for the mean of the differences. It takes the pictures for a random sample; several
    crops of one photograph are not independent, and make it too narrow. With one picture, and where a value is not
    finite, there is none.

    Args:
        values: of a competitor, picture by picture.
        first: of the first competitor, on the same pictures.

    Raises:
        ValueError: they are not as many, or none.
    """
    if len(values) != len(first) or not values:
        raise ValueError(f"as many values were expected, at least one, got {len(values)} and {len(first)}")
    differences = [a - b for a, b in zip(values, first, strict=True)]
    mean = fmean(differences)
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return Difference(mean=mean, low=None, high=None)
    error = float(stats.sem(differences))
    if error == 0:  # the same difference everywhere
        return Difference(mean=mean, low=mean, high=mean)
    low, high = stats.t.interval(CONFIDENCE, len(differences) - 1, loc=np.mean(differences), scale=error)
    return Difference(mean=mean, low=float(low), high=float(high))


def join_pictures(inputs: dict[str, list[Any]], restored: dict[str, dict[str, list[Any]]]) -> list[DataSet]:
    """Put the pictures of all competitors side by side, and compare them with the first one.

    Args:
        inputs: data set -> for each picture its name, values and paths.
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
        difference = {}
        for metric in rows[0]["values"]:
            columns = {name: [picture.values[metric][name] for picture in pictures] for name in restored}
            difference[metric] = {name: paired_difference(columns[name], columns[first]) for name in others}
        sets.append(DataSet(name=where, pictures=pictures, difference=difference))
    return sets


def restoring_device(options: dict[str, Any]) -> str:
    """The device that pictures are restored on; costs are always measured on the CPU."""
    if options.get("device"):
        return options["device"]
    return "cuda" if options["num_gpu"] and torch.cuda.is_available() else "cpu"


def budget_in_words(options: dict[str, Any]) -> str:
    budget = options["train"]["budget"]
    return f"{budget['iterations']} iterations" if "iterations" in budget else f"{budget['minutes']:g} minutes"


def _metric(section: dict[str, Any]) -> Metric:
    arguments = {key: value for key, value in section.items() if key not in ("type", "better")}
    return Metric(type=section["type"], arguments=arguments, better=better(section))
