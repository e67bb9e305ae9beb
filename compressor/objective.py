"""What a recipe wants more or less of: numbers that its stages leave, by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from compressor.field_types import SETTINGS
from compressor.schema_rules import rules, where

Direction = Literal["maximize", "minimize"]
_Path = Annotated[str, Field(json_schema_extra={"pattern": r"\."})]
Paths = _Path | Annotated[list[_Path], Field(json_schema_extra={"uniqueItems": True})]


@dataclass(frozen=True)
class Goal:
    """One number to make large or small: a metric, or a size, of what a stage gives or looks at."""

    path: str
    """`<stage>.<metric>`; `<stage>@<model>.<metric>` of a report on several models."""
    direction: Direction

    @property
    def stage(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def metric(self) -> str:
        return self.path.rpartition(".")[2]

    def value(self, records: Sequence[Mapping[str, Any]]) -> float | None:
        """The number in a run's records; of a report on several models, that of the last one."""
        for record in reversed(records):
            if self.stage in {record["name"], record["name"].partition("@")[0]}:
                found = record["metrics"].get(self.metric, record.get(self.metric))
                is_number = isinstance(found, int | float) and not isinstance(found, bool)
                return float(found) if is_number else None
        return None


class Objective(BaseModel):
    """What makes one point of a sweep better than another. Never part of a key.

    Each is `<stage>.<metric>`: a number of that stage's in `metrics.json`, or `parameters`,
    `nonzero`, `nonzero_ratio` or `bytes` of its model. Of a report on several models the last one
    counts, unless it is named: `evaluate@prune.rougeLsum`.

    Example: `objective: {maximize: evaluate.rougeLsum, minimize: [export.bytes]}`
    """

    model_config = SETTINGS | ConfigDict(
        json_schema_extra=rules(
            {
                "anyOf": [
                    where(**{direction: written})
                    for direction in ("maximize", "minimize")
                    for written in ({"type": "string"}, {"type": "array", "minItems": 1})
                ]
            }
        )
    )

    maximize: Paths = Field([], description="What is better when it is larger.")
    minimize: Paths = Field([], description="What is better when it is smaller.")

    @model_validator(mode="after")
    def _some(self) -> Objective:
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
        """In the order in which they are written."""

        def each(paths: str | list[str], direction: Direction) -> list[Goal]:
            return [
                Goal(path, direction) for path in ([paths] if isinstance(paths, str) else paths)
            ]

        return (*each(self.maximize, "maximize"), *each(self.minimize, "minimize"))
