"""What pydantic finds wrong with values, as (path, message) in a person's words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from compressor.errors import nearest


def validation_problems(
    error: ValidationError, model: type[BaseModel], values: Any
) -> list[tuple[str, str]]:
    """(key path, message) of each of pydantic's errors, in a recipe's words."""
    problems: list[tuple[str, str]] = []
    no_keys: set[str] = set()
    for item in error.errors(include_url=False):
        location = _real_location([part for part in item["loc"] if part != "[key]"], values)
        path = ".".join(map(str, [*location, *_discriminator(item)]))
        if "[key]" in item["loc"]:
            no_keys.add(path)
        elif path in no_keys:  # of what is no key, the value means nothing
            continue
        problems.append((path, _message(item, model)))
    return list(dict.fromkeys(problems))


def _discriminator(item: ErrorDetails) -> list[str]:
    """The key whose value says which of a union's kinds it is, where that value is wrong."""
    context = item.get("ctx", {})
    known = item["type"] == "union_tag_invalid" and context.get("discriminator") == "'source'"
    return ["source"] if known else []


def _message(item: ErrorDetails, model: type[BaseModel]) -> str:
    """What one of pydantic's errors means to somebody who writes a recipe."""
    kind, given, context = item["type"], item["input"], item.get("ctx", {})
    name = str(item["loc"][-1]) if item["loc"] else ""
    if kind == "extra_forbidden":
        return _no_such_key(name, _field_names(model, item["loc"][:-1]))
    if kind == "missing":
        return f"is missing{_meaning(name, model, item['loc'][:-1])}"
    if kind.startswith("union_tag"):
        return _no_such_tag(context)
    if name == "[key]" and kind == "literal_error":
        names = re.findall(r"'([^']+)'", str(context["expected"]))
        return f"no such key; {nearest(str(given), names)}"
    if name == "[key]" or kind == "invalid_key":
        lists = "a list is written in brackets, such as [8, 16]"
        return f"{given!r} is no key; {lists}, and a number without a comma, such as 0.3 or 4000"
    if kind in _BOUNDS:
        expected = f"expected {_BOUNDS[kind]} {context[_BOUND_OF[kind]]:g}"
    elif kind == "literal_error":
        names = re.findall(r"'([^']+)'", str(context["expected"]))
        close = f"; {nearest(given, names)}" if isinstance(given, str) and len(names) > 1 else ""
        expected = f"expected {context['expected']}"
        return f"{expected}, got {_shown(given)}{close if 'mean' in close else ''}"
    elif kind == "too_short":
        expected = f"expected at least {context['min_length']} in the list"
    elif kind in ("model_type", "model_attributes_type"):
        expected = f"expected keys and values, of {', '.join(_field_names(model, item['loc']))}"
    else:
        expected = _EXPECTED.get(kind) or item["msg"].removeprefix("Value error, ")
        expected = expected[0].lower() + expected[1:]
    shown = _shown(given)
    of_all = kind == "value_error" and isinstance(given, Mapping)  # what a rule is about, it says
    got = "" if of_all or expected.endswith(f"got {shown}") else f", got {shown}"
    return f"{expected}{got}{_share(kind, given)}{_dash(kind, given)}{_quotes(kind, given)}"


_BOUNDS = {
    "greater_than": "more than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}
_BOUND_OF = {
    "greater_than": "gt",
    "greater_than_equal": "ge",
    "less_than": "lt",
    "less_than_equal": "le",
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


def _shown(value: Any) -> str:
    """A value as YAML writes it, cut where it is long."""
    plain = value is None or isinstance(value, bool)
    shown = json.dumps(value) if plain else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "…"


def _share(kind: str, given: Any) -> str:
    """How a percentage is written, where somebody seems to have meant one."""
    if kind in ("less_than", "less_than_equal") and isinstance(given, int | float):
        percent: float | None = given if 1 < given <= 100 else None
    elif kind == "float_type" and isinstance(given, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", given)
        percent = float(found[1]) if found else None
    else:
        percent = None
    return "" if percent is None else f"; {percent:g} % is {percent / 100:g}"


def _dash(kind: str, given: Any) -> str:
    """What is wrong with `-load`, which YAML reads as a text."""
    if kind in ("list_type", "tuple_type") and isinstance(given, str) and given.startswith("-"):
        return "; a space is missing after the '-'"
    return ""


def _quotes(kind: str, given: Any) -> str:
    """How a text is written that YAML reads as a number: `2:4` is 124 to it."""
    if kind == "string_type" and isinstance(given, int | float) and not isinstance(given, bool):
        return (
            "; a text that looks like a number, such as '2:4', stands in quotes "
            "(on the command line in both kinds: \"'…'\")"
        )
    return ""


def _no_such_key(name: str, owner: Sequence[str]) -> str:
    before, colon, _ = name.partition(":")
    if colon and before in owner:
        return f"no such key; a space is missing after the ':' of `{before}:`"
    before, equals, value = name.partition("=")
    if equals and before.strip() in owner:
        return f"no such key; in a file it is `{before.strip()}: {value.strip()}`"
    return f"no such key; {nearest(name, owner)}"


def _no_such_tag(context: Mapping[str, Any]) -> str:
    """A union's value that does not say, or not rightly, which of its kinds it is."""
    tag, names = str(context.get("tag", "")), str(context.get("expected_tags", ""))
    if context.get("discriminator") == "'source'" and not tag:
        group = "`- /data: bills`, or say `data=bills`"
        return f"has no `source`; take a group of it in `defaults`, such as {group}"
    valid = re.findall(r"'([^']+)'", names)
    hint = nearest(tag, valid) if valid else "expected a number or a mapping"
    return f"{tag!r} is not valid; {hint}" if tag else hint


def _meaning(name: str, model: type[BaseModel], location: Sequence[str | int]) -> str:
    """What a field that is missing is for, where it is one of the model's own."""
    field = model.model_fields.get(name) if not location else None
    about = field.description if field is not None else None
    return f"; {about[0].lower()}{about[1:].rstrip('.')}" if about else ", and has no default"


def _real_location(location: Sequence[str | int], values: Any) -> list[str | int]:
    """A location without the union tags that pydantic puts between real keys."""
    real: list[str | int] = []
    node, untagged = values, None
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if isinstance(node, Mapping) and node.get("source") == part and untagged is not node:
            untagged = node  # the tag of a union of data sources, which may be a key of it too
            continue
        if isinstance(node, Mapping) and part in node:
            node = node[part]
        elif isinstance(node, Sequence) and not isinstance(node, str) and isinstance(part, int):
            node = node[part] if part < len(node) else None
        elif not (last and isinstance(node, Mapping)):
            continue
        real.append(part)
    return real


def _field_names(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The fields that are valid at a location below `model`."""
    schema: Any = model.model_json_schema()
    definitions = schema.get("$defs", {})

    def open_reference(node: Any) -> Any:
        while "$ref" in node:
            node = definitions[node["$ref"].rpartition("/")[2]]
        return node

    node = schema
    for part in location:
        node = open_reference(node)
        if part in node.get("properties", {}):
            node = node["properties"][part]
        elif mapping := node.get("discriminator", {}).get("mapping", {}):
            node = {"$ref": mapping[part]} if part in mapping else node
        if options := [option for option in node.get("anyOf", []) if "$ref" in option]:
            node = options[0]  # a union, or a part that may be left out
    return list(open_reference(node).get("properties", {}))
