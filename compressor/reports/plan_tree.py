"""Print a plan as a tree: which stage takes whose model, sizes, what the store has, times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from compressor.core.console import Console
from compressor.core.numbers import format_duration
from compressor.engine.plan import Node, Plan
from compressor.engine.store.timings import StageTimings
from compressor.models.facts import Facts
from compressor.stages.base import Report

HEADINGS = ("parameters", "non-zero", "MB", "time")


@dataclass(frozen=True)
class Row:
    """A node, and the lines that the tree has before its name."""

    rail: str
    node: Node


def list_rows(nodes: Sequence[Node]) -> list[Row]:
    """List the nodes of a plan, each below the one whose model it takes.

    Stages that change the model of the one before stay at one depth; where several change the same
    one, each is a branch. A report on several models at once stands at the end.
    """
    children: dict[str | None, list[Node]] = {}
    several = [node for node in nodes if _looks_at_several(node)]
    for node in nodes:
        if node not in several:
            children.setdefault(node.model, []).append(node)
    roots = children.get(None, [])
    rows = [row for node in roots for row in _list_chain(node, children, "", "")]
    return rows + [Row("", node) for node in several]


def _looks_at_several(node: Node) -> bool:
    return isinstance(node.stage, Report) and node.stage.together and len(node.artifacts) > 1


def _list_chain(
    node: Node, children: dict[str | None, list[Node]], rail: str, below: str
) -> Iterator[Row]:
    """List a node and all that hangs below it: `rail` before its name, `below` before theirs."""
    yield Row(rail, node)
    hanging = list(children.get(node.name, []))
    chain = [child for child in hanging if child.stage.changes_model]
    goes_on = chain[0] if len(chain) == 1 else None
    if goes_on is not None:
        hanging.remove(goes_on)
    for index, child in enumerate(hanging):
        is_last = index == len(hanging) - 1 and goes_on is None
        branch, under = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        yield from _list_chain(child, children, below + branch, below + under)
    if goes_on is not None:
        yield from _list_chain(goes_on, children, below, below)


def print_plan(plan: Plan, timings: StageTimings, console: Console) -> None:
    """Print the tree, and how much of it there is to do."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(Text(plan.composed.recipe.name))
    table.add_column("")
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in list_rows(plan.nodes):
        node = row.node
        state = "✓ in the store" if node.cached else "? unknown" if node.key is None else "to run"
        cells = (state, *_format_sizes(node.facts), _format_time(node, timings))
        style = "dim" if node.cached else ""
        table.add_row(_format_name(row), *map(Text, cells), style=style)
    console.print(table)
    for node in plan.nodes:
        if node.stage.choice:
            console.say(f"{node.name}: {node.stage.choice}")
    console.say(_summarize(plan, timings))


def _format_name(row: Row) -> Text:
    """Write the node's name, its kind where that is another, and what it reads beside its model."""
    node, stage = row.node, row.node.name.partition("@")[0]
    name = Text.assemble((row.rail, "dim"), node.name)
    notes = [node.kind] if stage != node.kind else []
    if node.trained_parameters is not None:
        notes.append(f"trains {node.trained_parameters / 1e6:.2f} M")
    if _looks_at_several(node):
        notes.append(f"of {', '.join(node.artifacts)}")
    else:  # but not what an evaluation is held against: that is one of its own
        others = [name for name in node.artifacts.values() if name.partition("@")[0] != stage]
        notes += [f"reads {', '.join(others)}"] if others else []
    if notes:
        name.append(f" ({'; '.join(notes)})", "dim")
    return name


def _format_sizes(facts: Facts | None) -> tuple[str, ...]:
    if facts is None:
        return ("?",) * 3
    near = "" if facts.exact else "≈ "
    most = "" if facts.exact_size else "≤ "
    return (
        f"{most}{facts.parameters / 1e6:.2f} M",
        f"{near}{facts.nonzero_ratio:.4f}",
        f"{most}{facts.bytes / 1e6:.2f}",
    )


def _format_time(node: Node, timings: StageTimings) -> str:
    """Write what it took, or what a stage of its kind and name took before."""
    seconds = timings.seconds(node)
    if seconds is None:
        return ""
    return format_duration(seconds) if node.cached else f"≈ {format_duration(seconds)}"


def _summarize(plan: Plan, timings: StageTimings) -> str:
    to_run = [node for node in plan.nodes if not node.cached]
    stored = f"{len(plan.nodes) - len(to_run)} of {len(plan.nodes)} stages are in the store"
    known = [seconds for node in to_run if (seconds := timings.seconds(node)) is not None]
    if not known:
        return stored
    at_least = "at least" if len(known) < len(to_run) else "about"
    return f"{stored}; the others took {at_least} {format_duration(sum(known))} before"
