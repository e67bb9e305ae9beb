"""What models wrote, or labelled, row by row: read back from the predictions of a run's stages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.evaluation.labels import JOIN, is_labelled
from compressor.evaluation.predictions import read_records, unguard_cell
from compressor.reports.run_page.results import Results
from compressor.stages.evaluate import MAIN, ROW_SCORES

FILE = "predictions.csv"
MOST_BYTES = 5_500_000
"""Of all texts in a page: with Plotly's 4.8 MB and the rest it stays below 12 MB."""
ROW_BYTES = 60
"""Of a row beside its texts: its number, scores and the names of its parts."""
SHORTEST_SOURCE = 200
"""Characters: rows are left out before sources are cut to less."""


@dataclass(frozen=True)
class Written:
    """What one model made of each row of the test split."""

    model: str
    sources: Sequence[str]
    references: Sequence[str]
    texts: Sequence[str]
    scores: Sequence[float] | None
    """Each row's rougeLsum, or the F1 of its labels; None where the stage did not keep it."""
    labelled: bool


def rows(results: Results) -> dict[str, Any] | None:
    """The rows for the side-by-side view; None where no stage has left predictions.

    `original` and `models` are names for a reader; a row has `n` its number, `s` its source, `r`
    its reference, `t` the models' texts (the original's first) and `d`, for each model after it,
    its score minus the original's, or None. What is too large for a page is cut, and `cut` and
    `rows` against `total` say so: the rows that lost the most stay.
    """
    written = _written(results)
    if not written:
        return None
    first, others = written[0], written[1:]
    lines = [
        {
            "n": number,
            "s": source,
            "r": first.references[number],
            "t": [each.texts[number] for each in written],
            "d": [_lost(first, each, number) for each in others],
            "q": None if first.scores is None else round(first.scores[number], 4),
        }
        for number, source in enumerate(first.sources)
    ]
    shown, cut = fitting(lines)
    return {
        "labelled": first.labelled,
        "original": results.label(first.model),
        "models": [results.label(each.model) for each in others],
        "scored": all(each.scores is not None for each in written),
        "total": len(lines),
        "rows": shown,
        "cut": cut,
    }


def _lost(first: Written, other: Written, row: int) -> float | None:
    if first.scores is None or other.scores is None:
        return None
    return round(other.scores[row] - first.scores[row], 4)


def fitting(
    lines: Sequence[dict[str, Any]], most: int = MOST_BYTES
) -> tuple[list[dict[str, Any]], int | None]:
    """The rows that fit into `most` bytes of UTF-8, and where sources are cut, in characters.

    Sources are cut first, to no less than `SHORTEST_SOURCE`; then the rows that lost least go.
    """
    texts = [ROW_BYTES + _bytes([line["r"], *line["t"]]) for line in lines]
    sources = [_bytes([line["s"]]) for line in lines]
    if sum(texts) + sum(sources) <= most:
        return list(lines), None
    kept = list(range(len(lines)))
    if sum(texts) + SHORTEST_SOURCE * len(lines) > most:
        left, kept = most, []
        for number in sorted(range(len(lines)), key=lambda n: _worst(lines[n])):
            left -= texts[number] + SHORTEST_SOURCE
            if left < 0:
                break
            kept.append(number)
        kept.sort()
    room = most - sum(texts[number] for number in kept)
    wide = max(1.0, sum(sources) / max(1, sum(len(line["s"]) for line in lines)))
    limit = max(SHORTEST_SOURCE, int(room / max(1, len(kept)) / wide))
    return [{**lines[n], "s": _cut(lines[n]["s"], limit)} for n in kept], limit


def _bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode("utf-8", "replace")) for text in texts)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + " …"


def _worst(line: Mapping[str, Any]) -> float:
    return min((lost for lost in line["d"] if lost is not None), default=0.0)


def _written(results: Results) -> list[Written]:
    """What each model wrote, the original first; models with other rows than it are left out."""
    found: dict[str, Written] = {}
    once: dict[str, str] = {}  # the texts that all models have are held once
    for record in results.of("evaluate"):
        folder = results.artifacts.get(record["name"])
        if folder is not None and (folder / FILE).is_file() and record["model"] in results.by_name:
            found[record["model"]] = _read(record["model"], folder, once)
    first = found.pop(results.original or "", None) or _pop_first(found)
    if first is None:
        return []
    same = [each for each in found.values() if each.references == first.references]
    return [first, *same]


def _pop_first(found: dict[str, Written]) -> Written | None:
    name = next(iter(found), None)
    return None if name is None else found.pop(name)


def _read(model: str, folder: Path, same: dict[str, str]) -> Written:
    """The rows of a file of predictions, at its longest `max_length`."""
    path = folder / FILE
    if is_labelled(path):
        lines = list(_lines(path, same))
        scores = [label_f1(reference, text) for _, reference, text in lines]
        return Written(model, *_columns(lines), scores, labelled=True)
    about: dict[str, Any] = {}
    if (folder / ROW_SCORES).is_file():  # an older artifact has none
        about = json.loads((folder / ROW_SCORES).read_text(encoding="utf-8"))
    lines = list(_lines(path, same, longest=True))
    kept = about.get(MAIN)
    scored = kept if kept is not None and len(kept) == len(lines) else None
    return Written(model, *_columns(lines), scored, labelled=False)


def _columns(lines: Sequence[tuple[str, str, str]]) -> tuple[list[str], list[str], list[str]]:
    return [s for s, _, _ in lines], [r for _, r, _ in lines], [t for _, _, t in lines]


def _lines(
    path: Path, same: dict[str, str], *, longest: bool = False
) -> Iterator[tuple[str, str, str]]:
    """Source, reference and prediction of each row; of several `max_length`s, at the last one.

    `same`: texts that were read before, of which no second copy is made.
    """
    names = ("source", "reference", "prediction")
    kept: list[tuple[str, str, str]] = []
    limit = ""
    with read_records(path, names) as lines:
        for _, record in lines:
            if longest and record["max_length"] != limit:  # ascending, as `evaluate` writes them
                limit, kept = record["max_length"], []
            source, reference, text = (unguard_cell(record[name]) for name in names)
            both = same.setdefault(source, source), same.setdefault(reference, reference)
            kept.append((*both, text))
    yield from kept


def label_f1(reference: str, given: str) -> float:
    """F1 of a row's labels, 1 where there are none and none is given."""
    real, found = ({name for name in cell.split(JOIN) if name} for cell in (reference, given))
    return 2 * len(real & found) / (len(real) + len(found)) if real or found else 1.0
