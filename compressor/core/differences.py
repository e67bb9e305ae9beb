"""Find where nested values differ, key by key: recipes, what keys were made of, metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Missing(Enum):
    """Stands for a value where the other side alone has the key."""

    MISSING = "(not there)"

    def __repr__(self) -> str:
        return self.value


MISSING = Missing.MISSING


@dataclass(frozen=True)
class Difference:
    """A key path, such as `stages.prune.amounts.lm_head`, and its value on either side."""

    path: str
    before: Any
    after: Any


def find_differences(before: Any, after: Any, path: str = "") -> list[Difference]:
    """List every key whose value differs, in the order of `before`, then of `after`.

    All but a mapping, lists too, is one value. 1 equals 1.0, and NaN itself, but not 1 True.
    """
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        return [] if _are_equal(before, after) else [Difference(path, before, after)]
    return [
        difference
        for key in dict.fromkeys([*before, *after])
        for difference in find_differences(
            before.get(key, MISSING), after.get(key, MISSING), _join(path, key)
        )
    ]


def find_differing_leaves(
    values: Sequence[Any], *, in_lists: bool = False
) -> dict[str, tuple[Any, ...]]:
    """Map each innermost key that is not equal in all values to what each has, MISSING included.

    With `in_lists` each place of a list is a key.
    """
    leaves = [dict(flatten(value, in_lists=in_lists)) for value in values]
    paths = dict.fromkeys(path for flat in leaves for path in flat)
    # An empty mapping here, and one with keys there: the keys say it.
    parents = {path.rpartition(".")[0] for path in paths}
    rows = {path: tuple(flat.get(path, MISSING) for flat in leaves) for path in paths}
    return {
        path: row
        for path, row in rows.items()
        if path not in parents and not all(_are_equal(row[0], other) for other in row[1:])
    }


def flatten(value: Any, path: str = "", *, in_lists: bool = False) -> Iterator[tuple[str, Any]]:
    """Give the path and value of each innermost key; an empty mapping is a value."""
    if isinstance(value, list | tuple) and in_lists:
        value = dict(enumerate(value)) or value
    if isinstance(value, Mapping) and (value or not path):
        for key, inner in value.items():
            yield from flatten(inner, _join(path, key), in_lists=in_lists)
    else:
        yield path, value


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _are_equal(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_are_equal(one[key], other[key]) for key in one)
    lists = isinstance(one, Sequence) and isinstance(other, Sequence)
    if lists and not isinstance(one, str) and not isinstance(other, str):
        return len(one) == len(other) and all(map(_are_equal, one, other))
    return bool(one == other or (one != one and other != other))  # NaN
