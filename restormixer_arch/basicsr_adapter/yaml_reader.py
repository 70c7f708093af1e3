"""Read option files: plain YAML with the floats of YAML 1.2, and no key twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from restormixer_arch.errors import UserError, did_you_mean


class OptionLoader(yaml.SafeLoader):
    """PyYAML's safe loader (YAML 1.1) that also takes ``1e-3`` and ``2E5`` for numbers, as YAML 1.2 does."""


OptionLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+\Z"), list("-+.0123456789")
)


def read_options(path: Path, shown: str) -> dict[str, Any]:
    """Read an option file.

    Args:
        path: the file.
        shown: its name in messages, as the user wrote it.

    Raises:
        UserError: unreadable, not YAML, a key given twice, or not a mapping; the message has line and column.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{shown}: cannot be read ({error})") from error
    try:
        options = _load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{shown}:{mark.line + 1}:{mark.column + 1}: {_reason(error)}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that only looks like one
        raise UserError(f"{shown}: is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(options, dict):
        kind = "nothing" if options is None else type(options).__name__
        raise UserError(f"{shown}: lines of the form 'key: value' were expected at the top, got {kind}")
    return options


def apply_overrides(options: dict[str, Any], entries: list[str]) -> None:
    """Set values from ``--force_yml``, each ``section:key=value`` with the value written as in YAML.

    Raises:
        UserError: no '=', a section that is not there, or a value that is not YAML.
    """
    for entry in entries:
        keys, equals, text = entry.partition("=")
        *sections, last = (key.strip() for key in keys.split(":"))
        if not equals or not last:
            raise UserError(f"--force_yml: 'section:key=value' was expected, got {entry!r}")
        place = options
        for depth, section in enumerate(sections):
            inner = place.get(section)
            if not isinstance(inner, dict):
                name = ":".join(sections[: depth + 1])
                sections_here = [key for key, value in place.items() if isinstance(value, dict)]
                hint = did_you_mean(section, sections_here)
                raise UserError(f"--force_yml: {entry!r}: the option file has no section {name!r}.{hint}")
            place = inner
        try:
            place[last] = _load(text)
        except yaml.YAMLError as error:
            reason = _reason(error) if isinstance(error, yaml.MarkedYAMLError) else str(error)
            raise UserError(f"--force_yml: {entry!r}: {reason}") from error


def _load(text: str) -> Any:
    loader = OptionLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_duplicates(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _refuse_duplicates(root: yaml.Node) -> None:
    for mapping in _mappings(root, set()):
        lines: dict[str, int] = {}
        for key, _ in mapping.value:
            # '<<' may come twice and is not a key; keys that are not scalars are refused while constructing.
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in lines:
                problem = f"key {key.value!r} is given twice, first in line {lines[key.value]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1


def _mappings(node: yaml.Node, seen: set[int]) -> Iterator[yaml.MappingNode]:
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))  # an alias leads to the same node again, perhaps in a circle
    children = node.value
    if isinstance(node, yaml.MappingNode):
        yield node
        children = [part for pair in node.value for part in pair]
    for child in children:
        yield from _mappings(child, seen)


def _reason(error: yaml.MarkedYAMLError) -> str:
    parts = [error.context, error.problem]
    return " ".join("; ".join(part for part in parts if part).split())
