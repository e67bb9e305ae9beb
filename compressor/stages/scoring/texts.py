"""Score what a model writes, or how likely references are, by each metric and at each limit."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compressor.core.files import write_json
from compressor.evaluation.metric_names import (
    BUNDLED,
    LESS_IS_BETTER,
    ROW_SCORES,
    check_metrics,
    name_score,
)
from compressor.evaluation.perplexity import MAIN as PERPLEXITY
from compressor.evaluation.perplexity import PERPLEXITIES
from compressor.evaluation.rouge import METRIC_KEYS
from compressor.stages.scoring.comparison import Comparison
from compressor.stages.scoring.perplexity import check_completions, score_completions

if TYPE_CHECKING:
    from compressor.backends.base import Model
    from compressor.backends.outputs import GenerationOutput
    from compressor.data.rows import Rows
    from compressor.evaluation.metric import ForeignMetric
    from compressor.evaluation.predictions import Prediction
    from compressor.stages.base import Context, Planning
    from compressor.stages.baseline import Baseline
    from compressor.stages.evaluate import Evaluate

    Decoded = Mapping[int, GenerationOutput]


def check_texts(settings: Evaluate, planning: Planning) -> None:
    """Report what cannot write, or limits and metrics that cannot be."""
    longest = settings.limits[-1]
    check_text_metrics(settings, planning, (PERPLEXITY,))
    if PERPLEXITY in settings.metrics:
        check_completions(settings, planning)
    if not settings.written_metrics:
        return
    planning.check_decoding({"max_length": longest}, num_beams=settings.num_beams)
    if settings.min_length > longest:
        message = f"{settings.min_length} is more than max_length, {longest}"
        planning.report("min_length", message)


def check_text_metrics(
    settings: Evaluate | Baseline, planning: Planning, others: Collection[str] = ()
) -> None:
    """Report metrics that cannot score, and a tokenizer of ROUGE's that none asks for."""
    if "rouge" not in settings.metrics and settings.rouge_tokenizer is not None:
        planning.report("rouge_tokenizer", "`metrics` has no rouge, whose words these are")
    reporters = planning.report, planning.report_unreached
    given = settings.metrics, *reporters
    check_metrics(*given, runs_code=settings.trust_remote_code, others=others)


def score_texts(settings: Evaluate, model: Model, context: Context) -> Comparison:
    """Score by all metrics."""
    rows = context.rows("test")
    foreign = load_foreign(settings.written_metrics, rows, context)
    if settings.written_metrics:
        _score_written(settings, model, rows, foreign, context)
    if PERPLEXITY in settings.metrics:
        scores = score_completions(model, context)
        parts = [context.metrics.get("intervals", {}), scores["intervals"]]
        first, second = reversed(parts) if settings.metrics[0] == PERPLEXITY else parts
        context.metrics.update(scores, intervals=first | second)  # the main score's before others
    return _choose_scores(settings, foreign)


def _score_written(
    settings: Evaluate,
    model: Model,
    rows: Rows,
    foreign: Sequence[ForeignMetric],
    context: Context,
) -> None:
    """Decode the rows, and the demo text, write `predictions.csv`, score it."""
    limits, started = settings.limits, time.perf_counter()
    times = len(limits) if settings.num_beams > 1 else 1
    with context.progress.bar("decode", times * len(rows)) as bar:
        decoded = _decode(settings, rows.texts, limits, model, context, progress=bar.advance)
    seconds = time.perf_counter() - started
    demo = None if settings.demo_text is None else _write_demo(settings, model, context)
    if not context.ranks.is_first:
        return
    _write_rows(rows, decoded, model.tokenizer, context)
    lengths = _score_rows(settings, foreign, context)
    longest = lengths[str(limits[-1])]
    context.metrics.update(longest, samples_per_second=len(rows) / seconds, lengths=lengths)
    if demo is not None:
        context.metrics["demo"] = demo


def load_foreign(metrics: Sequence[str], rows: Rows, context: Context) -> list[ForeignMetric]:
    """Load metrics whose code is not ours, and try each out on a few rows."""
    metrics = [metric for metric in metrics if metric not in BUNDLED]
    if not metrics or not context.ranks.is_first:
        return []
    from compressor.evaluation.metric import ForeignMetric

    loaded = [ForeignMetric(metric) for metric in metrics]
    references = [[some] if isinstance(some, str) else list(some) for some in rows.references]
    for metric in loaded:
        metric.try_out(references, rows.texts)
    return loaded


def replace_foreign(
    metrics: Sequence[str], foreign: Sequence[ForeignMetric]
) -> list[str | ForeignMetric]:
    """Put loaded metrics in the place of their names."""
    by_name: dict[str, str | ForeignMetric] = {metric.metric: metric for metric in foreign}
    return [by_name.get(metric, metric) for metric in metrics]


def _choose_scores(settings: Evaluate, foreign: Sequence[ForeignMetric]) -> Comparison:
    others = [name_score(metric) for metric in settings.metrics if metric != "rouge"]
    names = [*(METRIC_KEYS if "rouge" in settings.metrics else ()), *others]
    less = {*settings.metrics} & LESS_IS_BETTER
    if PERPLEXITY in settings.metrics:
        names += PERPLEXITIES[1:]
        less |= {*PERPLEXITIES}
    less |= {metric.name for metric in foreign if metric.less_is_better}
    return Comparison(names, name_score(settings.metrics[0]), less)


def _decode(
    settings: Evaluate,
    texts: Sequence[str],
    limits: Sequence[int],
    model: Model,
    context: Context,
    **progress: Any,
) -> Decoded:
    from compressor.data.examples import tokenize_sources

    given = model.tokenizer, context.data
    sources = tokenize_sources(texts, *given, continues=model.continues)
    search: dict[str, Any] = {"num_beams": settings.num_beams, "min_length": settings.min_length}
    return model.generate_each_limit(sources, max_lengths=limits, **search, **progress)


def _write_demo(settings: Evaluate, model: Model, context: Context) -> dict[str, Any]:
    """Write from the demo text with the prefix, truncation and decoding of a row."""
    text, limit = settings.demo_text or "", settings.limits[-1]
    decoded = _decode(settings, [text], [limit], model, context)[limit]
    (summary,) = model.tokenizer.batch_decode(decoded.tokens, skip_special_tokens=True)
    return {"text": text, "summary": summary, "cut_off": decoded.cut_off[0]}


def _write_rows(rows: Rows, decoded: Decoded, tokenizer: Any, context: Context) -> None:
    """Write `predictions.csv`."""
    from compressor.evaluation.predictions import Prediction, write_predictions

    def list_predictions() -> Iterator[Prediction]:
        for limit, output in decoded.items():
            texts = tokenizer.batch_decode(output.tokens, skip_special_tokens=True)
            triples = zip(rows.texts, rows.references, texts, strict=True)
            for index, (source, reference, text) in enumerate(triples):
                first, *others = [reference] if isinstance(reference, str) else reference
                yield Prediction(
                    row=index,
                    max_length=limit,
                    source=source,
                    reference=first,
                    prediction=text,
                    tokens=output.lengths[index],
                    cut_off=output.cut_off[index],
                    other_references=tuple(others),
                )

    columns = max(map(len, rows.several), default=1)
    write_predictions(context.folder / "predictions.csv", list_predictions(), columns)


def _score_rows(
    settings: Evaluate, foreign: Sequence[ForeignMetric], context: Context
) -> dict[str, dict[str, Any]]:
    """Score `predictions.csv` as `compressor score` does; write rows' scores."""
    from compressor.evaluation.predictions import score_predictions
    from compressor.evaluation.rouge import warn_of_wordless

    row_scores: dict[int | None, dict[str, list[float]]] = {}
    metrics = replace_foreign(settings.written_metrics, foreign)
    path, longest = context.folder / "predictions.csv", settings.limits[-1]
    scores = score_predictions(path, row_scores, settings.rouge_tokenizer, metrics)
    if (words := scores[longest].get("rouge_tokenizer", "english")) != "english":
        context.progress.say(f"  ROUGE's tokenizer: {words}")
    if warning := warn_of_wordless(scores[longest]):
        context.progress.say(f"  {warning}")
    for name, interval in scores[longest]["intervals"].items():
        if interval is None:
            reason = "200 resamples take more than a minute, or fail"
            context.progress.say(f"  {name} has no interval: {reason}")
    write_json(context.folder / ROW_SCORES, {"max_length": longest, **row_scores[longest]})
    return {str(limit): values for limit, values in scores.items()}
