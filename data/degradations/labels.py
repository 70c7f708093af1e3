"""Labels of degradations: names joined by ``_``, such as ``low_haze_rain``, as CDD-11 names its folders."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import PurePosixPath

from restormixer_arch.errors import UserError, did_you_mean

# In the order in which they stand in a label.
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
}
CDD11 = (
    *("low", "haze", "rain", "snow"),
    *("low_haze", "low_rain", "low_snow", "haze_rain", "haze_snow"),
    *("low_haze_rain", "low_haze_snow"),
)
CLEAN = "clean"  # of an image without any degradation


def parse_label(label: str) -> tuple[str, ...]:
    """Return the names in a label; none for ``clean``.

    Raises:
        UserError: it is no label: a name is unknown or there twice, or they stand in another order.
    """
    if label == CLEAN:
        return ()
    parts = tuple(label.split("_"))
    unknown = [part for part in parts if part not in NAMES]
    if unknown:
        raise UserError(
            f"{label!r} is no label of degradations: {unknown[0]!r} is none of {', '.join(NAMES)}."
            f"{did_you_mean(unknown[0], list(NAMES))}"
        )
    ordered = tuple(name for name in NAMES if name in parts)
    if parts != ordered:
        raise UserError(f"{label!r} is no label of degradations. Did you mean '{'_'.join(ordered)}'?")
    return parts


def is_label(text: str) -> bool:
    """Return whether :func:`parse_label` takes the text."""
    try:
        parse_label(text)
    except UserError:
        return False
    return True


def all_labels(names: Sequence[str], largest: int) -> list[str]:
    """Return every label of up to ``largest`` of the names, single ones first."""
    ordered = [name for name in NAMES if name in names]
    return ["_".join(some) for size in range(1, largest + 1) for some in combinations(ordered, size)]


def label_of(name: str) -> str | None:
    """Return the label in an image's name: that of the innermost folder that is one, else one at the stem's end or
    beginning (``0001_low_haze``, ``haze-0001``); None if there is none.

    Args:
        name: a key, or a path relative to the data set's folder, with or without an extension.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    for folder in reversed(path.parent.parts):
        if is_label(folder):
            return folder
    parts = path.name.partition(".")[0].replace("-", "_").split("_")
    for size in range(len(parts) - 1, 0, -1):  # the longest first
        for some in (parts[-size:], parts[:size]):
            if is_label("_".join(some)):
                return "_".join(some)
    return None
