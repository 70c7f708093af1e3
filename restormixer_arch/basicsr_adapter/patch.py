"""What a mend of BasicSR says about itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass


@dataclass(frozen=True)
class Patch:
    """One mend of BasicSR.

    Attributes:
        name: short, for the doctor's list.
        breaks: what goes wrong without it.
        versions: where it goes wrong.
        why: why the mend is right.
        needed: tells whether this installation has the fault.
        mend: mends it; before the import it returns a context in which the import runs.
    """

    name: str
    breaks: str
    versions: str
    why: str
    needed: Callable[[], bool]
    mend: Callable[[], AbstractContextManager[None] | None]
