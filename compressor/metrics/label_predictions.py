"""A classifier's `predictions.csv`: written, read, and scored a second time. No models here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.metrics.predictions import bare, guarded, records, write_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compressor.data.rows import Rows, Task

JOIN = "; "
"""Between the names of a row's labels; a name has no semicolon."""
PROBABILITY = "p:"
"""How the columns of probabilities begin; the label's name follows."""


def write(
    path: Path,
    rows: Rows,
    probabilities: NDArray[np.float64],
    names: Sequence[str],
    thresholds: Sequence[float],
    task: Task,
) -> None:
    """A line for each row: its number, text, labels, those given, and each one's probability.

    multi_label: a label is given from its threshold on; single_label: the likeliest is.
    """

    def lines() -> Any:
        for index, (text, real, found) in enumerate(
            zip(rows.texts, rows.labels, probabilities.tolist(), strict=True)
        ):
            if task == "single_label":
                truth, given = [names[real[0]]], [names[found.index(max(found))]]
            else:
                truth = [name for name, one in zip(names, real, strict=True) if one]
                limits = zip(names, found, thresholds, strict=True)
                given = [name for name, value, limit in limits if value >= limit]
            cells = guarded(text), guarded(JOIN.join(truth)), guarded(JOIN.join(given))
            yield [str(index), *cells, *map(repr, found)]

    header = ("row", "source", "reference", "prediction", *(PROBABILITY + name for name in names))
    write_table(path, header, lines())


def is_labelled(path: Path) -> bool:
    """Whether the CSV at `path` has labels, and not summaries."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return f",{PROBABILITY}" in file.readline().replace('"', "")


@dataclass(frozen=True)
class Labelled:
    """What a file that `write` wrote says of its N rows and L labels."""

    rows: list[tuple[str, ...]]
    """What tells each row from others: its number, source and labels, as far as there are such."""
    names: list[str]
    truth: NDArray[np.int64]
    """[N, L] of 0 and 1."""
    given: NDArray[np.int64]
    """[N, L] of 0 and 1."""
    scores: NDArray[np.float64]
    """[N, L], probabilities."""


def read(path: Path) -> Labelled:
    """Read a file that `write` wrote.

    Raises ValueError, with the file, line and column, for anything else.
    """
    import numpy as np

    with records(path, ("reference", "prediction")) as lines:
        rows, truth, given, scores = [], [], [], []
        names: list[str] = []
        for where, record in lines:
            columns = [column for column in record if column.startswith(PROBABILITY)]
            names = [column.removeprefix(PROBABILITY) for column in columns]
            rows.append(tuple(record.get(name, "") for name in ("row", "source", "reference")))
            truth.append(_there(record["reference"], names, where))
            given.append(_there(record["prediction"], names, where))
            scores.append([_probability(record[column], where) for column in columns])
    if not truth:
        raise ValueError(f"{path} has no rows to score")
    return Labelled(rows, names, np.array(truth), np.array(given), np.array(scores))


def score(path: Path) -> dict[str, Any]:
    """`metrics.labels.summarize` of a file that `write` wrote, its `labels` by name.

    Raises ValueError as `read` does.
    """
    from compressor.metrics.labels import summarize

    found = read(path)
    scored = summarize(found.truth, found.given, found.scores)
    scored["labels"] = dict(zip(found.names, scored["labels"], strict=True))
    return scored


def _there(cell: str, names: Sequence[str], where: str) -> list[int]:
    found = {name for name in bare(cell).split(JOIN) if name}
    if strange := found - set(names):
        raise ValueError(f"{where}: no column {PROBABILITY + min(strange)!r} for the label")
    return [int(name in found) for name in names]


def _probability(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{where}: {cell!r} is no probability")
    return value
