"""A run beside the one that was to make the same: keys, metrics and files. Nothing runs here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compressor.engine.past_run import PastRun, Record
from compressor.engine.provenance import MISSING
from compressor.reports.key_diff import Cause
from compressor.reports.show import state

if TYPE_CHECKING:
    from compressor.core.console import Console

_MEASURED = re.compile(
    r"(^|_)(seconds|per_second|ms|speedup|joules|watts|resident_bytes|peak_bytes)(_|$)"
    r"|^(resumed|changes_of_processes)$"
)
"""Metrics of the machine at one moment, or of how often a run was killed: not of the result."""
_MEASURING = "benchmark"
"""The stage that measures the machine: all of its metrics and files are of one moment."""
RELATIVE, ABSOLUTE = 1e-6, 1e-9
"""Two numbers are the same but for rounding within these."""
Found = Literal["rounding", "different"]


@dataclass(frozen=True)
class Metric:
    """A metric that is not the same to the last bit."""

    path: str
    before: Any
    after: Any
    found: Found


@dataclass(frozen=True)
class Outcome:
    """One stage of the recorded run, and of the one that was made again."""

    name: str
    there: Literal["both", "recorded", "new"] = "both"
    same_key: bool = True
    because: str | None = None
    """Why the key differs."""
    metrics: tuple[Metric, ...] = ()
    files: tuple[str, ...] = ()
    """Names of files whose SHA-256 differs, or that only one of the two has."""
    compared_files: int | None = None
    """How many were compared; None where they are no longer known, or `measures`."""
    measures: bool = False
    """Whether the stage measures the machine at one moment, so that nothing of it is compared."""
    seconds: tuple[float | None, float | None] = (None, None)
    computed_with: tuple[Mapping[str, int] | None, Mapping[str, int] | None] = (None, None)
    """Processes, and threads of each; None of a run from before they were recorded."""

    @property
    def equal(self) -> bool:
        """Whether all that should be equal is: of what measures the machine, that it is there."""
        if self.measures:
            return self.there == "both"
        return self.there == "both" and self.same_key and not self.metrics and not self.files


@dataclass(frozen=True)
class Reproduction:
    """All stages of both runs."""

    recorded: Path
    made: Path
    finished: bool
    """Whether the recorded run had come to its end."""
    outcomes: tuple[Outcome, ...]

    @property
    def equal(self) -> bool:
        """Whether everything that should be equal is. What the recorded run never reached is not
        held against the new one.
        """
        return all(each.equal for each in self.outcomes if self.finished or each.there != "new")

    def as_json(self) -> dict[str, Any]:
        """What `reproduction.json` has, and `reproduce --json` prints."""
        outcomes = [asdict(each) | {"equal": each.equal} for each in self.outcomes]
        for outcome in outcomes:
            for metric in outcome["metrics"]:
                for side in ("before", "after"):
                    metric[side] = None if metric[side] is MISSING else metric[side]
        return {
            "recorded": str(self.recorded),
            "made": str(self.made),
            "equal": self.equal,
            "recorded_finished": self.finished,
            "stages": outcomes,
        }


def reproduction(before: PastRun, after: PastRun, causes: Mapping[str, Cause]) -> Reproduction:
    """Compare two runs, stage by stage; `causes`: node → why its key differs."""
    ours = {record["name"]: record for record in before.records}
    theirs = {record["name"]: record for record in after.records}
    outcomes = []
    for name in dict.fromkeys([*ours, *theirs]):
        one, other = ours.get(name), theirs.get(name)
        if one is not None and other is not None:
            chains = _chains(causes, name, after.name_of(other["key"]))
            outcomes.append(_outcome(before, after, one, other, chains))
        else:
            outcomes.append(Outcome(name, "recorded" if other is None else "new"))
    finished = state(before).ended == "finished"
    return Reproduction(before.folder, after.folder, finished, tuple(outcomes))


def _chains(causes: Mapping[str, Cause], *names: str | None) -> list[str]:
    found = next((causes[name] for name in names if name is not None and name in causes), None)
    return [] if found is None else found.chains()


def _outcome(
    before: PastRun, after: PastRun, one: Record, other: Record, chains: list[str]
) -> Outcome:
    measures = one["stage"] == _MEASURING
    files = None if measures else _files(before, after, one, other)
    return Outcome(
        one["name"],
        same_key=one["key"] == other["key"],
        because=chains[0] if chains else None,
        metrics=tuple(_metrics(one, other)),
        files=() if files is None else tuple(files[0]),
        compared_files=None if files is None else files[1],
        measures=measures,
        seconds=(one["made_in_seconds"], other["made_in_seconds"]),
        computed_with=(one.get("computed_with"), other.get("computed_with")),
    )


def _files(
    before: PastRun, after: PastRun, one: Record, other: Record
) -> tuple[list[str], int] | None:
    """Files that are not the same bit for bit, and how many there are; None where not known."""
    manifests = before.manifest(one["key"]), after.manifest(other["key"])
    if manifests[0] is None or manifests[1] is None:
        return None
    ours, theirs = (each["files"] for each in manifests if each is not None)
    names = sorted({*ours, *theirs})
    differ = [
        name
        for name in names
        if ours.get(name, {}).get("sha256") != theirs.get(name, {}).get("sha256")
    ]
    return differ, len(names)


def _metrics(one: Record, other: Record) -> Iterator[Metric]:
    """The metrics that differ, those of a moment left out."""
    if one["stage"] == _MEASURING:
        return
    sizes = ("parameters", "nonzero", "nonzero_ratio", "bytes")
    ours, theirs = (
        dict(_leaves({key: r[key] for key in sizes} | r["metrics"])) for r in (one, other)
    )
    for path in dict.fromkeys([*ours, *theirs]):
        before, after = ours.get(path, MISSING), theirs.get(path, MISSING)
        found = _difference(before, after)
        if found is not None and not any(map(_MEASURED.search, path.split("."))):
            yield Metric(path, before, after, found)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping | list) and value:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _difference(before: Any, after: Any) -> Found | None:
    """None where two values are the same: NaN is the same as NaN, and True is not 1."""
    numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in (before, after)]
    if all(numbers):
        if before == after or (math.isnan(before) and math.isnan(after)):
            return None
        near = math.isclose(before, after, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
        return "rounding" if near else "different"
    return None if type(before) is type(after) and before == after else "different"


def print_reproduction(found: Reproduction, console: Console) -> None:
    """A row for each stage, then what differs, then the verdict."""
    from compressor.reports.tables import NAME_WIDTH, Column, print_columns

    rows = found.outcomes
    columns = [
        Column("key", [_key(each) for each in rows], "left"),
        Column("metrics", [_metrics_text(each) for each in rows], "left"),
        Column("files", [_files_text(each) for each in rows], "left"),
        Column("seconds then", [_seconds(each.seconds[0]) for each in rows]),
        Column("now", [_seconds(each.seconds[1]) for each in rows]),
    ]
    print_columns(Column("stage", [e.name for e in rows], "left", NAME_WIDTH), columns, console)
    for each in rows:
        if each.because is not None:
            console.say(f"{each.name}: another key: {each.because}")
        for metric in each.metrics:
            what = "only rounded otherwise" if metric.found == "rounding" else "different"
            console.say(f"{each.name}: {metric.path} {metric.before!r} → {metric.after!r}, {what}")
        for name in each.files:
            console.say(f"{each.name}: {name} is another file")
        then, now = each.computed_with
        if not each.equal and each.same_key and then and now and then != now:
            console.say(
                f"{each.name}: computed with {_with(then)} then and {_with(now)} now, which take "
                "sums in another order: last bits may differ, and what hangs on them"
            )
    unknown = [e.name for e in rows if _files_text(e) == "not known"]
    if unknown:
        console.say(
            f"not compared, since they are in the store no more: files of {', '.join(unknown)}"
        )
    if not found.finished:
        console.say("the recorded run did not finish: what it did not reach could not be compared")
    same = "everything that should be equal is equal"
    console.say(f"{same if found.equal else 'not the same'}: {found.made} and {found.recorded}")


def _with(computed: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in computed.items())


def _key(each: Outcome) -> str:
    words = {"recorded": "only then", "new": "only now", "both": ""}
    return words[each.there] or ("same" if each.same_key else "differs")


def _metrics_text(each: Outcome) -> str:
    if each.there != "both":
        return ""
    different = sum(metric.found == "different" for metric in each.metrics)
    rounded = len(each.metrics) - different
    if not each.metrics:
        return "of one moment" if each.measures else "same"
    parts = [f"{different} different"] * bool(different) + [f"{rounded} by rounding"] * bool(
        rounded
    )
    return ", ".join(parts)


def _files_text(each: Outcome) -> str:
    if each.there != "both":
        return ""
    if each.compared_files is None:
        return "" if each.measures else "not known"
    if each.files:
        return f"{len(each.files)} of {each.compared_files} differ"
    return f"{each.compared_files} bit for bit"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
