"""Explain what pydantic finds wrong with values, as (path, message) in a person's words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from compressor.core.errors import nearest
from compressor.core.numbers import is_number

_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
_EXPECTED = {
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "string_type": "expected a text",
    "list_type": "expected a list, such as [a, b]",
    "tuple_type": "expected a list, such as [a, b]",
    "dict_type": "expected keys and values",
    "finite_number": "expected a finite number",
}


def explain_validation_error(
    error: ValidationError, model: type[BaseModel], values: Any
) -> list[tuple[str, str]]:
    """List (key path, message) of each of pydantic's errors, in a recipe's words."""
    problems: dict[tuple[str, str], None] = {}
    wrong_keys, wrong_types = set[str](), set[str]()
    for item in error.errors(include_url=False):
        path = ".".join(map(str, _drop_tags(item, values)))
        if "[key]" in item["loc"]:
            wrong_keys.add(path)
        elif path in wrong_keys:  # the value of what is no key means nothing
            continue
        elif item["type"].endswith("_type") and isinstance(item["input"], Mapping):
            wrong_types.add(path)
        problems[path, _explain_error(item, model)] = None

    # A mapping that is no text, where it could be one: what is wrong is a part of it.
    in_parts = {p for p in wrong_types if any(other.startswith(f"{p}.") for other, _ in problems)}
    return [(path, message) for path, message in problems if path not in in_parts]


def _explain_error(item: ErrorDetails, model: type[BaseModel]) -> str:
    """Say what one of pydantic's errors means to somebody who writes a recipe."""
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    name, above = (str(item["loc"][-1]), item["loc"][:-1]) if item["loc"] else ("", ())
    if kind == "extra_forbidden":
        return _explain_unknown_key(name, _list_fields(model, above))
    if kind == "missing":
        return f"is missing{_describe_field(name, model, above)}"
    if kind.startswith("union_tag"):
        return _explain_union(context)
    if name == "[key]" or kind == "invalid_key":
        return _explain_key(item)
    if kind == "literal_error":
        names = re.findall(r"'([^']+)'", str(context["expected"]))
        close = nearest(value, names) if isinstance(value, str) and len(names) > 1 else ""
        hint = f"; {close}" if "mean" in close else ""
        return f"expected {context['expected']}, got {_show_value(value)}{hint}"
    expected = _explain_expectation(item, model)
    got = f", got {_show_value(value)}"
    if expected.endswith(got[2:]) or (kind == "value_error" and isinstance(value, Mapping)):
        got = ""  # a rule between fields names them itself
    return f"{expected}{got}{_suggest_cure(kind, value)}"


def _explain_expectation(item: ErrorDetails, model: type[BaseModel]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"expected {words} {context[key]:g}"
    if kind == "too_short":
        return f"expected at least {context['min_length']} in the list"
    if kind in ("model_type", "model_attributes_type"):
        return f"expected keys and values, of {', '.join(_list_fields(model, item['loc']))}"
    expected = _EXPECTED.get(kind) or item["msg"].removeprefix("Value error, ")
    return expected[0].lower() + expected[1:]


def _show_value(value: Any) -> str:
    """Write a value as YAML does, cut where it is long."""
    plain = value is None or isinstance(value, bool)
    shown = json.dumps(value) if plain else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "…"


def _suggest_cure(kind: str, value: Any) -> str:
    """Say how a value is written that somebody seems to have meant."""
    if kind in ("less_than", "less_than_equal") and is_number(value) and 1 < value <= 100:
        return f"; {value:g} % is {value / 100:g}"
    if kind == "string_type" and isinstance(value, int | float):  # `2:4` is 124 to YAML
        text = "YAML reads as true or false, such as 'no'"
        text = text if isinstance(value, bool) else "looks like a number, such as '2:4'"
        return (
            f"; a text that {text}, stands in quotes (on the command line in both kinds: \"'…'\")"
        )
    if not isinstance(value, str):
        return ""
    if kind == "float_type" and (percent := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)):
        return f"; {float(percent[1]):g} % is {float(percent[1]) / 100:g}"
    if kind in ("list_type", "tuple_type") and value.startswith("-"):  # a text to YAML
        return "; a space is missing after the '-'"
    return ""


def _explain_key(item: ErrorDetails) -> str:
    """Say what is wrong with a key of a mapping whose names are a recipe's own."""
    if item["type"] == "value_error":
        return item["msg"].removeprefix("Value error, ")
    if item["type"] == "literal_error":
        names = re.findall(r"'([^']+)'", str(item["ctx"]["expected"]))
        return f"no such key; {nearest(str(item['input']), names)}"
    cure = "a list is written in brackets, such as [8, 16], and a number without a comma"
    return f"{item['input']!r} is no key; {cure}, such as 0.3 or 4000"


def _explain_unknown_key(name: str, siblings: Sequence[str]) -> str:
    before, colon, _ = name.partition(":")
    if colon and before in siblings:
        return f"no such key; a space is missing after the ':' of `{before}:`"
    before, equals, value = name.partition("=")
    if equals and before.strip() in siblings:
        return f"no such key; in a file it is `{before.strip()}: {value.strip()}`"
    return f"no such key; {nearest(name, siblings)}"


def _explain_union(context: Mapping[str, Any]) -> str:
    """Explain a union's value that does not say, or not rightly, which of its kinds it is."""
    tag, names = str(context.get("tag", "")), str(context.get("expected_tags", ""))
    if context.get("discriminator") == "'source'" and not tag:
        group = "`- /data: bills`, or say `data=bills`"
        return f"has no `source`; take a group of it in `defaults`, such as {group}"
    valid = re.findall(r"'([^']+)'", names)
    hint = nearest(tag, valid) if valid else "expected a number or a mapping"
    return f"{tag!r} is not valid; {hint}" if tag else hint


def _describe_field(name: str, model: type[BaseModel], above: Sequence[str | int]) -> str:
    """Say what a missing field is for, where it is one of the model's own."""
    field = model.model_fields.get(name) if not above else None
    text = field.description if field is not None else None
    return f"; {text[0].lower()}{text[1:].rstrip('.')}" if text else ", and has no default"


def _drop_tags(item: ErrorDetails, values: Any) -> list[str | int]:
    """Give an error's path without the tags of unions that pydantic puts between real keys."""
    keys: list[str | int] = []
    node, untagged = values, None
    location = [part for part in item["loc"] if part != "[key]"]
    for index, part in enumerate(location):
        if isinstance(node, Mapping) and node.get("source") == part and untagged is not node:
            untagged = node  # the tag of a union of data sources, which may be a key of it too
            continue
        if isinstance(node, Mapping) and part in node:
            node = node[part]
        elif isinstance(node, Sequence) and not isinstance(node, str) and isinstance(part, int):
            node = node[part] if part < len(node) else None
        elif item["type"] != "missing" or index < len(location) - 1:
            continue
        keys.append(part)
    is_source = item.get("ctx", {}).get("discriminator") == "'source'"
    return [*keys, "source"] if item["type"] == "union_tag_invalid" and is_source else keys


def _list_fields(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """List the fields that are valid at a location below `model`."""
    schema: Any = model.model_json_schema()
    definitions = schema.get("$defs", {})

    def resolve_reference(node: Any) -> Any:
        while "$ref" in node:
            node = definitions[node["$ref"].rpartition("/")[2]]
        return node

    node = schema
    for part in location:
        node = resolve_reference(node)
        if part in node.get("properties", {}):
            node = node["properties"][part]
        elif mapping := node.get("discriminator", {}).get("mapping", {}):
            node = {"$ref": mapping[part]} if part in mapping else node
        if options := [option for option in node.get("anyOf", []) if "$ref" in option]:
            node = options[0]  # a union, or a part that may be left out
    return list(resolve_reference(node).get("properties", {}))
