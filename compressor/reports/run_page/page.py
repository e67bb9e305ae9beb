"""Render `report.html`: a run as one page. What is in it; how it looks is said by `page.html`.

Tables stand in the page as HTML and need no script; charts and texts are drawn from its JSON.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import yaml

from compressor.core.numbers import format_duration
from compressor.evaluation.metric_names import LESS_IS_BETTER
from compressor.reports.html.render import render
from compressor.reports.run_page import columns, curves
from compressor.reports.run_page.results import LOSS, Results
from compressor.reports.run_page.texts import list_rows
from compressor.reports.run_page.waterfall import LATENCY, list_waterfalls

FILES = (
    *("README.md", "recipe.yaml", "metrics.json", "predictions.csv", "environment.json"),
    *("asked.json", "events.jsonl", "error.txt"),
)
"""What a report links to, where it is there."""


def render_page(results: Results) -> str:
    """Render the page as HTML."""
    texts = list_rows(results)
    labels, cases = curves.list_label_scores(results), curves.list_cases(results)
    charts = {
        "waterfall": list_waterfalls(results),
        "losses": curves.list_losses(results),
        "sparsity": curves.count_zeros(results),
        "lengths": curves.list_lengths(results),
        "labels": labels,
        "sensitivity": curves.list_sensitivity(results),
        "cases": cases,
    }
    values = {
        "run": results,
        "ended": results.end,
        "facts": _list_facts(results),
        "command": format_command(results.environment),
        # Compared where there is something to compare.
        "again": shlex.join(["compressor", "reproduce", str(results.folder)])
        if results.records
        else format_command(results.environment),
        "recipe_text": (results.folder / "recipe.yaml").read_text(encoding="utf-8"),
        "differences": list_changes(results.request),
        "main": columns.make_main_table(results),
        "note": columns.explain_zeros(results),
        "stages": columns.list_stages(results),
        "stage_columns": columns.make_stage_columns(results),
        "charts": charts,
        "no_groups": bool(results.models) and charts["sparsity"] is None,
        "label_columns": columns.make_label_columns(labels),
        "case_columns": columns.make_case_columns(cases),
        "exports": columns.make_export_columns(results),
        "texts": texts and {key: texts[key] for key in texts if key != "rows"},
        "texts_shown": len(texts["rows"]) if texts else 0,
        "rows": texts,
        "environment": _list_environment(results.environment),
        # The card is written right after this page.
        "files": [n for n in FILES if n == "README.md" or (results.folder / n).exists()],
        "data": {
            **charts,
            "cases": curves.group_by_model(cases),
            "quality": results.quality,
            "less_is_better": sorted({*LESS_IS_BETTER, *LOSS, "bytes", LATENCY}),
        },
    }
    return render("reports/run_page/page.html", values)


def format_command(environment: Mapping[str, Any]) -> str:
    """Write the command as a person would give it again."""
    words = list(map(str, environment.get("command") or ()))
    if words and words[0].startswith("__main__"):  # `python -m compressor`
        words[0] = "compressor"
    return shlex.join(words)


def _list_facts(results: Results) -> list[str]:
    """List facts about the whole: when, how long, how much of it came from the store."""
    facts = []
    if started := results.environment.get("started"):
        facts.append(f"started {datetime.fromisoformat(started).strftime('%Y-%m-%d %H:%M')}")
    planned = len(results.request.get("nodes") or ()) or len(results.records)
    done = planned - len(results.not_run)
    facts.append(f"{done} of {planned} stages done" if done < planned else f"{planned} stages")
    # A report on all models at once has several records of one key.
    cached = sum({record["key"]: record["cached"] for record in results.records}.values())
    facts.append(f"{cached} of them cached" if cached else "none cached")
    facts.append(format_duration(sum(record["seconds"] for record in results.records)))
    if cached:
        facts.append(
            f"{format_duration(sum(r['made_in_seconds'] for r in results.records))} to make"
        )
    return facts


def list_changes(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List up to two tables: what differs from the parent, and what the command changed.

    Each has a heading and `rows` of (key, before, after), or None with the reason in `why`.
    """
    tables = []
    if parent := asked.get("parent"):
        heading = f"Different from the parent recipe {parent['name']}"
        tables.append((heading, parent["differences"]))
    changed = asked.get("changed")
    if changed or (changed is None and "changed" in asked):
        tables.append(("Changed by this command", changed))
    why, sides = "one of the two composes only with overrides", ("before", "after")
    return [
        {
            "heading": heading,
            "why": why,
            "rows": entries
            and [
                (e["path"], *(format_yaml(e[s]) if s in e else "" for s in sides)) for e in entries
            ],
        }
        for heading, entries in tables
    ]


def format_yaml(value: Any) -> str:
    """Write a value as YAML in one line."""
    form: Any = {"default_flow_style": True, "sort_keys": False, "allow_unicode": True}
    text: str = yaml.safe_dump(value, width=10**9, **form)
    return text.removesuffix("\n").removesuffix("\n...")


def _list_environment(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List name and value of what a run depended on."""
    machine = environment.get("machine") or {}
    lines = [
        ("machine", ", ".join(f"{key} {value}" for key, value in machine.items())),
        ("GPUs", ", ".join(map(str, environment.get("gpus") or ["none"]))),
        *((key, environment.get(key)) for key in ("cores", "processes", "platform", "python")),
        *(item for item in (environment.get("packages") or {}).items() if item[1] is not None),
        ("commit", environment.get("git")),
    ]
    return [(name, str(value)) for name, value in lines if value not in (None, "")]
