"""`baseline`: score what costs nothing, as the floor of a table."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from compressor.core.errors import StageError
from compressor.core.settings import Integer, Listed
from compressor.data.source_base import Reads, Split
from compressor.evaluation.metric_names import MetricNames, identify_metrics, name_score
from compressor.evaluation.rouge import RougeTokenizerSetting
from compressor.models.facts import Facts
from compressor.stages.base import Context, Inputs, Planning, Stage
from compressor.stages.scoring.texts import check_text_metrics, load_foreign, replace_foreign

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Baseline(Stage):
    """Score what costs nothing on the same rows: every table should have such a floor.

    Texts: the first `sentences` sentences of the source (lead-3), scored by `metrics` as `evaluate`
    does.
    Labels: logistic regression on TF-IDF of words and their pairs, one for each label or one over
    all classes. Words are scikit-learn's, or those of any script where letters are not ASCII, as
    `rouge_tokenizer` chooses. It is trained on the train split and scored on the test split as
    `evaluate` does; `validation_loss` is its loss on the validation split. The
    `inverse_regularization` with the least validation loss is taken, which flatters the floor a
    little where validation serves as test too.

    Example: `baseline: {}`
    Example: `baseline: {sentences: 1, metrics: [chrf, sacrebleu]}`
    Example: `baseline: {inverse_regularization: [0.3, 1, 3], label: "TF-IDF"}`
    """

    version: ClassVar[int] = 2
    needs_model: ClassVar[bool] = False

    sentences: Integer = Field(3, ge=1, description="Sentences of the text that are written.")
    rouge_tokenizer: RougeTokenizerSetting = None
    metrics: MetricNames = ("rouge",)
    trust_remote_code: bool = Field(
        False, description="Run the code of metrics that are a hub's or a path's."
    )
    words: Integer = Field(2, ge=1, le=3, description="Longest run of words that is a feature.")
    min_rows: Integer = Field(2, ge=1, description="A feature is in at least as many rows.")
    inverse_regularization: Listed[float] = Field(
        (1.0, 3.0), min_length=1, description="scikit-learn's C; larger fits the rows closer."
    )

    def reads(self) -> Mapping[Split, Reads]:
        return {"train": "texts", "validation": "texts", "test": "texts"}

    def identity(self, planning: Planning) -> Mapping[str, Any]:
        """Name the releases of what fits or scores: others may give other results."""
        if planning.has_labels:
            return {"scikit-learn": metadata.version("scikit-learn")}
        return identify_metrics(self.metrics)

    def parameters(self) -> dict[str, Any]:
        unset = {"trust_remote_code"} | ({"metrics"} if self.metrics == ("rouge",) else set())
        named = {"metrics": [name_score(metric) for metric in self.metrics]}
        return {k: v for k, v in (super().parameters() | named).items() if k not in unset}

    def preview(self, planning: Planning) -> Facts | None:
        planning.check_settings(
            self,
            of_summaries={"sentences", "rouge_tokenizer", "metrics", "trust_remote_code"},
            of_labels={"words", "min_rows", "inverse_regularization"},
        )
        if planning.data.task == "token_classification":
            planning.report("", "has no baseline for tags of words; leave it out")
        if not planning.has_labels and planning.data.target is None:
            planning.report("", "the first sentences are scored against a text to be written")
        if not planning.has_labels:
            check_text_metrics(self, planning)
        if any(value <= 0 for value in self.inverse_regularization):
            planning.report("inverse_regularization", "expected numbers above 0")
        return None

    def run(self, inputs: Inputs, context: Context) -> None:
        """Score the lead sentences, or a regression."""
        if not context.data.has_labels:
            self._lead(context)
        else:
            self._regression(context)

    def _lead(self, context: Context) -> None:
        from compressor.data.truncation import split_sentences
        from compressor.evaluation.predictions import score_texts
        from compressor.evaluation.rouge import warn_of_wordless

        rows = context.rows("test")
        metrics = replace_foreign(self.metrics, load_foreign(self.metrics, rows, context))
        leads = [" ".join(split_sentences(text)[: self.sentences]) for text in rows.texts]
        references = [(some,) if isinstance(some, str) else tuple(some) for some in rows.references]
        scores, _ = score_texts(metrics, leads, references, rows.texts, self.rouge_tokenizer)
        context.metrics.update(scores)
        if warning := warn_of_wordless(context.metrics):
            context.progress.say(f"  {warning}")

    def _regression(self, context: Context) -> None:
        from sklearn.feature_extraction import text  # type: ignore[import-untyped]  # no types

        from compressor.backends.outputs import compute_probabilities
        from compressor.evaluation.labels import mean_loss, score_predictions, write_predictions
        from compressor.evaluation.rouge import choose_tokenizer
        from compressor.evaluation.words import split_words

        task, names = context.data.task, context.data.labels
        train, validation, test = (context.rows(s) for s in ("train", "validation", "test"))
        started = time.perf_counter()
        words: dict[str, Any] = {}  # scikit-learn's, which end at a vowel sign, or never
        if choose_tokenizer(train.texts) == "unicode":
            words = {"tokenizer": split_words, "token_pattern": None}
        vectorizer = text.TfidfVectorizer(
            ngram_range=(1, self.words),
            min_df=min(self.min_rows, len(train)),
            sublinear_tf=True,
            **words,
        )
        try:
            features = vectorizer.fit_transform(train.texts)
        except ValueError as error:  # nothing but stop words, or nothing often enough
            raise StageError(f"TF-IDF found no words in the rows: {error}") from error
        queries = [vectorizer.transform(rows.texts) for rows in (validation, test)]
        fits = []
        with context.progress.bar("regression", len(self.inverse_regularization)) as bar:
            for strength in self.inverse_regularization:
                of_validation, of_test = _fit(features, train.labels, len(names), strength, queries)
                fits.append((mean_loss(of_validation, validation.labels, task), strength, of_test))
                bar.advance()
        loss, strength, logits = min(fits, key=lambda fit: fit[0])
        path, table = context.folder / "baseline.csv", compute_probabilities(logits, task)
        write_predictions(path, test, table, names, [0.5] * len(names), task)
        context.metrics.update(
            score_predictions(path),
            loss=mean_loss(logits, test.labels, task),
            validation_loss=loss,
            inverse_regularization=strength,
            features=features.shape[1],
            train_seconds=time.perf_counter() - started,
        )


def _fit(
    features: Any, labels: list[list[int]], count: int, strength: float, queries: list[Any]
) -> list[NDArray[np.float64]]:
    """Learn `labels` from `features`, and give the logits [N, L] of each matrix in `queries`."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]  # no types

    truth = np.asarray(labels)
    if truth.shape[1] == 1 < count:  # a class for each row: one regression over all
        model = LogisticRegression(C=strength, max_iter=1000).fit(features, truth[:, 0])
        logits = [model.decision_function(rows) for rows in queries]
        return [np.stack([-x, x], 1) / 2 if x.ndim == 1 else x for x in logits]
    columns: list[list[Any]] = [[] for _ in queries]
    for label in truth.T:
        if label.all():  # a regression wants both kinds of rows; this one has a constant's odds
            odds = np.log(2 * len(label) + 1)
            logits = [np.full(rows.shape[0], odds) for rows in queries]
        else:
            model = LogisticRegression(C=strength, solver="liblinear").fit(features, label)
            logits = [model.decision_function(rows) for rows in queries]
        for column, values in zip(columns, logits, strict=True):
            column.append(values)
    return [np.stack(column, 1) for column in columns]
