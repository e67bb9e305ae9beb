"""Scores of words' tags, and the file they are made of. seqeval scores; no models here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.evaluation.bootstrap import Measure
from compressor.evaluation.predictions import guard_cell, read_records, unguard_cell, write_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Tags = Sequence[Sequence[str]]

SCORES = ("entity_f1", "entity_precision", "entity_recall")
"""What a table compares; each in 0 … 1, more is better."""
CUT_WORDS = "cut_words"
"""The column that tells a file of tags from others: how many words of a row the model did not read,
which count as O."""
_SCHEMES = {"U": "BILOU", "L": "BILOU", "S": "IOBES", "E": "IOBES", "B": "IOB2"}
"""A prefix that a tag has → seqeval's name of the scheme."""


def mean_loss(words: Sequence[NDArray[np.float64]], tags: Sequence[Sequence[int]]) -> float | None:
    """Average the cross-entropy over the words that were read, if any; others' logits are NaN."""
    import numpy as np
    from scipy.special import log_softmax  # type: ignore[import-untyped]  # no types

    logits, truth = np.concatenate(words), np.concatenate([np.asarray(row, int) for row in tags])
    read = ~np.isnan(logits).any(axis=1)
    losses = -log_softmax(logits[read], axis=1)[np.arange(read.sum()), truth[read]]
    return float(losses.mean()) if read.any() else None


def write_predictions(
    path: Path, texts: Sequence[str], truth: Tags, given: Tags, cut_words: Sequence[int]
) -> None:
    """Write a line for each row: its number, words, tags, those given, words that were not read."""

    def lines() -> Iterator[list[str]]:
        table = zip(texts, truth, given, cut_words, strict=True)
        for index, (text, real, guessed, cut) in enumerate(table):
            cells = map(guard_cell, (text, " ".join(real), " ".join(guessed)))
            yield [str(index), *cells, str(cut)]

    write_table(path, ("row", "source", "reference", "prediction", CUT_WORDS), lines())


def is_tagged(path: Path) -> bool:
    """Tell whether the CSV at `path` has tags of words."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return CUT_WORDS in file.readline().replace('"', "").strip().split(",")


@dataclass(frozen=True)
class TaggedRows:
    """The rows of a file that `write_predictions` wrote."""

    rows: list[tuple[str, ...]]
    """Number, source and tags of each row, which tell it from others."""
    truth: list[list[str]]
    given: list[list[str]]
    cut_words: int


def read_predictions(path: Path) -> TaggedRows:
    """Read a file of `write_predictions`. Raises ValueError with file, line, column for another."""
    rows, truth, given, cut_words = [], list[list[str]](), list[list[str]](), 0
    with read_records(path, ("reference", "prediction")) as lines:
        for where, record in lines:
            rows.append(tuple(record.get(name, "") for name in ("row", "source", "reference")))
            real, guessed = (
                unguard_cell(record[name]).split() for name in ("reference", "prediction")
            )
            if len(real) != len(guessed):
                counts = f"{len(guessed)} tags in 'prediction', {len(real)} in 'reference'"
                raise ValueError(f"{where}: {counts}; each word has one")
            truth.append(real)
            given.append(guessed)
            cut = record.get(CUT_WORDS) or "0"
            cut_words += int(cut) if cut.isdecimal() else 0
    if not rows:
        raise ValueError(f"{path} has no rows to score")
    return TaggedRows(rows, truth, given, cut_words)


def score_predictions(path: Path) -> dict[str, Any]:
    """Summarize the scores of a file of `write_predictions`."""
    table = read_predictions(path)
    return summarize_scores(table.truth, table.given) | {CUT_WORDS: table.cut_words}


def summarize_scores(truth: Tags, given: Tags) -> dict[str, Any]:
    """Compute `SCORES`, `strict_f1`, `accuracy` of words, and the scores of each type.

    An entity counts where its type and both of its ends are right, by seqeval's default, as
    `conlleval` has it. `strict_f1`: and where the tags follow their scheme to the letter; None
    where they have none. The interval of `entity_f1` (95 %) is a bootstrap over rows.
    """
    from seqeval.metrics import (  # type: ignore[import-untyped]  # no types
        accuracy_score,
        classification_report,
    )

    real, guessed = [list(row) for row in truth], [list(row) for row in given]
    measure = Measure(count_entities(real, guessed), entity_f1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tags without prefix, and of scores without entities
        report = classification_report(real, guessed, output_dict=True, zero_division=0)
        accuracy = accuracy_score(real, guessed) if any(real) else 0.0
        strict_f1 = _score_strictly(real, guessed)
    scores = report["micro avg"]
    return {
        "entity_f1": float(scores["f1-score"]),
        "entity_precision": float(scores["precision"]),
        "entity_recall": float(scores["recall"]),
        "strict_f1": strict_f1,
        "accuracy": float(accuracy),
        "count": len(real),
        "words": sum(map(len, real)),
        "intervals": {"entity_f1": measure.interval()},
        "entities": {
            kind: {
                "positives": int(row["support"]),
                **{name: float(row[key]) for name, key in _OF_TYPE.items()},
            }
            for kind, row in report.items()
            if not kind.endswith(" avg")
        },
    }


_OF_TYPE = {"f1": "f1-score", "precision": "precision", "recall": "recall"}


def _score_strictly(truth: list[list[str]], given: list[list[str]]) -> float | None:
    """Compute the F1 of entities whose tags follow their scheme; None without a scheme."""
    from seqeval import scheme  # type: ignore[import-untyped]  # no types
    from seqeval.metrics import f1_score

    tags = {tag for row in [*truth, *given] for tag in row} - {"O"}
    prefixes = {tag.partition("-")[0] for tag in tags}
    if not tags or not all("-" in tag for tag in tags) or not prefixes <= {*"BIULSE"}:
        return None
    name = next((name for prefix, name in _SCHEMES.items() if prefix in prefixes), "IOB1")
    if any(prefix not in {"BILOU": "BILU", "IOBES": "BIES"}.get(name, "BI") for prefix in prefixes):
        return None
    rules = getattr(scheme, name)
    return float(f1_score(truth, given, mode="strict", scheme=rules, zero_division=0))


def count_entities(truth: Tags, given: Tags) -> NDArray[np.float64]:
    """Count each row's entities [N, 3]: those there are, those given, those that are right."""
    import numpy as np
    from seqeval.metrics.sequence_labeling import (  # type: ignore[import-untyped]  # no types
        get_entities,
    )

    counts = np.zeros((len(truth), 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for line, row, guessed in zip(counts, truth, given, strict=True):
            sides = set(get_entities(list(row))), set(get_entities(list(guessed)))
            line[:] = *map(len, sides), len(set.intersection(*sides))
    return counts


def score_row(reference: str, given: str) -> float:
    """Compute the F1 of a row's entities, 1 where there are none and none is given."""
    counts = count_entities([reference.split()], [given.split()])
    return float(entity_f1(counts)[0]) if counts.any() else 1.0


def measure_rows(table: TaggedRows) -> dict[str, Measure]:
    """Measure rows by what `SCORES` and `accuracy` are computed from."""
    import numpy as np

    counts = count_entities(table.truth, table.given)
    right = [
        [sum(a == b for a, b in zip(*pair, strict=True)), len(pair[0])]
        for pair in zip(table.truth, table.given, strict=True)
    ]
    return {
        "entity_f1": Measure(counts, entity_f1),
        "entity_precision": Measure(counts[:, [2, 1]], _divide),
        "entity_recall": Measure(counts[:, [2, 0]], _divide),
        "accuracy": Measure(np.array(right, dtype=float), _divide),
    }


def _divide(means: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    shares: NDArray[np.float64] = means[:, 0] / np.maximum(means[:, 1], 1e-12)
    return shares


def entity_f1(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the F1 of counts, or of their means, [..., 3]; 0 where there are no entities."""
    import numpy as np

    either = counts[..., 0] + counts[..., 1]
    f1: NDArray[np.float64] = 2 * counts[..., 2] / np.maximum(either, 1e-12)
    return f1
