"""ROUGE as an `evaluate.Metric` that needs no script from the hub; `rouge` does the work.

Apart, because the base class brings torch and takes seconds to import.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import datasets  # type: ignore[import-untyped,unused-ignore]  # no types
import evaluate  # type: ignore[import-untyped]  # no types

from compressor.evaluation.rouge import (
    RougeTokenizer,
    choose_tokenizer,
    describe_tokenizer,
    score_rows,
    summarize_scores,
)

_INPUTS = """
Args:
    predictions (list of str): one text a row.
    references (list of str): one text a row.
    per_row (bool): also return `per_row`, a list of [precision, recall, F1] for each name.
    level (float): of the intervals, 0.95 unless told.
    tokenizer (str): english or unicode; default: by the references.
"""


class Rouge(evaluate.Metric):  # type: ignore[misc]  # the base class is untyped
    """ROUGE-1/2/L/Lsum, with intervals.

    It keeps its rows in memory and leaves no file behind, so any number of processes can use one
    each; it does not gather rows across processes: do that first, and score on one.
    """

    def __init__(self, *, seed: int = 0) -> None:
        # The base class makes a cache folder that a metric in memory never writes to.
        with tempfile.TemporaryDirectory(prefix="compressor-rouge-") as unused:
            super().__init__(keep_in_memory=True, cache_dir=unused, seed=seed)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="ROUGE-1, -2, -L and -Lsum: precision, recall and F1.",
            citation="Chin-Yew Lin. 2004. ROUGE: A Package for Automatic Evaluation of "
            "Summaries. In Text Summarization Branches Out, pages 74-81.",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self,
        *,
        predictions: Sequence[str],
        references: Sequence[str],
        per_row: bool = False,
        level: float = 0.95,
        tokenizer: RougeTokenizer | None = None,
    ) -> dict[str, Any]:
        tokenizer = tokenizer or choose_tokenizer(references)
        rows = score_rows(predictions, references, tokenizer)
        summary = summarize_scores(rows, level=level, seed=self.seed)
        summary |= describe_tokenizer(references, tokenizer)
        if per_row:
            summary["per_row"] = {name: scores.tolist() for name, scores in rows.items()}
        return summary
