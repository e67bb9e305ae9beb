"""What pydantic finds wrong with values, as (path, message) in a person's words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from compressor.errors import nearest


def validation_problems(
    error: ValidationError, model: type[BaseModel], values: Any
) -> list[tuple[str, str]]:
    """(key path, message) of each of pydantic's errors, in a recipe's words."""
    problems = []
    for item in error.errors(include_url=False):
        location = _real_location([part for part in item["loc"] if part != "[key]"], values)
        path, kind = ".".join(map(str, location)), item["type"]
        if kind == "extra_forbidden":
            owner = _field_names(model, item["loc"][:-1])
            problems.append((path, f"no such key; {nearest(str(item['loc'][-1]), owner)}"))
        elif kind == "missing":
            problems.append((path, "is missing, and has no default"))
        elif kind.startswith("union_tag"):
            expected = item.get("ctx", {}).get("expected_tags", "")
            tag = str(item.get("ctx", {}).get("tag", ""))
            names = re.findall(r"'([^']+)'", str(expected))
            hint = nearest(tag, names) if names else "expected a number or a mapping"
            problems.append((path, f"{tag!r} is not valid; {hint}" if tag else hint))
        else:
            message = item["msg"].removeprefix("Value error, ")
            shown = repr(item["input"])
            shown = shown if len(shown) <= 60 else shown[:57] + "…"
            problems.append((path, f"{message[0].lower()}{message[1:]}, got {shown}"))
    return list(dict.fromkeys(problems))


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
