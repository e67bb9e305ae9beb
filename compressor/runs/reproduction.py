"""Compare a run with the one that was to make the same: keys, metrics, files. Nothing runs here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from compressor.core.console import Console
from compressor.core.differences import MISSING, find_differing_leaves
from compressor.core.numbers import is_number
from compressor.engine.past_run import Record, RunRecord
from compressor.reports.key_diff import Cause
from compressor.reports.tables import Column, make_names, print_columns
from compressor.stages.base import SIZES

OF_ONE_MOMENT = re.compile(
    r"(^|[._])(seconds|per_second|ms|speedup|joules|watts|resident_bytes|peak_bytes)([._]|$)"
    r"|(^|\.)(resumed|changes_of_processes)(\.|$)"
)
"""Metrics of the machine at one moment, or of how often a run was killed: not of the result."""
_MEASURING = "benchmark"
"""The stage that measures the machine: all of its metrics and files are of one moment."""
RELATIVE, ABSOLUTE = 1e-6, 1e-9
"""Two numbers are the same but for rounding within these."""


@dataclass(frozen=True)
class Metric:
    """A metric that is not the same to the last bit."""

    path: str
    before: Any
    after: Any
    verdict: Literal["rounding", "different"]


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
    """Whether it measures the machine at one moment, so that nothing is compared."""
    seconds: tuple[float | None, float | None] = (None, None)
    computed_with: tuple[Mapping[str, int] | None, Mapping[str, int] | None] = (None, None)
    """Processes, and threads of each; None of a run from before they were recorded."""

    @property
    def equal(self) -> bool:
        """Whether all that should be equal is: of what measures the machine, that it is there."""
        is_same = self.same_key and not self.metrics and not self.files
        return self.there == "both" and (self.measures or is_same)


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
        """Whether everything that should be equal is, as far as the recorded run came."""
        return all(o.equal for o in self.outcomes if self.finished or o.there != "new")

    def as_json(self) -> dict[str, Any]:
        """Describe it as `reproduction.json` has it, and `reproduce --json` prints it."""
        stages = [asdict(outcome) | {"equal": outcome.equal} for outcome in self.outcomes]
        for metric in (metric for stage in stages for metric in stage["metrics"]):
            metric |= {key: None for key, value in metric.items() if value is MISSING}
            metric["found"] = metric.pop("verdict")
        return {
            "recorded": str(self.recorded),
            "made": str(self.made),
            "equal": self.equal,
            "recorded_finished": self.finished,
            "stages": stages,
        }


def compare_runs(before: RunRecord, after: RunRecord, causes: Mapping[str, Cause]) -> Reproduction:
    """Compare two runs, stage by stage; `causes`: node → why its key differs."""
    ours, theirs = ({r["name"]: r for r in run.records} for run in (before, after))
    outcomes = []
    for name in dict.fromkeys([*ours, *theirs]):
        one, other = ours.get(name), theirs.get(name)
        if one is None or other is None:
            outcomes.append(Outcome(name, "recorded" if other is None else "new"))
        else:
            cause = causes.get(name) or causes.get(after.name_of(other["key"]) or "")
            outcomes.append(_compare_stages(before, after, one, other, cause))
    finished = before.status.ended == "finished"
    return Reproduction(before.folder, after.folder, finished, tuple(outcomes))


def _compare_stages(
    before: RunRecord, after: RunRecord, one: Record, other: Record, cause: Cause | None
) -> Outcome:
    measures = one["stage"] == _MEASURING
    chains = [] if cause is None else cause.chains()
    files = None if measures else _compare_files(before, after, one, other)
    return Outcome(
        one["name"],
        same_key=one["key"] == other["key"],
        because=chains[0] if chains else None,
        metrics=() if measures else tuple(_compare_metrics(one, other)),
        files=() if files is None else tuple(files[0]),
        compared_files=None if files is None else files[1],
        measures=measures,
        seconds=(one["made_in_seconds"], other["made_in_seconds"]),
        computed_with=(one.get("computed_with"), other.get("computed_with")),
    )


def _compare_files(
    before: RunRecord, after: RunRecord, one: Record, other: Record
) -> tuple[list[str], int] | None:
    """List files that are not the same bit for bit, and count all; None where not known."""
    manifests = before.manifest(one["key"]), after.manifest(other["key"])
    if manifests[0] is None or manifests[1] is None:
        return None
    ours, theirs = manifests[0]["files"], manifests[1]["files"]
    names = sorted({*ours, *theirs})
    return [name for name in names if ours.get(name) != theirs.get(name)], len(names)


def _compare_metrics(one: Record, other: Record) -> Iterator[Metric]:
    """List the metrics that differ, those of one moment left out."""
    sides = [{key: r[key] for key in SIZES} | r["metrics"] for r in (one, other)]
    for path, (before, after) in find_differing_leaves(sides, in_lists=True).items():
        if not OF_ONE_MOMENT.search(path):
            near = (
                is_number(before)
                and is_number(after)
                and math.isclose(before, after, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
            )
            yield Metric(path, before, after, "rounding" if near else "different")


def print_reproduction(reproduction: Reproduction, console: Console) -> None:
    """Print a row for each stage, then what differs, then the verdict."""
    outcomes = reproduction.outcomes
    columns = [
        Column("key", [_describe_key(o) for o in outcomes], "left"),
        Column("metrics", [_describe_metrics(o) for o in outcomes], "left"),
        Column("files", [_describe_files(o) for o in outcomes], "left"),
        *(
            Column(heading, ["" if (s := o.seconds[i]) is None else f"{s:.1f}" for o in outcomes])
            for i, heading in enumerate(("seconds then", "now"))
        ),
    ]
    print_columns(make_names("stage", [o.name for o in outcomes]), columns, console)
    for outcome in outcomes:
        for sentence in _list_differences(outcome):
            console.say(f"{outcome.name}: {sentence}")
    if unknown := ", ".join(o.name for o in outcomes if _describe_files(o) == "not known"):
        console.say(f"not compared, since they are in the store no more: files of {unknown}")
    if not reproduction.finished:
        console.say("the recorded run did not finish: what it did not reach could not be compared")
    same = "everything that should be equal is equal" if reproduction.equal else "not the same"
    console.say(f"{same}: {reproduction.made} and {reproduction.recorded}")


def _list_differences(outcome: Outcome) -> Iterator[str]:
    if outcome.because is not None:
        yield f"another key: {outcome.because}"
    for metric in outcome.metrics:
        how = "only rounded otherwise" if metric.verdict == "rounding" else "different"
        yield f"{metric.path} {metric.before!r} → {metric.after!r}, {how}"
    for name in outcome.files:
        yield f"{name} is another file"
    then, now = outcome.computed_with
    if not outcome.equal and outcome.same_key and then and now and then != now:
        yield (
            f"computed with {_format_counts(then)} then and {_format_counts(now)} now, which take "
            "sums in another order: last bits may differ, and what hangs on them"
        )


def _format_counts(computed_with: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in computed_with.items())


def _describe_key(outcome: Outcome) -> str:
    if outcome.there != "both":
        return "only then" if outcome.there == "recorded" else "only now"
    return "same" if outcome.same_key else "differs"


def _describe_metrics(outcome: Outcome) -> str:
    if outcome.there != "both":
        return ""
    if not outcome.metrics:
        return "of one moment" if outcome.measures else "same"
    different = sum(metric.verdict == "different" for metric in outcome.metrics)
    rounded = len(outcome.metrics) - different
    counts = ((different, "different"), (rounded, "by rounding"))
    return ", ".join(f"{count} {word}" for count, word in counts if count)


def _describe_files(outcome: Outcome) -> str:
    if outcome.there != "both":
        return ""
    if outcome.compared_files is None:
        return "" if outcome.measures else "not known"
    if outcome.files:
        return f"{len(outcome.files)} of {outcome.compared_files} differ"
    return f"{outcome.compared_files} bit for bit"
