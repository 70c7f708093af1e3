"""The ``degradations`` option: which labels, how often, how strong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from restormixer_arch.data.degradations.labels import CDD11, parse_label
from restormixer_arch.errors import UserError, did_you_mean

GROUPS = {"cdd11": CDD11}
KEYS = ("weight", "strength")


@dataclass(frozen=True)
class Ingredient:
    """A label, its weight among the others, and the range of its strength; None for each degradation's own draw."""

    label: str
    weight: float = 1.0
    strength: tuple[float, float] | None = None

    def draw_strength(self, rng: np.random.Generator) -> float | None:
        """Return one strength for all degradations of the label, or None; the generator is advanced alike."""
        part = float(rng.uniform())
        if self.strength is None:
            return None
        low, high = self.strength
        return low + (high - low) * part


def read_mixture(option: Any, scale: int = 1) -> tuple[Ingredient, ...]:
    """Return the ingredients of the ``degradations`` option.

    Args:
        option: ``cdd11`` for its eleven labels, a list of labels, or a table label -> {weight, strength} where strength
            is a number or a range [low, high] in [0, 1].
        scale: of the task; ``down`` belongs to every label if it is greater than 1, and to none otherwise.

    Raises:
        UserError: another value; the message names it.
    """
    if isinstance(option, str):
        if option not in GROUPS:
            hint = did_you_mean(option, GROUPS)
            raise UserError(f"degradations: {option!r} is no group, expected cdd11, a list or a table of labels.{hint}")
        option = GROUPS[option]
    if not isinstance(option, Sequence | Mapping) or not option:
        raise UserError(f"degradations: expected a list or a table of labels, got {option!r}")
    table = option if isinstance(option, Mapping) else dict.fromkeys(option)
    if len(table) != len(option):
        twice = next(label for label in option if list(option).count(label) > 1)
        raise UserError(f"degradations: {twice!r} is listed twice")
    ingredients = tuple(_ingredient(label, settings) for label, settings in table.items())
    for ingredient in ingredients:
        reduced = "down" in parse_label(ingredient.label)
        if reduced != (scale > 1):
            needed = "needs 'down' in every label" if scale > 1 else "allows no 'down'"
            raise UserError(f"degradations: scale {scale} {needed}, got {ingredient.label!r}")
    return ingredients


def _ingredient(label: Any, settings: Any) -> Ingredient:
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
    return Ingredient(label, float(weight), _range(label, settings.get("strength")))


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
