"""Describe the settings of a stage for a person: what each may be, its default and its meaning."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import zip_longest
from typing import Any

from compressor.recipe.schema import Schema, build_composed_schema, unwrap_paragraphs
from compressor.stages.base import Stage, stage_class

NOTHING = "-"
"""The default of a setting that is off, or that something else decides, as its text says."""
BELOW = "as below"
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}
_PLURALS = {"whole number": "whole numbers", "number": "numbers", "text": "texts"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_wrap = partial(textwrap.wrap, break_on_hyphens=False)


@dataclass(frozen=True)
class Field:
    """One setting."""

    path: str
    """Below the stage: `epochs`, `target.bytes`."""
    type: str
    range: str
    """Of numbers and of a list's length; "" where there is none."""
    form: str
    """Type and range together, for each type that it may have."""
    default: str
    """As YAML; `required` where it must be set."""
    description: str


def list_fields(kind: str) -> list[Field]:
    """List a stage's settings, nested ones after the one that they are in."""
    return list(_walk_settings(_load_definitions()[kind], "", stage_class(kind)))


def describe_stages(kinds: Iterable[str]) -> list[dict[str, Any]]:
    """Describe stages as `compressor stages --json` prints them."""
    return [
        {
            "stage": kind,
            "description": inspect.getdoc(stage_class(kind)),
            "fields": [asdict(field) for field in list_fields(kind)],
        }
        for kind in kinds
    ]


def render_stage(kind: str, width: int) -> str:
    """Render what `compressor stages KIND` prints: what it does, an example, its settings."""
    cls = stage_class(kind)
    paragraphs = ["\n".join(_wrap_doc(unwrap_paragraphs(inspect.getdoc(cls) or ""), width))]
    if cls.section is not None:
        keys = "" if cls.section_keys is None else f" ({', '.join(sorted(cls.section_keys))})"
        note = f"A recipe's group `{cls.section}:` gives other defaults{keys}."
        paragraphs.append("\n".join(textwrap.wrap(note, width)))
    return "\n\n".join([*paragraphs, "\n".join(_render_table(list_fields(kind), width))])


def to_yaml(value: Any) -> str:
    """Write a value on one line of YAML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {to_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(to_yaml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


@cache
def _load_definitions() -> Mapping[str, Schema]:
    definitions: Mapping[str, Schema] = build_composed_schema()["definitions"]
    return definitions


def _walk_settings(schema: Schema, above: str, cls: type[Stage] | None = None) -> Iterator[Field]:
    """Yield the settings of a mapping; of a stage `cls` those that every stage has come last."""
    shared = Stage.model_fields.keys() | {"models"} if cls is not None else set()
    names = [name for name in schema["properties"] if name != "stage"]
    for name in sorted(names, key=lambda name: name in shared):
        field = schema["properties"][name]
        choices = list(_list_choices(field))
        is_required = name in schema.get("required", ())
        yield Field(
            path=f"{above}{name}",
            type=_join_choices(map(_describe_type, choices)),
            range=_join_choices(map(_describe_range, choices)),
            form=_join_choices(map(_describe_form, choices)),
            default="required" if is_required else _describe_default(field, choices),
            description=field.get("description", ""),
        )
        mappings = [choice for choice in choices if "properties" in choice]
        if len(mappings) == 1:
            yield from _walk_settings(mappings[0], f"{above}{name}.")


def _join_choices(parts: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(filter(None, parts)))


def _resolve_reference(schema: Schema) -> Schema:
    """Follow a reference to the definition that it names."""
    for key in ("allOf", "anyOf"):
        inside = schema.get(key)
        if inside and len(inside) == 1 and "$ref" in inside[0]:
            return _resolve_reference(inside[0])
    if "$ref" in schema:
        return _resolve_reference(_load_definitions()[schema["$ref"].rpartition("/")[2]])
    return schema


def _list_choices(schema: Schema) -> Iterator[Schema]:
    """Yield what a value may be, one by one, without null."""
    schema = _resolve_reference(schema)
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices and "properties" not in schema:
        for choice in choices:
            yield from _list_choices(choice)
    elif schema.get("type") != "null":
        yield schema


def _describe_types(schema: Schema) -> str:
    return _join_choices(map(_describe_type, _list_choices(schema)))


def _describe_type(schema: Schema) -> str:
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "properties" in schema:
        return "mapping"
    if schema.get("type") == "array":
        items = schema.get("items", {})
        types = _describe_types(items[0] if isinstance(items, list) else items)
        return f"list of {_PLURALS.get(types, types)}"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"{{name: {_describe_types(values)}}}" if isinstance(values, dict) else "mapping"
    return _TYPES.get(schema.get("type", ""), "anything")


def _describe_range(schema: Schema) -> str:
    values = schema.get("additionalProperties")
    if isinstance(values, dict):
        return _join_choices(map(_describe_range, _list_choices(values)))
    if schema.get("type") != "array":
        bounds = [f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema]
        step = [f"by {schema['multipleOf']}"] if "multipleOf" in schema else []
        return ", ".join(bounds + step)
    items = schema.get("items", {})
    if isinstance(items, list):
        return f"{len(items)}, each {_describe_range(_resolve_reference(items[0]))}"
    length = f"{schema['minItems']} or more" if schema.get("minItems") else ""
    item = _join_choices(map(_describe_range, _list_choices(items)))
    return ", ".join(filter(None, (length, item and f"each {item}")))


def _describe_form(schema: Schema) -> str:
    type_, range_ = _describe_type(schema), _describe_range(schema)
    comma = "," if range_[:1].isalnum() or type_.endswith("}") else ""
    return f"{type_}{comma} {range_}" if range_ else type_


def _describe_default(field: Schema, choices: Sequence[Schema]) -> str:
    if "default" not in field:  # built anew for each stage: an empty mapping, or its own defaults
        return BELOW if "properties" in choices[0] else "{}"
    value = field["default"]
    if isinstance(value, dict) and any("properties" in choice for choice in choices):
        return BELOW
    return NOTHING if value is None else to_yaml(value)


def _wrap_doc(doc: str, width: int) -> Iterator[str]:
    for line in doc.splitlines():
        if not line.strip() or line.startswith("|"):
            yield line
        else:
            hanging = "  " if line.startswith("- ") else " " * 9 if line[:8] == "Example:" else ""
            yield from _wrap(line, width, subsequent_indent=hanging)


def _render_table(rows: Sequence[Field], width: int) -> Iterator[str]:
    """Yield each setting's name, type and range, and default; and below them its description."""
    name_width = min(30, max(len(row.path) for row in rows) + 2)
    form_width = width - name_width - 14
    yield f"{'setting':<{name_width}}{'value':<{form_width}}default"
    for row in rows:
        names = [row.path]
        if len(row.path) >= name_width:
            yield names.pop()
        cells = names, _wrap(row.form, form_width - 2), _wrap(row.default, 14)
        for name, form, default in zip_longest(*cells, fillvalue=""):
            yield f"{name:<{name_width}}{form:<{form_width}}{default}".rstrip()
        yield from _wrap(row.description, width, initial_indent="    ", subsequent_indent="    ")
