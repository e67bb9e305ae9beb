"""`predictions.csv`: written, read, and scored a second time. No models or decoding here."""

from __future__ import annotations

import csv
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.core.errors import nearest
from compressor.evaluation.metric_names import MAIN_OF_ROUGE

if TYPE_CHECKING:
    from compressor.evaluation.metric import ForeignMetric
    from compressor.evaluation.rouge import RougeTokenizer

_RISKY = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet may run a cell that begins so (OWASP, "CSV Injection")."""

_CELL_LIMIT = 2**31 - 1
"""Characters; the csv module's own limit of 131,072 is less than a long document."""


@dataclass(frozen=True)
class Prediction:
    """One generated text: a row of the file, its fields the columns in their order."""

    row: int
    """Index in the evaluated split, from 0."""
    max_length: int
    """The most tokens that this decode was allowed."""
    source: str
    reference: str
    prediction: str
    tokens: int
    """Tokens generated, counted as `gen_len` of transformers' `run_summarization.py` is."""
    cut_off: bool
    """True if it reached `max_length` without an end of sequence."""
    other_references: tuple[str, ...] = ()
    """Where a row has several, those after the first."""

    @property
    def references(self) -> tuple[str, ...]:
        return (self.reference, *self.other_references)


COLUMNS = tuple(field.name for field in fields(Prediction))[:-1]
OTHER_REFERENCE = "reference_"
"""How the columns of other references begin; a number from 2 follows. An empty cell is none."""


def write_predictions(path: Path, predictions: Iterable[Prediction], references: int = 1) -> None:
    """Write `predictions`, of at most so many `references`, to `path`, whole or not at all, as
    UTF-8.

    Texts come back exactly from `read_predictions`; one that a spreadsheet would take for a
    formula carries a leading apostrophe in the file.
    """
    others = [f"{OTHER_REFERENCE}{number}" for number in range(2, references + 1)]

    def list_cells(prediction: Prediction) -> list[str]:
        *values, others = astuple(prediction)
        values += [*others, *[""] * (references - 1 - len(others))]
        return [guard_cell(v) if isinstance(v, str) else str(v).lower() for v in values]

    write_table(path, (*COLUMNS, *others), map(list_cells, predictions))


def write_table(path: Path, header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Write a CSV to `path`, whole or not at all, as UTF-8."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(lines)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_predictions(path: Path) -> list[Prediction]:
    """Read a file of `write_predictions`. Raises ValueError with file, line, column for another."""
    with read_records(path, COLUMNS) as lines:
        return [
            Prediction(
                row=_parse_integer(record, "row", where),
                max_length=_parse_integer(record, "max_length", where),
                source=unguard_cell(record["source"]),
                reference=unguard_cell(record["reference"]),
                prediction=unguard_cell(record["prediction"]),
                tokens=_parse_integer(record, "tokens", where),
                cut_off=_parse_boolean(record, "cut_off", where),
                other_references=_other_references(record),
            )
            for where, record in lines
        ]


def score_predictions(
    path: Path,
    rows: dict[int | None, dict[str, list[float]]] | None = None,
    tokenizer: RougeTokenizer | None = None,
    metrics: Sequence[str | ForeignMetric] = ("rouge",),
) -> dict[int | None, dict[str, Any]]:
    """Score a predictions file by some metrics for each `max_length` in it, ascending.

    A value has `count`, what the metrics say (`rouge.summarize_scores` and `describe_tokenizer`,
    `text_scores.score_texts`), `gen_len`, the mean of `tokens`, and `cut_off`, the share of rows
    cut off. Any CSV with the columns `reference` and `prediction` will do: without `max_length`
    there is one entry, under None; without `tokens` or `cut_off`, no such value. `rows`, where
    given, is filled: for each `max_length` and metric that has any each row's score, in the file's
    order; ROUGE's is rougeLsum (F1). Raises ValueError as `read_predictions` does, and for a file
    without rows.
    """
    from compressor.evaluation.rouge import choose_tokenizer

    groups = _group_rows(path, sources=not all(isinstance(metric, str) for metric in metrics))
    if not groups:
        raise ValueError(f"{path} has no rows to score")
    if "rouge" in metrics:
        every = (row[1] for rows in groups.values() for row in rows)
        tokenizer = tokenizer or choose_tokenizer(every)
    scored: dict[int | None, dict[str, Any]] = {}
    for length in sorted(groups, key=lambda key: key or 0):
        texts, references, sources, tokens_, cuts = zip(*groups[length], strict=True)
        summary, row_scores = score_texts(metrics, texts, references, sources, tokenizer)
        if rows is not None:
            rows[length] = row_scores
        if None not in tokens_:
            summary["gen_len"] = sum(tokens_) / len(tokens_)
        if None not in cuts:
            summary["cut_off"] = sum(cuts) / len(cuts)
        scored[length] = summary
    return scored


def score_texts(
    metrics: Sequence[str | ForeignMetric],
    texts: Sequence[str],
    references: Sequence[tuple[str, ...]],
    sources: Sequence[str],
    tokenizer: RougeTokenizer | None,
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Score texts by each metric: for a stage's metrics, and each row by the main scores."""
    summary: dict[str, Any] = {"count": len(texts)}
    row_scores: dict[str, list[float]] = {}
    for metric in metrics:
        part, some = _score_by(metric, texts, references, sources, tokenizer)
        intervals = {**summary.get("intervals", {}), **part["intervals"]}
        summary |= part | {"intervals": intervals}
        row_scores |= some
    return summary, row_scores


def _group_rows(path: Path, *, sources: bool) -> dict[int | None, list[tuple[Any, ...]]]:
    """Read prediction, references, source, tokens and cut_off of each row, by `max_length`.

    `sources`: whether anybody wants these; they are empty else.
    """
    groups: dict[int | None, list[tuple[Any, ...]]] = {}
    same: dict[tuple[str, ...], tuple[str, ...]] = {}  # each limit has the references again
    with read_records(path, ("reference", "prediction")) as lines:
        for where, record in lines:
            length = _parse_integer(record, "max_length", where) if "max_length" in record else None
            tokens = _parse_integer(record, "tokens", where) if "tokens" in record else None
            cut_off = _parse_boolean(record, "cut_off", where) if "cut_off" in record else None
            references = (unguard_cell(record["reference"]), *_other_references(record))
            texts = unguard_cell(record["prediction"]), same.setdefault(references, references)
            source = (unguard_cell(record.get("source", "") if sources else ""),)
            more = (*same.setdefault(source, source), tokens, cut_off)
            groups.setdefault(length, []).append((*texts, *more))
    return groups


def _score_by(
    metric: str | ForeignMetric,
    texts: Sequence[str],
    references: Sequence[tuple[str, ...]],
    sources: Sequence[str],
    tokenizer: RougeTokenizer | None,
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Score texts by one metric: for a stage's metrics, and its rows' scores by its name."""
    from compressor.evaluation import rouge, text_scores

    if metric == "rouge":
        tokenizer = tokenizer or rouge.choose_tokenizer(references)
        scores = rouge.score_rows(texts, references, tokenizer)
        summary = rouge.summarize_scores(scores) | rouge.describe_tokenizer(references, tokenizer)
        return summary, {MAIN_OF_ROUGE: scores[MAIN_OF_ROUGE][:, 2].tolist()}
    if isinstance(metric, str):
        summary, measure = text_scores.score_texts(metric, texts, references)
        return summary, {metric: measure.row_scores}
    summary, foreign = metric.score(texts, references, sources)
    return summary, {} if foreign is None else {metric.name: foreign.row_scores}


def _other_references(record: Mapping[str, str]) -> tuple[str, ...]:
    names = [name for name in record if name.startswith(OTHER_REFERENCE)]
    return tuple(unguard_cell(record[name]) for name in names if record[name])


def guard_cell(text: str) -> str:
    """Write a text as a cell that no spreadsheet takes for a formula."""
    # A text's own apostrophe gets another one, so that the way back is never a guess.
    return f"'{text}" if text.startswith((*_RISKY, "'")) else text


def unguard_cell(cell: str) -> str:
    """Read the text of a cell that `guard_cell` made."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith((*_RISKY, "'")) else cell


@contextmanager
def read_records(
    path: Path, required: tuple[str, ...]
) -> Iterator[Iterator[tuple[str, dict[str, str]]]]:
    """Read the records of the CSV at `path`, each with "file, line n" for messages."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file; expected a CSV with {', '.join(required)}")
    limit = csv.field_size_limit(_CELL_LIMIT)
    try:
        # utf-8-sig: a file that went through a spreadsheet begins with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            try:
                columns = reader.fieldnames or ()
                for name in required:
                    if name not in columns:
                        raise ValueError(f"{path} has no column {name!r}; {nearest(name, columns)}")
                yield _require_complete(path, reader)
            except csv.Error as error:
                raise ValueError(f"{path}, line {reader.reader.line_num}: {error}") from error
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _require_complete(
    path: Path, reader: csv.DictReader[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    columns = list(reader.fieldnames or ())
    for record in reader:
        where = f"{path}, line {reader.line_num}"
        # DictReader files surplus cells under None, and fills missing ones with None.
        if None in record or None in record.values():
            raise ValueError(f"{where}: expected {len(columns)} cells, for {', '.join(columns)}")
        yield where, record


def _parse_integer(record: dict[str, str], column: str, where: str) -> int:
    try:
        return int(record[column])
    except ValueError:
        message = f"{where}: {column!r} is {record[column]!r}, expected a whole number"
        raise ValueError(message) from None


def _parse_boolean(record: dict[str, str], column: str, where: str) -> bool:
    cell = record[column].strip().lower()
    if cell not in ("true", "false", "1", "0"):
        raise ValueError(f"{where}: {column!r} is {record[column]!r}, expected true or false")
    return cell in ("true", "1")
