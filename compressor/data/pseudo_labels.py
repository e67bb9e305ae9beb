"""Texts that a model wrote for the training rows, and rows that have them to learn. No models here.

A file has a line of JSON for each row, in the rows' order: what was written, how many tokens that
were, and whether the limit ended it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from compressor.data.rows import Rows
from compressor.errors import StageError

FILE = "targets.jsonl"


@dataclass(frozen=True)
class Written:
    """What a model wrote for one row."""

    summary: str
    tokens: int
    """Tokens generated, counted as `gen_len` of transformers' `run_summarization.py` is."""
    cut_off: bool
    """True if it reached the limit without an end of sequence."""

    @property
    def empty(self) -> bool:
        return not self.summary.strip()


def write_pseudo_labels(path: Path, labels: Sequence[Written]) -> None:
    """Write one line of JSON for each label, as UTF-8."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for label in labels:
            stream.write(json.dumps(asdict(label), ensure_ascii=False) + "\n")


def read_pseudo_labels(path: Path) -> list[Written]:
    """What `write_pseudo_labels` wrote."""
    with path.open(encoding="utf-8", newline="\n") as stream:
        return [Written(**json.loads(line)) for line in stream]


def with_pseudo_labels(rows: Rows, labels: Sequence[Written]) -> Rows:
    """The same texts with `labels` as their summaries; a row whose label is empty keeps its own.

    An empty label would teach to write nothing. Raises StageError for another number of rows.
    """
    if len(labels) != len(rows):
        raise StageError(
            f"targets: {len(labels)} pseudo-labels for {len(rows)} training rows; both stages must "
            "read the same rows"
        )
    both = zip(labels, rows.summaries, strict=True)
    return Rows(rows.texts, [own if label.empty else label.summary for label, own in both])
