"""`baseline`: the floor of a table, without any of the recipe's models. Scores are elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from compressor.core.errors import StageError
from compressor.core.packages import versions
from compressor.core.settings import Integer, Listed
from compressor.data.source_base import Reads, Split
from compressor.evaluation.rouge import SCORERS, RougeTokenizerSetting
from compressor.models.facts import Facts
from compressor.stages.base import Context, Inputs, Planning, Stage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Baseline(Stage):
    """Score what costs nothing on the same rows: every table should have such a floor.

    Summaries: the first `sentences` sentences of the text (lead-3), scored as `evaluate` does.
    Labels: a logistic regression on TF-IDF of words and their pairs (scikit-learn's, or those of
    any script where the texts' letters are not ASCII, as `rouge_tokenizer` chooses), one for each
    label, or one over all classes; trained on the train split, scored on the test split as
    `evaluate` does, with its loss on the validation split as `validation_loss`. Of several
    `inverse_regularization`s the one with the least validation loss is taken: where validation
    serves as test too, that flatters the floor a little.

    Example: `baseline: {}`
    Example: `baseline: {sentences: 1}`
    Example: `baseline: {inverse_regularization: [0.3, 1, 3], label: "TF-IDF"}`
    """

    version: ClassVar[int] = 2
    needs_model: ClassVar[bool] = False

    sentences: Integer = Field(3, ge=1, description="Sentences of the text that are its summary.")
    rouge_tokenizer: RougeTokenizerSetting = None
    words: Integer = Field(2, ge=1, le=3, description="Longest run of words that is a feature.")
    min_rows: Integer = Field(2, ge=1, description="A feature is in at least as many rows.")
    inverse_regularization: Listed[float] = Field(
        (1.0, 3.0), min_length=1, description="scikit-learn's C; larger fits the rows closer."
    )

    def reads(self) -> Mapping[Split, Reads]:
        return {"train": "texts", "validation": "texts", "test": "texts"}

    def identity(self, planning: Planning) -> Mapping[str, Any]:
        """Another release of scikit-learn may fit other weights, of ROUGE's give other scores."""
        labelled = planning.data.task != "summarization"
        return {"scikit-learn": metadata.version("scikit-learn")} if labelled else versions(SCORERS)

    def preview(self, planning: Planning) -> Facts | None:
        """Reports settings that are the other task's."""
        labelled = planning.data.task != "summarization"
        of_labels = {"words", "min_rows", "inverse_regularization"}
        unused = {"sentences", "rouge_tokenizer"} if labelled else of_labels
        for name in sorted(unused & self.model_fields_set):
            what = "labels" if labelled else "summaries"
            planning.problem(name, f"means nothing for {what}; data.task is {planning.data.task}")
        if any(value <= 0 for value in self.inverse_regularization):
            planning.problem("inverse_regularization", "expected numbers above 0")
        return None

    def run(self, inputs: Inputs, context: Context) -> None:
        """Score, and keep the scores."""
        if context.data.task == "summarization":
            self._lead(context)
        else:
            self._regression(context)

    def _lead(self, context: Context) -> None:
        from compressor.data.truncation import sentences
        from compressor.evaluation.rouge import score_texts, warn_of_wordless

        rows = context.rows("test")
        leads = [" ".join(sentences(text)[: self.sentences]) for text in rows.texts]
        context.metrics.update(score_texts(leads, rows.references, self.rouge_tokenizer))
        if warning := warn_of_wordless(context.metrics):
            context.progress.say(f"  {warning}")

    def _regression(self, context: Context) -> None:
        from sklearn.feature_extraction.text import (  # type: ignore[import-untyped]  # no types
            TfidfVectorizer,
        )

        from compressor.backends.outputs import probabilities
        from compressor.evaluation.labels import mean_loss, score, write
        from compressor.evaluation.rouge import choose_tokenizer
        from compressor.evaluation.words import split_words

        task, names = context.data.task, context.data.labels
        train, validation, test = (context.rows(s) for s in ("train", "validation", "test"))
        started = time.perf_counter()
        words: dict[str, Any] = {}  # scikit-learn's, but they end at a vowel sign, or never
        if choose_tokenizer(train.texts) == "unicode":
            words = {"tokenizer": split_words, "token_pattern": None}
        vectorizer = TfidfVectorizer(
            ngram_range=(1, self.words),
            min_df=min(self.min_rows, len(train)),
            sublinear_tf=True,
            **words,
        )
        try:
            features = vectorizer.fit_transform(train.texts)
        except ValueError as error:  # nothing but stop words, or nothing often enough
            raise StageError(f"TF-IDF found no words in the rows: {error}") from error
        asked = [vectorizer.transform(rows.texts) for rows in (validation, test)]
        found = []
        with context.progress.bar("regression", len(self.inverse_regularization)) as bar:
            for strength in self.inverse_regularization:
                held, scored = _logits(features, train.labels, len(names), strength, asked)
                found.append((mean_loss(held, validation.labels, task), strength, scored))
                bar.advance()
        loss, strength, scored = min(found, key=lambda each: each[0])
        path = context.folder / "baseline.csv"
        write(path, test, probabilities(scored, task), names, [0.5] * len(names), task)
        context.metrics.update(
            score(path),
            loss=mean_loss(scored, test.labels, task),
            validation_loss=loss,
            inverse_regularization=strength,
            features=features.shape[1],
            train_seconds=time.perf_counter() - started,
        )


def _logits(
    features: Any, labels: list[list[int]], count: int, strength: float, asked: list[Any]
) -> list[NDArray[np.float64]]:
    """The logits [N, L] of each feature matrix [N, F] in `asked`, learned from the first two."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]  # no types

    truth = np.asarray(labels)
    if truth.shape[1] == 1 < count:  # a class for each row: one regression over all
        model = LogisticRegression(C=strength, max_iter=1000).fit(features, truth[:, 0])
        decided = [model.decision_function(rows) for rows in asked]
        return [np.stack([-d, d], 1) / 2 if d.ndim == 1 else d for d in decided]
    columns: list[list[Any]] = [[] for _ in asked]
    for label in truth.T:
        if label.all():  # a regression wants both kinds of rows; this one has a constant's odds
            odds = np.log(2 * len(label) + 1)
            decided = [np.full(rows.shape[0], odds) for rows in asked]
        else:
            model = LogisticRegression(C=strength, solver="liblinear").fit(features, label)
            decided = [model.decision_function(rows) for rows in asked]
        for column, logits in zip(columns, decided, strict=True):
            column.append(logits)
    return [np.stack(column, 1) for column in columns]
