"""Make every network of spandrel available in BasicSR's ARCH_REGISTRY, for example ``type: NAFNet_spandrel``.

The name is that of spandrel's class with the suffix ``_spandrel``. BasicSR itself distinguishes architectures of the
same name by a suffix (``SwinIR`` is BasicSR's, ``SwinIR_spandrel`` spandrel's), so no name conflicts with another
plug-in. The keys of the section are the arguments of the class and are compared with its signature, as for any network.

Importing spandrel takes a second, so :func:`provide` imports it only for names that are not registered yet.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache, wraps
from importlib.util import find_spec
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from restormixer_arch.errors import UserError, did_you_mean, exception_text
from restormixer_arch.layers import pad

SUFFIX = "spandrel"
ENDING = f"_{SUFFIX}"
INSTALL = "pip install spandrel spandrel-extra-arches"


def provide(name: Any) -> str | None:
    """Register the network if the name is one of spandrel's. Return an error message if the name is wrong, else None.

    A name that neither ends in the suffix nor is the name of a spandrel class is ignored.
    """
    if not isinstance(name, str) or name in ARCH_REGISTRY or f"{name}_basicsr" in ARCH_REGISTRY:
        return None
    asked = name.endswith(ENDING)
    if find_spec("spandrel") is None:
        return f"{name!r} needs the package spandrel: {INSTALL}" if asked else None
    known = networks()
    network = name.removesuffix(ENDING)
    if not asked:
        return f"{name!r} is not a known architecture. Did you mean '{name}{ENDING}'?" if name in known else None
    if network not in known:
        hint = did_you_mean(network, known).replace("'?", f"{ENDING}'?")
        missing = "" if find_spec("spandrel_extra_arches") else f"; more with {INSTALL}"
        return f"{name!r}: spandrel has no {network!r}.{hint} Known: {', '.join(sorted(known))}{missing}"
    ARCH_REGISTRY.register(adapt(network, *known[network]), suffix=SUFFIX)
    return None


def build(section: Mapping[str, Any], where: str) -> nn.Module:
    """Build the network of a section ``network_g``: BasicSR's, a plug-in's or spandrel's. The section is not modified.

    Args:
        section: type and arguments of the network.
        where: start of an error message.

    Raises:
        UserError: if no network has that type.
    """
    from basicsr.archs import build_network

    kind = section.get("type")
    problem = provide(kind)
    if problem or (kind not in ARCH_REGISTRY and f"{kind}_basicsr" not in ARCH_REGISTRY):
        raise UserError(f"{where}: {problem or f'{kind!r} is not a known architecture'}")
    return build_network(deepcopy(dict(section)))


@cache
def networks() -> dict[str, tuple[type[nn.Module], Any]]:
    """Return a mapping from the name of each network to (class, spandrel's description of the architecture)."""
    found = {}
    for support in supports():
        module = importlib.import_module(type(support.architecture).__module__)
        for name in getattr(module, "__all__", ()):
            kind = getattr(module, name)
            if isinstance(kind, type) and issubclass(kind, nn.Module):
                found[name] = (kind, support.architecture)
    return found


def supports() -> list[Any]:
    """Return the ``ArchSupport`` objects of spandrel and, if it is installed, of ``spandrel_extra_arches``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        registries = [importlib.import_module("spandrel").MAIN_REGISTRY]
        if find_spec("spandrel_extra_arches") is not None:
            registries.append(importlib.import_module("spandrel_extra_arches").EXTRA_REGISTRY)
    return list({support.architecture.id: support for registry in registries for support in registry}.values())


def model_loader() -> Any | None:
    """Return spandrel's loader, which recognizes networks by their weights, or None if spandrel is not installed."""
    if find_spec("spandrel") is None:
        return None
    from spandrel import ArchRegistry, ModelLoader

    registry = ArchRegistry()
    registry.add(*supports())
    return ModelLoader(registry=registry)


def adapt(name: str, kind: type[nn.Module], architecture: Any) -> type[nn.Module]:
    """Derive a class that accepts images of any size and returns one image, as BasicSR expects of a network.

    Its arguments, parameter names and checkpoints are those of ``kind``.

    Args:
        name: name of the new class.
        kind: network class of spandrel.
        architecture: spandrel's description of it, which includes the supported image sizes.
    """

    class Adapted(kind):
        """A network of spandrel that pads images of unsupported sizes by reflection and crops the result.

        If the network has several outputs, the first is returned: in spandrel's networks, the restored image.

        Shape:
            (B, C, H, W) -> (B, C, scale * H, scale * W)
        """

        pads_itself = True

        @wraps(kind.__init__)  # option files are compared with this signature
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.size_requirements = size_requirements(architecture, self.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            height, width = x.shape[-2:]
            right, down = self.size_requirements.get_padding(width, height)
            padded = pad(x, right, down)  # cloned below: some networks, such as RCAN, compute in place
            out = super().forward(padded.clone() if padded is x else padded)
            out = out[0] if isinstance(out, Sequence) else out
            scale = out.shape[-1] // (width + right)
            return out[..., : height * scale, : width * scale]

    Adapted.__name__ = Adapted.__qualname__ = name
    return Adapted


def size_requirements(architecture: Any, state: Mapping[str, Tensor]) -> Any:
    """Return spandrel's size requirements of a network with these weights; torch's random state does not change.

    Raises:
        UserError: if spandrel does not recognize the network because its arguments are unusual.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            return architecture.load(dict(state)).size_requirements
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = exception_text(error)
        raise UserError(f"{architecture.id}: spandrel does not know it with these arguments ({reason})") from error
