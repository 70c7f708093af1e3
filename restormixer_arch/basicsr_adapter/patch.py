"""What a mend of BasicSR says about itself, and what several of them use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any


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


def replace_everywhere(name: str, original: Callable[..., Any], replacement: Callable[..., Any]) -> None:
    """Replace a function in every module of BasicSR that imported it by name."""
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] == "basicsr" and getattr(module, name, None) is original:
            setattr(module, name, replacement)


def always() -> bool:
    return True
