"""What a person reads of a rehearsal: a line for each stage, and how it differs from the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from compressor.architectures import Facts
from compressor.differences import Difference
from compressor.stages.load import Load

if TYPE_CHECKING:
    from compressor.rehearsal.rehearse import Rehearsal


@dataclass
class Line:
    """A stage of the table."""

    name: str
    kind: str
    passed: bool | None = None
    """None: it was not reached."""
    seconds: float = 0.0
    checks: list[str] = field(default_factory=list)


MARKS = {True: Text("✓", "green"), False: Text("✗", "bold red"), None: Text("–", "dim")}


def print_result(rehearsal: Rehearsal, console: Console, seconds: float, *, failed: bool) -> None:
    """The table, what differs from the real run, and what was not reached."""
    table = Table("stage", "", "seconds", "checked", header_style="bold")
    table.columns[2].justify = "right"
    for line in rehearsal.lines:
        took = "" if line.passed is None else f"{line.seconds:.1f}"
        checks = "not reached" if line.passed is None else "\n".join(line.checks)
        table.add_row(Text(line.name), MARKS[line.passed], took, Text(checks))
    console.print(table)
    console.print(Text("The rehearsal differs from the run in:", "bold"))
    for text in _differences(rehearsal):
        console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)
    word = "failed" if failed else "passed"
    console.print(f"rehearsal {word}, {seconds:.0f} s", highlight=False, markup=False)


def _differences(rehearsal: Rehearsal) -> Iterator[str]:
    yield from rehearsal.notes
    derived = rehearsal.derived
    if derived is None:
        return
    for node in () if rehearsal.plan is None else rehearsal.plan.nodes:
        real = rehearsal.real.node(node.name).facts
        if isinstance(node.stage, Load) and real is not None and node.facts is not None:
            yield f"{node.name}: fresh, of {_size(node.facts)}; the recipe's has {_size(real)}"
    launch = rehearsal.real.composed.recipe.launch
    if launch.num_processes > 1 or launch.config_file is not None:
        yield "launch: one process"
    yield from _changes(derived.changes)


def _changes(changes: Iterable[Difference]) -> Iterator[str]:
    """A line for each change, with the names of all stages that have the same."""
    stages: dict[tuple[str, str], list[str]] = {}
    for change in changes:
        what = f"{_short(change.before)} → {_short(change.after)}"
        group, _, rest = change.path.partition(".")
        name, _, key = rest.partition(".") if group == "stages" else ("", "", change.path)
        stages.setdefault((key, what), []).append(name)
    for (key, what), names in stages.items():
        whose = f" ({', '.join(names)})" if any(names) else ""
        yield f"{key}: {what}{whose}"


def _size(facts: Facts) -> str:
    layers = " + ".join(str(stack.layers) for stack in facts.stacks().values())
    return f"{layers} layers, {facts.parameters / 1e6:.2f} M parameters ({facts.model_type})"


def _short(value: Any) -> str:
    text = "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
