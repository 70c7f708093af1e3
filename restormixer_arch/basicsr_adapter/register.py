"""Register RestorMixer's networks, models, losses, metrics and datasets in BasicSR when this module is imported.

:func:`load_plugins` also loads the plug-ins of other installed packages.

A package declares its plug-in in the entry-point group ``basicsr.plugins``::

    [project.entry-points."basicsr.plugins"]
    mine = "mypackage.register"          # a module, which is imported
    other = "mypackage.setup:register"   # or a function, which is called

Either form registers the package's classes in BasicSR's registries. RestorMixer itself is registered this way.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.errors import exception_text
from restormixer_arch.output import warn

# These modules register their classes with BasicSR's decorators. The network's module does not depend on BasicSR.
REGISTERING_MODULES = (
    "restormixer_arch.models.losses",
    "restormixer_arch.models.metrics",
    "restormixer_arch.models.restormixer_model",
    "restormixer_arch.data.paired_dataset",
    "restormixer_arch.data.degraded_dataset",
)

GROUP = "basicsr.plugins"


def register() -> None:
    """Register everything once; further calls do nothing."""
    compat.apply()
    from basicsr.utils.registry import ARCH_REGISTRY

    from restormixer_arch.ablation import RestorMixerAblation
    from restormixer_arch.basicsr_adapter.upscaled import Upscaled
    from restormixer_arch.restormixer_arch import RestorMixer

    for network in (RestorMixer, RestorMixerAblation, Upscaled):
        if network.__name__ not in ARCH_REGISTRY:
            ARCH_REGISTRY.register(network)
    for module in REGISTERING_MODULES:
        importlib.import_module(module)


@dataclass(frozen=True)
class Plugin:
    """A plug-in that was found: its name, entry-point target, package, and the error if it could not be loaded."""

    name: str
    target: str
    package: str
    error: str | None = None


_loaded: dict[tuple[str, str], Plugin] = {}


def load_plugins() -> list[Plugin]:
    """Import BasicSR and load every plug-in once. A plug-in that fails is skipped with a warning."""
    compat.apply()
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        key = (entry.name, entry.value)
        if key not in _loaded:  # an editable install may list an entry twice
            _loaded[key] = _load(entry)
            if _loaded[key].error:
                plugin = _loaded[key]
                warn(f"plug-in {plugin.name!r} of {plugin.package} was left out: {plugin.target}: {plugin.error}")
    return list(_loaded.values())


def _load(entry: EntryPoint) -> Plugin:
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"
    try:
        target = entry.load()
        if callable(target):
            target()
    except Exception as error:  # noqa: BLE001 - anything may go wrong in foreign code, and one must not stop all
        return Plugin(entry.name, entry.value, package, exception_text(error))
    return Plugin(entry.name, entry.value, package)


register()
