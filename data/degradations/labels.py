"""Parse degradation labels and the ``degradations`` option, which sets their weights and strengths.

A label consists of names joined by ``_``, such as ``low_haze_rain``, as in the folder names of CDD-11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from restormixer_arch.errors import UserError, did_you_mean

# In the order of the names in a label.
NAMES = {
    "low": "low light with sensor noise",
    "haze": "haze",
    "rain": "rain streaks and veil",
    "snow": "snow",
    "blur": "motion blur",
    "defocus": "defocus blur",
    "down": "bicubic down-sampling",
    "noise": "Gaussian noise",
    "poisson": "Poisson noise",
    "camera": "camera noise, signal-dependent and correlated",
    "jpeg": "JPEG compression",
    "blind": "blur, resizing, noise and JPEG, twice",
}
CDD11 = (
    *("low", "haze", "rain", "snow"),
    *("low_haze", "low_rain", "low_snow", "haze_rain", "haze_snow"),
    *("low_haze_rain", "low_haze_snow"),
)
CLEAN = "clean"  # label of an image without any degradation
GROUPS = {"cdd11": CDD11}
KEYS = ("weight", "strength")


def parse_label(label: str) -> tuple[str, ...]:
    """Return the names in a label, an empty tuple for ``clean``.

    Raises:
        UserError: if a name is unknown or repeated, the names are in the wrong order, or ``down`` and ``blind`` are
            combined.
    """
    if label == CLEAN:
        return ()
    parts = tuple(label.split("_"))
    unknown = [part for part in parts if part not in NAMES]
    if unknown:
        raise UserError(
            f"{label!r} is not a degradation label: {unknown[0]!r} is not one of {', '.join(NAMES)}."
            f"{did_you_mean(unknown[0], list(NAMES))}"
        )
    if {"down", "blind"} <= set(parts):
        raise UserError(f"{label!r} is not a degradation label: 'blind' downsamples itself, without 'down'")
    ordered = tuple(name for name in NAMES if name in parts)
    if parts != ordered:
        raise UserError(f"{label!r} is not a degradation label. Did you mean '{'_'.join(ordered)}'?")
    return parts


def is_label(text: str) -> bool:
    """Return whether :func:`parse_label` accepts the text."""
    try:
        parse_label(text)
    except UserError:
        return False
    return True


def label_of(name: str) -> str | None:
    """Return the label in an image's name, or None if it has none.

    The innermost folder that is a label comes first, then the end or beginning of the stem (``0001_low_haze``,
    ``haze-0001``).

    Args:
        name: key, or path relative to the dataset's folder, with or without an extension.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    for folder in reversed(path.parent.parts):
        if is_label(folder):
            return folder
    return split_label(path.name.partition(".")[0])[1]


def split_label(stem: str) -> tuple[str, str | None]:
    """Return an image's stem without the label at its end or beginning, and that label (or None)."""
    parts = re.split("([-_])", stem)  # names and separators alternate
    for size in range(len(parts) - 2, 0, -2):  # the longest label first
        for label, rest in ((parts[-size:], parts[: -size - 1]), (parts[:size], parts[size + 1 :])):
            text = "".join(label).replace("-", "_")
            if is_label(text):
                return "".join(rest), text
    return stem, None


@dataclass(frozen=True)
class WeightedLabel:
    """A label, its relative weight and its range of strengths; None lets each degradation draw its own strength."""

    label: str
    weight: float = 1.0
    strength: tuple[float, float] | None = None

    def draw_strength(self, rng: np.random.Generator) -> float | None:
        """Draw one strength for all degradations of the label, or None. ``rng`` advances equally in both cases."""
        part = float(rng.uniform())
        if self.strength is None:
            return None
        low, high = self.strength
        return low + (high - low) * part


def parse_mixture(option: Any, scale: int = 1) -> tuple[WeightedLabel, ...]:
    """Return the ingredients of the ``degradations`` option.

    Args:
        option: ``cdd11`` for its eleven labels, a list of labels, or a table label -> {weight, strength} where strength
            is a number or a range [low, high] in [0, 1].
        scale: scale of the task. If it is greater than 1, every label must include ``down`` or ``blind``; otherwise no
            label may include ``down``.

    Raises:
        UserError: if the option has any other value, which the message names.
    """
    if isinstance(option, str):
        if option not in GROUPS:
            hint = did_you_mean(option, GROUPS)
            raise UserError(
                f"degradations: {option!r} is not a group, expected cdd11, a list or a table of labels.{hint}"
            )
        option = GROUPS[option]
    if not isinstance(option, Sequence | Mapping) or not option:
        raise UserError(f"degradations: expected a list or a table of labels, got {option!r}")
    table = option if isinstance(option, Mapping) else dict.fromkeys(option)
    if len(table) != len(option):
        twice = next(label for label in option if list(option).count(label) > 1)
        raise UserError(f"degradations: {twice!r} is listed twice")
    ingredients = tuple(_ingredient(label, settings) for label, settings in table.items())
    for ingredient in ingredients:
        names = parse_label(ingredient.label)
        if ("down" in names) > (scale > 1) or (scale > 1 and not {"down", "blind"} & set(names)):
            needed = "needs 'down' or 'blind' in every label" if scale > 1 else "does not allow 'down'; 2, 3 or 4 does"
            raise UserError(f"degradations: scale {scale} {needed}, got {ingredient.label!r}")
    return ingredients


def _ingredient(label: Any, settings: Any) -> WeightedLabel:
    if not isinstance(label, str):
        raise UserError(f"degradations: expected labels, got {label!r}")
    try:
        parse_label(label)
    except UserError as error:
        raise UserError(f"degradations: {error}") from error
    settings = {} if settings is None else settings
    if not isinstance(settings, Mapping):
        raise UserError(f"degradations.{label}: expected weight and strength, got {settings!r}")
    for key in settings:
        if key not in KEYS:
            raise UserError(
                f"degradations.{label}.{key}: unknown key, expected {' or '.join(KEYS)}.{did_you_mean(str(key), KEYS)}"
            )
    weight = settings.get("weight", 1.0)
    if not _is_number(weight) or not 0 < weight < np.inf:
        raise UserError(f"degradations.{label}.weight: expected a positive number, got {weight!r}")
    return WeightedLabel(label, float(weight), _range(label, settings.get("strength")))


def _range(label: str, strength: Any) -> tuple[float, float] | None:
    if strength is None:
        return None
    ends = [strength, strength] if _is_number(strength) else strength
    if isinstance(ends, Sequence) and len(ends) == 2 and all(_is_number(end) for end in ends):
        low, high = ends
        if 0 <= low <= high <= 1:
            return float(low), float(high)
    raise UserError(
        f"degradations.{label}.strength: expected a number or a range [low, high] in [0, 1], got {strength!r}"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
