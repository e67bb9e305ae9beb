"""Compare runs: how they differ in their recipes, in what came out, and where. No printing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compressor.core.differences import MISSING, find_differing_leaves
from compressor.core.numbers import is_number
from compressor.engine.past_run import Record, RunRecord
from compressor.evaluation import perplexity
from compressor.evaluation.metric_names import MAIN_OF_ROUGE, list_main_scores
from compressor.reports.compare.significance import (
    LABELS,
    SUMMARIES,
    ScoredRows,
    compare_scores,
    score_rows,
)
from compressor.reports.key_diff import Side, find_cause
from compressor.reports.show import summarize_metrics
from compressor.reports.tables import find_label
from compressor.stages.base import SIZES

if TYPE_CHECKING:
    from compressor.evaluation.rouge import RougeTokenizer

METHOD = (
    "Paired bootstrap test (Koehn 2004): both models on the same 2,000 resamples of the test rows; "
    "p is two-sided. It speaks of other rows, not of other seeds of training, and p-values are not "
    "corrected for how many there are."
)
LATENCIES = "Latencies of two runs were measured at different times: another load, another speed."
_UNTESTED = ("loss", "roc_auc", "average_precision")
_ENVIRONMENT = ("python", "platform", "machine", "cores", "gpus", "processes", "git", "packages")
Standing = Literal["same key", "differs", "only in the baseline", "only here"]


@dataclass(frozen=True)
class Model:
    """A model that a run evaluated."""

    run: int
    name: str
    """The stage that gave it."""
    label: str
    evaluation: Record
    p50: float | None
    """Median latency in ms, where it was benchmarked."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        metrics: Mapping[str, Any] = self.evaluation["metrics"]
        return metrics

    @property
    def tokenizer(self) -> RougeTokenizer:
        """ROUGE's; earlier versions had the English one alone, and did not name it."""
        name: RougeTokenizer = self.metrics.get("rouge_tokenizer", "english")
        return name

    @property
    def scores(self) -> tuple[str, ...]:
        """The main scores of texts."""
        return tuple(list_main_scores(self.metrics))

    def number(self, name: str) -> float | None:
        """Read a metric; None where it is missing or no number."""
        value = self.metrics.get(name)
        return float(value) if is_number(value) else None


@dataclass(frozen=True)
class Score:
    """A measure of two models; `low`, `high` and `p` where the rows could be paired."""

    metric: str
    before: float
    after: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @property
    def difference(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class Size:
    """A number that is no sample: bytes, parameters …; or a latency."""

    name: str
    before: float | None
    after: float | None

    @property
    def ratio(self) -> float | None:
        return self.after / self.before if self.before and self.after is not None else None


@dataclass(frozen=True)
class Pair:
    """A model of the baseline and the one of another run that it is compared with."""

    run: int
    before: Model
    after: Model
    headline: bool
    """Whether they are the last evaluated models of their runs."""
    scores: tuple[Score, ...]
    sizes: tuple[Size, ...]
    rows: int | None = None
    """How many test rows were paired."""
    unpaired: str | None = None
    """Why no test could be made."""

    @property
    def name(self) -> str:
        one, other = self.before.label, self.after.label
        return one if one == other else f"{other}, against {one}"

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        return {
            "run": names[self.run],
            "before": self.before.name,
            "after": self.after.name,
            "headline": self.headline,
            "rows": self.rows,
            "unpaired": self.unpaired,
            "scores": [asdict(score) | {"difference": score.difference} for score in self.scores],
            "sizes": [asdict(size) | {"ratio": size.ratio} for size in self.sizes],
        }


@dataclass(frozen=True)
class Step:
    """A stage in the baseline and in another run."""

    run: int
    name: str
    standing: Standing
    because: str | None
    before: Record | None
    after: Record | None

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        return {
            "run": names[self.run],
            "stage": self.name,
            "standing": self.standing,
            "because": self.because,
            "before": _summarize(self.before),
            "after": _summarize(self.after),
        }


def _summarize(record: Record | None) -> dict[str, Any] | None:
    if record is None:
        return None
    keys = ("key", "cached", "made_in_seconds", *SIZES)
    return {key: record[key] for key in keys} | {"metrics": summarize_metrics(record)}


Rows = Mapping[str, tuple[Any, ...]]
"""Key → its value in each run, MISSING where a run has no such key."""


@dataclass(frozen=True)
class Comparison:
    """Everything that differs between a baseline, the first run, and others."""

    runs: tuple[RunRecord, ...]
    recipe: Rows
    environment: Rows
    models: tuple[Model, ...]
    pairs: tuple[Pair, ...]
    steps: tuple[Step, ...]

    @property
    def names(self) -> list[str]:
        """A short name for each run: its folder's, with the recipe's where that tells more."""
        folders = [run.folder.absolute().name for run in self.runs]
        if len({run.name for run in self.runs}) > 1:
            pairs = zip(self.runs, folders, strict=True)
            folders = [f"{run.name} {folder}" for run, folder in pairs]
        if len(set(folders)) == len(folders):
            return folders
        return [f"{number} {folder}" for number, folder in enumerate(folders, 1)]

    def as_json(self) -> dict[str, Any]:
        """Describe it as `compare --json` prints it."""
        names = self.names
        return {
            "runs": [
                {"name": name, "folder": str(run.folder), "state": str(run.status)}
                for name, run in zip(names, self.runs, strict=True)
            ],
            "recipe": _rows_as_json(self.recipe),
            "environment": _rows_as_json(self.environment),
            "method": METHOD,
            "models": [pair.as_json(names) for pair in self.pairs],
            "stages": [step.as_json(names) for step in self.steps],
        }


def _rows_as_json(rows: Rows) -> list[dict[str, Any]]:
    """List keys and values; `there` marks the runs that have a key."""
    return [
        {
            "path": path,
            "values": [None if value is MISSING else value for value in values],
            "there": [value is not MISSING for value in values],
        }
        for path, values in rows.items()
    ]


def compare(runs: Sequence[RunRecord]) -> Comparison:
    """Compare runs with the first of them. Raises RecipeError for one without any records."""
    for run in runs:
        run.require_records()
    models = [_list_models(number, run) for number, run in enumerate(runs)]
    read = cache(score_rows)
    pairs = [
        _compare_models(runs, pair, read, headline=pair == (models[0][-1], others[-1]))
        for others in models[1:]
        for pair in _match_models(models[0], others)
    ]
    environments = [
        {key: run.environment.get(key, MISSING) for key in _ENVIRONMENT} for run in runs
    ]
    return Comparison(
        tuple(runs),
        find_differing_leaves([run.recipe for run in runs]),
        find_differing_leaves(environments),
        tuple(model for some in models for model in some),
        tuple(pairs),
        tuple(step for number in range(1, len(runs)) for step in _list_steps(runs, number)),
    )


def _list_models(number: int, run: RunRecord) -> list[Model]:
    """List the models that a run evaluated, each once: as it was evaluated last."""
    timed = (record for record in run.records if record["stage"] == "benchmark")
    p50s = {str(record["model"]): record["metrics"].get("latency_p50_ms") for record in timed}
    models: dict[str, Model] = {}
    for record in run.records:
        if record["stage"] == "evaluate":
            name = str(record["model"])
            models.pop(name, None)
            label = find_label(record, run.records)
            models[name] = Model(number, name, label, record, p50s.get(name))
    return list(models.values())


def _match_models(before: Sequence[Model], after: Sequence[Model]) -> list[tuple[Model, Model]]:
    """Pair models of one name, or of one label; then the last of each, where they are in none."""
    left = list(after)
    pairs: list[tuple[Model, Model]] = []
    for key in ("name", "label"):
        for one in before:
            other = next((o for o in left if getattr(o, key) == getattr(one, key)), None)
            if other is not None and all(one is not paired for paired, _ in pairs):
                pairs.append((one, other))
                left.remove(other)
    pairs.sort(key=lambda pair: before.index(pair[0]))
    if before and after and (before[-1], after[-1]) not in pairs:
        pairs.append((before[-1], after[-1]))
    return pairs


def _compare_models(
    runs: Sequence[RunRecord], models: tuple[Model, Model], read: Any, *, headline: bool
) -> Pair:
    """Compare the scores and sizes of a pair, with a test where the rows are the same."""
    before, after = models
    rows = unpaired = None
    scores: dict[str, Score] = {}
    try:
        both_rouge = all(MAIN_OF_ROUGE in model.scores for model in models)
        if both_rouge and before.tokenizer != after.tokenizer:
            raise ValueError(
                f"ROUGE's tokenizer is {before.tokenizer!r} there and {after.tokenizer!r} here"
            )
        sides: Iterator[ScoredRows] = (
            read(_find_predictions(runs[model.run], model), model.tokenizer, model.scores)
            for model in models
        )
        for name, paired in compare_scores(*sides).items():
            rows = paired.rows
            scores[name] = Score(name, **{k: v for k, v in vars(paired).items() if k != "rows"})
    except ValueError as error:
        unpaired = str(error)
    for name in (*SUMMARIES, *before.scores, *LABELS, *_UNTESTED):
        first, second = before.number(name), after.number(name)
        if name not in scores and first is not None and second is not None:
            scores[name] = Score(name, first, second)
    names = ("bytes", "parameters", "nonzero_ratio")
    sizes = [Size(name, before.evaluation[name], after.evaluation[name]) for name in names]
    if before.p50 is not None or after.p50 is not None:
        sizes.append(Size("latency_p50_ms", before.p50, after.p50))
    measured = tuple(scores.values()), tuple(sizes)
    return Pair(after.run, before, after, headline, *measured, rows, unpaired)


def _find_predictions(run: RunRecord, model: Model) -> Path:
    folder = run.artifact(model.evaluation)
    if folder is None:
        raise ValueError(f"the predictions of {model.label!r} are no longer in the store")
    names = ("predictions.csv", perplexity.FILE)
    return next((folder / n for n in names if (folder / n).is_file()), folder / names[0]).resolve()


def _list_steps(runs: Sequence[RunRecord], number: int) -> Iterator[Step]:
    """List the stages of the baseline, and then those that the other run alone has."""
    sides = Side.of(runs[0]), Side.of(runs[number])
    ours, theirs = ({r["name"]: r for r in run.records} for run in (runs[0], runs[number]))
    for name in dict.fromkeys([*ours, *theirs]):
        one, two = ours.get(name), theirs.get(name)
        if one is None or two is None:
            standing: Standing = "only here" if one is None else "only in the baseline"
            yield Step(number, name, standing, None, one, two)
        elif one["key"] == two["key"]:
            yield Step(number, name, "same key", None, one, two)
        else:
            chains = find_cause(name, one["key"], two["key"], *sides).chains()
            yield Step(number, name, "differs", chains[0] if chains else None, one, two)
