"""`report.html`: a run as one page. What is in it; how it looks is said by `page.html`.

Tables stand in the page as HTML and need no script; charts and texts are drawn from its JSON.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import yaml

from compressor.core.numbers import duration
from compressor.reports.html.render import render
from compressor.reports.run_page import columns, curves
from compressor.reports.run_page.results import ENDED, Record, Results
from compressor.reports.run_page.texts import rows
from compressor.reports.run_page.waterfall import waterfalls

FILES = (
    *("README.md", "recipe.yaml", "metrics.json", "predictions.csv", "environment.json"),
    *("asked.json", "events.jsonl", "error.txt"),
)
"""What a report links to, where it is there."""


def page(results: Results) -> str:
    """The page as HTML."""
    texts = rows(results)
    labels, cases = curves.labels(results), curves.cases(results)
    charts = {
        "waterfall": waterfalls(results),
        "losses": curves.losses(results),
        "sparsity": curves.sparsity(results),
        "lengths": curves.lengths(results),
        "labels": labels,
        "sensitivity": curves.sensitivity(results),
        "cases": cases,
    }
    values = {
        "run": results,
        "ended": ENDED[results.ended],
        "facts": _facts(results),
        "command": command(results.environment),
        "again": again(results),
        "recipe_text": (results.folder / "recipe.yaml").read_text(encoding="utf-8"),
        "differences": differences(results.asked),
        "main": columns.main_table(results),
        "note": columns.zeros_note(results),
        "stages": columns.stage_rows(results),
        "stage_columns": columns.stage_columns(results),
        "charts": charts,
        "no_groups": bool(results.models) and charts["sparsity"] is None,
        "label_columns": columns.label_columns(labels),
        "case_columns": columns.case_columns(cases),
        "exports": columns.export_columns(results),
        "texts": texts and {key: texts[key] for key in texts if key != "rows"},
        "texts_shown": len(texts["rows"]) if texts else 0,
        "rows": texts,
        "environment": environment_lines(results.environment),
        "files": [name for name in FILES if _there(results, name)],
        "data": {**charts, "cases": curves.by_model(cases), "quality": results.quality},
    }
    return render("reports/run_page/page.html", values)


def _there(results: Results, name: str) -> bool:
    """Whether a file is in the folder; the card is written right after this page."""
    return name == "README.md" or (results.folder / name).exists()


def command(environment: Mapping[str, Any]) -> str:
    """The command as a person would give it again."""
    given = list(map(str, environment.get("command") or ()))
    if given and given[0].startswith("__main__"):  # `python -m compressor`
        given[0] = "compressor"
    return shlex.join(given)


def again(results: Results) -> str:
    """The command that makes it again, and compares where there is something to compare."""
    if not results.records:
        return command(results.environment)
    return shlex.join(["compressor", "reproduce", str(results.folder)])


def _facts(results: Results) -> list[str]:
    """A line about the whole: when, how long, how much of it came from the store."""
    facts = []
    started = results.environment.get("started")
    if started:
        facts.append(f"started {datetime.fromisoformat(started).strftime('%Y-%m-%d %H:%M')}")
    planned = len(results.asked.get("nodes") or ()) or len(results.records)
    seconds = sum(record["seconds"] for record in results.records)
    done = planned - len(results.not_run)
    cached = sum(bool(r["cached"]) for r in _nodes(results))
    facts.append(f"{done} of {planned} stages done" if done < planned else f"{planned} stages")
    facts.append(f"{cached} of them cached" if cached else "none cached")
    facts.append(duration(seconds))
    if cached:
        facts.append(f"{duration(sum(r['made_in_seconds'] for r in results.records))} to make")
    return facts


def _nodes(results: Results) -> list[Record]:
    """One record for each piece of work: a report on all models at once has several."""
    return list({record["key"]: record for record in results.records}.values())


def differences(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Up to two tables: this recipe against its parent, and what the command's overrides changed.

    Each has a heading and `rows` of (key, before, after), or None with the reason in `why`.
    """
    found = []
    parent = asked.get("parent")
    why = "one of the two composes only with overrides"
    if parent:
        heading = f"Different from the parent recipe {parent['name']}"
        found.append({"heading": heading, "why": why, "rows": _compared(parent["differences"])})
    changed = asked.get("changed")
    if changed or (changed is None and "changed" in asked):
        heading = "Changed by this command"
        found.append({"heading": heading, "why": why, "rows": _compared(changed)})
    return found


def _compared(listed: Sequence[Mapping[str, Any]] | None) -> list[tuple[str, str, str]] | None:
    if listed is None:
        return None
    return [(each["path"], _side(each, "before"), _side(each, "after")) for each in listed]


def _side(entry: Mapping[str, Any], side: str) -> str:
    """A value as YAML in one line where it is short; "" where that side has no such key."""
    if side not in entry:
        return ""
    value = entry[side]
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True,
                          width=10**9)  # fmt: skip
    return text.removesuffix("\n").removesuffix("\n...")


def environment_lines(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of what a run depended on, for a person."""
    machine = environment.get("machine") or {}
    lines = [
        ("machine", ", ".join(f"{key} {value}" for key, value in machine.items())),
        ("GPUs", ", ".join(map(str, environment.get("gpus") or ["none"]))),
        *((key, environment.get(key)) for key in ("cores", "processes", "platform", "python")),
        *(item for item in (environment.get("packages") or {}).items() if item[1] is not None),
        ("commit", environment.get("git")),
    ]
    return [(name, str(value)) for name, value in lines if value not in (None, "")]
