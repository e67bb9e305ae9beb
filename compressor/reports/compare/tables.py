"""A comparison of runs as tables on a console. The numbers come from `compare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compressor.core.numbers import shown
from compressor.engine.provenance import MISSING
from compressor.reports.compare.compare import (
    LATENCIES,
    METHOD,
    Comparison,
    Pair,
    Score,
    Step,
    Told,
)
from compressor.reports.show import line, state

if TYPE_CHECKING:
    from compressor.core.console import Console

WIDEST = 46
"""Characters of a value, or of a reason, after which it is wrapped."""


def print_comparison(found: Comparison, console: Console) -> None:
    """Recipes, scores and stages of all runs."""
    for number, (name, run) in enumerate(zip(found.names, found.runs, strict=True)):
        what = "baseline" if number == 0 else f"run {number}"
        console.say(f"{what:<9} {name}: {run.folder} ({state(run)})")
    _print_told("recipe", found.recipe, found, console)
    _print_told("machine and versions", found.environment, found, console)
    for number in range(1, len(found.runs)):
        _print_scores(number, found, console)
        _print_sizes(number, found, console)
    if any(pair.rows for pair in found.pairs):
        console.say(METHOD)
    if any(size.name.startswith("latency") for pair in found.pairs for size in pair.sizes):
        console.say(LATENCIES)
    for number in range(1, len(found.runs)):
        _print_steps(number, found, console)


def _print_told(what: str, rows: Sequence[Told], found: Comparison, console: Console) -> None:
    from compressor.reports.tables import Column, print_columns

    if not rows:
        console.say(f"{what}: the same")
        return
    columns = [
        Column(name, [value_text(row.values[number]) for row in rows], "left", WIDEST)
        for number, name in enumerate(found.names)
    ]
    print_columns(Column(what, [row.path for row in rows], "left", WIDEST), columns, console)


def value_text(value: Any) -> str:
    """A recipe's value as a person writes it; a dash where there is none."""
    if value is MISSING:
        return "–"
    return value if isinstance(value, str) and value else repr(value)


def _title(number: int, found: Comparison) -> str:
    return f"{found.names[number]} against {found.names[0]}"


def _pairs(number: int, found: Comparison) -> list[Pair]:
    return [pair for pair in found.pairs if pair.run == number]


def _print_scores(number: int, found: Comparison, console: Console) -> None:
    pairs = _pairs(number, found)
    rows = [(pair, score) for pair in pairs for score in pair.scores]
    if rows:
        _print_rows(rows, _title(number, found), console)
    elif not pairs:
        console.say(f"{_title(number, found)}: no model that both evaluated")
    for pair in pairs:
        if pair.unpaired is not None:
            console.say(f"{pair.name}: not paired, {pair.unpaired}")


def _print_rows(rows: Sequence[tuple[Pair, Score]], title: str, console: Console) -> None:
    from compressor.reports.tables import NAME_WIDTH, Column, print_columns

    first = Column("model", [pair_name(pair) for pair, _ in rows], "left", NAME_WIDTH)
    columns = [
        Column("metric", [score.metric for _, score in rows], "left"),
        Column("baseline", [f"{score.before:.4f}" for _, score in rows]),
        Column("this", [f"{score.after:.4f}" for _, score in rows]),
        Column("difference", [f"{score.difference:+.4f}" for _, score in rows]),
        Column("95 %", [interval(score.low, score.high) for _, score in rows]),
        Column("p", [p_text(score.p) for _, score in rows]),
        Column("rows", ["" if pair.rows is None else str(pair.rows) for pair, _ in rows]),
    ]
    print_columns(first, columns, console, title=title)


def pair_name(pair: Pair) -> str:
    """A pair's name, with a mark where it is of the last evaluated models."""
    return f"{pair.name} ●" if pair.headline else pair.name


def interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:+.4f} … {high:+.4f}"


def p_text(p: float | None) -> str:
    return "" if p is None else "1" if p == 1 else f"{p:.3f}"


def _print_sizes(number: int, found: Comparison, console: Console) -> None:
    from compressor.reports.tables import NAME_WIDTH, Column, print_columns

    rows = [(pair, size) for pair in _pairs(number, found) for size in pair.sizes]
    cells = [shown(size.name, [size.before, size.after]) for _, size in rows]
    columns = [
        Column("", [size.name for _, size in rows], "left"),
        Column("baseline", [before for before, _ in cells]),
        Column("this", [after for _, after in cells]),
        Column("ratio", ["" if s.ratio is None else f"{s.ratio:.3f}" for _, s in rows]),
    ]
    if rows:
        models = Column("model", [pair_name(pair) for pair, _ in rows], "left", NAME_WIDTH)
        print_columns(models, columns, console)
        if any(pair.headline for pair, _ in rows):
            console.say("● the last evaluated model of each run")


def _print_steps(number: int, found: Comparison, console: Console) -> None:
    from compressor.reports.tables import NAME_WIDTH, Column, print_columns

    steps = [step for step in found.steps if step.run == number]
    columns = [
        Column("", [step.standing for step in steps], "left"),
        Column("because", [step.because or "" for step in steps], "left", WIDEST),
        Column("seconds", [_two(step, "made_in_seconds") for step in steps]),
        Column("MB", [_two(step, "bytes", 1e-6) for step in steps]),
        Column("metrics here", [line(step.after) if step.after else "" for step in steps], "left"),
    ]
    first = Column("stage", [step.name for step in steps], "left", NAME_WIDTH)
    print_columns(first, columns, console, title=_title(number, found))


def _two(step: Step, key: str, scale: float = 1.0) -> str:
    """Both values, or the one that there is, or that both have."""
    values = [record[key] for record in (step.before, step.after) if record is not None]
    texts = [f"{value * scale:.2f}" for value in values if value is not None]
    return " → ".join(dict.fromkeys(texts))
