"""Score how likely texts, or completions, are to a decoder. What it writes is in `texts`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from compressor.evaluation.perplexity import MAIN, PERPLEXITIES
from compressor.stages.scoring.comparison import Comparison

if TYPE_CHECKING:
    from compressor.backends.base import Model
    from compressor.data.source_base import DataBase
    from compressor.stages.base import Context, Planning
    from compressor.stages.evaluate import Evaluate

_OF_DECODES = {"max_length", "min_length", "num_beams", "demo_text"}


def choose_windows(settings: Evaluate, data: DataBase) -> tuple[int, int]:
    """Choose the size of windows, and their stride."""
    window = settings.window or data.max_source_length
    return window, settings.stride or max(1, window // 2)


def check_windows(settings: Evaluate, planning: Planning) -> None:
    """Report rows, backends, windows and strides that no perplexity can be measured with."""
    planning.check_rows(trains=False)
    window, stride = choose_windows(settings, planning.data)
    if planning.facts is not None:
        planning.check_length("window", window, facts=planning.facts)
    if stride >= window:
        message = f"{stride} leaves a window of {window} tokens none to go on from; lower it"
        planning.report("stride", message)


def check_completions(settings: Evaluate, planning: Planning) -> None:
    """Report a model without a perplexity, and settings of a decode where nothing is written."""
    key = f"metrics.{settings.metrics.index(MAIN)}"
    if planning.facts and (head := planning.facts.config["head"]) != "causal_lm":
        planning.report(key, f"perplexity is a decoder's, and the model has the head {head!r}")
    if not settings.written_metrics:
        for name in sorted(_OF_DECODES & settings.model_fields_set):
            message = "means nothing where nothing is written; `metrics` has perplexity alone"
            planning.report(name, message)


def score_completions(model: Model, context: Context) -> dict[str, Any]:
    """Read completions after their prompts, write `perplexity.csv`; give the scores."""
    from compressor.evaluation import perplexity

    rows = context.rows("test")
    with context.progress.bar("read", len(rows)) as bar:
        table = perplexity.measure_completions(model, rows, context.data, bar.advance)
    if context.ranks.is_first:
        perplexity.write_rows(context.folder / perplexity.FILE, rows.texts, table)
    return perplexity.summarize_rows(table)


def score_perplexity(settings: Evaluate, model: Model, context: Context) -> Comparison:
    """Read texts in windows, write `perplexity.csv`, score it."""
    from compressor.evaluation import perplexity

    rows, comparison = context.rows("test"), Comparison(PERPLEXITIES, MAIN, PERPLEXITIES)
    texts = [context.data.prefix + text for text in rows.texts]
    size, stride = choose_windows(settings, context.data)
    ids = perplexity.read_texts(texts, model.tokenizer)
    windows = perplexity.list_windows(ids, size=size, stride=stride)
    if context.ranks.is_first:
        tokens = f"{sum(ids.lengths()):,} tokens, {windows.count_tokens():,} to be read"
        context.progress.say(f"  {len(windows.rows):,} windows of {tokens}")
    started = time.perf_counter()
    with context.progress.bar("read", len(windows.rows)) as bar:
        table = perplexity.measure_texts(model, texts, windows, bar.advance)
    seconds = time.perf_counter() - started
    if not context.ranks.is_first:
        return comparison
    perplexity.write_rows(context.folder / perplexity.FILE, texts, table)
    speed = {"samples_per_second": len(texts) / seconds}
    context.metrics.update(perplexity.summarize_rows(table), window=size, stride=stride, **speed)
    return comparison
