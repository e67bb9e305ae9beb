"""Scores of labels from probabilities, and the file they are made of. No models.

scikit-learn ranks: its definitions are those that people compare with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.evaluation.predictions import guard_cell, read_records, unguard_cell, write_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compressor.data.rows import Rows, Task

    Table = NDArray[np.float64]
    Labels = Sequence[Sequence[int]]

SCORES = ("micro_f1", "macro_f1", "roc_auc", "average_precision")
"""What a table compares; each in 0 … 1, more is better."""


def mean_loss(logits: Table, labels: Labels, task: Task) -> float:
    """Binary cross-entropy averaged over rows and labels, or cross-entropy averaged over rows."""
    import numpy as np
    from scipy.special import log_softmax  # type: ignore[import-untyped]  # no types

    if task == "single_label":
        numbers = np.array([number for (number,) in labels])
        return float(-log_softmax(logits, axis=1)[np.arange(len(numbers)), numbers].mean())
    truth = np.asarray(labels)
    # log(1 + exp(x)) - x y, which is -y log p - (1 - y) log(1 - p) without its infinities.
    return float((np.logaddexp(0, logits) - logits * truth).mean())


def best_thresholds(probabilities: Table, labels: Labels) -> list[float]:
    """Find for each label the probability from which giving it has the best F1 on these rows.

    Half-way between two rows' probabilities, so that rounding decides nothing; of equally good
    ones the highest; 0.5 for a label that no row has.
    """
    import numpy as np

    thresholds = []
    for column, truth in zip(probabilities.T, np.asarray(labels).T, strict=True):
        order = np.argsort(-column, kind="stable")
        scores, hits = column[order], np.cumsum(truth[order])
        f1 = 2 * hits / (np.arange(1, len(order) + 1) + truth.sum())
        last = np.append(scores[1:] < scores[:-1], True)  # rows of one probability go together
        best = int(np.argmax(np.where(last, f1, -1.0)))
        below = scores[best + 1] if best + 1 < len(scores) else 0.0
        middle = (scores[best] + below) / 2
        limit = middle if middle > below else scores[best]  # there may be no number between them
        thresholds.append(float(limit) if truth.any() else 0.5)
    return thresholds


def summarize_scores(
    truth: NDArray[np.int64], given: NDArray[np.int64], scores: Table
) -> dict[str, Any]:
    """Compute `SCORES`, `accuracy` (rows without any mistake) and those of each label.

    `truth` and `given` [N, L] are 0 and 1, `scores` [N, L] the probabilities. ROC-AUC and average
    precision are None for a label that all rows have, or none, and such a label is not in their
    means; the F1 of a label that neither has is 0.
    """
    import numpy as np
    from sklearn.metrics import (  # type: ignore[import-untyped]  # no types
        average_precision_score,
        roc_auc_score,
    )

    # By hand: scikit-learn takes a table of one column for one of two classes.
    hits, either = (truth & given).sum(0), truth.sum(0) + given.sum(0)
    f1 = 2 * hits / np.maximum(either, 1)
    labels: list[dict[str, Any]] = []
    for column in range(truth.shape[1]):
        real, score = truth[:, column], scores[:, column]
        both = 0 < real.sum() < len(real)
        labels.append(
            {
                "positives": int(real.sum()),
                "given": int(given[:, column].sum()),
                "f1": float(f1[column]),
                "roc_auc": float(roc_auc_score(real, score)) if both else None,
                "average_precision": float(average_precision_score(real, score)) if both else None,
            }
        )
    return {
        "micro_f1": float(2 * hits.sum() / max(either.sum(), 1)),
        "macro_f1": float(f1.mean()),
        **{name: _average(label[name] for label in labels) for name in SCORES[2:]},
        "accuracy": float(np.mean((truth == given).all(axis=1))),
        "labels": labels,
    }


def _average(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


JOIN = "; "
"""Between the names of a row's labels; a name has no semicolon."""

PROBABILITY = "p:"
"""How the columns of probabilities begin; the label's name follows."""


def write_predictions(
    path: Path,
    rows: Rows,
    probabilities: NDArray[np.float64],
    names: Sequence[str],
    thresholds: Sequence[float],
    task: Task,
) -> None:
    """Write a line for each row: its number, text, labels, those given, and all probabilities.

    multi_label: a label is given from its threshold on; single_label: the likeliest is.
    """

    def lines() -> Any:
        table = zip(rows.texts, rows.labels, probabilities.tolist(), strict=True)
        for index, (text, real, scores) in enumerate(table):
            if task == "single_label":
                truth, given = [names[real[0]]], [names[scores.index(max(scores))]]
            else:
                truth = [name for name, one in zip(names, real, strict=True) if one]
                limits = zip(names, scores, thresholds, strict=True)
                given = [name for name, value, limit in limits if value >= limit]
            cells = map(guard_cell, (text, JOIN.join(truth), JOIN.join(given)))
            yield [str(index), *cells, *map(repr, scores)]

    header = ("row", "source", "reference", "prediction", *(PROBABILITY + name for name in names))
    write_table(path, header, lines())


def is_labelled(path: Path) -> bool:
    """Tell whether the CSV at `path` has labels, and not summaries."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return f",{PROBABILITY}" in file.readline().replace('"', "")


@dataclass(frozen=True)
class LabelledRows:
    """The N rows and L labels of a file that `write_predictions` wrote."""

    rows: list[tuple[str, ...]]
    """Number, source and labels of each row, which tell it from others."""
    names: list[str]
    truth: NDArray[np.int64]
    """[N, L] of 0 and 1."""
    given: NDArray[np.int64]
    """[N, L] of 0 and 1."""
    scores: NDArray[np.float64]
    """[N, L], probabilities."""


def read_predictions(path: Path) -> LabelledRows:
    """Read a file of `write_predictions`. Raises ValueError with file, line, column for another."""
    import numpy as np

    with read_records(path, ("reference", "prediction")) as lines:
        rows, truth, given, scores = [], [], [], []
        names: list[str] = []
        for where, record in lines:
            columns = [column for column in record if column.startswith(PROBABILITY)]
            names = [column.removeprefix(PROBABILITY) for column in columns]
            rows.append(tuple(record.get(name, "") for name in ("row", "source", "reference")))
            truth.append(_require_label(record["reference"], names, where))
            given.append(_require_label(record["prediction"], names, where))
            scores.append([_parse_probability(record[column], where) for column in columns])
    if not truth:
        raise ValueError(f"{path} has no rows to score")
    return LabelledRows(rows, names, np.array(truth), np.array(given), np.array(scores))


def score_predictions(path: Path) -> dict[str, Any]:
    """Summarize the scores of a file of `write_predictions`, its `labels` by name."""
    table = read_predictions(path)
    scored = summarize_scores(table.truth, table.given, table.scores)
    scored["labels"] = dict(zip(table.names, scored["labels"], strict=True))
    return scored


def _require_label(cell: str, names: Sequence[str], where: str) -> list[int]:
    labels = {name for name in unguard_cell(cell).split(JOIN) if name}
    if unknown := labels - set(names):
        raise ValueError(f"{where}: no column {PROBABILITY + min(unknown)!r} for the label")
    return [int(name in labels) for name in names]


def _parse_probability(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{where}: {cell!r} is no probability")
    return value
