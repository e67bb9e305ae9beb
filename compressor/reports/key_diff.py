"""What makes two keys differ: part by part, and through their inputs to where it began."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compressor.engine.past_run import KeyParts
from compressor.engine.provenance import MISSING, Difference, differences

_DIGEST = re.compile(r"[0-9a-f]{40,64}")
_LONGEST = 60
"""Characters of a value that are shown."""


@dataclass(frozen=True)
class Side:
    """One of the two runs whose keys are compared: what its keys were made of, and their names."""

    parts: Callable[[str], KeyParts | None]
    name: Callable[[str], str | None]


@dataclass(frozen=True)
class Cause:
    """Why a stage's key differs from another's: what differs in its own parts, and its inputs."""

    name: str
    """What the later run calls the stage."""
    differences: tuple[Difference, ...] = ()
    """Of its own parts: what it is told, its data, its version, the frameworks …"""
    inputs: tuple[tuple[str, Cause], ...] = ()
    """(role, why that input's key differs)."""
    unknown: str | None = None
    """Why it cannot be told, where it cannot."""

    def as_json(self) -> dict[str, Any]:
        return {
            "stage": self.name,
            "differences": [
                {
                    "path": each.path,
                    "before": None if each.before is MISSING else each.before,
                    "after": None if each.after is MISSING else each.after,
                    "text": written(each),
                }
                for each in self.differences
            ],
            "inputs": {role: cause.as_json() for role, cause in self.inputs},
            "unknown": self.unknown,
        }

    def chains(self) -> list[str]:
        """A sentence for each place where a difference began, each place once.

        Such as "its model prune differs, because its model base differs:
        parameters.learning_rate 0.001 → 0.0015".
        """
        seen: set[str] = set()
        found = []
        for links, end in sorted(self._ends(), key=lambda each: len(each[0])):
            if end.name not in seen:
                seen.add(end.name)
                found.append(_sentence(links, end))
        return found

    def _ends(self) -> Iterator[tuple[tuple[tuple[str, str], ...], Cause]]:
        """Paths of (role, stage) to each cause that has differences of its own."""
        if self.differences or self.unknown or not self.inputs:
            yield (), self
        for role, cause in self.inputs:
            for links, end in cause._ends():
                yield ((role, cause.name), *links), end


def _sentence(links: tuple[tuple[str, str], ...], end: Cause) -> str:
    whats = "; ".join(map(written, end.differences))
    what = end.unknown if end.unknown is not None else whats or "nothing that is known"
    if not links:
        return what
    steps = ", because ".join(f"{_input(role, name)} differs" for role, name in links)
    return f"{steps}: {what}"


def _input(role: str, name: str) -> str:
    """What a sentence calls an input; a report on all models at once has each by its name."""
    return f"its model {name}" if role in {"model", name} else f"its {role!r}, {name},"


def cause(name: str, before: str, after: str, earlier: Side, later: Side) -> Cause:
    """Why the key `after` of the later side's stage `name` is not the earlier one's `before`."""
    return _Search(earlier, later, {}).cause(name, before, after)


@dataclass(frozen=True)
class _Search:
    earlier: Side
    later: Side
    known: dict[tuple[str, str], Cause]

    def cause(self, name: str, before: str, after: str) -> Cause:
        pair = before, after
        if pair not in self.known:
            self.known[pair] = self._cause(name, before, after)
        return self.known[pair]

    def _cause(self, name: str, before: str, after: str) -> Cause:
        one, other = self.earlier.parts(before), self.later.parts(after)
        if one is None or other is None:
            whose = "earlier" if one is None else "later"
            return Cause(name, unknown=f"what the {whose} one was made of is no longer known")
        if one.get("stage") != other.get("stage"):  # then no setting of one is one of the other's
            return Cause(name, (Difference("stage", one.get("stage"), other.get("stage")),))
        own = tuple(differences(_own(one), _own(other)))
        reads, read = inputs(one), inputs(other)
        shared = [role for role in read if role in reads and read[role] != reads[role]]
        changed = [
            Difference(f"inputs.{role}", self._named(reads, role), self._named(read, role))
            for role in dict.fromkeys([*reads, *read])
            if (role in reads) != (role in read)
        ]
        followed = tuple((role, self._input(role, reads[role], read[role])) for role in shared)
        return Cause(name, (*own, *changed), followed)

    def _input(self, role: str, before: str, after: str) -> Cause:
        return self.cause(self.later.name(after) or role, before, after)

    def _named(self, keys: Mapping[str, str], role: str) -> Any:
        key = keys.get(role)
        return MISSING if key is None else self.later.name(key) or self.earlier.name(key) or key


def _own(parts: KeyParts) -> dict[str, Any]:
    return {name: value for name, value in parts.items() if name != "inputs"}


def inputs(parts: KeyParts) -> dict[str, str]:
    """Role → key of an input; of a report on all models at once the role is the model's node."""
    found = parts.get("inputs") or {}
    return dict(found) if isinstance(found, Mapping) else {str(node): key for node, key in found}


def written(difference: Difference) -> str:
    """A difference in words, such as `parameters.epochs 2 → 3` or `data.train: other rows`."""
    path, before, after = difference.path, difference.before, difference.after
    if re.fullmatch(r"data\.\w+\.content\.(sha256|commit)", path):
        split = path.split(".")[1]
        return f"data.{split}: other rows (the data set has changed)"
    if path.startswith("data.") and ".content." in path:
        return f"{path.replace('.content.', '.')} {_value(before)} → {_value(after)}: other rows"
    if path == "version":
        return f"version of the stage {_value(before)} → {_value(after)}: its results changed"
    if _is_digest(before) and _is_digest(after):
        return f"{path}: other content"
    return f"{path} {_value(before)} → {_value(after)}"


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _value(value: Any) -> str:
    if value is MISSING:
        return "nothing"
    text = value if isinstance(value, str) and value else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 2]} …"
