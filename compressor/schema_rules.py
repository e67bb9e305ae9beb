"""Rules between the fields of a model, as JSON Schema. A validator beside each says it in words.

A rule stands in `model_config["json_schema_extra"]`, and is part of the schema that pydantic makes.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
"""A JSON Schema."""


def rules(*each: Schema) -> Schema:
    """What goes into `json_schema_extra` of a model that every one of the rules holds for."""
    return {"allOf": list(each)}


def where(**fields: Schema) -> Schema:
    """These fields are written, and are as described."""
    return {"required": list(fields), "properties": dict(fields)}


def given(name: str) -> Schema:
    """The field is written, and is not null."""
    return where(**{name: {"not": {"type": "null"}}})


def some_of(*names: str) -> Schema:
    """At least one of the fields is given."""
    return {"anyOf": [given(name) for name in names]}


def one_of(*names: str) -> Schema:
    """Exactly one of the fields is given."""
    return {"oneOf": [given(name) for name in names]}


def when(condition: Schema, then: Schema) -> Schema:
    return {"if": condition, "then": then}
