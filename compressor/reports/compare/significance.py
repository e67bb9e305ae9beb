"""Score two models' predictions on the same rows, and test whether they differ. No runs here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.evaluation import perplexity
from compressor.evaluation.bootstrap import Measure, PairedDifference, paired_difference, take_first
from compressor.evaluation.metric_names import BUNDLED, MAIN_OF_ROUGE, ROW_SCORES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compressor.evaluation.rouge import RougeTokenizer

    Scores = NDArray[np.float64]

SUMMARIES = ("rougeLsum", "rouge1", "rouge2")
LABELS = ("micro_f1", "macro_f1", "entity_f1", "accuracy")
"""What is tested; the first is the main one."""
Row = tuple[str, ...]
"""What tells a row from others: its number, its source and its reference."""


@dataclass(frozen=True)
class ScoredRows:
    """The predictions of one model, scored."""

    rows: Sequence[Row]
    measures: Mapping[str, Measure]


def score_rows(
    path: Path, tokenizer: RougeTokenizer | None = None, metrics: Sequence[str] = ("rougeLsum",)
) -> ScoredRows:
    """Score the rows of a `predictions.csv`; of texts those at the longest `max_length`. Or of a
    `perplexity.csv`.

    `tokenizer`: the one that the run's ROUGE had. `metrics`: the main scores that the run had; of
    those whose code is not ours the rows' scores are taken that it left, if it left any.

    Raises ValueError, with the file, line and column, where it is no such file.
    """
    from compressor.evaluation import entities
    from compressor.evaluation.labels import is_labelled

    if not path.is_file():
        raise ValueError(f"{path} is not there")
    if path.name == perplexity.FILE:
        return _score_perplexity(path)
    if entities.is_tagged(path):
        table = entities.read_predictions(path)
        return ScoredRows(table.rows, entities.measure_rows(table))
    return _score_labels(path) if is_labelled(path) else _score_texts(path, tokenizer, metrics)


def _score_texts(
    path: Path, tokenizer: RougeTokenizer | None, metrics: Sequence[str]
) -> ScoredRows:
    from compressor.evaluation import rouge, text_scores
    from compressor.evaluation.predictions import read_predictions

    predictions = read_predictions(path)
    if not predictions:
        raise ValueError(f"{path} has no rows to score")
    limit = max(row.max_length for row in predictions)
    rows = [row for row in predictions if row.max_length == limit]
    texts = [row.prediction for row in rows], [row.references for row in rows]
    measures: dict[str, Measure] = {}
    for metric in metrics:
        if metric == MAIN_OF_ROUGE:
            scores, f1 = rouge.score_rows(*texts, tokenizer), rouge.SCORE_COLUMNS.index("f1")
            columns = {name: scores[name][:, f1 : f1 + 1] for name in SUMMARIES}
            measures |= {name: Measure(column, take_first) for name, column in columns.items()}
        elif metric in BUNDLED:
            measures[metric] = text_scores.measure_texts(metric, *texts)[0]
        elif metric == perplexity.MAIN:
            measures |= _read_perplexity(path.with_name(perplexity.FILE), len(rows))
        elif (measure := _read_measure(path.with_name(ROW_SCORES), metric, len(rows))) is not None:
            measures[metric] = measure
    return ScoredRows([(str(row.row), row.source, *row.references) for row in rows], measures)


def _read_measure(path: Path, metric: str, count: int) -> Measure | None:
    """Read the rows' scores that a run left of a metric that is their mean."""
    import numpy as np

    scores = json.loads(path.read_text("utf-8")).get(metric) if path.is_file() else None
    if scores is None or len(scores) != count:
        return None
    return Measure(np.array(scores, dtype=float)[:, None], take_first)


def _read_perplexity(path: Path, count: int) -> Mapping[str, Measure]:
    """Measure the perplexity of the same rows' completions, where the run left it."""
    if not path.is_file():
        return {}
    scored = _score_perplexity(path)
    return scored.measures if len(scored.rows) == count else {}


def _score_perplexity(path: Path) -> ScoredRows:
    rows, table = perplexity.read_rows(path)
    names = (*perplexity.PERPLEXITIES, "loss")
    return ScoredRows(rows, {name: Measure(table, perplexity.SCORES[name]) for name in names})


def _score_labels(path: Path) -> ScoredRows:
    import numpy as np

    from compressor.evaluation.labels import read_predictions

    labels = read_predictions(path)
    hits, either = labels.truth & labels.given, labels.truth + labels.given
    micro = np.stack([hits.sum(1), either.sum(1)], axis=1).astype(float)
    macro = np.concatenate([hits, either], axis=1).astype(float)
    right = (labels.truth == labels.given).all(axis=1, keepdims=True).astype(float)
    measures = {
        "micro_f1": Measure(micro, _mean_f1),
        "macro_f1": Measure(macro, _mean_f1),
        "accuracy": Measure(right, take_first),
    }
    return ScoredRows(labels.rows, measures)


def _mean_f1(means: Scores) -> Scores:
    """Compute the mean of labels' F1 from hits [R, L] and rows with the label on a side [R, L].

    0 for a label that neither has, as `evaluation.labels.summarize` has it.
    """
    import numpy as np

    hits, either = np.split(means, 2, axis=1)
    f1: Any = np.divide(2 * hits, either, out=np.zeros_like(hits), where=either > 0)
    return np.asarray(f1.mean(axis=1))


def compare_scores(before: ScoredRows, after: ScoredRows) -> dict[str, PairedDifference]:
    """Make the paired bootstrap test of each measure that both have.

    Raises ValueError where the rows are not the same: nothing can then be paired.
    """
    order = _match_rows(before.rows, after.rows)
    return {
        name: paired_difference(measure.rows, other.rows[order], measure.score)
        for name, measure in before.measures.items()
        if (other := after.measures.get(name)) is not None
        and measure.rows.shape[1] == other.rows.shape[1]
    }


def _match_rows(before: Sequence[Row], after: Sequence[Row]) -> list[int]:
    """Find where in `after` each row of `before` is."""
    places = {row: index for index, row in enumerate(after)}
    shared = sum(row in places for row in before)
    if len(before) == len(after) == len(places) == shared:
        return [places[row] for row in before]
    raise ValueError(
        f"the rows are not the same: {len(before)} and {len(after)}, and {shared} are in both "
        "(by number, source and reference)"
    )
