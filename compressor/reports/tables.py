"""Print tables of a run's results, no wider than the console, from its records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from compressor.core.console import Console
from compressor.evaluation.harness import list_short
from compressor.evaluation.metric_names import SCALES, TEXT_SCORES, list_main_scores
from compressor.evaluation.rouge import METRIC_KEYS, ROUGE_TYPES
from compressor.stages.base import stage_class

MEASURES = ("precision", "recall", "F1")
"""How tables call precision, recall and F1, in the order of `rouge.METRIC_KEYS`."""
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
ScoreColumn = tuple[str, str, Callable[[Any], str]]
_OF_DECODERS = (
    ("first token", "first_token_ms", "{:.1f} ms"),
    ("prefill tokens/s", "prefill_tokens_per_second", "{:,.0f}"),
    ("decode tokens/s", "decode_tokens_per_second", "{:,.0f}"),
)
"""Heading, key and form of what a benchmark measures of decoders alone."""
COLUMNS: tuple[ScoreColumn, ...] = (
    ("parameters", "parameters", lambda v: f"{v / 1e6:.2f} M"),
    ("nonzero_ratio", "non-zero", "{:.4f}".format),
    ("bytes", "MB on disk", lambda v: f"{v / 1e6:.2f}"),
    *((name, name, "{:.4f}".format) for name in ("rouge1", "rouge2", "rougeLsum")),
    *((n, n, ("{:.2f}" if SCALES.get(n, 1) > 1 else "{:.4f}").format) for n in TEXT_SCORES[1:]),
    ("word_perplexity", "a word", "{:,.5g}".format),
    ("gen_len", "gen len", "{:.1f}".format),
    ("loss", "loss", "{:.4f}".format),
    ("micro_f1", "micro F1", "{:.4f}".format),
    ("macro_f1", "macro F1", "{:.4f}".format),
    ("entity_f1", "entity F1", "{:.4f}".format),
    ("entity_precision", "precision", "{:.4f}".format),
    ("entity_recall", "recall", "{:.4f}".format),
    ("roc_auc", "ROC-AUC", "{:.4f}".format),
    ("average_precision", "avg precision", "{:.4f}".format),
    ("retention", "retention", lambda v: f"{100 * v:.1f} %"),
    ("closeness", CLOSENESS, "{:.4f}".format),
    ("latency_p50_ms", "latency p50", "{:.1f} ms".format),
    ("latency_p95_ms", "p95", "{:.1f} ms".format),
    ("latency_p99_ms", "p99", "{:.1f} ms".format),
    ("speedup", "× faster", "{:.2f}".format),
    ("texts_per_second", "texts/s", "{:.1f}".format),
    ("tokens_per_second", "tokens/s", "{:.0f}".format),
    *((key, heading, form.format) for heading, key, form in _OF_DECODERS),
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
CASE_AXES = (
    ("batch", "batch_size"),
    ("input tokens", "input_tokens"),
    ("output tokens", "output_tokens"),
    ("threads", "threads"),
)
"""Heading and key of what a benchmark varies."""

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
        width = sum(c.width + PADDING + BORDER for c in (*tables[-1], column)) + BORDER
        if width > console.width and len(tables[-1]) > 1:
            tables.append([first])
        tables[-1].append(column)
    for number, table in enumerate(tables):
        _print_table(table, console, title=None if number else title)


def _print_table(columns: Sequence[Column], console: Console, *, title: str | None = None) -> None:
    table = Table(header_style="bold", title=title and Text(title), title_justify="left")
    for column in columns:
        table.add_column(Text(column.heading), justify=column.justify, max_width=column.width)
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, cells))
    console.print(table)


def print_results(records: Sequence[Record], console: Console) -> None:
    """Print everything that a person sees of a run's results without asking for more."""
    print_models(records, console)
    print_cases(records, console)
    print_exports(records, console)
    print_demos(records, console)


def print_models(records: Sequence[Record], console: Console) -> None:
    """Print a row for each model that was looked at; only columns that have a value."""
    rows = list_models(records)
    columns = [Column(heading, cells) for _, heading, cells in fill_columns(rows)]
    print_columns(make_names("model", [row["model"] for row in rows]), columns, console)


def fill_columns(rows: Sequence[Record]) -> Iterator[tuple[str, str, list[str]]]:
    """Give key, heading and cells of each column that any row has a value for."""
    for key, heading, write in _choose_columns(rows):
        values = [row.get(key) for row in rows]
        if any(value is not None for value in values):
            yield key, heading, ["" if value is None else write(value) for value in values]


def _choose_columns(rows: Sequence[Record]) -> list[ScoreColumn]:
    """Choose columns for rows of `list_models`: those of metrics from elsewhere come too."""
    known = [key for key, _, _ in COLUMNS]
    others = dict.fromkeys(name for row in rows for name in row.get("scores", ()))
    more: list[ScoreColumn] = [(n, n, "{:.4f}".format) for n in others if n not in known]
    place = known.index("gen_len")
    return [*COLUMNS[:place], *more, *COLUMNS[place:]]


def list_models(records: Sequence[Record]) -> list[dict[str, Any]]:
    """List each model that a stage looked at: its sizes and everything measured of it.

    `scores`: the names of the main scores of its texts.
    """
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
            metrics = record["metrics"].items()
            row |= {key: value for key, value in metrics if not isinstance(value, dict | list)}
            row |= (tasks := list_short(record["metrics"]))
            names = list_main_scores(record["metrics"])
            row["scores"] = [*row.get("scores", ()), *names, *tasks]
            row["looked_at"] = True
    looked_at = [row for row in rows.values() if row["looked_at"]]
    return floors + (looked_at or list(rows.values()))


def print_demos(records: Sequence[Record], console: Console) -> None:
    """Print each demo text, and under it a column for each model with what it wrote."""
    demos: dict[str, list[Column]] = {}
    for record in records:
        demo = record["metrics"].get("demo") if record["stage"] == "evaluate" else None
        if demo is not None:
            summary = (demo["summary"].strip() or "(empty)") + (" …" if demo["cut_off"] else "")
            column = Column(find_label(record, records), [summary], "left")
            demos.setdefault(demo["text"], []).append(column)
    beside = max(1, (console.width - BORDER) // (SUMMARY_WIDTH + PADDING + BORDER))
    for text, columns in demos.items():
        shown = text[:DEMO_CHARACTERS] + (" …" if len(text) > DEMO_CHARACTERS else "")
        console.print(Text.assemble(("demo text: ", "bold"), shown))
        for start in range(0, len(columns), beside):
            _print_table(columns[start : start + beside], console)


def print_cases(records: Sequence[Record], console: Console) -> None:
    """Print what `benchmark` measured beyond a text alone and a batch, a row for each case."""
    rows = [
        (find_label(record, records), case)
        for record in records
        if record["stage"] == "benchmark"
        for case in record["metrics"].get("cases", ())
    ]
    cases = [case for _, case in rows]
    axes = [
        (heading, key)
        for heading, key in CASE_AXES
        if (key.endswith("tokens") or len({case[key] for case in cases}) > 1)
        and any(case[key] for case in cases)
    ]
    if {key for _, key in axes} <= {"batch_size"}:
        return
    steps = [case.get("training_step", {}) for case in cases]
    columns = [Column(heading, write_cells(cases, key, "{:,}")) for heading, key in axes]
    columns += [
        Column(p, write_cells(cases, f"{p}_ms", "{:.1f} ms")) for p in ("p50", "p95", "p99")
    ]
    columns.append(Column("× faster", write_cells(cases, "speedup", "{:.2f}")))
    columns += [
        Column(heading, write_cells(cases, key, form))
        for heading, key, form in _OF_DECODERS
        if any(case.get(key) is not None for case in cases)
    ]
    columns.append(Column("peak MB", write_cells(cases, "peak_bytes", "{:,.0f}", 1e6)))
    if any(case["joules_per_text"] is not None for case in cases):
        columns.append(Column("J/text", write_cells(cases, "joules_per_text", "{:.2f}")))
    if any(steps):
        columns.append(Column("training step", write_cells(steps, "seconds", "{:.1f} s")))
        columns.append(Column("its peak MB", write_cells(steps, "peak_bytes", "{:,.0f}", 1e6)))
    print_columns(make_names("model", [label for label, _ in rows]), columns, console)


def write_cells(
    rows: Sequence[Record], key: str, form: str, scale: float | None = None
) -> list[str]:
    """Write a value of each row, "" where there is none, in units of `scale`."""
    values = (row.get(key) for row in rows)
    return ["" if v is None else form.format(v if scale is None else v / scale) for v in values]


def make_names(heading: str, names: Sequence[str]) -> Column:
    """Make the first column of a table: names, wrapped where they are long."""
    return Column(heading, names, "left", NAME_WIDTH)


def print_exports(records: Sequence[Record], console: Console) -> None:
    """Print the sizes of what was exported, and how near each is to its source."""
    exports = [record for record in records if record["stage"] == "export"]
    if not exports:
        return
    metrics = [record["metrics"] for record in exports]
    columns = [
        Column("format", [m["format"] for m in metrics], "left"),
        Column("weights", [m["weights"] for m in metrics], "left"),
        *(Column(h, write_cells(metrics, key, "{:,.2f}", 1e6)) for h, key in SIZE_COLUMNS),
        Column("equal to its source", [describe_parity(m.get("parity")) for m in metrics], "left"),
    ]
    names = make_names("export", [str(record["label"]) for record in exports])
    print_columns(names, columns, console)


def describe_parity(parity: Mapping[str, Any] | None) -> str:
    """Say what an export's check found."""
    if parity is None:
        return "not checked"
    measured = []
    if "equal_tokens" in parity:
        measured.append(f"{100 * parity['equal_tokens']:.1f} % of tokens")
    if "rougeLsum_difference" in parity:
        measured.append(f"rougeLsum ± {parity['rougeLsum_difference']:.4f}")
    if "logits_difference" in parity:
        measured.append(f"logits within {parity['logits_difference']:.1e}")
    return ", ".join(measured)


def print_scores(records: Sequence[Record], console: Console) -> None:
    """Print precision, recall and F1 of every ROUGE: a table for each model held to another."""
    scored: dict[str, list[Record]] = {}
    for record in records:
        if record["stage"] == "evaluate" and "rouge1_recall" in record["metrics"]:
            # A report on several models has a record for each.
            scored.setdefault(str(record["name"]).partition("@")[0], []).append(record)
    names = Column(
        "", [f"{name} {measure}" for name in ROUGE_TYPES for measure in MEASURES], "left"
    )
    for evaluated in scored.values():
        held = [record for record in evaluated if "closenesses" in record["metrics"]]
        alone = [_make_scores(r, records) for r in evaluated if r not in held]
        if not held:
            print_columns(names, alone, console)
        for record in held:
            kept = _make_comparison(record["metrics"])
            print_columns(names, [*alone, _make_scores(record, records), *kept], console)


def _make_scores(record: Record, records: Sequence[Record]) -> Column:
    cells = [f"{record['metrics'][key]:.4f}" for key in METRIC_KEYS]
    return Column(find_label(record, records), cells)


def _make_comparison(metrics: Mapping[str, Any]) -> list[Column]:
    shares = {key: share and 100 * share for key, share in metrics["retentions"].items()}
    closenesses = [f"{metrics['closenesses'][key]:.4f}" for key in METRIC_KEYS]
    retentions = ["" if shares[key] is None else f"{shares[key]:.1f} %" for key in METRIC_KEYS]
    return [Column("retention", retentions), Column(CLOSENESS, closenesses)]


def find_label(record: Record, records: Sequence[Record]) -> str:
    """Find what tables call the model that a report looked at."""
    return next((str(r["label"]) for r in records if r["name"] == record["model"]), record["name"])
