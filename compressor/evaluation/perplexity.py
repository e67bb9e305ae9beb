"""Perplexity of texts in windows: what is read, the file of rows, and scores of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.core.errors import StageError
from compressor.data.spill import IdRows
from compressor.evaluation.bootstrap import resampled_means
from compressor.evaluation.predictions import guard_cell, read_records, unguard_cell, write_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compressor.backends.base import Model
    from compressor.backends.outputs import Report
    from compressor.data.rows import Rows
    from compressor.data.source_base import DataBase

    Table = NDArray[np.float64]

FILE = "perplexity.csv"
COUNTS = ("loss", "tokens", "words", "bytes")
"""Columns of the file beside `row` and `source`: what the scores of any rows are ratios of."""
MAIN = "perplexity"
PERPLEXITIES = (MAIN, "word_perplexity", "byte_perplexity")
"""What tables compare; each is at least 1, less is better."""


def _divide(means: Table, column: str) -> Table:
    """Divide the summed loss [R] by what is counted in a column; infinite where that is 0."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Table = means[:, 0] / means[:, COUNTS.index(column)]
    return ratio


def _raise_e(exponents: Table) -> Table:
    import numpy as np

    with np.errstate(over="ignore"):
        powers: Table = np.exp(exponents)
    return powers


SCORES: Mapping[str, Callable[[Table], Table]] = {
    MAIN: lambda means: _raise_e(_divide(means, "tokens")),
    "word_perplexity": lambda means: _raise_e(_divide(means, "words")),
    "byte_perplexity": lambda means: _raise_e(_divide(means, "bytes")),
    "bits_per_byte": lambda means: _divide(means, "bytes") / math.log(2),
    "loss": lambda means: _divide(means, "tokens"),
}
"""Name → the score [R] of means over rows of `COUNTS` [R, 4], so that any resample has one."""


@dataclass
class Windows:
    """Windows of texts: in each the tokens that are predicted, after those that are only read."""

    sources: IdRows = field(default_factory=IdRows)
    targets: IdRows = field(default_factory=IdRows)
    rows: list[int] = field(default_factory=list)
    """Which text a window is of."""

    def count_tokens(self) -> int:
        """Count the tokens that a model reads."""
        return sum(self.sources.lengths()) + sum(self.targets.lengths())


def list_windows(texts: Sequence[Sequence[int]], *, size: int, stride: int) -> Windows:
    """List the windows of texts that `cut_windows` cuts each into."""
    from compressor.data.batching import cut_windows

    windows = Windows()
    for row, ids in enumerate(texts):
        for source, target in cut_windows(ids, size=size, stride=stride):
            windows.sources.extend([source])
            windows.targets.extend([target])
            windows.rows.append(row)
    return windows


def read_texts(texts: Sequence[str], tokenizer: Any) -> IdRows:
    """Tokenize whole texts, with what the tokenizer puts around them by itself."""
    rows = IdRows()
    for start in range(0, len(texts), 100):
        rows.extend(tokenizer(list(texts[start : start + 100]), verbose=False).input_ids)
    return rows


def measure_completions(model: Model, rows: Rows, data: DataBase, progress: Report) -> Table:
    """Compute the `COUNTS` of each row's completion after its prompt, its end token included, as a
    training reads both: of one that `max_target_length` cuts, what is left.
    """
    from compressor.data.examples import tokenize_rows

    tokenizer: Any = model.tokenizer
    examples, texts = tokenize_rows(rows, tokenizer, data, joined=True), list(rows.summaries)
    for row, ids in enumerate(examples.targets):
        if len(ids) >= data.max_target_length:
            (texts[row],) = tokenizer.batch_decode([ids], skip_special_tokens=True)
    windows = Windows(IdRows(), IdRows(), [*range(len(rows))])
    windows.sources.extend(examples.sources)
    windows.targets.extend(examples.targets)
    return measure_texts(model, texts, windows, progress)


def measure_texts(model: Model, texts: Sequence[str], windows: Windows, progress: Report) -> Table:
    """Compute the `COUNTS` of each text. Raises StageError where there is nothing to predict."""
    import numpy as np

    if not windows.rows:
        raise StageError("no text of the test split has a second token, which could be predicted")
    losses = model.sum_losses(windows.sources, windows.targets, progress=progress)
    table = np.zeros((len(texts), len(COUNTS)))
    pairs = zip(windows.rows, losses, windows.targets.lengths(), strict=True)
    for row, loss, tokens in pairs:
        table[row, :2] += loss, tokens
    table[:, 2] = [len(text.split()) for text in texts]
    table[:, 3] = [len(text.encode()) for text in texts]
    return table


def write_rows(path: Path, texts: Sequence[str], table: Table) -> None:
    """Write a line for each text: its number, itself and its counts."""

    def list_lines() -> Iterator[list[str]]:
        for row, (text, (loss, *counts)) in enumerate(zip(texts, table.tolist(), strict=True)):
            yield [str(row), guard_cell(text), repr(loss), *(str(int(count)) for count in counts)]

    write_table(path, ("row", "source", *COUNTS), list_lines())


def read_rows(path: Path) -> tuple[list[tuple[str, str]], Table]:
    """Read number and text of each row, and its counts. Raises ValueError with file and line."""
    import numpy as np

    rows, counts = [], []
    with read_records(path, ("row", "source", *COUNTS)) as lines:
        for where, record in lines:
            try:
                counts.append([float(record[name]) for name in COUNTS])
            except ValueError:
                raise ValueError(f"{where}: expected numbers as {', '.join(COUNTS)}") from None
            rows.append((record["row"], unguard_cell(record["source"])))
    if not rows:
        raise ValueError(f"{path} has no rows to score")
    return rows, np.array(counts)


def summarize_file(path: Path) -> dict[str, Any]:
    """Summarize a file of `write_rows`, as `summarize_rows` does."""
    return summarize_rows(read_rows(path)[1])


def summarize_rows(table: Table) -> dict[str, Any]:
    """Compute `SCORES`, their bootstrap 95 % intervals over rows, and counts; None if infinite."""
    import numpy as np

    drawn = resampled_means(table, resamples=1000, seed=0)
    summary: dict[str, Any] = {"count": len(table), "tokens": int(table[:, 1].sum())}
    intervals: dict[str, list[float] | None] = {}
    for name, score in SCORES.items():
        value = float(score(table.mean(0, keepdims=True))[0])
        summary[name] = value if math.isfinite(value) else None
        scores = score(drawn)
        if np.isfinite(scores).all():
            intervals[name] = np.quantile(scores, [0.025, 0.975]).tolist()
    return summary | {"intervals": intervals}
