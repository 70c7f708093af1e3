"""Option files with one value changed."""

from __future__ import annotations

from typing import Any

MISSING = object()


def put(options: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path, or remove it if it is MISSING."""
    *sections, last = path.split(".")
    for section in sections:
        options = options[section]
    if value is MISSING:
        del options[last]
    else:
        options[last] = value
