"""The tables of a report: their columns, as texts to read and values to sort by. No HTML here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.core.numbers import shown
from compressor.reports.run_page.results import ENDED, QUALITY, Record, Results, gives_model
from compressor.reports.tables import COLUMNS, parity, table
from compressor.stages.base import SIZES

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
    for number, node in enumerate(results.not_run):
        state = "not reached" if number or results.ended == "done" else ENDED[results.ended]
        lines.append({"name": node["name"], "kind": node["stage"], "label": "", "state": state})
    return lines


def stage_columns(results: Results) -> list[Column]:
    """Times, the sizes of models that stages give or write, and what was measured."""
    records, rest = results.records, [None] * len(results.not_run)
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


def label_columns(labels: Mapping[str, Any] | None) -> list[Column]:
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


def case_columns(cases: Sequence[Mapping[str, Any]]) -> list[Column]:
    """What a benchmark measured of each model in each case."""
    if not cases:
        return []
    models = [case["model"] for case in cases]
    names = [case["case"] for case in cases]
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


def export_columns(results: Results) -> list[Column]:
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
    found.append(texts("parity", "equal to its source", [parity(m.get("parity")) for m in metrics]))
    return found
