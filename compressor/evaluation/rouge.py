"""ROUGE with per-row scores and confidence intervals. No files, models or network here.

`metric.Rouge` wraps it as an `evaluate.Metric`.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from compressor.data.truncation import split_sentences
from compressor.evaluation.bootstrap import bootstrap_interval
from compressor.evaluation.words import split_words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Scores = NDArray[np.float64]

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
"""The variants that are computed, as rouge_score names them."""

SCORING_PACKAGES = ("rouge_score", "nltk")
"""The packages that compute the scores."""

SCORE_COLUMNS = ("precision", "recall", "f1")
"""The columns of the arrays that `score_rows` returns."""

METRIC_KEYS = tuple(f"{name}{end}" for name in ROUGE_TYPES for end in ("_precision", "_recall", ""))
"""The keys of the means in a stage's metrics; that of F1 is the bare ROUGE type."""

Reference = str | Sequence[str]
"""The reference of a row: one text, or several, of which the best match counts."""

RougeTokenizer = Literal["english", "unicode"]
"""How texts are split into words: see `RougeTokenizerSetting`."""

RougeTokenizerSetting = Annotated[
    RougeTokenizer | None,
    Field(
        description="What ROUGE's words are. english: runs of a-z and 0-9, stemmed; unicode: words "
        "of any script, or characters where it has no spaces. Default: unicode where clearly more "
        "than 0.5 % of the references' letters are not ASCII."
    ),
]

NON_ASCII_SHARE = 0.005
"""Share of non-ASCII letters above which references are not taken for English. Italian has 1.1 %,
German 1.7 %, French 3 %; English, with the names and loanwords of newspapers, 0.1 %."""

_NON_LETTERS = re.compile(r"[\W_]+")  # digits count as letters


class _English:
    """rouge_score's own tokenizer and Porter stemmer; caching stems makes it a third faster."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]  # no types

        self.stem = functools.lru_cache(maxsize=2**16)(PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        from rouge_score import tokenize  # type: ignore[import-untyped]  # no types

        tokens: list[str] = tokenize.tokenize(text, self)
        return tokens


class _Unicode:
    """Words of any script, not stemmed."""

    tokenize = staticmethod(split_words)


@functools.cache
def _make_tokenizer(name: RougeTokenizer) -> _English | _Unicode:
    return _English() if name == "english" else _Unicode()


@functools.cache
def _make_scorer(tokenizer: RougeTokenizer) -> Any:
    from rouge_score.rouge_scorer import (  # type: ignore[import-untyped]  # no types
        RougeScorer,
    )

    return RougeScorer(ROUGE_TYPES, tokenizer=_make_tokenizer(tokenizer))


def _list_texts(reference: Reference) -> Sequence[str]:
    return [reference] if isinstance(reference, str) else reference


def choose_tokenizer(references: Iterable[Reference]) -> RougeTokenizer:
    """Choose ROUGE's tokenizer for an evaluation: `english` where nearly all letters are ASCII.

    It looks at the references alone, so that all models with the same references are scored alike.
    """
    total = beyond_ascii = 0
    for text in (text for reference in references for text in _list_texts(reference)):
        letters = _NON_LETTERS.sub("", unicodedata.normalize("NFC", text))
        total += len(letters)
        beyond_ascii += len(letters) - len(letters.encode("ascii", "ignore"))
    expected = NON_ASCII_SHARE * total
    # Two standard deviations more, so that one "café" in a little English changes nothing.
    return "unicode" if beyond_ascii > expected + 2 * math.sqrt(expected) else "english"


def describe_tokenizer(
    references: Iterable[Reference], tokenizer: RougeTokenizer
) -> dict[str, Any]:
    """Make the metrics that name the tokenizer and, if any, count the `wordless` references.

    Those have text but no word that the tokenizer knows, so any prediction scores 0.
    """
    tokenize = _make_tokenizer(tokenizer).tokenize
    wordless = sum(
        all(text.strip() and not tokenize(text) for text in _list_texts(reference))
        for reference in references
    )
    return {"rouge_tokenizer": tokenizer} | ({"wordless": wordless} if wordless else {})


def warn_of_wordless(metrics: Mapping[str, Any]) -> str | None:
    """Explain how many references are wordless, if `describe_tokenizer` counted any."""
    if not metrics.get("wordless"):
        return None
    name, cure = metrics["rouge_tokenizer"], ""
    if name == "english":
        cure = "; `rouge_tokenizer: unicode` knows the words of all scripts"
    return (
        f"{metrics['wordless']} of {metrics['count']} references have no word that ROUGE's "
        f"tokenizer {name!r} knows, and score 0{cure}"
    )


def score_rows(
    predictions: Sequence[str],
    references: Sequence[Reference],
    tokenizer: RougeTokenizer | None = None,
) -> dict[str, Scores]:
    """Score each prediction against its reference; of several, against the one with the best F1.

    Returns, for each of `ROUGE_TYPES`, a float64 array of shape (rows, 3): precision, recall, F1,
    in 0..1. `tokenizer`: "english" words are lower-cased and stemmed (Porter), as `evaluate`'s
    `use_stemmer=True` does; "unicode" ones are those of `split_words`; None is what
    `choose_tokenizer` makes of the references. rougeLsum is over the sentences that
    `split_sentences` finds in both texts. If either text has no word, its row is 0. Raises
    ValueError if predictions and references differ in length.
    """
    import numpy as np

    scorer = _make_scorer(tokenizer or choose_tokenizer(references))
    scores = {name: np.zeros((len(predictions), len(SCORE_COLUMNS))) for name in ROUGE_TYPES}
    for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        # Only rougeLsum sees the line ends; the other three take them for spaces.
        targets = ["\n".join(split_sentences(text)) for text in _list_texts(reference)]
        triples = scorer.score_multi(targets, "\n".join(split_sentences(prediction)))
        for name in ROUGE_TYPES:
            scores[name][row] = triples[name]
    return scores


def compute_retention(student: float, teacher: float) -> float | None:
    """Compute `student / teacher`: the share of the teacher's score that is left.

    Above 1 the student is better. None if the teacher scored 0: there was nothing to keep.
    """
    return student / teacher if teacher else None


def compute_closeness(student: float, teacher: float) -> float:
    """Compute `1 - |teacher - student|`, which "Compressing T5 models" (Ziade 2024) calls accuracy.

    It flatters: scores lie in a narrow band near 0.3, so a difference can hardly be large. 0.30
    against a teacher's 0.38 gives 0.92 though a fifth is lost, a student that outputs nothing at
    all gets 0.62, and one that beats its teacher is punished. Read `retention` beside it.
    """
    return 1 - abs(teacher - student)


def summarize_scores(
    rows: Mapping[str, Scores], *, level: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Average what `score_rows` returned, into a dict for JSON: scores in 0..1, not rounded.

    `{"count": rows, "rouge1": F1, "rouge1_precision": …, "rouge1_recall": …, …,
    "intervals": {"rouge1": [low, high], …}}`; an interval is `bootstrap_interval`'s, of F1.
    Raises ValueError for no rows: they have no mean.
    """
    if not all(len(scores) for scores in rows.values()):
        raise ValueError("there are no rows to score")
    summary: dict[str, Any] = {"count": min(map(len, rows.values()))}
    for name, scores in rows.items():
        precision, recall, f1 = map(float, scores.mean(0))
        summary |= {name: f1, f"{name}_precision": precision, f"{name}_recall": recall}
    summary["intervals"] = {
        name: list(bootstrap_interval(scores[:, 2], level=level, seed=seed))
        for name, scores in rows.items()
    }
    return summary


def score_texts(
    predictions: Sequence[str],
    references: Sequence[Reference],
    tokenizer: RougeTokenizer | None = None,
) -> dict[str, Any]:
    """Score texts for a stage's metrics: means, intervals and the name of the tokenizer."""
    tokenizer = tokenizer or choose_tokenizer(references)
    summary = summarize_scores(score_rows(predictions, references, tokenizer))
    return summary | describe_tokenizer(references, tokenizer)
