"""Tables of a run's results, no wider than the console. The numbers come from its records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from compressor.core.console import Console
from compressor.evaluation.rouge import KEYS, NAMES
from compressor.stages.base import stage_class

MEASURES = ("precision", "recall", "F1")
"""What a person reads for each ROUGE, in the order of `rouge.KEYS`."""

CLOSENESS = "1-|diff|"
"""Heading of `closeness`: what it is, since any word for it would flatter."""

NAME_WIDTH = 24
"""Characters after which a model's name is wrapped."""

SUMMARY_WIDTH = 22
"""Characters of a column of running text: 3 beside each other on a console of 80."""

DEMO_CHARACTERS = 1000
"""How much of a demo text is printed."""

BORDER, PADDING = 1, 2
"""Characters that a table has beside its columns, and a column beside its text and its border."""

COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("parameters", "parameters", lambda v: f"{v / 1e6:.2f} M"),
    ("nonzero_ratio", "non-zero", lambda v: f"{v:.4f}"),
    ("bytes", "MB on disk", lambda v: f"{v / 1e6:.2f}"),
    ("rouge1", "rouge1", lambda v: f"{v:.4f}"),
    ("rouge2", "rouge2", lambda v: f"{v:.4f}"),
    ("rougeLsum", "rougeLsum", lambda v: f"{v:.4f}"),
    ("gen_len", "gen len", lambda v: f"{v:.1f}"),
    ("loss", "loss", lambda v: f"{v:.4f}"),
    ("micro_f1", "micro F1", lambda v: f"{v:.4f}"),
    ("macro_f1", "macro F1", lambda v: f"{v:.4f}"),
    ("roc_auc", "ROC-AUC", lambda v: f"{v:.4f}"),
    ("average_precision", "avg precision", lambda v: f"{v:.4f}"),
    ("retention", "retention", lambda v: f"{100 * v:.1f} %"),
    ("closeness", CLOSENESS, lambda v: f"{v:.4f}"),
    ("latency_p50_ms", "latency p50", lambda v: f"{v:.1f} ms"),
    ("latency_p95_ms", "p95", lambda v: f"{v:.1f} ms"),
    ("latency_p99_ms", "p99", lambda v: f"{v:.1f} ms"),
    ("speedup", "× faster", lambda v: f"{v:.2f}"),
    ("texts_per_second", "texts/s", lambda v: f"{v:.1f}"),
    ("tokens_per_second", "tokens/s", lambda v: f"{v:.0f}"),
    ("resident_bytes", "resident MB", lambda v: f"{v / 1e6:.0f}"),
)
"""Key in a table's row, heading, and how the value is written."""

SIZE_COLUMNS = (
    ("claimed MB", "claimed_bytes"),
    ("weights MB", "bytes"),
    ("all files MB", "disk_bytes"),
    ("gzip MB", "gzip_bytes"),
    ("resident MB", "resident_bytes"),
)
"""Heading and key of each size of an export."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A heading and its cells. Texts of users and models: shown as they are, never as markup."""

    heading: str
    cells: Sequence[str]
    justify: Literal["left", "right"] = "right"
    widest: int | None = None
    """Characters after which a cell is wrapped; a heading is wrapped at its spaces."""

    @property
    def width(self) -> int:
        """Characters of its widest text, at most `widest`."""
        longest = max(Text(text).cell_len for text in (*self.heading.split(), *self.cells, ""))
        return longest if self.widest is None else min(longest, self.widest)


def print_columns(
    first: Column, columns: Iterable[Column], console: Console, *, title: str | None = None
) -> None:
    """Print columns beside `first`; what the console is too narrow for goes into further tables."""
    tables: list[list[Column]] = [[first]]
    for column in columns:
        taken = sum(each.width + PADDING + BORDER for each in (*tables[-1], column))
        if taken + BORDER > console.width and len(tables[-1]) > 1:
            tables.append([first])
        tables[-1].append(column)
    for number, some in enumerate(tables):
        _print(some, console, title=None if number else title)


def _print(columns: Sequence[Column], console: Console, *, title: str | None = None) -> None:
    table = Table(header_style="bold", title=title and Text(title), title_justify="left")
    for column in columns:
        table.add_column(Text(column.heading), justify=column.justify, max_width=column.width)
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, cells))
    console.print(table)


def print_demos(records: Sequence[Record], console: Console) -> None:
    """Each demo text, and under it a column for each model with its summary."""
    demos: dict[str, list[Column]] = {}
    for record in records:
        demo = record["metrics"].get("demo") if record["stage"] == "evaluate" else None
        if demo is not None:
            summary = (demo["summary"].strip() or "(empty)") + (" …" if demo["cut_off"] else "")
            column = Column(model_label(record, records), [summary], "left")
            demos.setdefault(demo["text"], []).append(column)
    beside = max(1, (console.width - BORDER) // (SUMMARY_WIDTH + PADDING + BORDER))
    for text, columns in demos.items():
        shown = text[:DEMO_CHARACTERS] + (" …" if len(text) > DEMO_CHARACTERS else "")
        console.print(Text.assemble(("demo text: ", "bold"), shown))
        for start in range(0, len(columns), beside):
            _print(columns[start : start + beside], console)


def print_cases(records: Sequence[Record], console: Console) -> None:
    """What `benchmark` measured beyond a text alone and a batch: a row for each model and case."""
    rows = [
        (model_label(record, records), case, case.get("training_step", {}))
        for record in records
        if record["stage"] == "benchmark"
        for case in record["metrics"].get("cases", ())
    ]
    axes = {
        "batch": "batch_size",
        "input tokens": "input_tokens",
        "output tokens": "output_tokens",
        "threads": "threads",
    }
    shown = {heading: key for heading, key in axes.items() if len({c[key] for _, c, _ in rows}) > 1}
    shown |= {heading: key for heading, key in axes.items() if key.endswith("tokens")}
    shown = {h: k for h, k in axes.items() if h in shown and any(c[k] for _, c, _ in rows)}
    if not set(shown) - {"batch"}:
        return
    models = Column("model", [label for label, _, _ in rows], "left", widest=NAME_WIDTH)
    columns = [
        Column(heading, ["" if c[key] is None else f"{c[key]:,}" for _, c, _ in rows])
        for heading, key in shown.items()
    ]
    columns += [
        Column(name, [f"{case[f'{name}_ms']:.1f} ms" for _, case, _ in rows])
        for name in ("p50", "p95", "p99")
    ]
    columns.append(Column("× faster", [f"{case['speedup']:.2f}" for _, case, _ in rows]))
    columns.append(Column("peak MB", [_megabytes(case["peak_bytes"]) for _, case, _ in rows]))
    if any(case["joules_per_text"] is not None for _, case, _ in rows):
        joules = ["" if (j := c["joules_per_text"]) is None else f"{j:.2f}" for _, c, _ in rows]
        columns.append(Column("J/text", joules))
    if any(step for _, _, step in rows):
        seconds = [f"{step['seconds']:.1f} s" if step else "" for _, _, step in rows]
        peaks = [_megabytes(step.get("peak_bytes")) for _, _, step in rows]
        columns += [Column("training step", seconds), Column("its peak MB", peaks)]
    print_columns(models, columns, console)


def print_exports(records: Sequence[Record], console: Console) -> None:
    """The sizes of what was exported, and how near each is to its source."""
    exports = [(record, record["metrics"]) for record in records if record["stage"] == "export"]
    if not exports:
        return
    first = Column("export", [str(r["label"]) for r, _ in exports], "left", widest=NAME_WIDTH)
    columns = [
        Column("format", [m["format"] for _, m in exports], "left"),
        Column("weights", [m["weights"] for _, m in exports], "left"),
        *(
            Column(heading, [_megabytes(m.get(key), digits=2) for _, m in exports])
            for heading, key in SIZE_COLUMNS
        ),
        Column("equal to its source", [parity(m.get("parity")) for _, m in exports], "left"),
    ]
    print_columns(first, columns, console)


def parity(found: Mapping[str, Any] | None) -> str:
    """What an export's check found, in words."""
    if found is None:
        return "not checked"
    if "equal_tokens" in found:
        difference = f"rougeLsum ± {found['rougeLsum_difference']:.4f}"
        return f"{100 * found['equal_tokens']:.1f} % of tokens, {difference}"
    return f"logits within {found['logits_difference']:.1e}"


def _megabytes(size: int | None, digits: int = 0) -> str:
    return "" if size is None else f"{size / 1e6:,.{digits}f}"


def print_scores(records: Sequence[Record], console: Console) -> None:
    """Precision, recall and F1 of every ROUGE: a table for each model that is held to another."""
    scored = [
        record
        for record in records
        if record["stage"] == "evaluate" and "rouge1_recall" in record["metrics"]
    ]
    for stage in dict.fromkeys(_stage(record) for record in scored):
        mine = [record for record in scored if _stage(record) == stage]
        held = [record for record in mine if "closenesses" in record["metrics"]]
        alone = [_scores(record, records) for record in mine if record not in held]
        if not held:
            print_columns(_score_names(), alone, console)
        for record in held:
            columns = [*alone, _scores(record, records), *_compared(record["metrics"])]
            print_columns(_score_names(), columns, console)


def _score_names() -> Column:
    return Column("", [f"{name} {measure}" for name in NAMES for measure in MEASURES], "left")


def _scores(record: Record, records: Sequence[Record]) -> Column:
    cells = [f"{record['metrics'][key]:.4f}" for key in KEYS]
    return Column(model_label(record, records), cells)


def _compared(metrics: Mapping[str, Any]) -> list[Column]:
    kept, close = metrics["retentions"], metrics["closenesses"]
    shares = ["" if kept[key] is None else f"{100 * kept[key]:.1f} %" for key in KEYS]
    return [
        Column("retention", shares),
        Column(CLOSENESS, [f"{close[key]:.4f}" for key in KEYS]),
    ]


def _stage(record: Record) -> str:
    """The recipe's stage that a record is of: a report on several models has a record for each."""
    return str(record["name"]).partition("@")[0]


def model_label(record: Record, records: Sequence[Record]) -> str:
    """What tables call the model that a report looked at."""
    return next((str(r["label"]) for r in records if r["name"] == record["model"]), record["name"])


def table(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each model that a stage looked at: its sizes and everything measured of it."""
    by_name = {record["name"]: record for record in records}
    rows: dict[str, dict[str, Any]] = {}
    floors = []
    for record in records:
        if record["stage"] == "baseline":  # a floor: scores without one of the recipe's models
            floors.append({"model": record["label"]} | record["metrics"])
            continue
        gives_model = stage_class(record["stage"]).changes_model
        model = record if gives_model else by_name.get(record["model"])
        if model is None:
            continue
        row = rows.setdefault(model["name"], {"model": model["label"], "looked_at": False})
        row |= {name: model[name] for name in ("parameters", "nonzero_ratio", "bytes")}
        if record["stage"] in {"evaluate", "benchmark"}:
            row["looked_at"] = True
            row |= {
                key: v for key, v in record["metrics"].items() if not isinstance(v, dict | list)
            }
    looked_at = [row for row in rows.values() if row["looked_at"]]
    return floors + (looked_at or list(rows.values()))


def print_results(records: Sequence[dict[str, Any]], console: Console) -> None:
    """Everything that a person sees of a run's results without asking for more."""
    print_table(records, console)
    print_cases(records, console)
    print_exports(records, console)
    print_demos(records, console)


def print_table(records: Sequence[dict[str, Any]], console: Console) -> None:
    """A row for each model that was looked at; only columns that have a value."""
    rows = table(records)
    models = Column("model", [row["model"] for row in rows], "left", widest=NAME_WIDTH)
    columns = [
        Column(heading, ["" if row.get(key) is None else write(row[key]) for row in rows])
        for key, heading, write in COLUMNS
        if any(row.get(key) is not None for row in rows)
    ]
    print_columns(models, columns, console)
