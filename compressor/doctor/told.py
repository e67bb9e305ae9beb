"""What `compressor doctor` found, for a person and as JSON. No check is here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from compressor.doctor.finding import Finding, State

if TYPE_CHECKING:
    from rich.console import Console

_ROWS = 40
"""Of each state, and area; `--json` has all."""
_COLOURS: dict[State, str] = {"ok": "green", "warning": "yellow", "error": "bold red"}


def print_findings(found: Sequence[Finding], console: Console) -> None:
    """A line for each, with what to do under it; and how many of each state."""
    from rich.markup import escape

    for area in dict.fromkeys(each.area for each in found):
        console.print(f"[bold]{area}[/bold]")
        for state, colour in _COLOURS.items():
            those = [each for each in found if (each.area, each.state) == (area, state)]
            if area == "versions" and state == "ok":  # as one line: nobody reads thirty
                line = ", ".join(f"{each.place} {each.message}" for each in those)
                those = [Finding(area, state, line)]
            for each in those[:_ROWS]:
                place = f"{each.place}: " if each.place else ""
                text = f"  [{colour}]{state:<7}[/] {escape(place + each.message)}"
                console.print(text, highlight=False, soft_wrap=True)
                if each.cure:
                    console.print(
                        f"          → {escape(each.cure)}", highlight=False, soft_wrap=True
                    )
            if len(those) > _ROWS:
                console.print(f"  … and {len(those) - _ROWS:,} more; --json lists all")
    counts = {state: sum(each.state == state for each in found) for state in _COLOURS}
    console.print(", ".join(f"{n:,} {state}" for state, n in counts.items()), highlight=False)


def as_json(found: Sequence[Finding]) -> list[dict[str, Any]]:
    """Each finding with its area, state, message, place and cure."""
    return [asdict(each) for each in found]
