"""Make the tables of a report: columns of texts to read and values to sort by. No HTML here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compressor.core.numbers import format_values
from compressor.engine.past_run import Record
from compressor.reports.html.render import PageColumn
from compressor.reports.run_page.results import LOSS, Results, gives_model
from compressor.reports.tables import describe_parity, fill_columns, list_models
from compressor.stages.base import SIZES

EXPORT_SIZES = (
    ("bytes", "weights on disk", "the files that hold weights"),
    ("disk_bytes", "all files", "tokenizer and settings included"),
    ("gzip_bytes", "gzip", "the files that hold weights, compressed"),
    ("resident_bytes", "resident", "memory that loading and one text added to a process"),
)
UNSTRUCTURED = 0.999
"""Below this non-zero ratio a float model of unchanged size is said to hold zeros as weights."""
_TITLES = {
    "parameters": "entries of all tensors, zeros included",
    "nonzero_ratio": "entries that are not zero / all entries",
    "bytes": "the files that hold the weights",
    "resident_bytes": "memory that loading and one text added to a process",
    "retention": "this score / the original's",
    "closeness": "1 - |difference|: near 1 for two bad models",
}
_HEADINGS = {
    "nonzero_ratio": "non-zero",
    "train_loss": "train loss",
    "validation_loss": "val. loss",
    "latency_p50_ms": "p50 ms",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "entity_f1": "entity F1",
}
_CASE_COLUMNS = (
    ("p50_ms", "p50, ms", "median time of a batch"),
    ("p95_ms", "p95, ms", "95th percentile"),
    ("p99_ms", "p99, ms", "99th percentile"),
    ("texts_per_second", "texts/s", ""),
    ("tokens_per_second", "tokens/s", ""),
    ("first_token_ms", "first token, ms", "median time from prompts to the first token of each"),
    ("prefill_tokens_per_second", "prefill tokens/s", "tokens of prompts / that time"),
    ("decode_tokens_per_second", "decode tokens/s", "tokens written after it"),
    ("speedup", "× faster", "the first model's time / this one's"),
    ("peak_bytes", "peak memory", "of the process"),
    ("joules_per_text", "J/text", "of the whole machine"),
)


def _make_text_column(key: str, cells: Sequence[str], heading: str | None = None) -> PageColumn:
    return PageColumn(key, heading or key, "", cells, cells, number=False)


def _make_number_column(
    key: str, heading: str, title: str, values: Sequence[Any], cells: Sequence[str] | None = None
) -> PageColumn:
    order = ["" if value is None else repr(value) for value in values]
    return PageColumn(
        key, heading, title, format_values(key, values) if cells is None else cells, order
    )


def make_main_table(results: Results) -> list[PageColumn]:
    """Make what the console shows of a run: a row for each model that was looked at."""
    rows = list_models(results.records)
    if not rows:
        return []
    columns = [_make_text_column("model", [str(row["model"]) for row in rows])]
    for key, heading, cells in fill_columns(rows):
        values = [row.get(key) for row in rows]
        columns.append(_make_number_column(key, heading, _TITLES.get(key, ""), values, cells))
    return columns


def explain_zeros(results: Results) -> str | None:
    """Say that zeros among the weights make nothing smaller, where a model of this run has such."""
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


def list_stages(results: Results) -> list[dict[str, Any]]:
    """List name, kind and state of each stage, of those that were not reached too."""
    rows = [
        {
            "name": r["name"],
            "kind": r["stage"],
            "label": "" if r["label"] == r["name"] or not gives_model(r) else r["label"],
            "state": "cached" if r["cached"] else "run",
        }
        for r in results.records
    ]
    for number, node in enumerate(results.not_run):
        state = "not reached" if number or results.ended == "done" else results.end
        rows.append({"name": node["name"], "kind": node["stage"], "label": "", "state": state})
    return rows


def make_stage_columns(results: Results) -> list[PageColumn]:
    """Make times, the sizes of models that stages give or write, and what was measured."""
    records = results.records
    quality = [results.quality] if results.quality not in (None, LOSS[1]) else []
    sizes = [r if gives_model(r) or r["stage"] == "export" else {} for r in records]
    metrics = [record["metrics"] for record in records]
    sized = [key for key in SIZES if key != "nonzero"]
    measured = ["train_loss", "validation_loss", *quality, "retention", "latency_p50_ms"]
    candidates: list[tuple[str, str, str, list[Any]]] = [
        ("seconds", "s now", "seconds that this run spent on it", _times(records, "seconds")),
        ("made_in", "s to make", "seconds that it took when it was made",
         _times(records, "made_in_seconds")),
        *((key, _HEADINGS.get(key, key), _TITLES[key], [size.get(key) for size in sizes])
          for key in sized),
        ("resident_bytes", "resident", _TITLES["resident_bytes"],
         [m.get("resident_bytes") for m in metrics]),
        *((key, _HEADINGS.get(key, key), "", [m.get(key) for m in metrics]) for key in measured),
    ]  # fmt: skip
    columns = []
    for key, heading, title, values in candidates:
        if any(value is not None for value in values):
            is_time = key in ("seconds", "made_in")
            times = ["" if v is None else f"{v:,.1f}" for v in values] if is_time else None
            cells = format_values(key, values) if times is None else times
            rest = len(results.not_run)
            padded = [*values, *[None] * rest], [*cells, *[""] * rest]
            columns.append(_make_number_column(key, heading, title, *padded))
    return columns


def _times(records: Sequence[Record], key: str) -> list[float | None]:
    """List a time of each piece of work, at its first record: a report may have several."""
    first = {record["key"]: number for number, record in reversed(list(enumerate(records)))}
    return [r[key] if first[r["key"]] == number else None for number, r in enumerate(records)]


def make_label_columns(labels: Mapping[str, Any] | None) -> list[PageColumn]:
    """Make F1 of each label under each model."""
    if labels is None:
        return []
    counts = labels["positives"]
    about = ("positives", labels["counted"], "in the test split", counts, list(map(str, counts)))
    return [
        _make_text_column("label", labels["names"]),
        _make_number_column(*about),
        *(
            _make_number_column(f"f1-{number}", model["name"], "F1", model["f1"])
            for number, model in enumerate(labels["models"])
        ),
    ]


def make_case_columns(cases: Sequence[Mapping[str, Any]]) -> list[PageColumn]:
    """Make what a benchmark measured of each model in each case."""
    if not cases:
        return []
    texts = [_make_text_column(key, [case[key] for case in cases]) for key in ("model", "case")]
    return [*texts, *_make_measured_columns(_CASE_COLUMNS, cases)]


def _make_measured_columns(
    columns: Sequence[tuple[str, str, str]], rows: Sequence[Mapping[str, Any]]
) -> list[PageColumn]:
    """Make the columns that any row has a value for."""
    return [
        _make_number_column(key, heading, title, [row.get(key) for row in rows])
        for key, heading, title in columns
        if any(row.get(key) is not None for row in rows)
    ]


def make_export_columns(results: Results) -> list[PageColumn]:
    """Make format, sizes and parity of each export."""
    records = results.of("export")
    if not records:
        return []
    metrics = [record["metrics"] for record in records]
    return [
        _make_text_column("export", [str(record["label"]) for record in records]),
        _make_text_column("of", [results.label(record["model"]) for record in records]),
        _make_text_column("format", [str(m.get("format", "")) for m in metrics]),
        _make_text_column("weights", [str(m.get("weights", "")) for m in metrics]),
        *_make_measured_columns(EXPORT_SIZES, metrics),
        _make_text_column(
            "parity", [describe_parity(m.get("parity")) for m in metrics], "equal to its source"
        ),
    ]
