"""Read and check an option file before slow imports; this module imports neither torch, basicsr nor OpenCV."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from restormixer_arch.config import rules, schema
from restormixer_arch.config.section import OpenSection, Section
from restormixer_arch.config.train_schema import SCHEDULERS, TRAIN_SECTIONS
from restormixer_arch.config.yaml_file import apply_overrides, find_in_package, locate_option_file, read_options
from restormixer_arch.errors import OptionErrors, Problem, UserError, closest, did_you_mean
from restormixer_arch.output import note, user_path, warn

# pydantic's error type -> the expected value for messages, formatted with the context of pydantic's error
EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a section of 'key: value' lines",
    "model_type": "a section of 'key: value' lines",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "{min_length} or more values",
    "too_long": "no more than {max_length} values",
}

IN_QUOTES = "; put a number, date, null, on, off, yes or no in quotes to use it as text"


class NoDatasetFound(UserError):
    """All datasets of an option file are missing."""


@dataclass(frozen=True)
class Request:
    """A checked option file and the switches of the command line.

    Attributes:
        shown: option file as the user named it, for messages.
        path: path of the option file.
        options: content of the file, with ``--force_yml`` applied and the paths of packaged files filled in.
        is_train: True for training, False for testing.
        overrides: entries of ``--force_yml``.
        launcher: ``none``, ``pytorch`` or ``slurm``.
        auto_resume, debug: command-line switches of the same names.
    """

    shown: str
    path: Path
    options: dict[str, Any]
    is_train: bool
    overrides: tuple[str, ...] = ()
    launcher: str = "none"
    auto_resume: bool = False
    debug: bool = False


def read_request(
    option_file: str,
    *,
    is_train: bool,
    force_yml: list[str] | None = None,
    launcher: str = "none",
    auto_resume: bool = False,
    debug: bool = False,
    skip_missing: bool = False,
) -> Request:
    """Find, read and check an option file.

    Args:
        option_file: option file as the user named it.
        is_train: True for training, False for testing.
        force_yml: overrides of the form ``key:key=value``.
        launcher, auto_resume, debug: see :class:`Request`.
        skip_missing: leave out datasets whose folder or LMDB is missing, with a note.

    Raises:
        UserError: if the file cannot be found or read.
        NoDatasetFound: if all of its datasets are missing and ``skip_missing`` is True.
        OptionErrors: if the file has problems; the error lists all of them.
    """
    path, options = read_option_file(option_file, force_yml)
    if skip_missing:
        _leave_out_missing(options, option_file)
    check_options(options, option_file, is_train)
    advice = rules.window_advice(options) if is_train else None
    if advice:
        warn(f"{option_file}: {advice}")
    return Request(option_file, path, options, is_train, tuple(force_yml or ()), launcher, auto_resume, debug)


def _leave_out_missing(options: dict[str, Any], shown: str) -> None:
    """Remove the datasets with a missing folder or LMDB."""
    datasets = options.get("datasets")
    if not isinstance(datasets, dict):
        return  # reported by the check
    missing = {}
    for phase, dataset in datasets.items():
        roots = [dataset.get(key) for key in ("dataroot_gt", "dataroot_lq")] if isinstance(dataset, dict) else []
        absent = [root for root in roots if isinstance(root, str) and not os.path.exists(user_path(root))]
        if absent:
            missing[phase] = f"{dataset.get('name', phase)} ({absent[0]})"
    if missing and len(missing) == len(datasets):
        raise NoDatasetFound(f"{shown}: datasets: none was found: {', '.join(missing.values())}; see data/DATASETS.md")
    for phase in missing:
        del datasets[phase]
    if missing:
        note(f"{shown}: left out, not found: {', '.join(missing.values())}")


def read_option_file(option_file: str, force_yml: list[str] | None = None) -> tuple[Path, dict[str, Any]]:
    """Find and read an option file, apply overrides, and redirect paths that exist only in the installed package.

    Returns:
        The path of the file and its unchecked content.

    Raises:
        UserError: if the file cannot be found or read, or an override is invalid.
    """
    path = locate_option_file(option_file)
    options = read_options(path, option_file)
    apply_overrides(options, force_yml or [])
    _convert_integral_floats(options)
    taken = [] if user_path(option_file).exists() else [option_file]
    for section, key_path in list(rules.path_keys(options)):
        value = section[key_path[-1]]
        packaged = None if os.path.exists(user_path(value)) else find_in_package(value)
        if packaged is not None:
            section[key_path[-1]] = str(packaged)
            taken.append(value)
    if taken:
        note(f"taken from the installed package {Path(__file__).parents[1]}: {', '.join(dict.fromkeys(taken))}")
    return path, options


def _convert_integral_floats(node: Any) -> None:
    """Convert ``5e3`` or ``5000.0`` to an integer in place, under every key that accepts only integers."""
    if isinstance(node, list):
        for value in node:
            _convert_integral_floats(value)
    for key, value in node.items() if isinstance(node, dict) else ():
        if key in _whole_number_keys():
            whole = [_whole(one) for one in value] if isinstance(value, list) else _whole(value)
            node[key] = whole
        else:
            _convert_integral_floats(value)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


@cache
def _whole_number_keys() -> frozenset[str]:
    """Return the keys that accept integers or lists of integers in some section, and floats in none."""
    from restormixer_arch.config import compare_schema  # noqa: F401, whose sections are subclasses too

    models, keys, others = [Section, OpenSection], set(), set()
    while models:
        model = models.pop()
        models += model.__subclasses__()
        for key, field in model.model_fields.items():
            kinds = set(_plain_types(field.annotation))
            if int in kinds and not kinds & {float, str}:
                keys.add(key)
            elif float in kinds:
                others.add(key)
    return frozenset(keys - others)


def _plain_types(annotation: Any) -> list[Any]:
    arguments = [argument for argument in get_args(annotation) if not isinstance(argument, FieldInfo)]
    return [kind for argument in arguments for kind in _plain_types(argument)] if arguments else [annotation]


def check_options(options: dict[str, Any], shown: str, is_train: bool, *, paths: bool = True) -> None:
    """Check the options against the schema and against each other.

    Args:
        options: content of the file.
        shown: name of the file in messages.
        is_train: True for ``basicsr train``, False for ``basicsr test``.
        paths: also check that the files and folders named in the options exist.

    Raises:
        UserError: if the file is for another command.
        OptionErrors: if the options have problems; the error lists all of them.
    """
    reject_other_command(options, shown, "train" if is_train else "test")
    raise_problems(option_problems(options, is_train, paths=paths), options, shown)


def reject_other_command(options: dict[str, Any], shown: str, command: str) -> None:
    """Raise UserError if an option file is clearly for a different command."""
    datasets = options.get("datasets")
    training = ["train" in options, isinstance(datasets, dict) and "train" in datasets]
    kind = None
    if "competitors" in options:
        kind = "compare"
    elif datasets and "network_g" in options:
        kind = "train" if all(training) else None if any(training) else "test"
    if kind not in (None, command):
        raise UserError(f"{shown}: is an option file for 'basicsr {kind}'")


def raise_problems(problems: list[Problem], options: dict[str, Any], shown: str) -> None:
    """Raise OptionErrors with the problems, if there are any, in the order of the file."""
    if problems:
        raise OptionErrors(shown, sorted(problems, key=lambda problem: _position(options, problem.path)))


def option_problems(options: dict[str, Any], is_train: bool, *, paths: bool = True) -> list[Problem]:
    """Return the problems that :func:`check_options` raises."""
    found = [*_schema_problems(options, is_train), *rules.file_problems(options, is_train, paths=paths)]
    problems = list(dict.fromkeys(found))  # 'train' is checked with the complete file and as a section
    reported = {problem.path for problem in problems}
    return problems + [problem for problem in rules.large_numbers(options) if problem.path not in reported]


def _schema_problems(options: dict[str, Any], is_train: bool) -> list[Problem]:
    model_type = options.get("model_type")
    problems = []
    for key, section in schema.sections(model_type, is_train).items():
        if not key:
            problems += section_problems(section, options)
        elif isinstance(options.get(key), dict):
            problems += section_problems(section, options[key], (key,))
    datasets = options.get("datasets")
    for phase, dataset in datasets.items() if isinstance(datasets, dict) else ():
        if isinstance(dataset, dict) and isinstance(phase, str):
            section = schema.dataset_section(dataset.get("type"), phase)
            problems += section_problems(section, dataset, ("datasets", phase))
    if is_train and isinstance(options.get("train"), dict) and model_type in list(TRAIN_SECTIONS):
        problems += _scheduler_problems(options["train"].get("scheduler"))
    return problems


def _scheduler_problems(scheduler: Any) -> list[Problem]:
    at = ("train", "scheduler")
    if not isinstance(scheduler, dict):
        return []  # already reported as missing or as not a section
    kind = scheduler.get("type")
    if kind is None:
        return [Problem((*at, "type"), "required key is missing (the kind of schedule)")]
    if kind not in list(SCHEDULERS):
        return [Problem((*at, "type"), unknown_name(kind, "scheduler", SCHEDULERS))]
    return section_problems(SCHEDULERS[kind], scheduler, at)


def _position(options: dict[str, Any], path: tuple[str, ...]) -> list[int]:
    """Return a sort key for the position of a key in the file; a missing key comes last in its section."""
    place, node = [], options
    for key in path:
        keys = [str(name) for name in node] if isinstance(node, dict) else []
        if key not in keys:
            return [*place, len(keys)]
        place.append(keys.index(key))
        node = list(node.values())[place[-1]]
    return place


def section_problems(section: type[BaseModel], options: Any, at: tuple[str, ...] = ()) -> list[Problem]:
    """Validate one section and return its problems, at most one per key.

    Args:
        section: pydantic model of the section.
        options: content of the section as read.
        at: path of the section in the file.
    """
    try:
        section.model_validate(options)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    else:
        return []
    expected: dict[tuple[str, ...], tuple[Any, list[str]]] = {}
    unknown: list[tuple[str, ...]] = []
    missing: list[tuple[str, ...]] = []
    problems, errors = _non_string_keys(errors, options, at)
    for item in errors:
        path = _key_path(item, options)
        if item["type"] == "extra_forbidden":
            unknown.append(path)
        elif item["type"] == "missing":
            missing.append(path)
        else:
            expected.setdefault(path, (item["input"], []))[1].append(expected_of(item))
    corrected = set()
    for path in unknown:
        keys = _model_at(section, path[:-1]).model_fields
        unused = [key for key in keys if (*path[:-1], key) in missing] or keys
        close = closest(path[-1], unused) or closest(path[-1], keys)
        corrected.add((*path[:-1], close))
        problems.append(Problem(at + path, "unknown key." + (f" Did you mean '{close}'?" if close else "")))
    for path, (value, texts) in expected.items():
        problems.append(Problem(at + path, f"got {value!r}, expected {', or '.join(dict.fromkeys(texts))}"))
    for path in missing:
        if path not in corrected:  # otherwise the misspelled key was already reported
            problems.append(Problem(at + path, _missing_key(_model_at(section, path[:-1]), path, options)))
    return problems


def _non_string_keys(errors: list[Any], options: Any, at: tuple[str, ...]) -> tuple[list[Problem], list[Any]]:
    """Return a problem for each key that is not text, such as ``on:``, and the errors of all other keys."""
    problems, wrong = [], []
    for item in errors:
        if item["type"] == "invalid_key" or (item["type"], item["loc"][-1]) == ("string_type", "[key]"):
            place = item["loc"][:-1] if item["loc"][-1] == "[key]" else item["loc"]
            path = *at, *_key_path({**item, "loc": place[:-1]}, options), str(item["input"])
            problems.append(Problem(path, f"got the key {item['input']}, expected text{IN_QUOTES}"))
            wrong.append(place)
    return problems, [item for item in errors if not any(item["loc"][: len(place)] == place for place in wrong)]


def expected_of(error: Mapping[str, Any]) -> str:
    """Return a description of the expected value for an error that pydantic lists."""
    text = EXPECTED.get(error["type"])
    return error["msg"] if text is None else text.format(**error.get("ctx", {}))


def _missing_key(model: type[BaseModel], path: tuple[str, ...], options: Any) -> str:
    """Return a message that a key is missing, and suggest a similar extra key of an open section."""
    for key in path[:-1]:
        options = options.get(key) if isinstance(options, dict) else None
    further = [str(key) for key in options if key not in model.model_fields] if isinstance(options, dict) else []
    hint, close = model.model_fields[path[-1]].description, closest(path[-1], further)
    text = "required key is missing" + (f" ({hint})" if hint else "")
    return text + (f". Did you write it as '{close}'?" if close else "")


def unknown_name(value: Any, kind: str, known: Iterable[str]) -> str:
    """Return a message that a name is unknown, with the closest match, if any, and all known names."""
    names = sorted(known)
    return f"{value!r} is not a known {kind}.{did_you_mean(str(value), names)} Known: {', '.join(names) or 'none'}"


def _key_path(item: dict[str, Any], options: Any) -> tuple[str, ...]:
    """Return the key path of a pydantic error, without the parts that pydantic adds for union members."""
    path, node = [], options
    for part in item["loc"]:
        if isinstance(node, dict) and part in node or isinstance(node, list) and isinstance(part, int):
            node = node[part]
            path.append(str(part))
        elif item["type"] == "missing" and part == item["loc"][-1]:
            path.append(str(part))
    return tuple(path)


def _model_at(section: type[BaseModel], path: tuple[str, ...]) -> type[BaseModel]:
    for key in path:
        annotation: Any = section.model_fields[key].annotation if key in section.model_fields else section
        while not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            # Optional[X] and X | None list X first, dict[str, X] lists it last
            arguments = [a for a in annotation.__args__ if a is not type(None)]
            annotation = arguments[-1]
        section = annotation
    return section
