"""Mends that must be in place while BasicSR is imported, and are gone afterwards."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from restormixer_arch.basicsr_adapter.patch import Patch

FUNCTIONAL_TENSOR = "torchvision.transforms.functional_tensor"
NDIMAGE_FILTERS = "scipy.ndimage.filters"


def basicsr_source_mentions(file: str, text: str) -> bool:
    """Tell whether a source file of the installed BasicSR has the text; read, not imported."""
    spec = find_spec("basicsr")
    for folder in spec.submodule_search_locations if spec else ():
        path = Path(folder, file)
        if path.is_file():
            return text in path.read_text(encoding="utf-8")
    return False


@contextmanager
def module_in_place(name: str, content: dict[str, object]) -> Iterator[None]:
    """Let ``import name`` find a module with this content, and put back what was there before."""
    stub = ModuleType(name)
    vars(stub).update(content)
    before = sys.modules.get(name)
    sys.modules[name] = stub
    try:
        yield
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before


def functional_tensor_missing() -> bool:
    return find_spec(FUNCTIONAL_TENSOR) is None and basicsr_source_mentions("data/degradations.py", FUNCTIONAL_TENSOR)


def functional_tensor() -> AbstractContextManager[None]:
    functional = importlib.import_module("torchvision.transforms.functional")
    return module_in_place(FUNCTIONAL_TENSOR, {"rgb_to_grayscale": functional.rgb_to_grayscale})


def scipy_filters_used() -> bool:
    return basicsr_source_mentions("metrics/niqe.py", f"from {NDIMAGE_FILTERS} import")


def scipy_filters() -> AbstractContextManager[None]:
    ndimage = importlib.import_module("scipy.ndimage")
    return module_in_place(NDIMAGE_FILTERS, {"convolve": ndimage.convolve})


def distutils_missing() -> bool:
    return find_spec("distutils") is None


@contextmanager
def distutils_of_setuptools() -> Iterator[None]:
    importlib.import_module("setuptools")  # puts its own copy of distutils in place as it is imported
    yield


PATCHES = (
    Patch(
        name="functional_tensor",
        breaks="import basicsr: No module named 'torchvision.transforms.functional_tensor'",
        versions="basicsr 1.4.2 beside torchvision 0.17 and later; mended in new-basicsr",
        why="rgb_to_grayscale, the one name BasicSR takes from it, is the same function in transforms.functional",
        needed=functional_tensor_missing,
        mend=functional_tensor,
    ),
    Patch(
        name="scipy_filters",
        breaks="import basicsr: scipy.ndimage.filters is deprecated, and gone in SciPy 2",
        versions="basicsr 1.4.2; mended in new-basicsr",
        why="convolve, the one name the NIQE metric takes from it, is the same function in scipy.ndimage",
        needed=scipy_filters_used,
        mend=scipy_filters,
    ),
    Patch(
        name="distutils",
        breaks="import basicsr: No module named 'distutils'",
        versions="Python 3.12 and later, started without setuptools' import hook",
        why="setuptools carries distutils on; importing it first makes the name available",
        needed=distutils_missing,
        mend=distutils_of_setuptools,
    ),
)
