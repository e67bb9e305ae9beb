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

from compressor.backends.generation_config import OF_TOKENS
from compressor.data.sources import Data
from compressor.engine.plan import Node, Plan
from compressor.engine.provenance import Difference, differences
from compressor.models.facts import Facts, Widths, architecture, evenly_spaced
from compressor.stages.base import Planning, Scale, Stage
from compressor.stages.load import Load, TrainTokenizer
from compressor.training.launch_config import Launch

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


WIDTH, HEADS = 64, 4
"""Of the small model: multiples of 32, which N:M patterns and formats with blocks divide."""

PIECES = 1024
"""Of a tokenizer that is trained for a rehearsal; `quantize` leaves smaller tables float."""

TRAINED = ""
"""Stands for a tokenizer that is trained on the rehearsal's rows."""

_NO_PART = frozenset(
    {
        *("head", "architectures", "torch_dtype", "dtype", "transformers_version"),
        *("_name_or_path", "task_specific_params", "quantization_config", "auto_map"),
    }
)
"""Keys of a config that say where a model came from, and nothing of its shape."""


def small_load(load: Load, real: Facts, layers: int, tokenizer: str | None) -> Load:
    """A `load` of a fresh model of the kind that `load` gives, whose facts are `real`.

    layers: at most so many in each stack. tokenizer: the directory of the model's own, with which
    it keeps its vocabulary, `TRAINED` for one that is trained on the rows; None: it has none.
    """
    config = small_config(real, layers)
    own: str | TrainTokenizer | None = tokenizer
    if tokenizer == TRAINED:
        config = _with_pieces(config, min(PIECES, config["vocab_size"]))
        asked = load.tokenizer.vocab_size if isinstance(load.tokenizer, TrainTokenizer) else PIECES
        own = TrainTokenizer(vocab_size=min(asked, config["vocab_size"]))
    generation = load.generation
    if tokenizer == TRAINED:  # whose tokens have other numbers
        generation = {k: v for k, v in generation.items() if k not in OF_TOKENS}
    changed = {
        "generation": generation,
        "source": None,
        "config": config,
        "tokenizer": own,
        "trust_remote_code": False,
    }
    return load.model_copy(update=changed)


def small_config(real: Facts, layers: int) -> dict[str, Any]:
    """The config of a model like `real` with at most `layers` in each stack, and `WIDTH` wide.

    Everything that is neither a count of layers nor a width stays: the kind of attention, the
    activation, what is tied, the table of positions. A model that is no wider keeps its widths.
    """
    module = architecture(real.model_type)
    left_out = {*_NO_PART, *module.ALIASES}
    config = {k: v for k, v in real.config.items() if k not in left_out and v is not None}
    for stack in real.stacks().values():
        kept = evenly_spaced(stack.layers, min(layers, stack.layers))
        config |= stack.config_after(real.config, kept)
    if "lm_head.weight" in real.shapes:
        config["tie_word_embeddings"] = False
    return {**config, **_narrow(real.config, module.WIDTHS)}


def _narrow(config: Mapping[str, Any], widths: Widths) -> dict[str, Any]:
    """The widths that change: in proportion, and so that heads divide what they share."""
    own = int(config[widths.hidden])
    if own <= WIDTH:
        return {}
    changed: dict[str, Any] = {widths.hidden: WIDTH}
    for key in widths.feed_forward:
        if config.get(key):
            changed[key] = min(4 * WIDTH, max(32, round(config[key] * WIDTH / own / 32) * 32))
    for key in widths.heads:
        changed[key] = 1 << (min(HEADS, int(config.get(key) or HEADS)).bit_length() - 1)
    heads, before = changed[widths.heads[0]], int(config.get(widths.heads[0]) or HEADS)
    if widths.key_heads and config.get(widths.key_heads):
        share = before // int(config[widths.key_heads])
        changed[widths.key_heads] = max(1, heads // min(2, share)) if share < before else 1
    if widths.head_size and config.get(widths.head_size):
        inner = before * int(config[widths.head_size]) * WIDTH / own
        changed[widths.head_size] = min(64, max(8, round(inner / heads / 8) * 8))
    if widths.embedding and config.get(widths.embedding):
        changed[widths.embedding] = min(WIDTH // 2, int(config[widths.embedding]))
    return changed


def _with_pieces(config: Mapping[str, Any], pieces: int) -> dict[str, Any]:
    """The config for another tokenizer: its size, and no numbers of the old one's tokens."""
    kept = {k: v for k, v in config.items() if not k.endswith(("_token_id", "_token_ids"))}
    sizes = [key for key in ("vocab_size", "decoder_vocab_size") if kept.get(key)]
    return {**kept, **dict.fromkeys(sizes, pieces)}
