"""Scores of texts against references, by sums over rows. ROUGE is in `rouge`; no files here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compressor.evaluation.bootstrap import Measure, take_first

if TYPE_CHECKING:
    from compressor.evaluation.bootstrap import Scores

References = Sequence[Sequence[str]]
"""One or more texts for each row, and not equally many."""


def score_texts(
    metric: str, predictions: Sequence[str], references: References
) -> tuple[dict[str, Any], Measure]:
    """Score texts by sacrebleu, chrf, ter or exact_match, for a stage's metrics.

    `{"sacrebleu": 0 … 100, "sacrebleu_signature": how it was counted, "intervals": {…}}`, and what
    it was computed from. Raises ValueError if predictions and references differ in length.
    """
    measure, signature = measure_texts(metric, predictions, references)
    summary = {metric: measure.value, "intervals": {metric: list(measure.interval())}}
    return summary | ({f"{metric}_signature": signature} if signature else {}), measure


def measure_texts(
    metric: str, predictions: Sequence[str], references: References
) -> tuple[Measure, str | None]:
    """Count by row what a score is computed from; and say how, in sacrebleu's words.

    Scores are those of `sacrebleu.corpus_bleu`, `corpus_chrf` and `corpus_ter` with their defaults,
    and of `evaluate`'s exact_match. Of several references any may match; TER divides by their mean
    length.
    """
    import numpy as np

    if len(predictions) != len(references):
        counts = f"{len(predictions)} predictions and {len(references)} rows of references"
        raise ValueError(f"{metric}: {counts}")
    if metric == "exact_match":
        pairs = zip(predictions, references, strict=True)
        rows = np.array([[float(text in some)] for text, some in pairs])
        return Measure(rows, take_first), None
    return _measure_by_sums(_make_scorer(metric), predictions, references)


def _make_scorer(metric: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    return {"sacrebleu": BLEU, "chrf": CHRF, "ter": TER}[metric]()


def _measure_by_sums(
    scorer: Any, predictions: Sequence[str], references: References
) -> tuple[Measure, str]:
    """Count what a metric of sacrebleu sums over rows, as its own paired tests do."""
    import numpy as np

    most = max(map(len, references))
    columns = [[some[n] if n < len(some) else None for some in references] for n in range(most)]
    rows = np.array(scorer._extract_corpus_statistics(predictions, columns), dtype=float)

    def score(means: Scores) -> Scores:
        sums = np.round(means * len(rows), 9)  # of whole numbers, which it cuts to integers
        return np.array([scorer._compute_score_from_stats(list(line)).score for line in sums])

    return Measure(rows, score), str(scorer.get_signature())
