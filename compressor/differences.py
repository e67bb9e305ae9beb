"""Where two nested values differ, key by key: two recipes, or what two keys were made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class Missing:
    """Stands for a value where the other side alone has the key."""

    def __repr__(self) -> str:
        return "(not there)"

    def __reduce__(self) -> str:
        """A copy, such as `dataclasses.asdict` makes, is `MISSING` itself."""
        return "MISSING"


MISSING = Missing()


@dataclass(frozen=True)
class Difference:
    """A key path, such as `stages.prune.amounts.lm_head`, and its value on either side."""

    path: str
    before: Any
    after: Any


def differences(before: Any, after: Any, path: str = "") -> list[Difference]:
    """Every innermost key whose value differs, in the order of `before`, then of `after`.

    Mappings are compared key by key. All else, lists too, is one value: an order of stages, or a
    set of `max_length`s, is read whole. A number equals another of its value (1 and 1.0), but no
    truth value does (1 and True).
    """
    return list(_differences(before, after, path))


def _differences(before: Any, after: Any, path: str) -> Iterator[Difference]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            inner = f"{path}.{key}" if path else str(key)
            yield from _differences(before.get(key, MISSING), after.get(key, MISSING), inner)
    elif not _equal(before, after):
        yield Difference(path, before, after)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    lists = isinstance(one, Sequence) and isinstance(other, Sequence)
    if lists and not isinstance(one, str) and not isinstance(other, str):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
