"""Check an option file again, after BasicSR and the plug-ins are imported and before datasets or model are built.

Every ``type`` is looked up in its registry, and the arguments of networks, losses, metrics and optimizers are
compared with the signature of the class or function that receives them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, get_origin, get_type_hints

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from pydantic import TypeAdapter, ValidationError

from restormixer_arch.config.check import expected_of, unknown_name
from restormixer_arch.config.train_schema import TORCH_OPTIMIZERS
from restormixer_arch.errors import OptionErrors, Problem, closest

TENSOR_METRICS = {"calculate_psnr_pt", "calculate_ssim_pt"}  # of BasicSR; no model passes tensors to metrics
# Arguments that BasicSR passes to a metric in addition to the keys of its section; 'better' is read by the model.
METRIC_DATA = ("img", "img2")
METRIC_KEYS = {"better"}


def check_names(options: dict[str, Any], shown: str, is_train: bool) -> None:
    """Check type names and arguments.

    Raises:
        OptionErrors: if there are problems; it contains all of them.
    """
    if problems := name_problems(options, is_train):
        raise OptionErrors(shown, problems)


def name_problems(options: dict[str, Any], is_train: bool) -> list[Problem]:
    """Return the problems that :func:`check_names` raises."""
    named = [(("model_type",), options["model_type"], "model", MODEL_REGISTRY)]
    for phase, dataset in options["datasets"].items():
        named.append((("datasets", phase, "type"), dataset["type"], "dataset", DATASET_REGISTRY))
    problems = [
        Problem(at, unknown_name(name, kind, registry.keys()))
        for at, name, kind, registry in named
        if _registered(name, registry) is None
    ]
    for key, section in options.items():
        if key.startswith("network_") and isinstance(section, dict):
            problems += network_problems(section, (key,))
    if is_train:
        for key, section in options["train"].items():
            if key.endswith("_opt") and isinstance(section, dict):
                problems += _class_problems(section, "loss", LOSS_REGISTRY, ("train", key))
        problems += _optimizer_problems(options)
    for name, section in ((options.get("val") or {}).get("metrics") or {}).items():
        at = ("val", "metrics", name)
        if section.get("type") in TENSOR_METRICS:
            known = set(METRIC_REGISTRY.keys()) - TENSOR_METRICS
            problems.append(Problem((*at, "type"), unknown_name(section["type"], "metric of images", known)))
            continue
        problems += _class_problems(section, "metric", METRIC_REGISTRY, at, given=METRIC_DATA, other=METRIC_KEYS)
    return problems


def network_problems(section: dict[str, Any], at: tuple[str, ...]) -> list[Problem]:
    """Return the problems of a section that builds a network, after registering it if it is one of spandrel's."""
    if _registered(section.get("type"), ARCH_REGISTRY) is None:
        from restormixer_arch.basicsr_adapter import spandrel_networks

        if text := spandrel_networks.provide(section.get("type")):
            return [Problem((*at, "type"), text)]
    return list(_class_problems(section, "architecture", ARCH_REGISTRY, at))


def argument_problems(
    target: Callable[..., Any],
    section: Mapping[str, Any],
    at: tuple[str, ...],
    *,
    given: Iterable[str] = (),
    other: Iterable[str] = (),
) -> Iterator[Problem]:
    """Compare the keys of a section and the types of its values with the parameters of the target.

    If the target accepts ``**kwargs``, an unknown key may be intended, so it is a problem only if it resembles the
    name of a parameter.

    Args:
        target: class or function that is called with the section.
        section: section of the option file; its ``type`` is ignored.
        at: path of the section in the option file.
        given: parameters that the caller supplies.
        other: keys that are read elsewhere.
    """
    parameters = inspect.signature(target).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    swallows = any(p.kind is p.VAR_KEYWORD for p in parameters)
    free = {p.name for p in named} - set(given)
    keys = set(section) - {"type"} - set(other)
    required = {p.name for p in named if p.default is p.empty} & free
    corrected = set()
    for key in sorted(keys - free):
        close = closest(key, free - keys) or closest(key, free)
        if close or not swallows:
            corrected.add(close)
            hint = f" Did you mean '{close}'?" if close else f" Known: {', '.join(sorted(free)) or 'none'}"
            yield Problem((*at, key), f"{target.__name__} has no such argument.{hint}")
    annotations = _annotations(target)
    for parameter in named:
        if parameter.name not in keys:
            continue
        annotation = annotations.get(parameter.name)
        if expected := _type_expected(annotation, parameter.default, section[parameter.name]):
            yield Problem((*at, parameter.name), f"got {section[parameter.name]!r}, expected {expected}")
    for key in sorted(required - keys - corrected):
        yield Problem((*at, key), f"required argument of {target.__name__} is missing")


def _annotations(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # noqa: BLE001 - an annotation of foreign code may be anything
        return dict.fromkeys(inspect.signature(target).parameters, Any)


def _type_expected(annotation: Any, default: Any, value: Any) -> str | None:
    """Return a description of the expected type if a value does not fit a parameter's annotation or default."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    try:
        if annotation is not None:
            value = tuple(value) if isinstance(value, list) and get_origin(annotation) is not list else value
            TypeAdapter(annotation, config={"strict": True, "arbitrary_types_allowed": True}).validate_python(value)
            return None
    except ValidationError as error:
        errors = error.errors(include_url=False)
        wrong = [item for item in errors if item["type"] != "missing"]  # if empty, a list is too short
        return " or ".join(dict.fromkeys(map(expected_of, wrong))) or f"{len(value) + len(errors)} values"
    except Exception:  # noqa: BLE001 - an annotation of foreign code may be anything
        return None
    if isinstance(default, bool):
        return "true or false" if isinstance(value, str | list | dict) else None
    refused = (str, dict) if isinstance(default, int) else (str, dict, list)  # a size may be a pair
    return "a number" if isinstance(default, int | float) and isinstance(value, refused) else None


def _registered(name: Any, registry: Any) -> Any | None:
    known = dict(iter(registry))
    return known.get(name, known.get(f"{name}_basicsr"))  # BasicSR also tries this suffix


def _class_problems(
    section: dict[str, Any],
    kind: str,
    registry: Any,
    at: tuple[str, ...],
    given: Iterable[str] = (),
    other: Iterable[str] = (),
) -> Iterator[Problem]:
    target = _registered(section.get("type"), registry)
    if target is None:
        yield Problem((*at, "type"), unknown_name(section.get("type"), kind, registry.keys()))
    else:
        yield from argument_problems(target, section, at, given=given, other=other)


def _optimizer_problems(options: dict[str, Any]) -> Iterator[Problem]:
    for key, section in options["train"].items():
        if str(key).startswith("optim_") and isinstance(section, dict) and isinstance(section.get("type"), str):
            yield from _optimizer_section_problems(options, section, ("train", key))


def _optimizer_section_problems(
    options: dict[str, Any], section: dict[str, Any], at: tuple[str, ...]
) -> Iterator[Problem]:
    name, model = section["type"], _registered(options["model_type"], MODEL_REGISTRY)
    # A plug-in's model may have its own optimizers; what BasicSR's models can build depends on BasicSR's version.
    if getattr(model, "get_optimizer", None) is BaseModel.get_optimizer:
        known = _buildable_optimizers(model)
        if name not in known:
            yield Problem((*at, "type"), unknown_name(name, f"optimizer of {model.__name__}", known))
            return
    if name in TORCH_OPTIMIZERS:  # other names, such as Muon, may be torch's or another package's
        yield from argument_problems(getattr(torch.optim, name), section, at, given=["params"])


def _buildable_optimizers(model: type[BaseModel]) -> list[str]:
    """Return the optimizers that BasicSR's own get_optimizer builds: only Adam in 1.4.2, more in later versions."""
    names = []
    for name in TORCH_OPTIMIZERS:
        try:
            model.get_optimizer(None, name, [torch.nn.Parameter(torch.zeros(1))], 0.1)
        except NotImplementedError:
            continue
        names.append(name)
    return names
