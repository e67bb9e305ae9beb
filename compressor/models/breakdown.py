"""Where the weights of a model stand: their group and their layer. Nothing is counted here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from compressor.models.facts import Facts

EMBEDDING, OTHER = "embedding", "other"
"""Groups of what no pruning group has: tables that words are looked up in; norms, biases, …"""


class Place(NamedTuple):
    """A group, such as `encoder.self_attention`, and the number of a layer, or None without one."""

    group: str
    layer: int | None


class Count(NamedTuple):
    """What one tensor adds to its place."""

    name: str
    weights: int
    nonzero: int


def locate_parameters(facts: Facts) -> dict[str, Place]:
    """Parameter name → where it stands, for what is in a group or is an embedding.

    A parameter of several groups goes by the first, and groups of parts come before their unions.
    """
    stacks = facts.list_stacks().values()
    found: dict[str, Place] = {}
    for group, names in facts.list_groups().items():
        for name in names:
            found.setdefault(name, Place(group, _find_layer(name, stacks)))
    for name in facts.word_embeddings():
        found.setdefault(name, Place(EMBEDDING, None))
    return found


def _find_layer(name: str, stacks: Iterable[Any]) -> int | None:
    for stack in stacks:
        if name.startswith(f"{stack.prefix}."):
            return int(name[len(stack.prefix) + 1 :].split(".", 1)[0])
    return None


def by_place(facts: Facts, counts: Iterable[Count]) -> dict[str, dict[str, list[int | None]]]:
    """Group → `layers` (ascending; None without one), and `weights` and `nonzero` of each.

    Every count is in exactly one place; those that `places` does not know are in `OTHER`.
    """
    where = locate_parameters(facts)
    ties: Mapping[str, str] = facts.list_ties()
    summed: dict[Place, list[int]] = {}
    for name, weights, nonzero in counts:
        place = where.get(name) or where.get(ties.get(name, name)) or Place(OTHER, None)
        total = summed.setdefault(place, [0, 0])
        total[0] += weights
        total[1] += nonzero
    order = [*dict.fromkeys(place.group for place in where.values()), OTHER]
    found: dict[str, dict[str, list[int | None]]] = {}
    for place in sorted(summed, key=lambda p: (order.index(p.group), p.layer or 0)):
        group = found.setdefault(place.group, {"layers": [], "weights": [], "nonzero": []})
        group["layers"].append(place.layer)
        group["weights"].append(summed[place][0])
        group["nonzero"].append(summed[place][1])
    return found
