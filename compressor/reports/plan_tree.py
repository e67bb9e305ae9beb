"""A plan as a person reads it: which stage takes whose model, sizes, what the store has, times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from compressor.core.console import Console
from compressor.core.numbers import duration
from compressor.engine.plan import Node, Plan
from compressor.engine.store.timings import StageTimings
from compressor.models.facts import Facts
from compressor.stages.base import Report

HEADINGS = ("parameters", "non-zero", "MB", "time")


@dataclass(frozen=True)
class Row:
    """A node, and the lines of the tree before its name."""

    rail: str
    node: Node


def rows(nodes: Sequence[Node]) -> list[Row]:
    """The nodes of a plan, each below the one whose model it takes.

    A chain of stages that each change the model of the one before stays at one depth. What only
    looks at a model hangs below it; where several stages change the same model, each is a branch.
    A report on several models at once stands at the end: it hangs below none of them.
    """
    children: dict[str | None, list[Node]] = {}
    together = [node for node in nodes if _looks_at_several(node)]
    for node in nodes:
        if node not in together:
            children.setdefault(node.model, []).append(node)
    found = [row for node in children.get(None, []) for row in _chain(node, children, "", "")]
    return found + [Row("", node) for node in together]


def _looks_at_several(node: Node) -> bool:
    return isinstance(node.stage, Report) and node.stage.together and len(node.artifacts) > 1


def _chain(
    node: Node, children: dict[str | None, list[Node]], rail: str, below: str
) -> Iterator[Row]:
    """A node and all that hangs below it. `rail` stands before its own name, `below` before its
    children's.
    """
    yield Row(rail, node)
    hanging = list(children.get(node.name, []))
    chain = [each for each in hanging if each.stage.changes_model]
    goes_on = chain[0] if len(chain) == 1 else None
    if goes_on is not None:
        hanging.remove(goes_on)
    for index, each in enumerate(hanging):
        last = index == len(hanging) - 1 and goes_on is None
        own, under = ("└─ ", "   ") if last else ("├─ ", "│  ")
        yield from _chain(each, children, below + own, below + under)
    if goes_on is not None:
        yield from _chain(goes_on, children, below, below)


def print_plan(plan: Plan, timings: StageTimings, console: Console) -> None:
    """The tree, and how much of it there is to do."""
    shown = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column(Text(plan.composed.recipe.name))
    shown.add_column("")
    for heading in HEADINGS:
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows(plan.nodes):
        node, facts = row.node, row.node.facts
        sizes = _sizes(facts) if facts is not None else ("?",) * 3
        style = "dim" if node.cached else ""
        cells = (_mark(node), *sizes, _time(node, timings))
        shown.add_row(_name(row), *(Text(cell) for cell in cells), style=style)
    console.print(shown)
    console.say(_summary(plan, timings))


def _name(row: Row) -> Text:
    """The node's name, with its kind where that is another, and what it reads beside its model."""
    node = row.node
    name = Text.assemble((row.rail, "dim"), node.name)
    about = [node.kind] if node.name.partition("@")[0] != node.kind else []
    if _looks_at_several(node):
        about.append(f"of {', '.join(node.artifacts)}")
    else:  # but not what an evaluation is held against: that is one of its own
        own = node.name.partition("@")[0]
        others = [each for each in node.artifacts.values() if each.partition("@")[0] != own]
        about += [f"reads {', '.join(others)}"] if others else []
    if about:
        name.append(f" ({'; '.join(about)})", "dim")
    return name


def _mark(node: Node) -> str:
    return "✓ in the store" if node.cached else "? unknown" if node.key is None else "to run"


def _sizes(facts: Facts) -> tuple[str, ...]:
    near = "" if facts.exact else "≈ "
    most = "" if facts.exact_size else "≤ "
    return (
        f"{most}{facts.parameters / 1e6:.2f} M",
        f"{near}{facts.nonzero_ratio:.4f}",
        f"{most}{facts.bytes / 1e6:.2f}",
    )


def _time(node: Node, timings: StageTimings) -> str:
    """What it took, or what a stage of its kind and name took before."""
    seconds = timings.seconds(node)
    if seconds is None:
        return ""
    return duration(seconds) if node.cached else f"≈ {duration(seconds)}"


def _summary(plan: Plan, timings: StageTimings) -> str:
    to_run = [node for node in plan.nodes if not node.cached]
    said = f"{len(plan.nodes) - len(to_run)} of {len(plan.nodes)} stages are in the store"
    known = [seconds for node in to_run if (seconds := timings.seconds(node)) is not None]
    if not known:
        return said
    at_least = "at least " if len(known) < len(to_run) else "about "
    return f"{said}; the others took {at_least}{duration(sum(known))} before"
