"""Score the tags that a model gives to words."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from compressor.evaluation.entities import SCORES
from compressor.stages.scoring.comparison import Comparison

if TYPE_CHECKING:
    from compressor.backends.base import Model
    from compressor.stages.base import Context


def score_tags(model: Model, context: Context) -> Comparison:
    """Tag the words of each row, write `predictions.csv`, score it."""
    from compressor.backends.outputs import choose_tags, split_words
    from compressor.data.examples import tokenize_words
    from compressor.evaluation import entities

    rows, names = context.rows("test"), context.data.labels
    comparison = Comparison(SCORES, "entity_f1")
    with context.progress.bar("tag", len(rows)) as bar:
        started = time.perf_counter()
        sources, places = tokenize_words(rows.texts, model.tokenizer, context.data)
        logits = model.logits(sources, progress=bar.advance)
        seconds = time.perf_counter() - started
    if not context.ranks.is_first:
        return comparison
    words = split_words(logits, sources.lengths(), places)
    labels = rows.labels or [[] for _ in places]
    truth = [[names[tag] for tag in row] for row in labels]
    path, unread = context.folder / "predictions.csv", [row.count(-1) for row in places]
    entities.write_predictions(path, rows.texts, truth, choose_tags(words, names), unread)
    context.metrics.update(
        entities.score_predictions(path),
        loss=entities.mean_loss(words, labels),
        samples_per_second=len(rows) / seconds,
    )
    if cut := sum(unread):
        why = "they are beyond data.max_source_length, or have no token"
        context.progress.say(f"  {cut:,} words were not read, and count as O: {why}")
    return comparison
