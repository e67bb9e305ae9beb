"""Score the labels that a classifier gives to texts. Tags of words are in `tags`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from compressor.evaluation.labels import SCORES
from compressor.stages.scoring.comparison import Comparison

if TYPE_CHECKING:
    from compressor.backends.base import Model
    from compressor.stages.base import Context, Planning
    from compressor.stages.evaluate import Evaluate


def check_threshold(settings: Evaluate, planning: Planning) -> None:
    """Report a threshold where it decides nothing, or is tuned on the rows that are scored."""
    chooses_one = planning.data.task in ("single_label", "token_classification")
    if "threshold" in settings.model_fields_set and chooses_one:
        of = "row" if planning.data.task == "single_label" else "word"
        planning.report("threshold", f"a {of}'s one label is the likeliest; it needs no limit")
    elif settings.threshold == "tuned" and planning.data.scores_validation:
        message = "it would be tuned on the rows that are scored; give data a test split"
        planning.report("threshold", message)


def score_labels(settings: Evaluate, model: Model, context: Context) -> Comparison:
    """Classify the texts, write `predictions.csv`, score it."""
    from compressor.backends.outputs import compute_probabilities
    from compressor.data.examples import tokenize_sources
    from compressor.evaluation import labels

    task, names = context.data.task, context.data.labels
    rows, comparison = context.rows("test"), Comparison(SCORES, "micro_f1")
    tuning = context.rows("validation") if settings.threshold == "tuned" else None
    with context.progress.bar("classify", len(rows) + len(tuning or ())) as bar:
        started = time.perf_counter()
        sources = tokenize_sources(rows.texts, model.tokenizer, context.data)
        logits = model.logits(sources, progress=bar.advance)
        seconds = time.perf_counter() - started
        thresholds = [0.5 if settings.threshold == "tuned" else settings.threshold] * len(names)
        if tuning is not None:
            sources = tokenize_sources(tuning.texts, model.tokenizer, context.data)
            table = compute_probabilities(model.logits(sources, progress=bar.advance), task)
            thresholds = labels.best_thresholds(table, tuning.labels)
    if not context.ranks.is_first:
        return comparison
    path = context.folder / "predictions.csv"
    table = compute_probabilities(logits, task)
    labels.write_predictions(path, rows, table, names, thresholds, task)
    context.metrics.update(
        labels.score_predictions(path),
        loss=labels.mean_loss(logits, rows.labels, task),
        samples_per_second=len(rows) / seconds,
    )
    if task == "multi_label":
        context.metrics["thresholds"] = dict(zip(names, thresholds, strict=True))
    return comparison
