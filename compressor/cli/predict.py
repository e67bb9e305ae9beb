"""Commands that use a model or its predictions: `write`, `classify` and `score`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from compressor.cli import DONE
from compressor.cli.shared import OUTPUTS, AsJson, Lines, ModelPlace, open_console, print_json
from compressor.core.errors import RecipeError, StageError
from compressor.core.printing import print_text, print_warning

if TYPE_CHECKING:
    from compressor.evaluation.metric import ForeignMetric

_FILE_HELP = "with columns `prediction` and `reference`; or a recipe's name, for its latest run's"
_METRIC_HELP = (
    "rouge, sacrebleu, chrf, ter, exact_match, another one of `evaluate`, or a path; may stand "
    "several times; default: those of the run that need no code, else rouge"
)
_TRUST = "--trust-remote-code"
_TOKENIZER_HELP = (
    "ROUGE's words: stemmed ones of a-z and 0-9, or those of any script; default: by the references"
)


def write_texts(
    place: ModelPlace,
    *,
    lines: Lines = False,
    max_length: Annotated[int | None, Option(min=2, help="limit of a text, in tokens")] = None,
    num_beams: Annotated[int, Option(min=1, help="1 is greedy")] = 1,
) -> int:
    """Write from a text of the input: its summary, its translation, or how it goes on."""
    import compressor

    texts, predictor = _read_texts(lines=lines), compressor.load(_find_place(place))
    for text in predictor.write(texts, max_length=max_length, num_beams=num_beams):
        print_text(" ".join(text.split("\n")))
    return DONE


def classify_texts(place: ModelPlace, *, lines: Lines = False) -> int:
    """Print the labels' probabilities of a text from the input, or the tags of its words."""
    import compressor

    texts, predictor = _read_texts(lines=lines), compressor.load(_find_place(place))
    if predictor.text_settings.head == "token_classification":
        for text, tags in zip(texts, predictor.tag(texts), strict=True):
            print_text("  ".join(map(" ".join, zip(text.split(), tags, strict=True))))
        return DONE
    for labels in predictor.classify(texts):
        names = sorted(labels, key=lambda name: -labels[name])
        print_text("  ".join(f"{name} {labels[name]:.4f}" for name in names))
    return DONE


def score_predictions(
    file: Annotated[Path, Argument(metavar="FILE", help=_FILE_HELP)],
    *,
    rouge_tokenizer: Annotated[
        Literal["english", "unicode"] | None, Option(help=_TOKENIZER_HELP)
    ] = None,
    metric: Annotated[list[str] | None, Option(help=_METRIC_HELP)] = None,
    trust_remote_code: Annotated[bool, Option(help="run the code of a metric")] = False,
    as_json: AsJson = False,
) -> int:
    """Score a predictions.csv, or a perplexity.csv, again."""
    from compressor.evaluation import entities, perplexity, predictions
    from compressor.evaluation import labels as label_predictions
    from compressor.evaluation.rouge import warn_of_wordless

    path = _find_place(file)
    chosen = metric or _find_metrics(path)
    if path.is_dir():
        is_read = (path / perplexity.FILE).is_file() and not (path / "predictions.csv").is_file()
        path /= perplexity.FILE if is_read else "predictions.csv"
    try:
        if path.name == perplexity.FILE:
            _print_perplexities(perplexity.summarize_file(path), as_json=as_json)
            return DONE
        if path.is_file() and label_predictions.is_labelled(path):
            _print_label_scores(label_predictions.score_predictions(path), as_json=as_json)
            return DONE
        if path.is_file() and entities.is_tagged(path):
            _print_entity_scores(entities.score_predictions(path), as_json=as_json)
            return DONE
        metrics = _load_metrics(chosen, runs_code=trust_remote_code)
        scores = predictions.score_predictions(path, None, rouge_tokenizer, metrics)
    except (ValueError, StageError) as error:
        raise RecipeError(str(error)) from error
    if warning := warn_of_wordless(next(reversed(scores.values()))):
        print_warning(warning)
    _print_scores(scores, as_json=as_json)
    return DONE


def _read_texts(*, lines: bool) -> list[str]:
    text = sys.stdin.read().removesuffix("\n")  # which `echo` puts there
    texts = text.split("\n") if lines else [text]
    if not any(text.strip() for text in texts):
        raise RecipeError("there is no text on the standard input: compressor … < text")
    return texts


def _find_place(name: Path) -> Path:
    """Find what lies there, or else the latest run of a recipe of that name."""
    from compressor.engine.past_run import find_run

    is_file = name.exists() or name.suffix == ".csv"
    return name if is_file else find_run(str(name), OUTPUTS)


def _find_metrics(path: Path) -> list[str]:
    """Find the metrics that a run had, of those that run no code; else ROUGE."""
    from compressor.engine.past_run import RunRecord
    from compressor.evaluation.metric_names import BUNDLED, MAIN_OF_ROUGE, list_main_scores

    records = RunRecord(path).records if (path / "metrics.json").is_file() else []
    evaluated = [record["metrics"] for record in records if record["stage"] == "evaluate"]
    names = list_main_scores(evaluated[-1]) if evaluated else []
    metrics = ["rouge" if name == MAIN_OF_ROUGE else name for name in names]
    return [name for name in metrics if name in BUNDLED] or ["rouge"]


def _load_metrics(names: Sequence[str], *, runs_code: bool) -> list[str | ForeignMetric]:
    """Load the metrics whose code is not ours. Raises RecipeError for what cannot be used."""
    from compressor.evaluation.metric_names import BUNDLED, check_metrics

    problems: list[str] = []

    def report(_: str, message: str) -> None:
        problems.append(message.replace("`trust_remote_code: true` beside `metrics`", _TRUST))

    check_metrics(names, report, report, runs_code=runs_code)
    if problems:
        raise RecipeError("\n".join(problems))
    if set(names) <= BUNDLED.keys():
        return [*names]
    from compressor.evaluation.metric import ForeignMetric

    return [name if name in BUNDLED else ForeignMetric(name) for name in names]


def _print_scores(scores: Mapping[int | None, Any], *, as_json: bool) -> None:
    """Print the scores at each `max_length`."""
    from rich.table import Table

    from compressor.evaluation.metric_names import list_main_scores

    if as_json:
        print_json({str(limit): values for limit, values in scores.items()})
        return
    intervals = next(iter(scores.values()))["intervals"]
    main, *_ = list_main_scores({"intervals": intervals})
    names = (*intervals, "gen_len", "cut_off")
    table = Table("max_length", *names, f"{main} 95 %", header_style="bold")
    for limit, values in scores.items():
        cells = (f"{values[name]:.4f}" if name in values else "" for name in names)
        interval = " … ".join(f"{end:.4f}" for end in values["intervals"][main] or ())
        table.add_row("" if limit is None else str(limit), *cells, interval)
    open_console().print(table)
    if "rouge_tokenizer" in values:
        print(f"ROUGE's tokenizer: {values['rouge_tokenizer']}")
    for name in names:
        if signature := values.get(f"{name}_signature"):
            print(f"{name}: {signature}")


def _print_perplexities(scores: Mapping[str, Any], *, as_json: bool) -> None:
    from rich.table import Table

    if as_json:
        print_json(scores)
        return
    table = Table("", "score", "95 %", header_style="bold")
    for name, (low, high) in scores["intervals"].items():
        table.add_row(name, f"{scores[name]:.4f}", f"{low:.4f} … {high:.4f}")
    open_console().print(table)
    print(f"{scores['count']:,} texts, {scores['tokens']:,} tokens")


def _print_label_scores(scores: Mapping[str, Any], *, as_json: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    if as_json:
        print_json(scores)
        return
    names = ("positives", "given", "f1", "roc_auc", "average_precision")
    table = Table("label", *names, header_style="bold")
    for name, values in scores["labels"].items():
        table.add_row(escape(name), *(_format_number(values[key]) for key in names))
    table.add_section()
    means = (scores[key] for key in ("macro_f1", "roc_auc", "average_precision"))
    table.add_row("mean", "", "", *map(_format_number, means))
    open_console().print(table)
    print(f"micro F1 {scores['micro_f1']:.4f}, rows without a mistake {scores['accuracy']:.4f}")


def _print_entity_scores(scores: Mapping[str, Any], *, as_json: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    if as_json:
        print_json(scores)
        return
    table = Table("type", "entities", "f1", "precision", "recall", header_style="bold")
    for name, values in scores["entities"].items():
        numbers = (_format_number(values[key]) for key in ("f1", "precision", "recall"))
        table.add_row(escape(name), str(values["positives"]), *numbers)
    open_console().print(table)
    low, high = scores["intervals"]["entity_f1"]
    strict = "" if scores["strict_f1"] is None else f", strict {scores['strict_f1']:.4f}"
    print(
        f"F1 {scores['entity_f1']:.4f} (95 %: {low:.4f} … {high:.4f}){strict}, "
        f"precision {scores['entity_precision']:.4f}, recall {scores['entity_recall']:.4f}, "
        f"accuracy of words {scores['accuracy']:.4f}"
    )


def _format_number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
