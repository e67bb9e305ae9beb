"""The recipe of a rehearsal, from a planned recipe: values in, values and what changed out.

The pipeline stays. Each `load` becomes one of a small fresh model, and each stage says itself what
of its settings has to change (`Stage.rehearsed`). Nothing is read or run here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from compressor.architectures import Facts
from compressor.data.sources import Data
from compressor.differences import Difference, differences
from compressor.launching import Launch
from compressor.plan import Node, Plan
from compressor.rehearsal.models import small_load
from compressor.stage import Planning, Scale, Stage
from compressor.stages.load import Load

LAYERS = 2
"""Of each stack, unless the recipe takes layers out more often than that leaves any."""


@dataclass(frozen=True)
class Substitutes:
    """What a rehearsal has in the place of what a recipe names."""

    data: Mapping[str, Any]
    """The recipe's `data` group in the rehearsal."""
    tokenizers: Mapping[str, str | None]
    """Name of a `load` → the directory of its tokenizer, `models.TRAINED`, or None for none."""
    outputs: Path


@dataclass(frozen=True)
class Derived:
    """A rehearsal's recipe, as composed values, and how it differs from the real one."""

    values: Mapping[str, Any]
    stages: Mapping[str, Stage]
    """Its typed stages, by name."""
    changes: tuple[Difference, ...]
    layers: int
    """At most so many in each stack of its models."""


def derive(plan: Plan, substitutes: Substitutes) -> Derived:
    """The recipe of a rehearsal, with as few layers as let every stage that drops some do so."""
    deepest = max((max(_depths(node.facts), default=0) for node in plan.nodes), default=0)
    for layers in range(LAYERS, max(LAYERS, deepest) + 1):
        scaled = _Scaled(plan, substitutes, layers)
        scaled.run()
        if not scaled.stuck:
            break
    return scaled.derived()


def _depths(facts: Facts | None) -> list[int]:
    return [] if facts is None else [stack.layers for stack in facts.stacks().values()]


@dataclass
class _Scaled:
    """One try with a number of layers: the plan's nodes in their order, on small models."""

    plan: Plan
    substitutes: Substitutes
    layers: int
    stages: dict[str, Stage] = field(default_factory=dict)
    real: dict[str, Stage] = field(default_factory=dict)
    facts: dict[str, Facts | None] = field(default_factory=dict)
    """Node → the facts of its model in the rehearsal."""
    stuck: bool = False
    """Whether a stage cannot do there what it does in the recipe."""

    def run(self) -> None:
        self.data: Data = TypeAdapter(Data).validate_python(self.substitutes.data)
        for node in self.plan.nodes:
            name = node.name.partition("@")[0]
            if name not in self.stages:  # of a report on several models, the first
                self.real[name] = node.stage
                self.stages[name] = self._small(name, node)
            self.facts[node.name] = self._after(node, self.stages[name])

    def _small(self, name: str, node: Node) -> Stage:
        if isinstance(node.stage, Load):
            if node.facts is None:
                return node.stage
            tokenizer = self.substitutes.tokenizers[name]
            return small_load(node.stage, node.facts, self.layers, tokenizer)
        others = {role: self._both(other) for role, other in node.artifacts.items()}
        real, small = self._both(node.model)
        length, summaries = self.data.max_source_length, self.data.task == "summarization"
        like = {role: self._runs_like(self.plan.node(n)) for role, n in node.artifacts.items()}
        scale = Scale(real, small, others, like, source_length=length, summaries=summaries)
        return node.stage.rehearsed(scale)

    def _runs_like(self, node: Node) -> str:
        """What decides which code computes a node's model."""
        facts = node.facts
        if node.stage.export_format or facts is None:
            return node.name
        blocks = any(any(stack.blocks) for stack in facts.stacks().values())
        return f"{facts.model_type}, {facts.weights}, {'blocks' if blocks else 'layers'}"

    def _both(self, node: str | None) -> tuple[Facts | None, Facts | None]:
        if node is None:
            return None, None
        return self.plan.node(node).facts, self.facts[node]

    def _after(self, node: Node, stage: Stage) -> Facts | None:
        before = None if node.model is None else self.facts[node.model]
        real_before = None if node.model is None else self.plan.node(node.model).facts
        after = stage.preview(
            Planning(
                facts=before,
                data=self.data,
                launch=Launch(),
                outputs=self.substitutes.outputs,
                problem=self._problem,
                unreached=self._unreached,
                others={role: self.facts[other] for role, other in node.artifacts.items()},
            )
        )
        dropped = sum(_depths(real_before)) > sum(_depths(node.facts))
        if dropped and sum(_depths(before)) == sum(_depths(after)):
            self.stuck = True
        return after

    def _problem(self, path: str, message: str) -> None:
        self.stuck = True

    def _unreached(self, path: str, message: str) -> None:
        """Nothing of a rehearsal's models is on the hub."""

    def derived(self) -> Derived:
        values = dict(self.plan.composed.values)
        pipeline = set(values["pipeline"])  # the others do nothing, in the recipe as well
        stages = {name: own for name, own in values["stages"].items() if name in pipeline}
        changes = list[Difference]()
        for name, stage in self.stages.items():
            own = values["stages"][name] or {}
            kind = {"stage": own["stage"]} if "stage" in own else {}
            stages[name] = kind | stage.model_dump(mode="json", exclude_unset=True)
            if not isinstance(stage, Load):
                before, after = (each.model_dump(mode="json") for each in (self.real[name], stage))
                changes += differences(before, after, f"stages.{name}")
        limits = ("max_source_length", "max_target_length")
        data = self.plan.composed.recipe.data
        before, after = ({k: getattr(each, k) for k in limits} for each in (data, self.data))
        changes += differences(before, after, "data")
        launch = {"num_processes": 1, "config_file": None}
        values |= {
            "outputs": str(self.substitutes.outputs),
            "stages": stages,
            "data": dict(self.substitutes.data),
            "launch": launch,
            "objective": None,
            "search": None,
        }
        return Derived(values, self.stages, tuple(changes), self.layers)
