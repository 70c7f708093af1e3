"""Generate the JSON Schema of option files, which editors use to complete and check keys.

It is generated from the same models that the commands use, so both agree on every single key. Rules beyond single
keys, such as the sum of a schedule's periods, are checked only by the commands.

``python -m restormixer_arch.config.json_schema > options/schema.json`` writes the published file.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from restormixer_arch.config import schema
from restormixer_arch.config.compare_schema import CompareFile, CompareTrain
from restormixer_arch.config.section import open_section
from restormixer_arch.config.train_schema import SCHEDULERS, TRAIN_SECTIONS


def json_schema() -> dict[str, Any]:
    """Return one schema for all files: those for comparison have ``competitors``, those for training ``train``."""
    result = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Option file of basicsr train, basicsr test and basicsr compare",
        "type": "object",
        "if": {"required": ["competitors"]},
        "then": _compare_file(),
        "else": {"if": {"required": ["train"]}, "then": _train_or_test_file(True), "else": _train_or_test_file(False)},
    }
    models = [CompareFile, CompareTrain, *SCHEDULERS.values(), *schema.DATASETS.values()]
    models += [
        *schema.TRAIN_DATASETS.values(),
        open_section(schema.TrainDataset),
        open_section(schema.Dataset),
    ]
    for model_type in (None, *TRAIN_SECTIONS):
        models += [*schema.sections(model_type, True).values(), *schema.sections(model_type, False).values()]
    inputs = [(model, "validation") for model in dict.fromkeys(models)]
    _, definitions = models_json_schema(inputs, ref_template="#/$defs/{model}")
    return {**result, "$defs": definitions["$defs"]}


def _train_or_test_file(is_train: bool) -> dict[str, Any]:
    known = {name: _model_file(name, is_train) for name in TRAIN_SECTIONS}
    datasets = _datasets("^train$", "^val") if is_train else _datasets(None, "^(val|test)")
    return {**_by("model_type", known, _model_file(None, is_train)), "properties": {"datasets": datasets}}


def _model_file(model_type: str | None, is_train: bool) -> dict[str, Any]:
    sections = schema.sections(model_type, is_train)
    properties = {key: _ref(section) for key, section in sections.items() if key}
    if is_train:
        properties["val"] = _or_null(sections["val"])
        if model_type is not None:
            schedulers = {name: _ref(section) for name, section in SCHEDULERS.items()}
            properties["train"]["properties"] = {"scheduler": _by("type", schedulers, False)}
    return {**_ref(sections[""]), "properties": properties}


def _compare_file() -> dict[str, Any]:
    datasets = _datasets("^train$", "^(val|test)")
    return {**_ref(CompareFile), "properties": {"train": _or_null(CompareTrain), "datasets": datasets}}


def _datasets(train: str | None, measured: str) -> dict[str, Any]:
    """Return the schema of ``datasets``; the patterns match the phases to train on and to validate or test on."""
    phases = {measured: _by("type", {name: _ref(s) for name, s in schema.DATASETS.items()}, _open(schema.Dataset))}
    if train:
        known = {name: _ref(section) for name, section in schema.TRAIN_DATASETS.items()}
        phases[train] = _by("type", known, _open(schema.TrainDataset))
    return {"type": "object", "patternProperties": phases, "additionalProperties": False}


def _by(key: str, cases: dict[str, dict[str, Any]], otherwise: dict[str, Any] | bool) -> dict[str, Any]:
    """Return a schema that depends on the value of ``key``."""
    result: Any = otherwise
    for value, case in reversed(cases.items()):
        result = {"if": {"properties": {key: {"const": value}}, "required": [key]}, "then": case, "else": result}
    return result


def _ref(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{model.__name__}"}


def _open(model: type[BaseModel]) -> dict[str, Any]:
    return _ref(open_section(model))


def _or_null(model: type[BaseModel]) -> dict[str, Any]:
    return {"anyOf": [_ref(model), {"type": "null"}]}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=1) + "\n")
