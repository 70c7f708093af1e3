"""Define the types of single values in the sections of :mod:`restormixer_arch.config.schema`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from restormixer_arch.config.rules import NAME_PATTERN, STORABLE, name_problem
from restormixer_arch.memory import parse_bytes


def _check_name(name: str) -> str:
    if name_problem(name):
        raise PydanticCustomError("name", STORABLE)
    return name


def _check_template(template: str) -> str:
    try:
        filled = template.format("x")
    except (ValueError, LookupError, AttributeError):
        filled = ""
    if "x" not in filled or filled == template:
        raise PydanticCustomError("template", "one '{}' for the stem of the ground truth's name, such as '{}_rain'")
    return template


def _check_levels(levels: list[float]) -> list[float]:
    if len(levels) not in (1, 3):
        raise PydanticCustomError("levels", "1 or 3 numbers, for gray or RGB")
    return levels


def _check_memory(text: str) -> str:
    try:
        parse_bytes(text)
    except ValueError as error:
        raise PydanticCustomError("memory", "an amount of memory such as 3G or 800M") from error
    return text


Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32 - 2**16)]  # each process adds its rank
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Workers = Annotated[int, Field(ge=0, le=256)]
Share = Annotated[float, Field(ge=0, le=1)]
Crop = Annotated[int, Field(ge=1, le=8192)]
FileName = Annotated[str, Field(json_schema_extra={"pattern": NAME_PATTERN}), AfterValidator(_check_name)]
Template = Annotated[str, AfterValidator(_check_template)]
Levels = Annotated[list[float], AfterValidator(_check_levels)]
Memory = Annotated[str, AfterValidator(_check_memory)]
