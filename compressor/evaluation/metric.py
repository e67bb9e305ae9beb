"""Metrics of `evaluate`: ours, which need no script from the hub, and others', whose code runs.

Apart, because the base class brings torch and takes seconds to import. The work of ours is done by
`rouge` and `text_scores`.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import datasets  # type: ignore[import-untyped,unused-ignore]  # no types
import evaluate  # type: ignore[import-untyped]  # no types

from compressor.core.errors import StageError, first_line
from compressor.evaluation.bootstrap import Measure, take_first
from compressor.evaluation.metric_names import LESS_IS_BETTER, find_code, name_score
from compressor.evaluation.rouge import (
    RougeTokenizer,
    choose_tokenizer,
    describe_tokenizer,
    score_rows,
    summarize_scores,
)
from compressor.evaluation.text_scores import References, score_texts

SECONDS = 60.0
"""How long an interval may take of a metric that has to be computed anew for each resample."""
RESAMPLES = 200
"""Of such a metric."""
_TRIED = 8
"""Rows on which it is tried whether a metric is the mean of its rows' scores."""
_MAIN = ("score", "f1", "mean_score", "scores")
"""What is the main number of several, where none has the metric's name: else the first."""

_INPUTS = """
Args:
    predictions (list of str): one text a row.
    references (list of str): one text a row.
    per_row (bool): also return `per_row`, a list of [precision, recall, F1] for each name.
    level (float): of the intervals, 0.95 unless told.
    tokenizer (str): english or unicode; default: by the references.
"""


class _InMemory(evaluate.Metric):  # type: ignore[misc]  # the base class is untyped
    """A metric that keeps its rows in memory and leaves no file behind.

    So any number of processes can use one each; it does not gather rows across processes: do that
    first, and score on one.
    """

    def __init__(self, *, seed: int = 0) -> None:
        # The base class makes a cache folder that a metric in memory never writes to.
        with tempfile.TemporaryDirectory(prefix="compressor-metric-") as unused:
            super().__init__(keep_in_memory=True, cache_dir=unused, seed=seed)


class Rouge(_InMemory):
    """ROUGE-1/2/L/Lsum, with intervals."""

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


class TextMetric(_InMemory):
    """sacrebleu, chrf, ter or exact_match, with its interval."""

    def __init__(self, name: str, *, seed: int = 0) -> None:
        self._name = name
        super().__init__(seed=seed)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=f"{self._name}, with a bootstrap 95 % interval.",
            citation="Matt Post. 2018. A Call for Clarity in Reporting BLEU Scores. In Proceedings "
            "of the Third Conference on Machine Translation, pages 186-191.",
            inputs_description="One text a row as prediction, and one or several as reference.",
            features=[
                datasets.Features({"predictions": text, "references": references})
                for references in (text, datasets.Sequence(text))
            ],
        )

    def _compute(
        self, *, predictions: Sequence[str], references: Sequence[str | Sequence[str]]
    ) -> dict[str, Any]:
        several = [[some] if isinstance(some, str) else some for some in references]
        return score_texts(self._name, predictions, several)[0]


class ForeignMetric:
    """A metric whose code is a hub's, or lies at a path: it is loaded, and runs.

    Everything that it raises becomes a StageError that names it.
    """

    def __init__(self, metric: str) -> None:
        self.metric, self.name = metric, name_score(metric)
        try:
            with tempfile.TemporaryDirectory(prefix="compressor-metric-") as unused:
                self.module = evaluate.load(
                    str(find_code(metric)[0]), keep_in_memory=True, cache_dir=unused
                )
        except Exception as error:
            raise self._explain("could not be loaded", error) from error
        self.less_is_better = bool(
            getattr(self.module, "less_is_better", self.name in LESS_IS_BETTER)
        )

    def _explain(self, what: str, error: Exception) -> StageError:
        reason = f"{type(error).__name__}: {first_line(error)}"
        return StageError(f"the metric {self.metric!r} {what}: {reason:.500}")

    def try_out(self, references: References, sources: Sequence[str]) -> None:
        """Compute it of a few rows' own references, before hours of decoding; raise StageError."""
        counts = [len(some) for some in references]
        rows = sorted({0, counts.index(max(counts)), counts.index(min(counts)), len(counts) - 1})
        self._arrange(sources, references, sources)  # all rows: what it takes is looked at alone
        some = [references[row] for row in rows]
        self._compute(self._arrange([r[0] for r in some], some, [sources[row] for row in rows]))

    def score(
        self, predictions: Sequence[str], references: References, sources: Sequence[str]
    ) -> tuple[dict[str, Any], Measure | None]:
        """Score texts as `text_scores.score_texts` does, with further numbers as `<name>_<key>`.

        The interval is of rows' scores where the metric gives these, or is their mean, which is
        tried; else of `RESAMPLES` recomputed resamples; None where that takes more than `SECONDS`.
        """
        columns = self._arrange(predictions, references, sources)
        started = time.perf_counter()
        numbers, rows = self._compute(columns)
        seconds = time.perf_counter() - started
        if rows is None:
            rows = self._score_rows(columns, numbers[self.name])
        measure, interval = None, None
        if rows is not None:
            import numpy as np

            measure = Measure(np.array(rows, dtype=float)[:, None], take_first)
            interval = list(measure.interval())
        elif seconds * RESAMPLES <= SECONDS:
            interval = self._resample(columns)
        return numbers | {"intervals": {self.name: interval}}, measure

    def _arrange(
        self, predictions: Sequence[str], references: References, sources: Sequence[str]
    ) -> dict[str, list[Any]]:
        """Arrange texts as the metric wants them, by its features. Raises StageError."""
        features = self.module.features
        forms = features if isinstance(features, list) else [features]
        known = {"predictions": predictions, "references": references, "sources": sources}
        if unknown := sorted(set(forms[0]) - set(known)):
            wanted = f"wants {', '.join(unknown)}; a stage has {', '.join(known)}"
            raise StageError(f"the metric {self.metric!r} {wanted}")
        columns = {name: list(known[name]) for name in forms[0]}
        single = any(isinstance(form.get("references"), datasets.Value) for form in forms)
        several = not all(isinstance(form.get("references"), datasets.Value) for form in forms)
        more = next((row for row, some in enumerate(references) if len(some) > 1), None)
        if "references" in columns and single and more is None:
            columns["references"] = [some[0] for some in references]
        elif "references" in columns and not several:
            count = f"takes one reference a row, and row {more} has {len(references[more or 0])}"
            raise StageError(f"the metric {self.metric!r} {count}")
        return columns

    def _compute(
        self, columns: Mapping[str, Sequence[Any]]
    ) -> tuple[dict[str, float], list[float] | None]:
        """Compute the numbers, the main one first by the metric's name; and rows' of the main."""
        count = len(next(iter(columns.values())))
        try:
            result = self.module.compute(**columns)
            numbers, rows = _read_result(result, self.name, count)
        except Exception as error:
            raise self._explain("failed", error) from error
        if not numbers:
            raise StageError(f"the metric {self.metric!r} gave no number: {result!s:.200}")
        return numbers, rows

    def _score_rows(self, columns: Mapping[str, Sequence[Any]], value: float) -> list[float] | None:
        """Score each row by itself, in `SECONDS`; None where the metric is not these' mean."""
        count, started = len(next(iter(columns.values()))), time.perf_counter()
        scores: list[float] = []
        for row in range(count):
            if time.perf_counter() - started > SECONDS:
                return None
            scores.append(self._compute_main(columns, [row]))
            if len(scores) == _TRIED < count:
                first = self._compute_main(columns, range(_TRIED))
                if not _is_mean(first, scores):
                    return None
        return scores if _is_mean(value, scores) else None

    def _resample(self, columns: Mapping[str, Sequence[Any]]) -> list[float] | None:
        import numpy as np

        random, count = np.random.default_rng(0), len(next(iter(columns.values())))
        picks = (random.integers(count, size=count).tolist() for _ in range(RESAMPLES))
        drawn = [self._compute_main(columns, pick) for pick in picks]
        low, high = (float(end) for end in np.quantile(drawn, [0.025, 0.975]))
        return [low, high] if math.isfinite(low + high) else None

    def _compute_main(self, columns: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> float:
        """Compute the main number of some rows; NaN where the metric has none for so few."""
        some = {name: [column[row] for row in rows] for name, column in columns.items()}
        try:
            return self._compute(some)[0][self.name]
        except StageError:
            return math.nan


def _is_mean(value: float, scores: Sequence[float]) -> bool:
    return abs(sum(scores) / len(scores) - value) <= 1e-6 * max(1.0, abs(value))


def _read_result(result: Any, name: str, count: int) -> tuple[dict[str, float], list[float] | None]:
    """Read numbers, and lists of one for each row, of what a metric gave."""
    import numpy as np

    values = result if isinstance(result, Mapping) else getattr(result, "__dict__", {name: result})
    numbers: dict[str, float] = {}
    lists: dict[str, list[float]] = {}
    for key, value in values.items():
        several = isinstance(value, list | tuple | np.ndarray)
        items = list(value) if several else [value]
        if len(items) in (1, count) and all(isinstance(item, Real) for item in items):
            numbers[key] = sum(map(float, items)) / len(items)
            lists |= {key: list(map(float, items))} if several and len(items) == count else {}
    if not numbers:
        return {}, None
    main = next((key for key in (name, *_MAIN) if key in numbers), next(iter(numbers)))
    rows = [scores for key, scores in lists.items() if _is_mean(numbers[main], scores)]
    named = {f"{name}_{key}": number for key, number in numbers.items() if key != main}
    return {name: numbers[main]} | named, lists.get(main, rows[0] if rows else None)
