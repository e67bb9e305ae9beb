"""Find what makes two keys differ: part by part, and through their inputs to where it began."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from compressor.core.differences import MISSING, Difference, find_differences
from compressor.engine.past_run import KeyParts, RunRecord

_DIGEST = re.compile(r"[0-9a-f]{40,64}")
_NAMES_IN_RECIPES = {"passes": "epochs"}
"""What a key calls a setting → what the recipe does."""
_DATA = {"empty": "error"}
"""Defaults of the data that no key has."""
_LONGEST = 60
"""Characters of a value that are shown."""


@dataclass(frozen=True)
class Side:
    """One of the two runs whose keys are compared: what its keys were made of, and their names."""

    parts: Callable[[str], KeyParts | None]
    name: Callable[[str], str | None]
    data: Mapping[str, Any] = field(default_factory=dict)
    """The recipe's settings of the data, of which keys leave out what decides nothing."""

    @classmethod
    def of(cls, run: RunRecord) -> Side:
        data = run.recipe.get("data")
        return cls(run.key_parts, run.name_of, _DATA | (data if isinstance(data, dict) else {}))

    def complete(self, path: str, value: Any, other: Any) -> Any:
        """Give a value of the data that the key left out, where it is not what the other has."""
        if value is not MISSING or not path.startswith("data."):
            return value
        setting = self.data.get(path.rpartition(".")[2], MISSING)
        return MISSING if setting == other else setting


@dataclass(frozen=True)
class Cause:
    """Why a stage's key differs from another's: what differs in its own parts, and its inputs."""

    name: str
    """What the later run calls the stage."""
    differences: tuple[Difference, ...] = ()
    """Of its own parts: its settings, its data, its version, the frameworks …"""
    inputs: tuple[tuple[str, Cause], ...] = ()
    """(role, why that input's key differs)."""
    unknown: str | None = None
    """Why it cannot be said, where it cannot."""

    def as_json(self) -> dict[str, Any]:
        differences = [asdict(part) | {"text": describe(part)} for part in self.differences]
        return {
            "stage": self.name,
            "differences": [
                {key: None if value is MISSING else value for key, value in entry.items()}
                for entry in differences
            ],
            "inputs": {role: cause.as_json() for role, cause in self.inputs},
            "unknown": self.unknown,
        }

    def chains(self) -> list[str]:
        """Write a sentence for each place where a difference began, such as "its model prune
        differs, because its model base differs: parameters.learning_rate 0.001 → 0.0015".
        """
        sentences: dict[str, str] = {}
        for links, end in sorted(self._ends(), key=lambda path: len(path[0])):
            sentences.setdefault(end.name, _write_sentence(links, end))
        return list(sentences.values())

    def _ends(self) -> Iterator[tuple[tuple[tuple[str, str], ...], Cause]]:
        """Give the path of (role, stage) to each cause that has differences of its own."""
        if self.differences or self.unknown or not self.inputs:
            yield (), self
        for role, cause in self.inputs:
            for links, end in cause._ends():
                yield ((role, cause.name), *links), end


def _write_sentence(links: tuple[tuple[str, str], ...], end: Cause) -> str:
    reason = end.unknown or "; ".join(map(describe, end.differences)) or "nothing that is known"
    if not links:
        return reason
    # A report on all models at once has each by its name.
    inputs = (f"model {n}" if role in {"model", n} else f"{role!r}, {n}," for role, n in links)
    return f"{', because '.join(f'its {text} differs' for text in inputs)}: {reason}"


def find_cause(name: str, before: str, after: str, earlier: Side, later: Side) -> Cause:
    """Find why the key `after` of the later side's stage `name` is not the earlier one's."""
    return _Search(earlier, later).find(name, before, after)


@dataclass(frozen=True)
class _Search:
    earlier: Side
    later: Side
    known: dict[tuple[str, str], Cause] = field(default_factory=dict)

    def find(self, name: str, before: str, after: str) -> Cause:
        if (before, after) not in self.known:
            self.known[before, after] = self._find(name, before, after)
        return self.known[before, after]

    def _find(self, name: str, before: str, after: str) -> Cause:
        one, other = self.earlier.parts(before), self.later.parts(after)
        if one is None or other is None:
            side = "earlier" if one is None else "later"
            return Cause(name, unknown=f"what the {side} one was made of is no longer known")
        if one.get("stage") != other.get("stage"):  # then no setting of one is one of the other's
            return Cause(name, (Difference("stage", one.get("stage"), other.get("stage")),))
        differences = [
            Difference(
                d.path,
                self.earlier.complete(d.path, d.before, d.after),
                self.later.complete(d.path, d.after, d.before),
            )
            for d in find_differences(_without_inputs(one), _without_inputs(other))
        ]
        old, new = list_inputs(one), list_inputs(other)
        for role in dict.fromkeys([*old, *new]):
            if (role in old) != (role in new):
                names = (self._name(keys.get(role)) for keys in (old, new))
                differences.append(Difference(f"inputs.{role}", *names))
        causes = tuple(
            (role, self.find(self.later.name(key) or role, old[role], key))
            for role, key in new.items()
            if role in old and key != old[role]
        )
        return Cause(name, tuple(differences), causes)

    def _name(self, key: str | None) -> Any:
        return MISSING if key is None else self.later.name(key) or self.earlier.name(key) or key


def _without_inputs(parts: KeyParts) -> dict[str, Any]:
    """Give the parts but for inputs, with settings as recipes call them."""
    settings = parts.get("parameters") or {}
    named = {_NAMES_IN_RECIPES.get(name, name): value for name, value in settings.items()}
    return {**parts, "parameters": named, "inputs": None}


def list_inputs(parts: KeyParts) -> dict[str, str]:
    """Map the role of each input to its key; of a report on all models at once, each node's."""
    return dict(parts.get("inputs") or {})


def describe(difference: Difference) -> str:
    """Say a difference, such as `parameters.epochs 2 → 3` or `data.train: other rows`."""
    path, before, after = difference.path, difference.before, difference.after
    change = f"{_shorten(before)} → {_shorten(after)}"
    if re.fullmatch(r"data\.\w+\.content\.(sha256|commit)", path):
        return f"data.{path.split('.')[1]}: other rows (the data set has changed)"
    if path.startswith("data.") and ".content." in path:
        return f"{path.replace('.content.', '.')} {change}: other rows"
    if path == "version":
        return f"version of the stage {change}: its results changed"
    if all(isinstance(side, str) and _DIGEST.fullmatch(side) for side in (before, after)):
        return f"{path}: other content"
    return f"{path} {change}"


def _shorten(value: Any) -> str:
    if value is MISSING:
        return "nothing"
    text = value if isinstance(value, str) and value else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 2]} …"
