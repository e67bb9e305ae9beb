"""The scores of two models' predictions on the same rows, and whether they differ. No runs here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.evaluation.bootstrap import PairedDifference, paired_difference

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compressor.evaluation.rouge import RougeTokenizer

    Scores = NDArray[np.float64]

SUMMARIES, LABELS = ("rougeLsum", "rouge1", "rouge2"), ("micro_f1", "macro_f1", "accuracy")
"""What is tested; the first is the main one."""
Row = tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """One measure, row by row."""

    rows: Scores
    """[N, K]: what the score is computed from."""
    score: Callable[[Scores], Scores]
    """Means over rows [R, K] → a score each [R]."""


@dataclass(frozen=True)
class Scored:
    """The predictions of one model, scored."""

    rows: Sequence[Row]
    """What tells each row from others: its number, its source and its reference."""
    columns: Mapping[str, Column]


def scored(path: Path, tokenizer: RougeTokenizer | None = None) -> Scored:
    """The rows of a `predictions.csv`; of summaries those at the longest `max_length`.

    `tokenizer`: the one that the run's ROUGE had.

    Raises ValueError, with the file, line and column, where it is no such file.
    """
    from compressor.evaluation.labels import is_labelled

    if not path.is_file():
        raise ValueError(f"{path} is not there")
    return _labels(path) if is_labelled(path) else _summaries(path, tokenizer)


def _summaries(path: Path, tokenizer: RougeTokenizer | None) -> Scored:
    from compressor.evaluation.predictions import read_predictions
    from compressor.evaluation.rouge import MEASURES, score_rows

    every = read_predictions(path)
    if not every:
        raise ValueError(f"{path} has no rows to score")
    longest = max(each.max_length for each in every)
    some = [each for each in every if each.max_length == longest]
    texts = [each.prediction for each in some], [each.references for each in some]
    found = score_rows(*texts, tokenizer)
    f1 = MEASURES.index("f1")
    return Scored(
        [(str(each.row), each.source, *each.references) for each in some],
        {name: Column(found[name][:, f1 : f1 + 1], _mean) for name in SUMMARIES},
    )


def _labels(path: Path) -> Scored:
    import numpy as np

    from compressor.evaluation.labels import read_predictions

    found = read_predictions(path)
    hits, either = found.truth & found.given, found.truth + found.given
    both = np.stack([hits.sum(1), either.sum(1)], axis=1).astype(float)
    each = np.concatenate([hits, either], axis=1).astype(float)
    right = (found.truth == found.given).all(axis=1, keepdims=True).astype(float)
    columns = {
        "micro_f1": Column(both, _mean_f1),
        "macro_f1": Column(each, _mean_f1),
        "accuracy": Column(right, _mean),
    }
    return Scored(found.rows, columns)


def _mean(means: Scores) -> Scores:
    return means[:, 0]


def _mean_f1(means: Scores) -> Scores:
    """The mean of labels' F1, from hits [R, L] and then rows with the label on either side [R, L].

    0 for a label that neither has, as `metrics.labels.summarize` has it.
    """
    import numpy as np

    hits, either = np.split(means, 2, axis=1)
    found: Any = np.divide(2 * hits, either, out=np.zeros_like(hits), where=either > 0)
    return np.asarray(found.mean(axis=1))


def compared(before: Scored, after: Scored) -> dict[str, PairedDifference]:
    """The paired bootstrap test of each measure that both have.

    Raises ValueError where the rows are not the same: nothing can then be paired.
    """
    order = _order(before.rows, after.rows)
    return {
        name: paired_difference(column.rows, after.columns[name].rows[order], column.score)
        for name, column in before.columns.items()
        if name in after.columns and column.rows.shape[1] == after.columns[name].rows.shape[1]
    }


def _order(before: Sequence[Row], after: Sequence[Row]) -> list[int]:
    """Where in `after` each row of `before` is."""
    places = {row: index for index, row in enumerate(after)}
    shared = sum(row in places for row in before)
    if len(before) == len(after) == len(places) == shared:
        return [places[row] for row in before]
    raise ValueError(
        f"the rows are not the same: {len(before)} and {len(after)}, and {shared} are in both "
        "(by number, source and reference)"
    )
