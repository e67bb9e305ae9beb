"""`compare`: how runs differ in what they were told, in what came out, and where. No printing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compressor.engine.past_run import PastRun, Record
from compressor.engine.provenance import MISSING, differences
from compressor.reports.compare.significance import LABELS, SUMMARIES, Scored, compared, scored
from compressor.reports.key_diff import Side, cause
from compressor.reports.show import line, state
from compressor.stages.base import SIZES

if TYPE_CHECKING:
    from compressor.evaluation.rouge import RougeTokenizer

METHOD = (
    "Paired bootstrap test (Koehn 2004): both models on the same 2,000 resamples of the test rows; "
    "p is two-sided. It tells of other rows, not of other seeds of training, and p-values are not "
    "corrected for how many there are."
)
LATENCIES = "Latencies of two runs were measured at different times: another load, another speed."
_UNTESTED = ("loss", "roc_auc", "average_precision")
_ENVIRONMENT = ("python", "platform", "machine", "cores", "gpus", "processes", "git", "packages")
Standing = Literal["same key", "differs", "only in the baseline", "only here"]


@dataclass(frozen=True)
class Told:
    """A key of the recipes, or of the environments, that is not the same in all runs."""

    path: str
    values: tuple[Any, ...]
    """For each run; MISSING where it has no such key."""


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
        found: Mapping[str, Any] = self.evaluation["metrics"]
        return found

    @property
    def tokenizer(self) -> RougeTokenizer:
        """ROUGE's; earlier versions had the English one alone, and did not name it."""
        name: RougeTokenizer = self.metrics.get("rouge_tokenizer", "english")
        return name

    def number(self, name: str) -> float | None:
        value = self.metrics.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value)


@dataclass(frozen=True)
class Score:
    """A measure of two models; `low`, `high` and `p` where the rows could be paired."""

    metric: str
    before: float
    after: float
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


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


@dataclass(frozen=True)
class Step:
    """A stage in the baseline and in another run."""

    run: int
    name: str
    standing: Standing
    because: str | None
    before: Record | None
    after: Record | None


@dataclass(frozen=True)
class Comparison:
    """Everything that differs between a baseline, the first run, and others."""

    runs: tuple[PastRun, ...]
    recipe: tuple[Told, ...]
    environment: tuple[Told, ...]
    models: tuple[Model, ...]
    pairs: tuple[Pair, ...]
    steps: tuple[Step, ...]

    @property
    def names(self) -> list[str]:
        return names(self.runs)

    def as_json(self) -> dict[str, Any]:
        """What `compare --json` prints."""
        return {
            "runs": [
                {"name": name, "folder": str(run.folder), "state": str(state(run))}
                for name, run in zip(self.names, self.runs, strict=True)
            ],
            "recipe": [_told(each) for each in self.recipe],
            "environment": [_told(each) for each in self.environment],
            "method": METHOD,
            "models": [_pair(pair, self.names) for pair in self.pairs],
            "stages": [_step(step, self.names) for step in self.steps],
        }


def names(runs: Sequence[PastRun]) -> list[str]:
    """A short name for each run: its folder's, with the recipe's where that tells more."""
    recipes, folders = {run.recipe for run in runs}, [run.folder.absolute() for run in runs]
    found = [
        each.name if len(recipes) == 1 else f"{run.recipe} {each.name}"
        for run, each in zip(runs, folders, strict=True)
    ]
    if len(set(found)) == len(found):
        return found
    return [f"{number} {name}" for number, name in enumerate(found, 1)]


def compare(runs: Sequence[PastRun]) -> Comparison:
    """Compare runs with the first of them. Raises RecipeError for one without any records."""
    for run in runs:
        run.require_records()
    models = [_models(number, run) for number, run in enumerate(runs)]
    read = cache(_read)
    return Comparison(
        tuple(runs),
        told([run.values for run in runs]),
        told([_environment(run) for run in runs]),
        tuple(model for some in models for model in some),
        tuple(
            _compared(
                runs, before, after, read, headline=(before, after) == (models[0][-1], other[-1])
            )
            for other in models[1:]
            for before, after in _matched(models[0], other)
        ),
        tuple(step for number in range(1, len(runs)) for step in _steps(runs, number)),
    )


def _environment(run: PastRun) -> dict[str, Any]:
    return {key: run.environment[key] for key in _ENVIRONMENT if key in run.environment}


def told(every: Sequence[Mapping[str, Any]]) -> tuple[Told, ...]:
    """The innermost keys that are not the same in all of `every`."""
    flat = [dict(_leaves(each)) for each in every]
    paths = dict.fromkeys(path for each in flat for path in each)
    # An empty mapping here, and one with keys there: the keys tell it.
    above = {path.rpartition(".")[0] for path in paths}
    paths = dict.fromkeys(path for path in paths if path not in above)
    rows = [Told(path, tuple(each.get(path, MISSING) for each in flat)) for path in paths]
    return tuple(row for row in rows if any(differences(row.values[0], v) for v in row.values[1:]))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not path):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _models(number: int, run: PastRun) -> list[Model]:
    """The models that a run evaluated, in their order, each once: as it was evaluated last."""
    from compressor.reports.tables import model_label

    p50s = {
        str(record["model"]): record["metrics"].get("latency_p50_ms")
        for record in run.records
        if record["stage"] == "benchmark"
    }
    found: dict[str, Model] = {}
    for record in run.records:
        if record["stage"] == "evaluate":
            name = str(record["model"])
            found.pop(name, None)
            label = model_label(record, run.records)
            found[name] = Model(number, name, label, record, p50s.get(name))
    return list(found.values())


def _matched(before: Sequence[Model], after: Sequence[Model]) -> Iterator[tuple[Model, Model]]:
    """Models of one name, or of one label; then the last of each, where those are not matched."""
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
    yield from pairs


def _compared(
    runs: Sequence[PastRun], before: Model, after: Model, read: Any, *, headline: bool
) -> Pair:
    """The scores and sizes of a pair, tested where the rows are the same."""
    rows = unpaired = None
    scores: list[Score] = []
    try:
        if before.tokenizer != after.tokenizer:
            raise ValueError(
                f"ROUGE's tokenizer is {before.tokenizer!r} there and {after.tokenizer!r} here"
            )
        one, other = (read(_predictions(runs[m.run], m), m.tokenizer) for m in (before, after))
        tested = compared(one, other)
    except ValueError as error:
        unpaired, tested = str(error), {}
    for name, found in tested.items():
        rows = found.rows
        numbers = (found.before, found.after, found.difference, found.low, found.high, found.p)
        scores.append(Score(name, *numbers))
    for name in (*SUMMARIES, *LABELS, *_UNTESTED):
        first, second = before.number(name), after.number(name)
        if name not in tested and first is not None and second is not None:
            scores.append(Score(name, first, second, second - first))
    sizes = tuple(_sizes(before, after))
    return Pair(after.run, before, after, headline, tuple(scores), sizes, rows, unpaired)


def _predictions(run: PastRun, model: Model) -> Path:
    folder = run.artifact(model.evaluation)
    if folder is None:
        raise ValueError(f"the predictions of {model.label!r} are no longer in the store")
    return (folder / "predictions.csv").resolve()


def _read(path: Path, tokenizer: RougeTokenizer) -> Scored:
    return scored(path, tokenizer)


def _sizes(before: Model, after: Model) -> Iterator[Size]:
    for name in ("bytes", "parameters", "nonzero_ratio"):
        yield Size(name, before.evaluation[name], after.evaluation[name])
    if before.p50 is not None or after.p50 is not None:
        yield Size("latency_p50_ms", before.p50, after.p50)


def _steps(runs: Sequence[PastRun], number: int) -> Iterator[Step]:
    """The stages of the baseline, and then those that the other run alone has."""
    baseline, other = runs[0], runs[number]
    sides = Side(baseline.key_parts, baseline.name_of), Side(other.key_parts, other.name_of)
    ours = {record["name"]: record for record in baseline.records}
    theirs = {record["name"]: record for record in other.records}
    for name in dict.fromkeys([*ours, *theirs]):
        one, two = ours.get(name), theirs.get(name)
        if one is None or two is None:
            standing: Standing = "only here" if one is None else "only in the baseline"
            yield Step(number, name, standing, None, one, two)
        elif one["key"] == two["key"]:
            yield Step(number, name, "same key", None, one, two)
        else:
            chains = cause(name, one["key"], two["key"], *sides).chains()
            because = chains[0] if chains else None
            yield Step(number, name, "differs", because, one, two)


def _told(row: Told) -> dict[str, Any]:
    """A key that a run has not is left out of its values by `there`."""
    return {
        "path": row.path,
        "values": [None if value is MISSING else value for value in row.values],
        "there": [value is not MISSING for value in row.values],
    }


def _pair(pair: Pair, names: Sequence[str]) -> dict[str, Any]:
    return {
        "run": names[pair.run],
        "before": pair.before.name,
        "after": pair.after.name,
        "headline": pair.headline,
        "rows": pair.rows,
        "unpaired": pair.unpaired,
        "scores": [asdict(score) for score in pair.scores],
        "sizes": [asdict(size) | {"ratio": size.ratio} for size in pair.sizes],
    }


def _step(step: Step, names: Sequence[str]) -> dict[str, Any]:
    def facts(record: Record | None) -> dict[str, Any] | None:
        if record is None:
            return None
        kept = ("key", "cached", "made_in_seconds", *SIZES)
        return {key: record[key] for key in kept} | {"metrics": line(record)}

    return {
        "run": names[step.run],
        "stage": step.name,
        "standing": step.standing,
        "because": step.because,
        "before": facts(step.before),
        "after": facts(step.after),
    }
