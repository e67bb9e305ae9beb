"""Answer what a run's page and model card ask of its records: models, chains, measures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeGuard

from compressor.core.numbers import is_number
from compressor.data.rows import LABEL_TASKS
from compressor.engine.past_run import Record, RunRecord
from compressor.evaluation.metric_names import list_main_scores
from compressor.stages.base import stage_class, stage_kinds

Ended = Literal["done", "failed", "interrupted", "stopped"]
"""`stopped`: by a search, which found that it was not worth going on with."""
QUALITY = ("rougeLsum", "micro_f1", "macro_f1", "entity_f1")
LOSS = ("loss", "validation_loss")
OTHER_LOSS = ("approximate",)
"""Stages whose own loss is of hidden states, and cannot be held to one of labels."""


@dataclass(frozen=True)
class Results(RunRecord):
    """A run that has ended, as its reports read it."""

    ended: Ended = "done"
    error: str | None = None

    @property
    def end(self) -> str:
        """What a reader sees of how it ended."""
        return "stopped early" if self.ended == "stopped" else self.ended

    @property
    def data(self) -> Mapping[str, Any]:
        """The recipe's data, with what it leaves to defaults."""
        return {**(self.recipe.get("data") or {}), **(self.request.get("data") or {})}

    @property
    def has_labels(self) -> bool:
        """Whether rows have labels."""
        return self.data.get("task") in LABEL_TASKS

    @cached_property
    def by_name(self) -> dict[str, Record]:
        return {record["name"]: record for record in self.records}

    @cached_property
    def models(self) -> list[Record]:
        """The records of stages that gave a model."""
        return [record for record in self.records if gives_model(record)]

    def label(self, name: str | None) -> str:
        """Find what tables call a model, by the name of the stage that gave it."""
        return str(self.by_name[name]["label"]) if name in self.by_name else str(name or "")

    def of(self, *kinds: str) -> list[Record]:
        """List the records of some kinds of stages."""
        return [record for record in self.records if record["stage"] in kinds]

    @cached_property
    def measurements(self) -> dict[str, dict[str, Any]]:
        """Model → all that evaluations and benchmarks say of it, in the order of the records."""
        metrics: dict[str, dict[str, Any]] = {}
        for record in self.of("evaluate", "benchmark"):
            if record["model"] in self.by_name:
                metrics.setdefault(record["model"], {}).update(record["metrics"])
        return metrics

    @cached_property
    def quality(self) -> str | None:
        """The metric that models are compared by, or None where nothing was measured."""
        evaluated = [record["metrics"] for record in self.of("evaluate")]
        chosen = [name for metrics in evaluated for name in list_main_scores(metrics)[:1]]
        for name in (*chosen, *QUALITY, LOSS[0]):
            if any(_can_be_drawn(metrics.get(name)) for metrics in self.measurements.values()):
                return name
        trained = any(self.value(record["name"], LOSS[1]) is not None for record in self.models)
        return LOSS[1] if trained else None

    @property
    def rouge_tokenizers(self) -> str:
        """Which words ROUGE counted; empty where nothing was scored, or by an earlier version."""
        names = {record["metrics"].get("rouge_tokenizer") for record in self.records} - {None}
        return " and ".join(sorted(names))

    def value(self, model: str, metric: str) -> float | None:
        """Find a number of a model: measured of it, or of its training, or one of its sizes."""
        record = self.by_name[model]
        metrics = {} if record["stage"] in OTHER_LOSS else record["metrics"]
        values = (v.get(metric) for v in (self.measurements.get(model, {}), metrics, record))
        return next((float(value) for value in values if _can_be_drawn(value)), None)

    def chain(self, model: str) -> list[str]:
        """List the models from the first to this one, each made from the one before."""
        chain: list[str] = []
        current: str | None = model
        while current is not None and current in self.by_name and current not in chain:
            chain.insert(0, current)
            current = self.by_name[current]["model"]
        return chain

    @cached_property
    def original(self) -> str | None:
        """The model that the others are held to: `against`, else the first that was looked at."""
        for settings in (self.recipe.get("stages") or {}).values():
            against = (settings or {}).get("against")
            if against in self.measurements:
                return str(against)
        return next(iter(self.measurements), None)

    @cached_property
    def not_run(self) -> list[Mapping[str, Any]]:
        """The planned stages that have no record, in their order."""
        done = {part for name in self.by_name for part in (name, name.partition("@")[0])}
        return [node for node in self.request.get("nodes") or () if node["name"] not in done]

    @cached_property
    def artifacts(self) -> dict[str, Path]:
        """Stage → its folder in the store, as the run links to it."""
        return dict(self.links())


def gives_model(record: Record) -> bool:
    """Return whether a record is of a stage whose model others take."""
    return record["stage"] in stage_kinds() and stage_class(record["stage"]).changes_model


def _can_be_drawn(value: Any) -> TypeGuard[float]:
    """Return whether it is a finite number, which the loss of a training that diverged is not."""
    return is_number(value) and math.isfinite(value)
