"""The schema of option files as JSON Schema, by which editors complete and check keys.

It is made of the same models as the check of the command line, so it says the same about every single key. What no
single key shows, such as the sum of a schedule's periods, only the command tells.

``python -m restormixer_arch.basicsr_adapter.option_json_schema > options/schema.json`` writes the published file.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from restormixer_arch.basicsr_adapter import option_datasets, option_schema, option_val
from restormixer_arch.compare.schema import CompareFile, CompareTrain


def json_schema() -> dict[str, Any]:
    """Return one schema for all files: comparing ones have ``competitors``, training ones a section ``train``."""
    schema = option_schema
    files = (schema.TrainFile, schema.OpenTrainFile, schema.TestFile, schema.OpenTestFile)
    sections = [schema.OpenTrain]
    sections += [option_val.section(name, use) for name in (None, *schema.TRAIN_SECTIONS) for use in (True, False)]
    data = [model for pair in option_datasets.DATASETS.values() for model in pair]
    data += [option_datasets.OpenTrainDataset, option_datasets.OpenDataset]
    models = [*files, *sections, *data, *schema.TRAIN_SECTIONS.values(), *schema.SCHEDULERS.values()]
    models += [schema.Paths, schema.OpenPaths, CompareFile, CompareTrain]
    _, definitions = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models)], ref_template="#/$defs/{model}"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Option file of basicsr train, basicsr test and basicsr compare",
        "type": "object",
        "if": {"required": ["competitors"]},
        "then": _comparing(),
        "else": {"if": {"required": ["train"]}, "then": _training(), "else": _testing()},
        "$defs": definitions["$defs"],
    }


def _training() -> dict[str, Any]:
    schema = option_schema
    known = {
        name: {
            **_ref(schema.TrainFile),
            "properties": {
                "train": {**_ref(section), "properties": {"scheduler": _by("type", _refs(schema.SCHEDULERS), False)}},
                "val": _or_null(option_val.section(name, True)),
                "path": _ref(schema.Paths),
            },
        }
        for name, section in schema.TRAIN_SECTIONS.items()
    }
    other = {
        **_ref(schema.OpenTrainFile),
        "properties": {
            "train": _ref(schema.OpenTrain),
            "val": _or_null(option_val.section(None, True)),
            "path": _ref(schema.OpenPaths),
        },
    }
    return {**_by("model_type", known, other), "properties": {"datasets": _datasets({"^train$": 0, "^val": 1})}}


def _testing() -> dict[str, Any]:
    schema = option_schema
    known = {
        name: {
            **_ref(schema.TestFile),
            "properties": {"val": _ref(option_val.section(name, False)), "path": _ref(schema.Paths)},
        }
        for name in schema.TRAIN_SECTIONS
    }
    other = {
        **_ref(schema.OpenTestFile),
        "properties": {"val": _ref(option_val.section(None, False)), "path": _ref(schema.OpenPaths)},
    }
    return {**_by("model_type", known, other), "properties": {"datasets": _datasets({"^(val|test)": 1})}}


def _comparing() -> dict[str, Any]:
    datasets = _datasets({"^train$": 0, "^(val|test)": 1})
    return {**_ref(CompareFile), "properties": {"train": _or_null(CompareTrain), "datasets": datasets}}


def _datasets(phases: dict[str, int]) -> dict[str, Any]:
    """Schemas of the phases, by pattern; 0 for sections to train on, 1 for those to validate or test on."""
    rest = (option_datasets.OpenTrainDataset, option_datasets.OpenDataset)
    sections = {
        pattern: _by("type", {k: _ref(pair[use]) for k, pair in option_datasets.DATASETS.items()}, _ref(rest[use]))
        for pattern, use in phases.items()
    }
    return {"type": "object", "patternProperties": sections, "additionalProperties": False}


def _by(key: str, cases: dict[str, dict[str, Any]], otherwise: dict[str, Any] | bool) -> dict[str, Any]:
    """A schema that depends on the value of ``key``."""
    result: Any = otherwise
    for value, case in reversed(cases.items()):
        result = {"if": {"properties": {key: {"const": value}}, "required": [key]}, "then": case, "else": result}
    return result


def _ref(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{model.__name__}"}


def _refs(models: dict[str, type[BaseModel]]) -> dict[str, dict[str, Any]]:
    return {name: _ref(model) for name, model in models.items()}


def _or_null(model: type[BaseModel]) -> dict[str, Any]:
    return {"anyOf": [_ref(model), {"type": "null"}]}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=1) + "\n")
