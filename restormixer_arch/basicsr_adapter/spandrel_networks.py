"""Every network of spandrel in BasicSR's ARCH_REGISTRY, by one adapter: ``type: NAFNet_spandrel``.

The name is that of spandrel's class with the suffix ``_spandrel``, as BasicSR itself keeps architectures of one name
apart (``SwinIR`` is BasicSR's, ``SwinIR_spandrel`` spandrel's), so that none is in the way of another plug-in. The keys
of the section are the arguments of the class, and are compared with its signature like those of any other network.

spandrel takes a second to import, and is asked only for names that end in the suffix.
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

from restormixer_arch.errors import UserError, did_you_mean
from restormixer_arch.layers import pad

SUFFIX = "spandrel"
ENDING = f"_{SUFFIX}"
INSTALL = "pip install spandrel spandrel-extra-arches"


def provide(name: Any) -> str | None:
    """Register the network if the name is one of spandrel's, and return what is wrong with the name, if anything.

    A name that neither ends in the suffix nor names a class of spandrel is left to others.
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
    """Build the network of a section ``network_g``, BasicSR's own, a plug-in's or spandrel's; the section is kept.

    Args:
        section: type and arguments.
        where: what a message begins with.

    Raises:
        UserError: there is no network of that type.
    """
    from basicsr.archs import build_network

    kind = section.get("type")
    problem = provide(kind)
    if problem or (kind not in ARCH_REGISTRY and f"{kind}_basicsr" not in ARCH_REGISTRY):
        raise UserError(f"{where}: {problem or f'{kind!r} is not a known architecture'}")
    return build_network(deepcopy(dict(section)))


@cache
def networks() -> dict[str, tuple[type[nn.Module], Any]]:
    """Return the name of each network -> (its class, spandrel's description of the architecture)."""
    found = {}
    for support in supports():
        module = importlib.import_module(type(support.architecture).__module__)
        for name in getattr(module, "__all__", ()):
            kind = getattr(module, name)
            if isinstance(kind, type) and issubclass(kind, nn.Module):
                found[name] = (kind, support.architecture)
    return found


def supports() -> list[Any]:
    """Return what spandrel and, where it is installed, ``spandrel_extra_arches`` know about their architectures."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        registries = [importlib.import_module("spandrel").MAIN_REGISTRY]
        if find_spec("spandrel_extra_arches") is not None:
            registries.append(importlib.import_module("spandrel_extra_arches").EXTRA_REGISTRY)
    return list({support.architecture.id: support for registry in registries for support in registry}.values())


def model_loader() -> Any | None:
    """Return spandrel's loader, which recognizes networks by their weights, or None where spandrel is not installed."""
    if find_spec("spandrel") is None:
        return None
    from spandrel import ArchRegistry, ModelLoader

    registry = ArchRegistry()
    registry.add(*supports())
    return ModelLoader(registry=registry)


def adapt(name: str, kind: type[nn.Module], architecture: Any) -> type[nn.Module]:
    """Derive a class that takes pictures of any size and returns one picture, as BasicSR expects of a network.

    Arguments, names of parameters and checkpoints are those of ``kind``.

    Args:
        name: of the class to make.
        kind: a network of spandrel.
        architecture: spandrel's description of it, which has the sizes that it takes.
    """

    class Adapted(kind):
        """A network of spandrel; smaller or odd pictures are padded, by mirroring, and the result is cut again.

        Of several outputs the first one is taken, which in spandrel's networks is the restored picture.

        Shape:
            (B, C, H, W) -> (B, C, scale * H, scale * W)
        """

        pads_itself = True

        @wraps(kind.__init__)  # whose signature is compared with an option file
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.size_requirements = size_requirements(architecture, self.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            height, width = x.shape[-2:]
            right, down = self.size_requirements.get_padding(width, height)
            padded = pad(x, right, down)  # some networks, such as RCAN, compute in place
            out = super().forward(padded.clone() if padded is x else padded)
            out = out[0] if isinstance(out, Sequence) else out
            scale = out.shape[-1] // (width + right)
            return out[..., : height * scale, : width * scale]

    Adapted.__name__ = Adapted.__qualname__ = name
    return Adapted


def size_requirements(architecture: Any, state: Mapping[str, Tensor]) -> Any:
    """Ask spandrel which sizes a network with these weights takes; torch's random numbers are left as they are.

    Raises:
        UserError: spandrel does not know such a network, because of arguments that nobody uses.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            return architecture.load(dict(state)).size_requirements
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{architecture.id}: spandrel does not know it with these arguments ({reason})") from error
