"""RestorMixer's own plug-in: importing this module registers its network, model, loss and data set in BasicSR."""

from __future__ import annotations

import importlib

from restormixer_arch.basicsr_adapter import compat

# These carry BasicSR's decorators themselves. The network's module knows nothing of BasicSR.
REGISTERING_MODULES = (
    "restormixer_arch.models.losses",
    "restormixer_arch.models.metrics",
    "restormixer_arch.models.restormixer_model",
    "restormixer_arch.data.paired_dataset",
    "restormixer_arch.data.degraded_dataset",
)


def register() -> None:
    """Register everything once; further calls do nothing."""
    compat.apply()
    from basicsr.utils.registry import ARCH_REGISTRY

    from restormixer_arch.ablation import RestorMixerAblation
    from restormixer_arch.restormixer_arch import RestorMixer

    for network in (RestorMixer, RestorMixerAblation):
        if network.__name__ not in ARCH_REGISTRY:
            ARCH_REGISTRY.register(network)
    for module in REGISTERING_MODULES:
        importlib.import_module(module)


register()
