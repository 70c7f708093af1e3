"""The values of competitors side by side, their paired differences, and how sure these are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

from restormixer_arch.compare.results import DataSet, Difference, Picture

LEVEL = 0.95


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
    low, high = stats.t.interval(LEVEL, len(differences) - 1, loc=np.mean(differences), scale=error)
    return Difference(mean=mean, low=float(low), high=float(high))


def joined(inputs: dict[str, list[Any]], restored: dict[str, dict[str, list[Any]]]) -> list[DataSet]:
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
