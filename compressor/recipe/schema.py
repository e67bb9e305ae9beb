"""JSON Schemas (draft 7) by which an editor completes and checks recipes and the files of groups.

Rules between fields are checked by planning alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic.json_schema import models_json_schema

from compressor.data.source_base import DataBase
from compressor.data.sources import Data
from compressor.recipe.compose import STAGE_NAME, Recipe
from compressor.recipe.files import HYDRA_SETTINGS
from compressor.recipe.typed_stages import SECTIONS
from compressor.stages.base import stage_class, stage_kinds

Schema = dict[str, Any]
Group = Literal["model", "data", "training"]
DRAFT = "http://json-schema.org/draft-07/schema#"
_DEFINITIONS = "#/definitions/"


def build_composed_schema() -> Schema:
    """Describe a composed recipe, such as a run's `recipe.yaml`."""
    definitions = _build_definitions()
    return _bundle(definitions["recipe"], definitions)


def build_file_schema() -> Schema:
    """Describe a recipe's file, which may extend others."""
    return _describe_file("recipe", defaults=_DEFAULTS, hydra=_HYDRA)


def build_group_schema(group: Group) -> Schema:
    """Describe a group's file, such as `recipes/model/tiny.yaml`."""
    return _describe_file(group, defaults=_DEFAULTS)


def to_text(schema: Schema) -> str:
    """Write a schema as its file has it."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def find_source_classes() -> dict[str, type[DataBase]]:
    """Map each value of `data.source` to the class of its settings."""
    classes: tuple[type[DataBase], ...] = get_args(get_args(Data)[0])
    return {get_args(cls.model_fields["source"].annotation)[0]: cls for cls in classes}


def unwrap_paragraphs(doc: str) -> str:
    """Put each paragraph of a docstring on one line, but leave lists, tables and examples."""
    lines: list[str] = []
    for line in doc.splitlines():
        joins = lines and lines[-1].strip() and line.strip()
        if joins and not line.startswith(("- ", "|", "Example")) and not lines[-1].startswith("|"):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
    return "\n".join(lines)


def _describe_file(name: str, **keys: Schema) -> Schema:
    """Describe a file: nothing is required, and `keys` may stand at its top."""
    definitions = {key: _loosen(schema) for key, schema in _build_definitions().items()}
    root = definitions[name]
    if "properties" in root:
        root["properties"] = keys | root["properties"]
    return _bundle(root, definitions | {"reference": _REFERENCE})


def _bundle(root: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """Make a schema whole: with those definitions that it needs."""
    names: set[str] = set()
    pending = list(_list_references(root))
    while pending:
        name = pending.pop()
        if name not in names:
            names.add(name)
            pending += _list_references(definitions[name])
    needed = {name: definitions[name] for name in sorted(names)}
    return {"$schema": DRAFT, **root, "definitions": needed}


def _list_references(node: Any) -> Iterator[str]:
    """Yield the names of the definitions that a schema refers to."""
    if isinstance(node, list):
        for item in node:
            yield from _list_references(item)
    elif isinstance(node, Mapping):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"].removeprefix(_DEFINITIONS)
        for value in node.values():
            yield from _list_references(value)


def _refer(name: str) -> Schema:
    return {"$ref": _DEFINITIONS + name}


def _build_definitions() -> dict[str, Schema]:
    """Describe a recipe, its groups, every kind of stage, and what these are made of."""
    classes = {kind: stage_class(kind) for kind in stage_kinds()} | {"recipe": Recipe}
    models: Any = [(cls, "validation") for cls in classes.values()]
    references, document = models_json_schema(models, ref_template=_DEFINITIONS + "{model}")
    definitions = {name: _to_draft_7(schema) for name, schema in document["$defs"].items()}
    for name, cls in classes.items():
        long_name = references[cls, "validation"]["$ref"].removeprefix(_DEFINITIONS)
        definitions[name] = definitions.pop(long_name)
    for section, kind in SECTIONS.items():
        definitions[section] = {
            "type": "object",
            "description": Recipe.model_fields[section].description,
            "properties": dict(definitions[kind]["properties"]),
            "additionalProperties": False,
        }
    text = "The kind of this stage; needed where its name is another."
    for kind in stage_kinds():
        definitions[kind]["properties"]["stage"] = {"const": kind, "description": text}
    sources = {source: cls.__name__ for source, cls in find_source_classes().items()}
    definitions |= _choose_by_key("data", "source", sources, definitions)
    kinds = {kind: kind for kind in stage_kinds()}
    definitions |= _choose_by_key("stage", "stage", kinds, definitions)
    recipe = definitions["recipe"]["properties"]
    recipe |= {group: _refer(group) for group in get_args(Group)}
    recipe["stages"] = _describe_stages()
    return definitions


def _describe_stages() -> Schema:
    """Describe `stages`: the kind of one is its name, or what its `stage:` says."""
    rule = {"if": {"type": "object", "required": ["stage"]}, "then": _refer("stage")}
    null = {"type": "null"}
    kinds = {kind: rule | {"else": {"anyOf": [_refer(kind), null]}} for kind in stage_kinds()}
    return {
        "type": "object",
        "description": Recipe.model_fields["stages"].description,
        "propertyNames": {"pattern": STAGE_NAME},
        "properties": kinds,
        "additionalProperties": _refer("stage"),
    }


def _choose_by_key(
    name: str, key: str, choices: Mapping[str, str], definitions: Mapping[str, Schema]
) -> dict[str, Schema]:
    """Describe an object of the choice that `key` names, or of any where it names none."""

    def says(value: Schema) -> Schema:
        return {"type": "object", "required": [key], "properties": {key: value}}

    branches = [{"if": says({"const": v}), "then": _refer(c)} for v, c in choices.items()]
    branches.append({"if": {"not": says({"enum": list(choices)})}, "then": _refer(f"any_{name}")})
    return {
        name: {"type": "object", "allOf": branches},
        f"any_{name}": _unite([definitions[choice] for choice in choices.values()], key, choices),
    }


def _unite(schemas: Sequence[Schema], key: str, choices: Mapping[str, str]) -> Schema:
    """Describe an object with fields of any of `schemas`."""
    fields: dict[str, list[Schema]] = {}
    for schema in schemas:
        for name, field in schema["properties"].items():
            known = fields.setdefault(name, [])
            known += [] if field in known else [field]
    merged = {name: some[0] if len(some) == 1 else {"anyOf": some} for name, some in fields.items()}
    merged[key] = {"enum": list(choices)}
    any_of_all = {"type": "object", "required": [key], "properties": merged}
    return any_of_all | {"additionalProperties": False}


def _to_draft_7(node: Any) -> Any:
    """Rewrite pydantic's schema in draft 7, without titles, which repeat the names of fields."""
    if isinstance(node, list):
        return [_to_draft_7(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain: Schema = {}
    for key, value in node.items():
        if key == "properties":
            plain[key] = {name: _to_draft_7(field) for name, field in value.items()}
        elif key == "default":
            plain[key] = value
        elif key == "description":
            plain[key] = unwrap_paragraphs(value)
        elif key not in ("title", "discriminator"):
            plain["items" if key == "prefixItems" else key] = _to_draft_7(value)
    if "$ref" in plain and len(plain) > 1:  # draft 7 reads nothing beside a reference
        plain["allOf"] = [{"$ref": plain.pop("$ref")}]
    return plain


def _loosen(schema: Schema) -> Schema:
    """Require nothing, and allow a reference for every value: other files may have the rest."""
    loose: Schema = {}
    for key, value in schema.items():
        if key in ("anyOf", "oneOf", "allOf"):
            loose[key] = [_loosen(choice) for choice in value]
        elif key in ("then", "else"):
            loose[key] = _loosen(value)
        elif key == "properties":
            loose[key] = {name: _allow_reference(field) for name, field in value.items()}
        elif key == "items" and isinstance(value, list):
            loose[key] = [_allow_reference(item) for item in value]
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            loose[key] = _allow_reference(value)
        elif key not in ("required", "minItems"):
            loose[key] = value
    return loose


def _allow_reference(schema: Schema) -> Schema:
    """Let `${key}` and `???` stand for a value."""
    field = _loosen(schema)
    about = {key: field.pop(key) for key in ("description", "default") if key in field}
    choices = field["anyOf"] if list(field) == ["anyOf"] else [field]
    return about | {"anyOf": [*choices, _refer("reference")]}


_REFERENCE: Schema = {
    "type": "string",
    "pattern": r"^\?\?\?$|\$\{",
    "description": "`${key}`: another key's value. `???`: to be set by who extends this.",
}
_DEFAULTS: Schema = {
    "type": "array",
    "description": "What this extends, in order; `_self_` is this file.",
    "items": {"type": ["string", "object"]},
}
_HYDRA: Schema = {
    "type": "object",
    "description": "How a sweep goes: in `sweeper.params`, key → its values, such as `0.1,0.3` or "
    "`interval(0.1, 0.5)`; the settings of `launcher`; `mode: MULTIRUN`, as `run -m`.",
    "properties": {name: {} for name in sorted(HYDRA_SETTINGS)},
    "additionalProperties": False,
}
