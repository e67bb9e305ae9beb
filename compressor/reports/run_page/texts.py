"""Read what models wrote, or labelled, row by row, from the predictions of a run's stages."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.evaluation.entities import is_tagged, score_row
from compressor.evaluation.labels import JOIN, is_labelled
from compressor.evaluation.metric_names import LESS_IS_BETTER, ROW_SCORES
from compressor.evaluation.predictions import read_records, unguard_cell
from compressor.reports.run_page.results import Results

FILE = "predictions.csv"
MOST_BYTES = 5_500_000
"""Of all texts in a page: with Plotly's 4.8 MB and the rest it stays below 12 MB."""
ROW_BYTES = 60
"""Of a row beside its texts: its number, scores and the names of its parts."""
SHORTEST_SOURCE = 200
"""Characters: rows are left out before sources are cut to less."""


@dataclass(frozen=True)
class Predictions:
    """What one model made of each row of the test split."""

    model: str
    sources: Sequence[str]
    references: Sequence[str]
    texts: Sequence[str]
    scores: Sequence[float] | None
    """Each row's score, or the F1 of its labels, more is better; None where none was kept."""
    score: str
    """The score's name, with a minus where less is better: of the first metric that has any."""
    labelled: bool


def list_rows(results: Results) -> dict[str, Any] | None:
    """List the rows for the side-by-side view; None where no stage has left predictions.

    A row has `n` its number, `s` its source, `r` its reference, `t` the models' texts (the
    original's first) and `d`, for each model after it, its score minus the original's, or None.
    What is too large for a page is cut, as `cut` and `total` say: rows that lost the most stay.
    """
    predictions = _read_predictions(results)
    if not predictions:
        return None
    first, *others = predictions
    rows = [
        {
            "n": number,
            "s": source,
            "r": first.references[number],
            "t": [model.texts[number] for model in predictions],
            "d": [_subtract(first, other, number) for other in others],
            "q": None if first.scores is None else round(first.scores[number], 4),
        }
        for number, source in enumerate(first.sources)
    ]
    shown, cut = fit_rows(rows)
    return {
        "labelled": first.labelled,
        "score": first.score,
        "original": results.label(first.model),
        "models": [results.label(other.model) for other in others],
        "scored": all(model.scores is not None for model in predictions),
        "total": len(rows),
        "rows": shown,
        "cut": cut,
    }


def _subtract(first: Predictions, other: Predictions, row: int) -> float | None:
    if first.scores is None or other.scores is None or first.score != other.score:
        return None
    return round(other.scores[row] - first.scores[row], 4)


def fit_rows(
    rows: Sequence[dict[str, Any]], most: int = MOST_BYTES
) -> tuple[list[dict[str, Any]], int | None]:
    """Choose rows that fit into `most` bytes of UTF-8, and where to cut sources, in characters.

    Sources are cut first, to no less than `SHORTEST_SOURCE`; then the rows that lost least go.
    """
    texts = [ROW_BYTES + _count_bytes([row["r"], *row["t"]]) for row in rows]
    sources = [_count_bytes([row["s"]]) for row in rows]
    if sum(texts) + sum(sources) <= most:
        return list(rows), None
    kept = list(range(len(rows)))
    if sum(texts) + SHORTEST_SOURCE * len(rows) > most:
        left, kept = most, []
        worst = [min((lost for lost in row["d"] if lost is not None), default=0.0) for row in rows]
        for number in sorted(range(len(rows)), key=worst.__getitem__):
            left -= texts[number] + SHORTEST_SOURCE
            if left < 0:
                break
            kept.append(number)
        kept.sort()
    room = most - sum(texts[number] for number in kept)
    bytes_a_character = max(1.0, sum(sources) / max(1, sum(len(row["s"]) for row in rows)))
    limit = max(SHORTEST_SOURCE, int(room / max(1, len(kept)) / bytes_a_character))
    cut = [
        rows[n] | {"s": f"{s[:limit]} …"} if len(s := rows[n]["s"]) > limit else rows[n]
        for n in kept
    ]
    return cut, limit


def _count_bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode("utf-8", "replace")) for text in texts)


def _read_predictions(results: Results) -> list[Predictions]:
    """Read what each model wrote, the original first, of those with the same rows as it."""
    by_model: dict[str, Predictions] = {}
    for record in results.of("evaluate"):
        folder, model = results.artifacts.get(record["name"]), record["model"]
        if folder is not None and (folder / FILE).is_file() and model in results.by_name:
            by_model[model] = _read_folder(model, folder)
    if not by_model:
        return []
    original = results.original if results.original in by_model else next(iter(by_model))
    first = by_model.pop(str(original))
    return [first, *(p for p in by_model.values() if p.references == first.references)]


def _read_folder(model: str, folder: Path) -> Predictions:
    """Read the rows of a file of predictions, at its longest `max_length`."""
    tagged = is_tagged(folder / FILE)
    labelled = tagged or is_labelled(folder / FILE)
    rows = _read_rows(folder / FILE, longest=not labelled)
    score, scores = "", None
    if labelled:
        score_texts = score_row if tagged else score_labels
        scores = [score_texts(reference, text) for _, reference, text in rows]
    elif (path := folder / ROW_SCORES).is_file():  # an older artifact has none
        kept = json.loads(path.read_text("utf-8"))
        score = next((name for name in kept if name != "max_length"), "")
        scores = kept[score] if score and len(kept[score]) == len(rows) else None
        if score in LESS_IS_BETTER:
            score, scores = f"-{score}", scores and [-value for value in scores]
    sources, references, texts = ([row[number] for row in rows] for number in range(3))
    return Predictions(model, sources, references, texts, scores, score, labelled)


def _read_rows(path: Path, *, longest: bool) -> list[tuple[str, str, str]]:
    """Read source, reference and prediction of each row, at the last of several `max_length`s."""
    names = ("source", "reference", "prediction")
    rows: list[tuple[str, str, str]] = []
    limit = ""
    with read_records(path, names) as lines:
        for _, record in lines:
            if longest and record["max_length"] != limit:  # ascending, as `evaluate` writes them
                limit, rows = record["max_length"], []
            source, reference, text = (unguard_cell(record[name]) for name in names)
            rows.append((sys.intern(source), sys.intern(reference), text))  # which all models have
    return rows


def score_labels(reference: str, given: str) -> float:
    """Compute F1 of a row's labels, 1 where there are none and none is given."""
    real, guessed = ({name for name in cell.split(JOIN) if name} for cell in (reference, given))
    total = len(real) + len(guessed)
    return 2 * len(real & guessed) / total if total else 1.0
