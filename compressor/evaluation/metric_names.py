"""Metrics of texts by name: which are at hand, where others' code is. Runs none of that code."""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from compressor.core.errors import Unreachable, nearest
from compressor.core.files import expand_home, hash_file
from compressor.core.packages import versions
from compressor.core.settings import Listed
from compressor.data import hub
from compressor.data.source_base import Reporter
from compressor.evaluation.rouge import METRIC_KEYS, SCORING_PACKAGES

BUNDLED: Mapping[str, tuple[str, ...]] = {
    "rouge": SCORING_PACKAGES,
    **dict.fromkeys(("sacrebleu", "chrf", "ter"), ("sacrebleu",)),
    "exact_match": (),
}
"""Metrics that need no hub → the packages that compute them."""
FETCHED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("meteor", "bleu", "google_bleu", "nist_mt", "sari", "wer", "cer"), ()),
    **dict.fromkeys(("character", "charcut_mt", "bleurt", "comet", "frugalscore", "mauve"), ()),
    "bertscore": ("precision", "recall"),
}
"""Metrics of texts that `evaluate` fetches from a hub → their numbers beside the main one."""
_OF_LABELS = ("accuracy", "f1", "precision", "recall", "roc_auc", "matthews_correlation")
ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(_OF_LABELS, "scores labels, and here texts are written; take exact_match"),
    "seqeval": "scores words' tags, and here texts are written",
    "perplexity": "is of a decoder's probabilities, and is measured by `evaluate`",
}
"""Metrics of other tasks → what is said of them."""
LESS_IS_BETTER = frozenset({"ter", "wer", "cer", "character", "charcut_mt", "perplexity"})
SCALES: Mapping[str, float] = {"sacrebleu": 100, "chrf": 100, "ter": 100, "exact_match": 1}
"""What a perfect score is, or the worst usual one, of those that are not ROUGE."""
_RESERVED = {*METRIC_KEYS, "count", "gen_len", "cut_off", "lengths", "intervals", "demo"}
MAIN_OF_ROUGE = "rougeLsum"
ROW_SCORES = "row_scores.json"
"""The file of rows' scores that an evaluation of texts leaves."""
TEXT_SCORES = (
    MAIN_OF_ROUGE,
    *(name for name in (*BUNDLED, *FETCHED, "perplexity") if name != "rouge"),
)
"""What tables may show of texts."""
_ORGANIZATION = "evaluate-metric"
"""Whose the metrics of `evaluate` are, at the hub."""


def is_path(metric: str) -> bool:
    """Tell whether a metric is named by the file or folder of its code."""
    return metric.endswith(".py") or metric.startswith((".", "/", "~"))


def name_score(metric: str) -> str:
    """Name a metric's main score: `rougeLsum`, `sacrebleu`, `my_metric` of `./my_metric.py`."""
    if is_path(metric):
        return expand_home(metric).absolute().stem
    return MAIN_OF_ROUGE if metric == "rouge" else metric.rpartition("/")[2]


def require_distinct(metrics: tuple[str, ...]) -> tuple[str, ...]:
    """Raise ValueError where two metrics, or another number, have one name."""
    names = [name_score(metric) for metric in metrics]
    for metric, name in zip(metrics, names, strict=True):
        if names.count(name) > 1:
            raise ValueError(f"{metric!r} is not the only metric that gives {name!r}")
        if name in _RESERVED and metric != "rouge":
            raise ValueError(f"{name!r} is the name of another number; call {metric!r} another")
    return metrics


MetricNames = Annotated[
    Listed[str],
    Field(
        min_length=1,
        description="What scores texts, the main one first: rouge, sacrebleu, chrf, ter, "
        "exact_match; perplexity, of a decoder's completions; others of `evaluate` by name, or "
        "one's own by path.",
    ),
    AfterValidator(require_distinct),
]


def list_scores(metrics: Sequence[str]) -> tuple[str, ...]:
    """List the numbers that metrics give, as far as their names tell."""
    of_rouge = METRIC_KEYS if "rouge" in metrics else ()
    more = (f"{metric}_{end}" for metric in metrics for end in FETCHED.get(metric, ()))
    return (*of_rouge, *map(name_score, metrics), *more)


def list_main_scores(metrics: Mapping[str, Any]) -> list[str]:
    """List the main scores of texts in a stage's metrics, in the order of the recipe."""
    names = [*(metrics.get("intervals") or {MAIN_OF_ROUGE} & metrics.keys())]
    if "perplexity" in metrics:  # the others are of the same losses
        of_losses = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "loss"}
        names = [name for name in names if name not in of_losses - {"perplexity"}]
        names += {"perplexity"} - {*names}
    return [name for name in names if not name.startswith("rouge") or name == MAIN_OF_ROUGE]


def check_metrics(
    metrics: Sequence[str],
    report: Reporter,
    report_unreached: Reporter,
    *,
    runs_code: bool,
    others: Collection[str] = (),
) -> None:
    """Report metrics that are not there, whose code may not run, or whose packages are missing.

    `others`: metrics that are at hand beside `BUNDLED`.
    """
    for index, metric in enumerate(metrics):
        path = f"metrics.{index}"
        if metric in BUNDLED or metric in others:
            continue
        if metric in ELSEWHERE:
            report(path, f"{metric!r} {ELSEWHERE[metric]}")
        elif not is_path(metric) and "/" not in metric and metric not in FETCHED:
            hint = nearest(metric, [*BUNDLED, *FETCHED])
            report(path, f"no metric {metric!r} of texts, and no path as ./{metric}.py is; {hint}")
        elif not runs_code:
            origin = "that file" if is_path(metric) else "a hub"
            allow = "write `trust_remote_code: true` beside `metrics`"
            report(path, f"{metric!r} runs the code of {origin}; if you trust it, {allow}")
        else:
            try:
                if missing := find_missing_packages(find_code(metric)):
                    report(path, f"{metric!r} imports {', '.join(missing)}: not installed")
            except Unreachable as error:
                report_unreached(path, str(error))
            except (ValueError, OSError) as error:
                report(path, str(error))


def find_code(metric: str) -> list[Path]:
    """List the files of a metric's code, the main one first, fetched where they are a hub's.

    Raises ValueError for what is not there or no Python, and Unreachable.
    """
    if is_path(metric):
        place = expand_home(metric).absolute()
        file = place / f"{place.name}.py" if place.is_dir() else place
        if not file.is_file():
            raise ValueError(f"no file {str(file)!r}")
        folder = file.parent
        return [file, *(folder / name for name in _list_siblings(file) if (folder / name).exists())]
    owner, _, name = metric.rpartition("/")
    repository = f"{owner or _ORGANIZATION}/{name}"
    commit = hub.resolve_commit(repository, "main", "space")
    main = hub.find_file(repository, f"{name}.py", commit, "space")
    if main is None:
        raise ValueError(f"{repository!r} has no file '{name}.py', so it is no metric")
    others = (hub.find_file(repository, name, commit, "space") for name in _list_siblings(main))
    return [main, *filter(None, others)]


def identify_metrics(metrics: Sequence[str]) -> dict[str, Any]:
    """Identify what decides scores: releases of packages, and the bytes of others' code.

    Raises ValueError, Unreachable.
    """
    parts: dict[str, Any] = versions(name for item in metrics for name in BUNDLED.get(item, ()))
    for metric in metrics:
        if metric not in BUNDLED:
            files = find_code(metric)
            packages = {name for file in files for name in _list_packages(file)}
            code = {file.name: hash_file(file) for file in files}
            about = {"code": code, **versions(sorted({*packages, "evaluate"}))}
            parts[name_score(metric)] = about  # wherever the code lies
    return parts


def find_missing_packages(files: Sequence[Path]) -> list[str]:
    """List what code imports and nothing here provides."""
    names = dict.fromkeys(name for file in files for name in _list_packages(file))
    return [name for name in names if find_spec(name) is None]


def _list_packages(file: Path) -> Iterator[str]:
    for statement in _parse(file).body:
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            names = [statement.module]
        else:
            continue
        roots = (name.partition(".")[0] for name in names)
        yield from (root for root in roots if root not in sys.stdlib_module_names)


def _list_siblings(file: Path) -> list[str]:
    """List the files beside a metric's that it imports: `evaluate` copies these, and no other."""
    imports = (item for item in _parse(file).body if isinstance(item, ast.ImportFrom))
    return [f"{item.module}.py" for item in imports if item.level and item.module]


def _parse(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise ValueError(f"{file}, line {error.lineno}: no Python: {error.msg}") from error
