"""Find and read option files: plain YAML with the floats of YAML 1.2 and without duplicate keys.

BasicSR resolves every relative path of an option file against the working directory. The option files, the sample
data and the weights that ship with this project are installed inside the package, so ``options/x.yml``, ``data/y`` and
``restormixer_arch/weights/z`` are looked up there if the working directory has no such file.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any

import yaml

from restormixer_arch.errors import UserError, closest, did_you_mean, exception_text, similar_file
from restormixer_arch.output import user_path

# first folder of a relative path -> package as which it is installed
PACKAGED = {
    "options": "restormixer_arch.options",
    "data": "restormixer_arch.data",
    "restormixer_arch": "restormixer_arch",
}


def package_folders(top: str) -> list[Path]:
    """Return the installed folders of a key of :data:`PACKAGED` without importing the package."""
    spec = find_spec(PACKAGED[top])
    return [Path(folder) for folder in spec.submodule_search_locations] if spec else []


def find_in_package(path: str | Path) -> Path | None:
    """Return the installed file for a relative path such as ``data/samples/x.lmdb``, or None if it is missing."""
    parts = PurePath(path).parts
    if not parts or parts[0] not in PACKAGED or ".." in parts:
        return None
    candidates = (folder.joinpath(*parts[1:]) for folder in package_folders(parts[0]))
    return next((candidate for candidate in candidates if os.path.exists(candidate)), None)


def locate_option_file(path: str | Path) -> Path:
    """Return the path of an option file in the working directory or else in the package.

    Raises:
        UserError: if no such file exists; the message suggests neighboring or shipped files with a similar name.
    """
    given = user_path(path)
    found = given if given.exists() else find_in_package(path)
    if found is None:
        raise UserError(f"{path}: no such option file.{_suggest(given)}")
    if found.is_dir():
        files = sorted(file.name for file in found.glob("*.yml"))
        raise UserError(f"{path}: is a folder, an option file was expected ({', '.join(files) or 'no *.yml in it'})")
    return found


MAX_BYTES = 1_000_000  # maximum size of an option file in bytes
MAX_VALUES = 100_000


class OptionLoader(yaml.SafeLoader):
    """PyYAML's safe loader (YAML 1.1), which also rejects duplicate keys and reads ``1e-3`` as a number (YAML 1.2)."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            # '<<' is not a key and may be repeated; keys that are not scalars are rejected during construction.
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in lines:
                problem = f"key {key.value!r} is given twice, first in line {lines[key.value]}"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return node


OptionLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+\Z"), list("-+.0123456789")
)


def load_yaml(text: str) -> Any:
    """Parse a YAML text.

    Raises:
        yaml.YAMLError: if it is not YAML, or its aliases expand to more than 100,000 values or contain themselves.
    """
    loader = OptionLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count_values(node, {})
        return _expand_aliases(loader.construct_document(node))
    finally:
        loader.dispose()


def _count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """Return the number of values of a node after its aliases are expanded."""
    if id(node) in counts:
        if counts[id(node)] == 0:
            raise yaml.YAMLError("an alias stands for a value that it is part of")
        return counts[id(node)]
    counts[id(node)] = 0  # not yet known
    inner = node.value if isinstance(node, yaml.CollectionNode) else []
    values = (value for item in inner for value in (item if isinstance(item, tuple) else (item,)))
    counts[id(node)] = 1 + sum(_count_values(value, counts) for value in values)
    if counts[id(node)] > MAX_VALUES:
        raise yaml.YAMLError(f"its aliases stand for more than {MAX_VALUES} values")
    return counts[id(node)]


def _expand_aliases(value: Any) -> Any:
    """Return a copy in which aliases do not share objects, so changing one section does not change another."""
    if isinstance(value, dict):
        return {key: _expand_aliases(inner) for key, inner in value.items()}
    return [_expand_aliases(inner) for inner in value] if isinstance(value, list) else value


def read_options(path: Path, shown: str) -> dict[str, Any]:
    """Read an option file.

    Args:
        path: path of the file.
        shown: name of the file in messages, as the user wrote it.

    Raises:
        UserError: if the file is unreadable, too large, not YAML, not a mapping, or has a duplicate key; messages
            about its syntax contain the line and column.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)  # a device such as /dev/zero never ends
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{shown}: cannot be read ({error})") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{shown}: is larger than {MAX_BYTES // 1000} kB, too large for an option file")
    try:
        options = load_yaml(text)
    except RecursionError as error:
        raise UserError(f"{shown}: is nested too deeply for an option file") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{shown}:{mark.line + 1}:{mark.column + 1}: {_reason(error)}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid date or number
        raise UserError(f"{shown}: is not YAML ({exception_text(error, with_type=False)})") from error
    if not isinstance(options, dict):
        kind = "nothing" if options is None else type(options).__name__
        raise UserError(f"{shown}: lines of the form 'key: value' were expected at the top, got {kind}")
    return options


def apply_overrides(options: dict[str, Any], entries: Sequence[str]) -> None:
    """Set values from ``--force_yml``, each of the form ``section:key=value`` with the value in YAML.

    Raises:
        UserError: if '=' or the section is missing, or the value is not YAML.
    """
    for entry in entries:
        keys, equals, text = entry.partition("=")
        *sections, last = (key.strip() for key in keys.split(":"))
        if not equals or not last:
            raise UserError(f"--force_yml: 'section:key=value' was expected, got {entry!r}")
        if "." in keys and keys.partition(".")[0] in options:
            raise UserError(f"--force_yml: {entry!r}: ':' was expected between keys: {keys.replace('.', ':')}={text}")
        place = options
        for depth, section in enumerate(sections):
            inner = place.get(section)
            if isinstance(inner, list):
                given = ":".join(sections[: depth + 1])
                raise UserError(f"--force_yml: {entry!r}: {given!r} is a list; give all of it, as {given}=[...]")
            if not isinstance(inner, dict):
                name = ":".join(sections[: depth + 1])
                sections_here = [key for key, value in place.items() if isinstance(value, dict)]
                hint = did_you_mean(section, sections_here)
                raise UserError(f"--force_yml: {entry!r}: the option file has no section {name!r}.{hint}")
            place = inner
        try:
            place[last] = load_yaml(text)
        except RecursionError as error:
            raise UserError(f"--force_yml: {keys}: is nested too deeply for an option") from error
        except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid date or number
            marked = isinstance(error, yaml.MarkedYAMLError)
            reason = _reason(error) if marked else exception_text(error, with_type=False)
            raise UserError(f"--force_yml: {entry!r}: {reason}") from error


def copy_option_file(path: Path, overrides: Sequence[str], folder: Path) -> None:
    """Copy an option file into a folder, under a header with the time and the command.

    With overrides, the resulting options are written instead.

    Raises:
        OSError, UserError: if the file can no longer be read.
    """
    text = path.read_text(encoding="utf-8-sig")
    if overrides:
        options = read_options(path, str(path))
        apply_overrides(options, overrides)
        text = "# The option file with its --force_yml; its comments are left out.\n"
        text += yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
    command = " ".join(sys.argv).encode(errors="replace").decode()  # file names need not be UTF-8
    command = " ".join(command.split())  # a line break would end the comment
    head = f"# GENERATE TIME: {time.asctime()}\n# CMD:\n# {command}\n\n"
    (folder / path.name).write_text(head + text, encoding="utf-8")


def _suggest(path: Path) -> str:
    if beside := similar_file(path):
        return f" Did you mean '{beside}'?"
    shipped = sorted({file.name for folder in package_folders("options") for file in folder.glob("*.yml")})
    close = closest(path.name, shipped)
    return f" Did you mean 'options/{close}', which is installed?" if close else ""


def _reason(error: yaml.MarkedYAMLError) -> str:
    parts = [error.context, error.problem]
    return " ".join("; ".join(part for part in parts if part).split())
