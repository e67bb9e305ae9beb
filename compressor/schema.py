"""JSON Schemas (draft 7, which VS Code's YAML extension reads) of recipes and of the groups' files.

`composed_schema` accepts what `compressor.form` accepts, of a whole recipe, with what it extends.
It cannot say that one value is less than another, or not the same: that a gradual prune starts
before it ends, N < M of a pattern, two goals that are one number. `file_schema` is for a file as a
person writes it, which may leave to its parents whatever they say: nothing is required, and no rule
between two fields is checked. There, `${…}` and `???` stand for any value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any, Literal, get_args

from pydantic.json_schema import models_json_schema

from compressor.data.sources import Data, DataBase
from compressor.form import SECTIONS
from compressor.recipe import STAGE_NAME, Recipe
from compressor.schema_rules import Schema, given, some_of, when, where
from compressor.stage import stage_class, stage_kinds

DRAFT = "http://json-schema.org/draft-07/schema#"
Group = Literal["model", "data", "training"]
_ROOM = "#/definitions/"


def composed_schema() -> Schema:
    """The schema of a composed recipe, such as a run's `recipe.yaml`."""
    definitions, recipe = _definitions()
    recipe["properties"] |= _parts(definitions) | {"stages": _stages({"$ref": _ROOM + "staged"})}
    recipe["allOf"] = _origins()
    return _document(recipe, definitions | {"staged": _staged({"required": ["stage"]})})


def file_schema() -> Schema:
    """The schema of a recipe's file, which may extend others."""
    recipe, definitions = _loose()
    own = {"defaults": _DEFAULTS, "hydra": _HYDRA}
    recipe["properties"] = own | recipe["properties"]
    return _document(recipe, definitions)


def group_schema(group: Group) -> Schema:
    """The schema of a group's file, such as `recipes/model/tiny.yaml`."""
    _, definitions = _loose()
    part = definitions.pop(group)
    for each in (part, *(branch["then"] for branch in part.get("allOf", ()))):
        if "properties" in each:
            each["properties"] = {"defaults": _DEFAULTS} | each["properties"]
    return _document(part, definitions)


def text(schema: Schema) -> str:
    """A schema as its file has it."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _document(root: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """A whole schema, with the definitions that it refers to alone."""
    used: dict[str, Schema] = {}

    def collect(node: Any) -> None:
        if isinstance(node, Mapping):
            name = str(node.get("$ref", "")).removeprefix(_ROOM)
            if name and name not in used:
                used[name] = definitions[name]
                collect(used[name])
            for value in node.values():
                collect(value)
        elif isinstance(node, list):
            for value in node:
                collect(value)

    collect(root)
    return {"$schema": DRAFT, **root, "definitions": {name: used[name] for name in sorted(used)}}


def _definitions() -> tuple[dict[str, Schema], Schema]:
    """What pydantic says of every stage, by kind, and of every model in them; and of a recipe."""
    classes = {kind: stage_class(kind) for kind in stage_kinds()}
    models: list[Any] = [(Recipe, "validation"), *((cls, "validation") for cls in classes.values())]
    places, made = models_json_schema(models, ref_template=_ROOM + "{model}")
    found = {name: _plain(schema) for name, schema in made["$defs"].items()}
    names = {key[0]: place["$ref"].removeprefix(_ROOM) for key, place in places.items()}
    definitions = {}
    for kind, cls in classes.items():
        stage = found.pop(names[cls])
        means = "What this stage is; only needed where its name is not its kind."
        stage["properties"]["stage"] = {"const": kind, "description": means}
        definitions[kind] = stage
    recipe = found.pop(names[Recipe])
    return found | definitions, recipe


def _plain(node: Any) -> Any:
    """Pydantic's schema in draft 7, without titles, which repeat the names of fields."""
    if isinstance(node, list):
        return [_plain(each) for each in node]
    if not isinstance(node, dict):
        return node
    plain = {key: _plain(value) for key, value in node.items() if key not in _LEFT_OUT}
    for key in ("properties", "default"):
        if key in node:
            here = node[key]
            plain[key] = (
                {name: _plain(value) for name, value in here.items()}
                if key == "properties"
                else here
            )
    if "prefixItems" in node:
        plain["items"] = _plain(node["prefixItems"])
    if "description" in node and isinstance(node["description"], str):
        plain["description"] = unwrapped(node["description"])
    if "$ref" in plain and len(plain) > 1:  # draft 7 reads nothing beside a reference
        plain["allOf"] = [{"$ref": plain.pop("$ref")}]
    return plain


_LEFT_OUT = {"title", "discriminator", "prefixItems"}


def unwrapped(doc: str) -> str:
    """A docstring's paragraphs on one line each; lists, tables and examples stay as they are."""
    lines: list[str] = []
    for line in doc.splitlines():
        joins = lines and lines[-1].strip() and line.strip()
        if joins and not line.startswith(("- ", "|", "Example")) and not lines[-1].startswith("|"):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
    return "\n".join(lines)


def _parts(definitions: dict[str, Schema]) -> dict[str, Schema]:
    """The schemas of a recipe's groups. Adds definitions of what a group alone has."""
    for section, kind in SECTIONS.items():
        own = {key: value for key, value in definitions[kind].items() if key in _OF_FIELDS}
        own["properties"] = {k: v for k, v in own["properties"].items() if k != "stage"}
        own["description"] = _recipe_field(section)
        definitions[section] = own
    # What completes a `load` may stand in the group `model`: `_origins` says so.
    definitions["load"] = {k: v for k, v in definitions["load"].items() if k != "allOf"}
    definitions["data"] = {
        "type": "object",
        "required": ["source"],
        "properties": {"source": {"enum": list(_sources())}},
        "allOf": [
            when(where(source={"const": source}), {"$ref": _ROOM + name})
            for source, name in _sources().items()
        ],
    }
    return {name: {"$ref": _ROOM + name} for name in (*SECTIONS, "data")}


_OF_FIELDS = ("type", "properties", "additionalProperties", "propertyNames", "description")


def _recipe_field(name: str) -> str:
    return Recipe.model_fields[name].description or ""


def source_class(data: Mapping[str, Any]) -> type[DataBase]:
    """What reads a recipe's `data`. Raises KeyError on a source that there is not."""
    return _source_classes()[data["source"]]


def _source_classes() -> dict[str, type[DataBase]]:
    classes: tuple[type[DataBase], ...] = get_args(get_args(Data)[0])
    return {get_args(cls.model_fields["source"].annotation)[0]: cls for cls in classes}


def _sources() -> dict[str, str]:
    """Value of `data.source` → name of its definition."""
    return {source: cls.__name__ for source, cls in _source_classes().items()}


def _stages(other: Schema) -> Schema:
    """The schema of `stages`. A stage's kind is its name, or what its `stage:` says.

    other: a stage whose name is no kind.
    """
    says = {"type": "object", "required": ["stage"]}
    required = {kind for kind in stage_kinds() if _requires(kind)}
    return {
        "type": "object",
        "description": _recipe_field("stages"),
        "propertyNames": {"pattern": STAGE_NAME},
        "properties": {
            kind: {
                "if": says,
                "then": {"$ref": _ROOM + "staged"},
                "else": {"$ref": _ROOM + kind}
                if kind in required
                else {"anyOf": [{"$ref": _ROOM + kind}, {"type": "null"}]},
            }
            for kind in stage_kinds()
        },
        "additionalProperties": other,
    }


def _requires(kind: str) -> bool:
    """Whether a stage of this kind needs some setting of its own (a `load` finds it in `model`)."""
    cls = stage_class(kind)
    extra = cls.model_config.get("json_schema_extra")
    needs = any(field.is_required() for field in cls.model_fields.values())
    return needs or (kind in _ASK_FOR_SOMETHING and extra is not None)


_ASK_FOR_SOMETHING = ("prune", "shrink", "slice")


def _staged(more: Schema) -> Schema:
    """A stage that says its kind."""
    return {
        "type": "object",
        "properties": {"stage": {"enum": stage_kinds()}},
        "allOf": [
            when(where(stage={"const": kind}), {"$ref": _ROOM + kind}) for kind in stage_kinds()
        ],
        **more,
    }


def _origins() -> list[Schema]:
    """A `load` has a source or a config: its own, or where it says nothing the group `model`'s."""
    checks = []
    for source, config in product((True, False), repeat=2):
        group = {"source": source, "config": config}
        conditions = [
            {"properties": {"model": given(name)}, "required": ["model"]}
            if has
            else {"not": {"properties": {"model": given(name)}, "required": ["model"]}}
            for name, has in group.items()
        ]
        inherits = [{"not": {"required": [name]}} for name, has in group.items() if has]
        of_object: Schema = {"anyOf": [*some_of("source", "config")["anyOf"], *inherits]}
        check = {"if": {"type": "object"}, "then": of_object, "else": bool(inherits)}
        says_other = {
            "type": "object",
            "required": ["stage"],
            "properties": {"stage": {"not": {"const": "load"}}},
        }
        says_load = {"type": "object"} | where(stage={"const": "load"})
        stages = {
            "properties": {"load": when({"not": says_other}, check)},
            "additionalProperties": when(says_load, check),
        }
        checks.append(when({"allOf": conditions}, {"properties": {"stages": stages}}))
    return checks


def _loose() -> tuple[Schema, dict[str, Schema]]:
    """A recipe and the definitions of its parts, as files may have them."""
    exact, recipe = _definitions()
    parts = _parts(exact)
    definitions = {name: _partial(schema) for name, schema in exact.items() if name != "data"}
    sources = [definitions[name] for name in _sources().values()]
    definitions["any_data"] = _any_of(sources, "source", list(_sources()))
    definitions["data"] = _chosen(
        "source", {value: _ROOM + name for value, name in _sources().items()}, "any_data"
    )
    kinds = stage_kinds()
    definitions["any_stage"] = _any_of([definitions[kind] for kind in kinds], "stage", kinds)
    definitions["staged"] = _chosen("stage", {kind: _ROOM + kind for kind in kinds}, "any_stage")
    definitions["interpolation"] = _INTERPOLATION
    del recipe["properties"]["stages"]
    loose = _partial(recipe)
    del loose["properties"]["pipeline"]["anyOf"][0]["minItems"]
    loose["properties"]["name"]["anyOf"].append({"type": "null"})
    other = _or_interpolated({"anyOf": [{"$ref": _ROOM + "staged"}, {"type": "null"}]})
    stages = _stages(other)
    for kind, schema in stages["properties"].items():
        schema["else"] = {"anyOf": [{"$ref": _ROOM + kind}, {"type": "null"}]}
    stages["properties"] = {k: _or_interpolated(v) for k, v in stages["properties"].items()}
    loose["properties"] |= {k: _or_interpolated(v) for k, v in parts.items()}
    loose["properties"]["stages"] = _or_interpolated(stages)
    return loose, definitions


def _partial(schema: Schema) -> Schema:
    """An object's schema without what asks for a field, or compares two."""
    if "properties" not in schema:
        return _map(schema, _partial)
    kept = {key: value for key, value in schema.items() if key in _OF_FIELDS}
    fields = {name: _interpolated(each) for name, each in schema["properties"].items()}
    return kept | {"properties": fields}


def _map(schema: Schema, change: Callable[[Schema], Schema]) -> Schema:
    """A value's schema with the schemas inside it changed."""
    found = {key: value for key, value in schema.items() if key != "minProperties"}
    for key in ("anyOf", "oneOf", "allOf"):
        if key in found:
            found[key] = [change(each) for each in found[key]]
    if isinstance(found.get("items"), list):
        found["items"] = [_interpolated(each) for each in found["items"]]
    elif "items" in found:
        found["items"] = _interpolated(found["items"])
    if isinstance(found.get("additionalProperties"), dict):
        found["additionalProperties"] = _interpolated(found["additionalProperties"])
    return found


def _interpolated(schema: Schema) -> Schema:
    """A value, or what stands for one in a file."""
    schema = _partial(schema)
    about = {key: value for key, value in schema.items() if key in ("description", "default")}
    rest = {key: value for key, value in schema.items() if key not in about}
    choices = rest.get("anyOf") if list(rest) == ["anyOf"] else [rest]
    return about | {"anyOf": [*(choices or ()), {"$ref": _ROOM + "interpolation"}]}


def _or_interpolated(schema: Schema) -> Schema:
    """A mapping, or what stands for all of it; mistakes in a mapping are told as those of one."""
    interpolation = {"$ref": _ROOM + "interpolation"}
    return {"if": {"type": "string"}, "then": interpolation, "else": schema}


def _any_of(schemas: Iterable[Schema], key: str, values: list[str]) -> Schema:
    """An object with fields of any of these; `key` tells them apart."""
    fields: dict[str, list[Schema]] = {}
    for schema in schemas:
        for name, field in schema["properties"].items():
            known = fields.setdefault(name, [])
            if field not in known:
                known.append(field)
    merged = {name: each[0] if len(each) == 1 else {"anyOf": each} for name, each in fields.items()}
    merged[key] = {"anyOf": [{"enum": values}, {"$ref": _ROOM + "interpolation"}]}
    return {"type": "object", "properties": merged, "additionalProperties": False}


def _chosen(key: str, references: Mapping[str, str], other: str) -> Schema:
    """An object of the kind that `key` says, or of any where it says nothing."""
    is_known = where(**{key: {"enum": list(references)}})
    return {
        "type": "object",
        "allOf": [
            *(when(where(**{key: {"const": v}}), {"$ref": ref}) for v, ref in references.items()),
            when({"not": is_known}, {"$ref": _ROOM + other}),
        ],
    }


_INTERPOLATION: Schema = {
    "type": "string",
    "pattern": r"^\?\?\?$|\$\{",
    "description": "`${key}`: another key's value. `???`: to be set by who extends this.",
}
_DEFAULTS: Schema = {
    "type": "array",
    "description": "What this extends, in order; `_self_` is this file.",
    "items": {
        "anyOf": [
            {"type": "string"},
            {"type": "object", "additionalProperties": {"type": ["string", "array", "null"]}},
        ]
    },
}
_HYDRA: Schema = {
    "type": "object",
    "description": "How a sweep goes.",
    "properties": {
        "sweeper": {
            "type": "object",
            "properties": {
                "params": {
                    "type": "object",
                    "description": "Key → its values, such as `0.1,0.3` or `interval(0.1, 0.5)`.",
                }
            },
        },
        "launcher": {"type": "object", "description": "Settings of `hydra/launcher`."},
        "mode": {"enum": ["RUN", "MULTIRUN"], "description": "MULTIRUN: as `run -m`."},
    },
    "additionalProperties": False,
}
