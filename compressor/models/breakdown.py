"""Where the weights of a model stand: their group and their layer. Nothing is counted here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from compressor.models.facts import Facts
from compressor.models.structure import Stack

EMBEDDING, OTHER = "embedding", "other"
"""Groups of what no pruning group has: tables that words are looked up in; norms, biases, …"""


class Location(NamedTuple):
    """A group, such as `encoder.self_attention`, and the number of a layer, or None without one."""

    group: str
    layer: int | None


class TensorCounts(NamedTuple):
    """What one tensor adds to its place."""

    name: str
    weights: int
    nonzero: int


def locate_parameters(facts: Facts) -> dict[str, Location]:
    """Map what is in a group or is an embedding to its place.

    A parameter of several groups goes by the first, and groups of parts come before their unions.
    """
    stacks = facts.list_stacks().values()
    places: dict[str, Location] = {}
    for group, names in facts.list_groups().items():
        for name in names:
            places.setdefault(name, Location(group, _find_layer(name, stacks)))
    return dict.fromkeys(facts.word_embeddings(), Location(EMBEDDING, None)) | places


def _find_layer(name: str, stacks: Iterable[Stack]) -> int | None:
    for stack in stacks:
        if name.startswith(f"{stack.prefix}."):
            return int(name[len(stack.prefix) + 1 :].split(".", 1)[0])
    return None


def sum_by_location(
    facts: Facts, counts: Iterable[TensorCounts]
) -> dict[str, dict[str, list[int | None]]]:
    """Group → `layers` (ascending; None without one), and `weights` and `nonzero` of each.

    Every count is in exactly one place; what `locate_parameters` does not know is in `OTHER`.
    """
    where, ties = locate_parameters(facts), facts.list_ties()
    sums: dict[Location, list[int]] = {}
    for name, weights, nonzero in counts:
        place = where.get(name) or where.get(ties.get(name, name)) or Location(OTHER, None)
        total = sums.setdefault(place, [0, 0])
        total[0] += weights
        total[1] += nonzero
    order = [*facts.list_groups(), EMBEDDING, OTHER]
    groups: dict[str, dict[str, list[int | None]]] = {}
    for place in sorted(sums, key=lambda p: (order.index(p.group), p.layer or 0)):
        group = groups.setdefault(place.group, {"layers": [], "weights": [], "nonzero": []})
        for key, value in zip(group, (place.layer, *sums[place]), strict=True):
            group[key].append(value)
    return groups
