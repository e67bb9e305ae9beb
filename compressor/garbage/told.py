"""What `compressor gc` did, for a person and as JSON. Nothing is found or removed here."""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from compressor.garbage.removal import Asked, Collected, Removal
from compressor.pages.numbers import shown
from compressor.store import Store

if TYPE_CHECKING:
    from rich.console import Console

_ROWS = 40
"""Of the list, on a terminal or not; `--json` has all."""
_LARGEST = 3
_QUIET = {"lock", "temporary", "trash"}
"""Kinds that are counted, and not listed."""


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count} B" if count < 1000 else shown("bytes", [count])[0]


def print_collected(
    found: Collected, store: Store, asked: Asked, console: Console, *, dry_run: bool
) -> None:
    """The list of what went or would go, the totals, and what is kept and why."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    listed = [each for each in found.removed if each.item.kind not in _QUIET]
    listed.sort(key=lambda each: -each.item.bytes)
    if listed:
        _print_list(listed[:_ROWS], console)
    if len(listed) > _ROWS:
        rest = sum(each.item.bytes for each in listed[_ROWS:])
        say(f"… and {len(listed) - _ROWS:,} more, {size(rest)}; --json lists all")
    counts = Counter(each.item.kind for each in found.removed)
    what = ", ".join(_counted(count, kind) for kind, count in sorted(counts.items()))
    left = found.bytes_before - found.bytes_freed
    verb = "would remove" if dry_run else "removed"
    say(f"{verb} {what or 'nothing'}: {size(found.bytes_freed)}; {store.folder} has {size(left)}")
    kept = ", ".join(f"{count:,} {why}" for why, count in sorted(found.kept.items()))
    say(f"kept: {kept or 'nothing'}")
    for reason in found.failed:
        say(f"could not be removed: {reason}")
    too_large = asked.max_size is not None and left > asked.max_size
    if found.largest and (too_large or not listed):
        alone = ", ".join(f"{folder} ({size(b)})" for folder, b in found.largest[:_LARGEST])
        say(f"to free more, delete run folders, and give this again; these alone keep: {alone}")


def _print_list(removed: list[Removal], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("what", "stage", "name", "size", "age", "why", header_style="bold")
    table.columns[3].justify = table.columns[4].justify = "right"
    now = time.time()
    for each in removed:
        item = each.item
        what = f"{item.kind} {item.path.name[:12]}"
        cells = (what, item.stage or "", item.name or "", size(item.bytes))
        table.add_row(*map(Text, (*cells, _age(item.age(now), item.used), each.why)))
    console.print(table)


def _age(seconds: float, used: float) -> str:
    if math.isinf(used):
        return "unknown"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s"


_MANY = {"unfinished": "unfinished", "damaged": "damaged", "trash": "left by an earlier gc"}


def _counted(count: int, kind: str) -> str:
    name = {"lock": "lock file", "temporary": "temporary file"}.get(kind, kind)
    return f"{count:,} {_MANY.get(kind) or (name if count == 1 else name + 's')}"


def as_json(found: Collected, *, dry_run: bool) -> dict[str, Any]:
    """All of it: sizes in bytes, ages in seconds (null where a clock was not set)."""
    now = time.time()
    return {
        "dry_run": dry_run,
        "removed": [
            {
                "path": str(each.item.path),
                "kind": each.item.kind,
                "stage": each.item.stage,
                "name": each.item.name,
                "bytes": each.item.bytes,
                "age_seconds": None if math.isinf(each.item.used) else round(each.item.age(now), 1),
                "why": each.why,
            }
            for each in found.removed
        ],
        "kept": dict(found.kept),
        "failed": found.failed,
        "bytes_before": found.bytes_before,
        "bytes_freed": found.bytes_freed,
        "kept_by_one_alone": {str(folder): b for folder, b in found.largest},
    }
