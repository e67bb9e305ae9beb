"""Break counts of weights down by group and layer. Nothing is counted here: see `checkpoint`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from compressor.models.facts import Facts
from compressor.models.structure import Stack

EMBEDDING, OTHER = "embedding", "other"
"""Names for what is in no pruning group: word embeddings; norms, biases and all the rest."""


class Location(NamedTuple):
    """Where a parameter belongs: a group, such as `encoder.self_attention`, and a layer."""

    group: str
    layer: int | None
    """Its index in the stack; None outside of a stack, as for `lm_head`."""


class TensorCounts(NamedTuple):
    """The entries of one tensor: all of them, and those that are not zero."""

    name: str
    weights: int
    nonzero: int


def locate_parameters(facts: Facts) -> dict[str, Location]:
    """Map each parameter that is in a group, or is a word embedding, to its location.

    A parameter of several groups belongs to the first: `encoder.feed_forward`, not the union
    `feed_forward`, which `Facts.list_groups` lists later.
    """
    stacks = facts.list_stacks().values()
    locations: dict[str, Location] = {}
    for group, names in facts.list_groups().items():
        for name in names:
            locations.setdefault(name, Location(group, _find_layer(name, stacks)))
    return dict.fromkeys(facts.word_embeddings(), Location(EMBEDDING, None)) | locations


def _find_layer(name: str, stacks: Iterable[Stack]) -> int | None:
    """Find the index in `prefix.{index}.…`."""
    for stack in stacks:
        if name.startswith(f"{stack.prefix}."):
            return int(name[len(stack.prefix) + 1 :].split(".", 1)[0])
    return None


def sum_by_location(
    facts: Facts, counts: Iterable[TensorCounts]
) -> dict[str, dict[str, list[int | None]]]:
    """Sum counts: group → {`layers`: indices, `weights`: entries, `nonzero`: entries}.

    The three lists of a group run in parallel, by ascending layer; None is what is in no layer.
    Every tensor adds to one location; one that `locate_parameters` does not know, to `OTHER`.
    """
    locations, ties = locate_parameters(facts), facts.list_ties()
    sums: dict[Location, list[int]] = {}
    for name, weights, nonzero in counts:
        location = locations.get(name) or locations.get(ties.get(name, name))
        total = sums.setdefault(location or Location(OTHER, None), [0, 0])
        total[0] += weights
        total[1] += nonzero
    order = [*facts.list_groups(), EMBEDDING, OTHER]
    groups: dict[str, dict[str, list[int | None]]] = {}
    for location in sorted(sums, key=lambda at: (order.index(at.group), at.layer or 0)):
        group = groups.setdefault(location.group, {"layers": [], "weights": [], "nonzero": []})
        for key, value in zip(group, (location.layer, *sums[location]), strict=True):
            group[key].append(value)
    return groups
