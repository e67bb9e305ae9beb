"""The settings of a stage in a person's words: what each may be, its default and what it means."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from compressor.schema import composed_schema, unwrapped
from compressor.schema_rules import Schema
from compressor.stage import Stage, stage_class

NOTHING = "-"
"""The default of a setting that is off, or that something else decides, which its text says."""
BELOW = "as below"
_WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}

_PLURALS = {"whole number": "whole numbers", "number": "numbers", "text": "texts"}


@dataclass(frozen=True)
class Field:
    """One setting."""

    path: str
    """Below the stage: `epochs`, `target.bytes`."""
    type: str
    range: str
    """Of numbers and of how many a list has; "" where there is none."""
    form: str
    """Type and range together, for each of the things that it may be."""
    default: str
    """As YAML; `required` where it must be set."""
    description: str


@cache
def _definitions() -> Mapping[str, Schema]:
    definitions: Mapping[str, Schema] = composed_schema()["definitions"]
    return definitions


class Fields:
    """The settings of all stages; the schema is made once."""

    def __init__(self) -> None:
        self._definitions = _definitions()

    def of(self, kind: str) -> list[Field]:
        """A stage's settings, nested ones after the one that they are in."""
        return list(self._walk(self._definitions[kind], stage_class(kind), ""))

    def _walk(self, schema: Schema, cls: type[Stage] | None, above: str) -> Iterator[Field]:
        for name, field in _in_order(schema["properties"], cls):
            choices = [self._open(each) for each in self._choices(field)]
            objects = [each for each in choices if "properties" in each]
            nested = objects[0] if len(objects) == 1 else None
            required = name in schema.get("required", ())
            yield Field(
                path=f"{above}{name}",
                type=" or ".join(dict.fromkeys(self._words(each) for each in choices)),
                range=" or ".join(dict.fromkeys(filter(None, map(self._range, choices)))),
                form=" or ".join(dict.fromkeys(self._form(each) for each in choices)),
                default="required" if required else _default(field, choices),
                description=field.get("description", ""),
            )
            if nested is not None:
                yield from self._walk(nested, None, f"{above}{name}.")

    def _open(self, schema: Schema) -> Schema:
        """What a reference stands for."""
        for key in ("allOf", "anyOf"):
            inside = schema.get(key)
            if inside and len(inside) == 1 and "$ref" in inside[0]:
                return self._open(inside[0])
        if "$ref" in schema:
            return self._open(self._definitions[schema["$ref"].rpartition("/")[2]])
        return schema

    def _choices(self, schema: Schema) -> Iterator[Schema]:
        """What a value may be, one by one, without null."""
        schema = self._open(schema)
        inside = schema.get("anyOf") or schema.get("oneOf")
        if inside and "properties" not in schema:
            for each in inside:
                yield from self._choices(each)
        elif schema.get("type") != "null":
            yield schema

    def _words(self, schema: Schema) -> str:
        if "enum" in schema:
            return ", ".join(map(str, schema["enum"]))
        if "const" in schema:
            return str(schema["const"])
        if "properties" in schema:
            return "mapping"
        if schema.get("type") == "array":
            items = schema.get("items", {})
            items = items[0] if isinstance(items, list) else items
            several = self._several(items)
            return f"list of {_PLURALS.get(several, several)}"
        if schema.get("type") == "object":
            more = schema.get("additionalProperties")
            return f"{{name: {self._several(more)}}}" if isinstance(more, dict) else "mapping"
        return _WORDS.get(schema.get("type", ""), "anything")

    def _form(self, schema: Schema) -> str:
        words, limits = self._words(schema), self._range(schema)
        comma = "," if limits[:1].isalnum() or words.endswith("}") else ""
        return f"{words}{comma} {limits}" if limits else words

    def _several(self, schema: Schema) -> str:
        each = dict.fromkeys(self._words(self._open(each)) for each in self._choices(schema))
        return " or ".join(each)

    def _range(self, schema: Schema) -> str:
        if schema.get("type") == "array":
            items = schema.get("items", {})
            if isinstance(items, list):
                return f"{len(items)}, each {self._range(self._open(items[0]))}"
            each = " or ".join(filter(None, map(self._range, self._choices(items))))
            least = f"{schema['minItems']} or more" if schema.get("minItems") else ""
            return ", ".join(filter(None, (least, each and f"each {each}")))
        if isinstance(schema.get("additionalProperties"), dict):
            inside = map(self._range, self._choices(schema["additionalProperties"]))
            return " or ".join(dict.fromkeys(filter(None, inside)))
        return _bounds(schema)


def _bounds(schema: Schema) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    if "multipleOf" in schema:
        found.append(f"by {schema['multipleOf']}")
    return ", ".join(found)


def _in_order(
    properties: Mapping[str, Schema], cls: type[Stage] | None
) -> Iterator[tuple[str, Schema]]:
    """A stage's own settings first, then those that others have too."""
    shared = Stage.model_fields.keys() | {"models", "stage"}
    names = [name for name in properties if name != "stage"]
    if cls is not None:
        names = sorted(names, key=lambda name: name in shared)
    for name in names:
        yield name, properties[name]


def _default(schema: Schema, choices: Sequence[Schema]) -> str:
    if "default" not in schema:  # made anew for each stage: an empty mapping, or its own defaults
        return BELOW if "properties" in choices[0] else "{}"
    value = schema["default"]
    if isinstance(value, dict) and any("properties" in each for each in choices):
        return BELOW
    return NOTHING if value is None else as_yaml(value)


def as_yaml(value: Any) -> str:
    """A value on one line of YAML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {as_yaml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def as_json(kinds: Iterable[str]) -> list[dict[str, Any]]:
    """What `compressor stages --json` prints."""
    fields = Fields()
    return [
        {
            "stage": kind,
            "description": inspect.getdoc(stage_class(kind)),
            "fields": [asdict(field) for field in fields.of(kind)],
        }
        for kind in kinds
    ]


def described(kind: str, width: int) -> str:
    """What `compressor stages KIND` prints: what it does, an example, and its settings."""
    cls = stage_class(kind)
    doc = "\n".join(_wrapped(unwrapped(inspect.getdoc(cls) or ""), width))
    rows = Fields().of(kind)
    head = ""
    if cls.section is not None:
        which = "" if cls.section_keys is None else f" ({', '.join(sorted(cls.section_keys))})"
        note = f"A recipe's group `{cls.section}:` gives other defaults{which}."
        head = "\n".join(textwrap.wrap(note, width)) + "\n\n"
    return f"{doc}\n\n{head}" + "\n".join(_lines(rows, width))


def _wrapped(doc: str, width: int) -> Iterator[str]:
    for line in doc.splitlines():
        if not line.strip() or line.startswith("|"):
            yield line
        else:
            hanging = "  " if line.startswith("- ") else " " * 9 if line[:8] == "Example:" else ""
            yield from textwrap.wrap(line, width, subsequent_indent=hanging, break_on_hyphens=False)


def _lines(rows: Sequence[Field], width: int) -> Iterator[str]:
    """Each setting: name, type and range, default; and below it what it means."""
    name_width = min(30, max(len(row.path) for row in rows) + 2)
    value_width = width - name_width - 14
    yield f"{'setting':<{name_width}}{'value':<{value_width}}default"
    for row in rows:
        cells = textwrap.wrap(row.form, value_width - 2) or [""]
        defaults = textwrap.wrap(row.default, 14, break_on_hyphens=False) or [""]
        names = [row.path] if len(row.path) < name_width else [row.path, ""]
        if len(names) == 2:
            yield row.path
            names = [""]
        for index in range(max(len(cells), len(defaults))):
            name, cell, default = (
                part[index] if index < len(part) else "" for part in (names, cells, defaults)
            )
            yield f"{name:<{name_width}}{cell:<{value_width}}{default}".rstrip()
        yield from textwrap.wrap(
            row.description,
            width,
            initial_indent="    ",
            subsequent_indent="    ",
            break_on_hyphens=False,
        )
