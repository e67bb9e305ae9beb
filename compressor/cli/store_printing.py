"""Print what `compressor gc` and `compressor doctor` have done, for a person and as JSON."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compressor.core.numbers import format_bytes
from compressor.engine.store.gc import GcResult, Limits, Removal
from compressor.engine.store.integrity import Finding, State
from compressor.engine.store.store import Store

if TYPE_CHECKING:
    from compressor.core.console import Console

_ROWS = 40
"""Of a list, on a terminal or not; `--json` has all."""
_LARGEST = 3
_UNLISTED_KINDS = {"lock", "temporary", "trash"}
_PLURALS = {"unfinished": "unfinished", "damaged": "damaged", "trash": "left by an earlier gc"}
_COLOURS: dict[State, str] = {"ok": "green", "warning": "yellow", "error": "bold red"}


def print_gc_result(
    result: GcResult, store: Store, limits: Limits, console: Console, *, dry_run: bool
) -> None:
    """Print the list of what went or would go, the totals, and what is kept and why."""
    listed = [removal for removal in result.removed if removal.item.kind not in _UNLISTED_KINDS]
    listed.sort(key=lambda removal: -removal.item.bytes)
    if listed:
        _print_removals(listed[:_ROWS], console)
    if len(listed) > _ROWS:
        rest = sum(removal.item.bytes for removal in listed[_ROWS:])
        console.say(f"… and {len(listed) - _ROWS:,} more, {format_bytes(rest)}; --json lists all")
    counts = Counter(removal.item.kind for removal in result.removed)
    what = ", ".join(_count(number, kind) for kind, number in sorted(counts.items()))
    left = result.bytes_before - result.bytes_freed
    verb, freed = "would remove" if dry_run else "removed", format_bytes(result.bytes_freed)
    console.say(f"{verb} {what or 'nothing'}: {freed}; {store.folder} has {format_bytes(left)}")
    kept = ", ".join(f"{count:,} {why}" for why, count in sorted(result.kept.items()))
    console.say(f"kept: {kept or 'nothing'}")
    for reason in result.failed:
        console.say(f"could not be removed: {reason}")
    is_too_large = limits.max_size is not None and left > limits.max_size
    if result.largest and (is_too_large or not listed):
        largest = result.largest[:_LARGEST]
        sizes = ", ".join(f"{folder} ({format_bytes(size)})" for folder, size in largest)
        what = "to free more, delete run folders, then run this again; only these keep"
        console.say(f"{what}: {sizes}")


def _print_removals(removals: Sequence[Removal], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("what", "stage", "name", "size", "age", "why", header_style="bold")
    table.columns[3].justify = table.columns[4].justify = "right"
    now = time.time()
    for removal in removals:
        item = removal.item
        what = f"{item.kind} {item.path.name[:12]}"
        cells = (what, item.stage or "", item.name or "", format_bytes(item.bytes))
        table.add_row(*map(Text, (*cells, _format_age(item.age(now), item.used), removal.why)))
    console.print(table)


def _format_age(seconds: float, used: float) -> str:
    if math.isinf(used):
        return "unknown"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s"


def _count(number: int, kind: str) -> str:
    name = {"lock": "lock file", "temporary": "temporary file"}.get(kind, kind)
    return f"{number:,} {_PLURALS.get(kind) or (name if number == 1 else name + 's')}"


def _removal_as_json(removal: Removal) -> dict[str, Any]:
    item = removal.item
    age = None if math.isinf(item.used) else round(item.age(time.time()), 1)
    names = ("kind", "stage", "name", "bytes")
    about = {name: getattr(item, name) for name in names}
    return {"path": str(item.path), **about, "age_seconds": age, "why": removal.why}


def gc_as_json(result: GcResult, *, dry_run: bool) -> dict[str, Any]:
    """Describe a `gc`: sizes in bytes, ages in seconds (null where a clock was not set)."""
    return {
        "dry_run": dry_run,
        "removed": [_removal_as_json(removal) for removal in result.removed],
        "kept": dict(result.kept),
        "failed": result.failed,
        "bytes_before": result.bytes_before,
        "bytes_freed": result.bytes_freed,
        "kept_by_one_alone": {str(folder): size for folder, size in result.largest},
    }


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print each finding of `doctor`, what to do under it, and how many there are of each state."""
    from rich.text import Text

    for area in dict.fromkeys(finding.area for finding in findings):
        console.say(Text(area, "bold"))
        for state, colour in _COLOURS.items():
            rows = [f for f in findings if (f.area, f.state) == (area, state)]
            if area == "versions" and state == "ok":  # in one line: nobody reads thirty
                rows = [Finding(area, state, ", ".join(f"{f.place} {f.message}" for f in rows))]
            for row in rows[:_ROWS]:
                place = f"{row.place}: " if row.place else ""
                state_text = (f"  {state:<7} ", colour)
                console.say(Text.assemble(state_text, place + row.message))
                if row.cure:
                    console.say(f"          → {row.cure}")
            if len(rows) > _ROWS:
                console.say(f"  … and {len(rows) - _ROWS:,} more; --json lists all")
    counts = {state: sum(f.state == state for f in findings) for state in _COLOURS}
    console.say(", ".join(f"{number:,} {state}" for state, number in counts.items()))
