"""The second look at an option file, once BasicSR and the plug-ins are imported and before data or model are built.

Every ``type`` is looked up in its registry, and the arguments of networks, losses, metrics and optimizers are
compared with the signature of the class or function that will receive them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from restormixer_arch.basicsr_adapter import spandrel_networks
from restormixer_arch.basicsr_adapter.locations import closest
from restormixer_arch.basicsr_adapter.option_faults import Fault, OptionErrors, unknown_name

# What BasicSR passes to a metric besides the keys of its section; 'better' is read by the model.
METRIC_DATA = ("img", "img2")
METRIC_KEYS = {"better"}


def check_names(options: dict[str, Any], shown: str, is_train: bool) -> None:
    """Check type names and arguments.

    Raises:
        OptionErrors: with every fault found.
    """
    faults = name_faults(options, is_train)
    if faults:
        raise OptionErrors(shown, faults)


def name_faults(options: dict[str, Any], is_train: bool) -> list[Fault]:
    """Return what :func:`check_names` raises."""
    faults = [*_registered(options["model_type"], "model", MODEL_REGISTRY, ("model_type",))]
    for phase, dataset in options["datasets"].items():
        faults += _registered(dataset["type"], "data set", DATASET_REGISTRY, ("datasets", phase, "type"))
    for key, section in options.items():
        if key.startswith("network_") and isinstance(section, dict):
            faults += network_faults(section, (key,))
    if is_train:
        for key, section in options["train"].items():
            if key.endswith("_opt") and isinstance(section, dict):
                faults += _built(section, "loss", LOSS_REGISTRY, ("train", key))
        faults += _optimizer(options)
    for name, section in ((options.get("val") or {}).get("metrics") or {}).items():
        at = ("val", "metrics", name)
        faults += _built(section, "metric", METRIC_REGISTRY, at, given=METRIC_DATA, other=METRIC_KEYS)
    return faults


def network_faults(section: dict[str, Any], at: tuple[str, ...]) -> list[Fault]:
    """Check a section that builds a network; one of spandrel's is registered if it is asked for."""
    fault = spandrel_networks.provide(section.get("type"))
    return [Fault((*at, "type"), fault)] if fault else list(_built(section, "architecture", ARCH_REGISTRY, at))


def argument_faults(
    target: Callable[..., Any],
    keys: Iterable[str],
    at: tuple[str, ...],
    *,
    given: Iterable[str] = (),
    other: Iterable[str] = (),
) -> Iterator[Fault]:
    """Compare the keys of a section with the parameters of what is called with them.

    Where the target takes ``**kwargs`` an unknown key may be meant, so only a near miss of a parameter is a fault.

    Args:
        target: class or function.
        keys: keys of the section, without ``type``.
        at: path of the section.
        given: parameters that the caller fills in.
        other: keys that are read by somebody else.
    """
    parameters = inspect.signature(target).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    swallows = any(p.kind is p.VAR_KEYWORD for p in parameters)
    free = {p.name for p in named} - set(given)
    keys = set(keys) - set(other)
    required = {p.name for p in named if p.default is p.empty} & free
    corrected = set()
    for key in sorted(keys - free):
        close = closest(key, free - keys) or closest(key, free)
        if close or not swallows:
            corrected.add(close)
            hint = f" Did you mean '{close}'?" if close else f" Known: {', '.join(sorted(free)) or 'none'}"
            yield Fault((*at, key), f"{target.__name__} has no such argument.{hint}")
    for key in sorted(required - keys - corrected):
        yield Fault((*at, key), f"required argument of {target.__name__} is missing")


def _registered(name: Any, kind: str, registry: Any, at: tuple[str, ...]) -> Iterator[Fault]:
    if name not in registry and f"{name}_basicsr" not in registry:  # BasicSR tries the suffix, too
        yield Fault(at, unknown_name(name, kind, registry.keys()))


def _built(
    section: dict[str, Any],
    kind: str,
    registry: Any,
    at: tuple[str, ...],
    given: Iterable[str] = (),
    other: Iterable[str] = (),
) -> Iterator[Fault]:
    name = section.get("type")
    unknown = list(_registered(name, kind, registry, (*at, "type")))
    yield from unknown
    if not unknown:
        known = dict(iter(registry))
        target = known[name] if name in known else known[f"{name}_basicsr"]
        yield from argument_faults(target, section.keys() - {"type"}, at, given=given, other=other)


def _optimizer(options: dict[str, Any]) -> Iterator[Fault]:
    section, at = options["train"].get("optim_g"), ("train", "optim_g")
    if not isinstance(section, dict) or not isinstance(section.get("type"), str):
        return
    name, model = section["type"], dict(iter(MODEL_REGISTRY)).get(options["model_type"])
    # A plug-in's model may bring optimizers of its own; what BasicSR's models can build depends on its version.
    if getattr(model, "get_optimizer", None) is BaseModel.get_optimizer and name not in _buildable(model):
        yield Fault((*at, "type"), unknown_name(name, f"optimizer of {model.__name__}", _buildable(model)))
        return
    target = getattr(torch.optim, name, None)
    if isinstance(target, type) and issubclass(target, torch.optim.Optimizer):
        yield from argument_faults(target, section.keys() - {"type"}, at, given=["params"])


def _buildable(model: type[BaseModel]) -> list[str]:
    """The optimizers that BasicSR's own get_optimizer builds: Adam alone in 1.4.2, more in later versions."""
    names = []
    for name in ("Adam", "AdamW", "Adamax", "SGD", "ASGD", "RMSprop", "Rprop"):
        try:
            model.get_optimizer(None, name, [torch.nn.Parameter(torch.zeros(1))], 0.1)
        except NotImplementedError:
            continue
        names.append(name)
    return names
