"""The settings of objectives and searches. Draws nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from compressor.core.numbers import is_number
from compressor.core.settings import SETTINGS, Counted, Integer, Natural

Direction = Literal["maximize", "minimize"]
_Path = Annotated[str, Field(json_schema_extra={"pattern": r"\."})]
Paths = _Path | Annotated[list[_Path], Field(json_schema_extra={"uniqueItems": True})]
_HARNESS = "harness"
"""Under which `evaluate` leaves scores of tasks."""
Sampler = Literal["gp", "nsga2", "random", "tpe"]
"""Those of Optuna that are offered: they keep what they need as text, and draw the same again."""


@dataclass(frozen=True)
class Goal:
    """One number to make large or small: a metric, or a size, of what a stage gives or looks at."""

    path: str
    """`<stage>.<metric>`; `<stage>@<model>.<metric>` of a report on several models."""
    direction: Direction

    @property
    def stage(self) -> str:
        return self.path.removesuffix(f".{self.metric}")

    @property
    def metric(self) -> str:
        """The name of the number: of a task of lm_eval `harness.<task>.<metric>`, else one word."""
        _, of_task, name = self.path.partition(f".{_HARNESS}.")
        return f"{_HARNESS}.{name}" if of_task else self.path.rpartition(".")[2]

    def find_value(self, records: Sequence[Mapping[str, Any]]) -> float | None:
        """Find the number in a run's records; of a report on several models the last one's."""
        for record in reversed(records):
            if self.stage in {record["name"], record["name"].partition("@")[0]}:
                number = _find_number(record["metrics"], self.metric, record.get(self.metric))
                return float(number) if is_number(number) else None
        return None


def _find_number(metrics: Mapping[str, Any], name: str, default: Any) -> Any:
    """Find a metric by its name, or that of a task of lm_eval, whose scores lie deeper."""
    if not name.startswith(f"{_HARNESS}."):
        return metrics.get(name, default)
    task, _, score = name.removeprefix(f"{_HARNESS}.").rpartition(".")
    return metrics.get(_HARNESS, {}).get(task, {}).get(score)


class Objective(BaseModel):
    """What makes one point of a sweep better than another. Never part of a key.

    Each is `<stage>.<metric>`: a number of that stage's in `metrics.json`, or `parameters`,
    `nonzero`, `nonzero_ratio` or `bytes` of its model. Of a report on several models the last one
    counts, unless it is named: `evaluate@prune.rougeLsum`. `evaluate.harness.arc_easy.acc` is that
    score of a task of lm_eval.

    Example: `objective: {maximize: evaluate.rougeLsum, minimize: [export.bytes]}`
    """

    model_config = SETTINGS

    maximize: Paths = Field([], description="What is better when it is larger.")
    minimize: Paths = Field([], description="What is better when it is smaller.")

    @model_validator(mode="after")
    def _check_goals(self) -> Objective:
        if not self.goals:
            raise ValueError("expected something to maximize or to minimize")
        paths = [goal.path for goal in self.goals]
        for path in paths:
            if "." not in path:
                raise ValueError(f"{path!r} is not <stage>.<metric>, such as evaluate.rougeLsum")
            if paths.count(path) > 1:
                raise ValueError(f"{path!r} stands twice")
        return self

    @property
    def goals(self) -> tuple[Goal, ...]:
        """The goals in the order in which they are written."""
        sides: tuple[tuple[str | list[str], Direction], ...]
        sides = (self.maximize, "maximize"), (self.minimize, "minimize")
        return tuple(
            Goal(path, direction)
            for paths, direction in sides
            for path in ([paths] if isinstance(paths, str) else paths)
        )


class StopEarly(BaseModel):
    """When a trial is not worth going on with: its validation loss is worse than most had then.

    Each stage that trains is compared with the same stage of earlier trials, after each epoch; a
    trial's best epoch so far counts.

    Example: `stop_early: {after_trials: 5, after_epochs: 1, percentile: 50}`
    """

    model_config = SETTINGS

    after_trials: Counted = Field(5, description="Trials that end a stage before any is stopped.")
    after_epochs: Counted = Field(1, description="Epochs of a stage before it may be stopped.")
    percentile: float = Field(
        50, ge=0, le=100, description="Share of the trials, in %, that is good enough; 50: median."
    )


class Search(BaseModel):
    """A search for the best point instead of a grid of them, by `compressor run -m`.

    The space is what the command's overrides or `hydra.sweeper.params` leave open. Never part of a
    key.

    Example: `search: {trials: 30, sampler: tpe, stop_early: {after_trials: 5}}`
    """

    model_config = SETTINGS

    trials: Counted = Field(description="In total, over all times that the search is continued.")
    sampler: Sampler = Field("tpe", description="What draws: tpe, gp, nsga2 or random.")
    seed: Natural = Field(0, description="Of what is drawn; the stages have the recipe's seed.")
    at_once: Counted = Field(1, description="Trials drawn, and given to the launcher, together.")
    random_trials: Integer = Field(
        10, ge=2, description="Before tpe and gp learn from trials; the population of nsga2."
    )
    stop_early: StopEarly | None = Field(None, description="When to stop a trial; default: never.")
