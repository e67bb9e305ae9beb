"""Print a comparison of runs as tables. The numbers come from `compare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compressor.core.console import Console
from compressor.core.differences import MISSING
from compressor.core.numbers import format_values
from compressor.reports.compare.compare import (
    LATENCIES,
    METHOD,
    Comparison,
    Pair,
    Rows,
    Score,
    Step,
)
from compressor.reports.show import summarize_metrics
from compressor.reports.tables import Column, make_names, print_columns

WIDEST = 46
"""Characters of a value, or of a reason, after which it is wrapped."""


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print recipes, scores and stages of all runs."""
    names = comparison.names
    for number, (name, run) in enumerate(zip(names, comparison.runs, strict=True)):
        what = "baseline" if number == 0 else f"run {number}"
        console.say(f"{what:<9} {name}: {run.folder} ({run.status})")
    _print_rows("recipe", comparison.recipe, names, console)
    _print_rows("machine and versions", comparison.environment, names, console)
    for number in range(1, len(names)):
        pairs = [pair for pair in comparison.pairs if pair.run == number]
        _print_scores(pairs, f"{names[number]} against {names[0]}", console)
        _print_sizes(pairs, console)
    if any(pair.rows for pair in comparison.pairs):
        console.say(METHOD)
    if any(size.name.startswith("latency") for pair in comparison.pairs for size in pair.sizes):
        console.say(LATENCIES)
    for number in range(1, len(names)):
        steps = [step for step in comparison.steps if step.run == number]
        _print_steps(steps, f"{names[number]} against {names[0]}", console)


def _print_rows(what: str, rows: Rows, names: Sequence[str], console: Console) -> None:
    if not rows:
        console.say(f"{what}: the same")
        return
    columns = [
        Column(name, [format_value(values[number]) for values in rows.values()], "left", WIDEST)
        for number, name in enumerate(names)
    ]
    print_columns(Column(what, list(rows), "left", WIDEST), columns, console)


def format_value(value: Any) -> str:
    """Write a recipe's value as a person does; a dash where there is none."""
    if value is MISSING:
        return "–"
    return value if isinstance(value, str) and value else repr(value)


def _print_scores(pairs: Sequence[Pair], title: str, console: Console) -> None:
    rows = [(pair, score) for pair in pairs for score in pair.scores]
    if rows:
        _print_score_rows(rows, title, console)
    elif not pairs:
        console.say(f"{title}: no model that both evaluated")
    for pair in pairs:
        if pair.unpaired is not None:
            console.say(f"{pair.name}: not paired, {pair.unpaired}")


def _print_score_rows(rows: Sequence[tuple[Pair, Score]], title: str, console: Console) -> None:
    columns = [
        Column("metric", [score.metric for _, score in rows], "left"),
        Column("baseline", [f"{score.before:.4f}" for _, score in rows]),
        Column("this", [f"{score.after:.4f}" for _, score in rows]),
        Column("difference", [f"{score.difference:+.4f}" for _, score in rows]),
        Column("95 %", [format_interval(score.low, score.high) for _, score in rows]),
        Column("p", [format_p(score.p) for _, score in rows]),
        Column("rows", ["" if pair.rows is None else str(pair.rows) for pair, _ in rows]),
    ]
    first = make_names("model", [_name_pair(pair) for pair, _ in rows])
    print_columns(first, columns, console, title=title)


def _name_pair(pair: Pair) -> str:
    """Name a pair, with a mark where it is of the last evaluated models."""
    return f"{pair.name} ●" if pair.headline else pair.name


def format_interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:+.4f} … {high:+.4f}"


def format_p(p: float | None) -> str:
    return "" if p is None else "1" if p == 1 else f"{p:.3f}"


def _print_sizes(pairs: Sequence[Pair], console: Console) -> None:
    rows = [(pair, size) for pair in pairs for size in pair.sizes]
    if not rows:
        return
    cells = [format_values(size.name, [size.before, size.after]) for _, size in rows]
    columns = [
        Column("", [size.name for _, size in rows], "left"),
        Column("baseline", [before for before, _ in cells]),
        Column("this", [after for _, after in cells]),
        Column("ratio", ["" if s.ratio is None else f"{s.ratio:.3f}" for _, s in rows]),
    ]
    print_columns(make_names("model", [_name_pair(pair) for pair, _ in rows]), columns, console)
    if any(pair.headline for pair in pairs):
        console.say("● the last evaluated model of each run")


def _print_steps(steps: Sequence[Step], title: str, console: Console) -> None:
    columns = [
        Column("", [step.standing for step in steps], "left"),
        Column("because", [step.because or "" for step in steps], "left", WIDEST),
        Column("seconds", [_write_both(step, "made_in_seconds") for step in steps]),
        Column("MB", [_write_both(step, "bytes", 1e-6) for step in steps]),
        Column("metrics here", [summarize_metrics(step.after) for step in steps], "left"),
    ]
    first = make_names("stage", [step.name for step in steps])
    print_columns(first, columns, console, title=title)


def _write_both(step: Step, key: str, scale: float = 1.0) -> str:
    """Write both values, or the one that there is, or that both have."""
    values = [record[key] for record in (step.before, step.after) if record is not None]
    texts = [f"{value * scale:.2f}" for value in values if value is not None]
    return " → ".join(dict.fromkeys(texts))
