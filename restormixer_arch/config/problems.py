"""Turn what pydantic reports about a section into lines that name key, value and what was expected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from restormixer_arch.config.rules import NO_SLASH
from restormixer_arch.errors import Problem, closest, did_you_mean

# pydantic's error type -> what to say was expected, with pydantic's own context filled in
EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a section of 'key: value' lines",
    "model_type": "a section of 'key: value' lines",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "{min_length} or more values",
    "too_long": "no more than {max_length} values",
    "string_pattern_mismatch": NO_SLASH,  # the one pattern of the schema
}


def section_problems(section: type[BaseModel], options: Any, at: tuple[str, ...] = ()) -> list[Problem]:
    """Validate one section and return its problems, at most one per key.

    Args:
        section: the pydantic model.
        options: the section as read.
        at: the path of the section in the file.
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
    for item in errors:
        path = _key_path(item, options)
        if item["type"] == "extra_forbidden":
            unknown.append(path)
        elif item["type"] == "missing":
            missing.append(path)
        else:
            text = EXPECTED.get(item["type"], item["msg"]).format(**item.get("ctx", {}))
            expected.setdefault(path, (item["input"], []))[1].append(text)
    problems, corrected = [], set()
    for path in unknown:
        keys = _model_at(section, path[:-1]).model_fields
        unused = [key for key in keys if (*path[:-1], key) in missing] or keys
        close = closest(path[-1], unused) or closest(path[-1], keys)
        corrected.add((*path[:-1], close))
        problems.append(Problem(at + path, "unknown key." + (f" Did you mean '{close}'?" if close else "")))
    for path, (value, texts) in expected.items():
        problems.append(Problem(at + path, f"got {value!r}, expected {', or '.join(dict.fromkeys(texts))}"))
    for path in missing:
        if path not in corrected:  # else the misspelt key was reported already
            problems.append(Problem(at + path, _missing_key(_model_at(section, path[:-1]), path, options)))
    return problems


def _missing_key(model: type[BaseModel], path: tuple[str, ...], options: Any) -> str:
    """Say that a key is missing, and name the similar key of an open section that may be meant for it."""
    for key in path[:-1]:
        options = options.get(key) if isinstance(options, dict) else None
    further = [str(key) for key in options if key not in model.model_fields] if isinstance(options, dict) else []
    hint, close = model.model_fields[path[-1]].description, closest(path[-1], further)
    text = "required key is missing" + (f" ({hint})" if hint else "")
    return text + (f". Is '{close}' meant for it?" if close else "")


def unknown_name(value: Any, kind: str, known: Iterable[str]) -> str:
    """Say that a name is unknown: the close match if there is one, and the whole list."""
    names = sorted(known)
    return f"{value!r} is no known {kind}.{did_you_mean(str(value), names)} Known: {', '.join(names) or 'none'}"


def _key_path(item: dict[str, Any], options: Any) -> tuple[str, ...]:
    """Pydantic's location without the marks it adds for members of a union."""
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
