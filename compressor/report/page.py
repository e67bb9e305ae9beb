"""`report.html`: a run as one page. What its tables and charts show; how they look is `page.html`'s.

Tables stand in the page as HTML and need no script; charts and texts are drawn from its JSON.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import yaml

from compressor.pages import render
from compressor.pages.numbers import duration, shown
from compressor.report import curves
from compressor.report.comparison import waterfalls
from compressor.report.results import QUALITY, Record, Results, gives_model
from compressor.report.texts import rows
from compressor.run import table
from compressor.stage import SIZES
from compressor.tables import COLUMNS, _parity

ENDED = {
    "done": "done",
    "failed": "failed",
    "interrupted": "interrupted",
    "stopped": "stopped early",
}
FILES = (
    *("README.md", "recipe.yaml", "metrics.json", "predictions.csv", "environment.json"),
    *("asked.json", "events.jsonl", "error.txt"),
)
"""What a report links to, where it is there."""
EXPORT_SIZES = (
    ("bytes", "weights on disk", "the files that hold weights"),
    ("disk_bytes", "all files", "tokenizer and settings included"),
    ("gzip_bytes", "gzip", "the files that hold weights, compressed"),
    ("resident_bytes", "resident", "memory that loading and one text added to a process"),
)
UNSTRUCTURED = 0.999
"""Below this non-zero ratio a float model of unchanged size is said to hold zeros as weights."""


@dataclass(frozen=True)
class Column:
    """A column of a table, a cell for each row."""

    key: str
    heading: str
    title: str
    cells: Sequence[str]
    values: Sequence[Any]
    """What sorting goes by; "" comes last."""
    number: bool = True


def page(results: Results) -> str:
    """The page as HTML."""
    texts = rows(results)
    charts = {
        "waterfall": waterfalls(results),
        "losses": curves.losses(results),
        "sparsity": curves.sparsity(results),
        "lengths": curves.lengths(results),
        "labels": curves.labels(results),
        "sensitivity": curves.sensitivity(results),
        "cases": curves.cases(results),
    }
    values = {
        "run": results,
        "ended": ENDED[results.ended],
        "facts": _facts(results),
        "command": command(results.environment),
        "again": shlex.join(["compressor", "reproduce", str(results.folder)]),
        "recipe_text": (results.folder / "recipe.yaml").read_text(encoding="utf-8"),
        "differences": differences(results.asked),
        "main": main_table(results),
        "note": zeros_note(results),
        "stages": stage_rows(results),
        "stage_columns": _stage_columns(results),
        "charts": charts,
        "no_groups": bool(results.models) and charts["sparsity"] is None,
        "label_columns": _label_columns(charts["labels"]),
        "case_columns": _case_columns(charts["cases"]),
        "exports": _export_columns(results),
        "texts": texts and {key: texts[key] for key in texts if key != "rows"},
        "texts_shown": len(texts["rows"]) if texts else 0,
        "rows": texts,
        "environment": environment_lines(results.environment),
        "files": [name for name in FILES if _there(results, name)],
        "data": {**charts, "cases": _case_chart(charts["cases"]), "quality": results.quality},
    }
    return render("report/page.html", values)


def _there(results: Results, name: str) -> bool:
    """Whether a file is in the folder; the card is written right after this page."""
    return name == "README.md" or (results.folder / name).exists()


def command(environment: Mapping[str, Any]) -> str:
    """The command as a person would give it again."""
    given = list(map(str, environment.get("command") or ()))
    if given and given[0].startswith("__main__"):  # `python -m compressor`
        given[0] = "compressor"
    return shlex.join(given)


def _facts(results: Results) -> list[str]:
    """A line about the whole: when, how long, how much of it came from the store."""
    facts = []
    started = results.environment.get("started")
    if started:
        facts.append(f"started {datetime.fromisoformat(started).strftime('%Y-%m-%d %H:%M')}")
    planned = len(results.asked.get("nodes") or ()) or len(results.records)
    seconds = sum(record["seconds"] for record in results.records)
    done = planned - len(not_run(results))
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


def not_run(results: Results) -> list[Mapping[str, Any]]:
    """The planned stages that have no record."""
    done = {name for r in results.records for name in (r["name"], r["name"].partition("@")[0])}
    return [node for node in results.asked.get("nodes") or () if node["name"] not in done]


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


def main_table(results: Results) -> list[Column]:
    """What the console shows of a run: a row for each model that was looked at."""
    lines = table(results.records)
    if not lines:
        return []
    names = [str(line["model"]) for line in lines]
    found = [Column("model", "model", "", names, names, number=False)]
    for key, heading, write in COLUMNS:
        values = [line.get(key) for line in lines]
        if any(value is not None for value in values):
            cells = ["" if value is None else write(value) for value in values]
            found.append(Column(key, heading, _TITLES.get(key, ""), cells, _sorted(values)))
    return found


_TITLES = {
    "parameters": "entries of all tensors, zeros included",
    "nonzero_ratio": "entries that are not zero / all entries",
    "bytes": "the files that hold the weights",
    "resident_bytes": "memory that loading and one text added to a process",
    "retention": "this score / the original's",
    "closeness": "1 - |difference|: near 1 for two bad models",
}


def _sorted(values: Sequence[Any]) -> list[str]:
    return ["" if value is None else repr(value) for value in values]


def zeros_note(results: Results) -> str | None:
    """That zeros among the weights make nothing smaller, where a model of this run has such."""
    for record in results.models:
        source = results.by_name.get(record["model"] or "")
        if source is None or record["nonzero_ratio"] >= UNSTRUCTURED:
            continue
        same = (record["bytes"], record["parameters"]) == (source["bytes"], source["parameters"])
        if same and record["nonzero_ratio"] < source["nonzero_ratio"]:
            return (
                "Pruned weights are zeros that are stored and multiplied as any other number: by "
                "themselves they make a model neither smaller nor faster."
            )
    return None


def stage_rows(results: Results) -> list[dict[str, Any]]:
    """Name, kind and state of each stage, of those that were not reached too."""
    lines = [
        {
            "name": r["name"],
            "kind": r["stage"],
            "label": "" if r["label"] == r["name"] or not gives_model(r) else r["label"],
            "state": "cached" if r["cached"] else "run",
        }
        for r in results.records
    ]
    for number, node in enumerate(not_run(results)):
        state = "not reached" if number or results.ended == "done" else ENDED[results.ended]
        lines.append({"name": node["name"], "kind": node["stage"], "label": "", "state": state})
    return lines


def _stage_columns(results: Results) -> list[Column]:
    """Times, the sizes of models that stages give or write, and what was measured."""
    records, rest = results.records, [None] * len(not_run(results))
    quality = [results.quality] if results.quality in (*QUALITY, "loss") else []
    sizes = [r if gives_model(r) or r["stage"] == "export" else {} for r in records]
    metrics = [r["metrics"] for r in records]
    wanted: list[tuple[str, str, str, list[Any]]] = [
        ("seconds", "s now", "seconds that this run spent on it",
         _once(records, "seconds")),
        ("made_in", "s to make", "seconds that it took when it was made",
         _once(records, "made_in_seconds")),
        *((key, _SIZE_HEADINGS[key], _TITLES[key], [size.get(key) for size in sizes])
          for key in SIZES if key != "nonzero"),
        ("resident_bytes", "resident", _TITLES["resident_bytes"],
         [m.get("resident_bytes") for m in metrics]),
        *((key, _WORDS.get(key, key), "", [m.get(key) for m in metrics])
          for key in ("train_loss", "validation_loss", *quality, "retention", "latency_p50_ms")),
    ]  # fmt: skip
    found = []
    for key, heading, title, values in wanted:
        if any(value is not None for value in values):
            cells = shown(key, values) if key not in _SECONDS else _seconds(values)
            padded = [*values, *rest]
            found.append(Column(key, heading, title, [*cells, *[""] * len(rest)], _sorted(padded)))
    return found


def _once(records: Sequence[Record], key: str) -> list[float | None]:
    """A time of each piece of work, at its first record: a report on several models has more."""
    first = {record["key"]: number for number, record in reversed(list(enumerate(records)))}
    return [r[key] if first[r["key"]] == number else None for number, r in enumerate(records)]


def _seconds(values: Sequence[float | None]) -> list[str]:
    return ["" if value is None else f"{value:,.1f}" for value in values]


_SECONDS = ("seconds", "made_in")
_SIZE_HEADINGS = {"parameters": "parameters", "nonzero_ratio": "non-zero", "bytes": "bytes"}
_WORDS = {
    "train_loss": "train loss",
    "validation_loss": "val. loss",
    "latency_p50_ms": "p50 ms",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
}


def _label_columns(labels: Mapping[str, Any] | None) -> list[Column]:
    """F1 of each label under each model."""
    if labels is None:
        return []
    positives = labels["positives"]
    counts = [str(count) for count in positives]
    return [
        Column("label", "label", "", labels["names"], labels["names"], number=False),
        Column("positives", "rows with it", "in the test split", counts, _sorted(positives)),
        *(
            Column(f"f1-{n}", model["name"], "F1", shown("f1", model["f1"]), _sorted(model["f1"]))
            for n, model in enumerate(labels["models"])
        ),
    ]


def _case_columns(cases: Sequence[Mapping[str, Any]]) -> list[Column]:
    """What a benchmark measured of each model in each case."""
    if not cases:
        return []
    models = [case["model"] for case in cases]
    names = [curves.case_name(case) for case in cases]
    found = [
        Column("model", "model", "", models, models, number=False),
        Column("case", "case", "", names, names, number=False),
    ]
    for key, heading, title in (
        ("p50_ms", "p50, ms", "median time of a batch"),
        ("p95_ms", "p95, ms", "95th percentile"),
        ("p99_ms", "p99, ms", "99th percentile"),
        ("texts_per_second", "texts/s", ""),
        ("tokens_per_second", "tokens/s", ""),
        ("speedup", "× faster", "the first model's time / this one's"),
        ("peak_bytes", "peak memory", "of the process"),
        ("joules_per_text", "J/text", "of the whole machine"),
    ):
        values = [case.get(key) for case in cases]
        if any(value is not None for value in values):
            found.append(Column(key, heading, title, shown(key, values), _sorted(values)))
    return found


def _case_chart(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each model its cases, with p50, p95 and p99 in milliseconds."""
    found: dict[str, dict[str, Any]] = {}
    for case in cases:
        model = found.setdefault(case["model"], {"name": case["model"], "cases": [], "ms": []})
        model["cases"].append(curves.case_name(case))
        model["ms"].append([case["p50_ms"], case["p95_ms"], case["p99_ms"]])
    return list(found.values())


def _export_columns(results: Results) -> list[Column]:
    """Format, sizes and parity of each export."""
    records = results.of("export")
    if not records:
        return []
    metrics = [record["metrics"] for record in records]

    def texts(key: str, heading: str, cells: Sequence[str]) -> Column:
        return Column(key, heading, "", cells, cells, number=False)

    found = [
        texts("export", "export", [str(r["label"]) for r in records]),
        texts("of", "of", [results.label(r["model"]) for r in records]),
        texts("format", "format", [str(m.get("format", "")) for m in metrics]),
        texts("weights", "weights", [str(m.get("weights", "")) for m in metrics]),
    ]
    for key, heading, title in EXPORT_SIZES:
        values = [m.get(key) for m in metrics]
        if any(value is not None for value in values):
            found.append(Column(key, heading, title, shown(key, values), _sorted(values)))
    found.append(texts("parity", "equal to its source", [_parity(m.get("parity")) for m in metrics]))
    return found


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
