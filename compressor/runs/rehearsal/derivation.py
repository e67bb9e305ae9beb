"""Derive the recipe of a rehearsal: the same chain on tiny models of the same kinds. Runs nothing.

Each `load` becomes one of a small fresh model, and each stage gets `Stage.smoke_test_settings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from compressor.backends.generation_config import OF_TOKENS
from compressor.core.differences import Difference, find_differences
from compressor.data.sources import Data
from compressor.engine.plan import Plan
from compressor.models.facts import Facts, evenly_spaced, load_architecture
from compressor.models.structure import Widths
from compressor.models.tokenizer_source import TrainTokenizer
from compressor.stages.base import Planning, Stage
from compressor.stages.load import Load
from compressor.training.launch_config import Launch

LAYERS = 2
"""Of each stack, unless the recipe names a later layer, or drops more layers than that."""
WIDTH, HEADS = 64, 4
"""Of the small models: multiples of 32, which N:M patterns and formats with blocks divide."""
VOCABULARY = 1024
"""Of a tokenizer that is trained for a rehearsal; `quantize` leaves smaller tables float."""
TRAINED = ""
"""Stands for a tokenizer that is trained on the rehearsal's rows."""
_NO_SHAPE = frozenset(
    {
        *("head", "architectures", "torch_dtype", "dtype", "transformers_version"),
        *("_name_or_path", "task_specific_params", "quantization_config", "auto_map"),
    }
)
"""Keys of a config that say where a model came from, and nothing of its shape."""


@dataclass(frozen=True)
class SmallRecipe:
    """A rehearsal's recipe as it is composed, and how it differs from the real one."""

    values: Mapping[str, Any]
    changes: Sequence[Difference]


def derive(
    plan: Plan, data: Mapping[str, Any], tokenizers: Mapping[str, str | None], outputs: Path
) -> SmallRecipe:
    """Derive it with as few layers as let each stage do what it does in the recipe.

    `data`: its group of that name. `tokenizers`: `load` → a tokenizer's directory, `TRAINED`, None.
    """
    source = TypeAdapter[Data](Data).validate_python(data)
    depths = [depth for node in plan.nodes for depth in _depths(node.facts)]
    for layers in range(LAYERS, max([LAYERS, *depths]) + 1):
        stages, fits = _shrink_stages(plan, source, tokenizers, layers)
        if fits:
            break
    limits = ("max_source_length", "max_target_length")
    before, after = (
        {k: getattr(d, k) for k in limits} for d in (plan.composed.recipe.data, source)
    )
    written, changes = _write_stages(plan, stages)
    replaced: dict[str, Any] = {"stages": written, "data": dict(data), "outputs": str(outputs)}
    replaced |= {"launch": Launch().model_dump(mode="json"), "objective": None, "search": None}
    changes += find_differences(before, after, "data")
    return SmallRecipe({**plan.composed.values, **replaced}, changes)


def _depths(facts: Facts | None) -> list[int]:
    return [] if facts is None else [stack.layers for stack in facts.list_stacks().values()]


def _shrink_stages(
    plan: Plan, data: Data, tokenizers: Mapping[str, str | None], layers: int
) -> tuple[dict[str, Stage], bool]:
    """Shrink each stage of the pipeline, for models of at most `layers` in a stack.

    Also returns whether all can then be planned, and drop layers where the recipe does.
    """
    stages, problems = dict[str, Stage](), list[str]()
    facts: dict[str | None, Facts | None] = {None: None}
    real: dict[str | None, Facts | None] = {None: None, **{n.name: n.facts for n in plan.nodes}}
    for node in plan.nodes:
        planning = Planning(
            facts=facts[node.model],
            data=data,
            report=lambda path, message: problems.append(f"{path}: {message}"),
            report_unreached=lambda *_: None,
            backend="torch" if node.model is None else plan.node(node.model).backend,
            others={role: facts[other] for role, other in node.artifacts.items()},
        )
        name = node.name.partition("@")[0]
        if name in stages:  # a report on several models has a node for each
            pass
        elif not isinstance(node.stage, Load):
            stages[name] = node.stage.smoke_test_settings(planning)
        elif node.facts is not None:
            stages[name] = shrink_load(node.stage, node.facts, layers, tokenizers[name])
        else:
            stages[name] = node.stage
        facts[node.name] = stages[name].preview(planning)
        dropped = sum(_depths(real[node.model])) - sum(_depths(node.facts))
        if dropped > 0 and sum(_depths(facts[node.model])) == sum(_depths(facts[node.name])):
            problems.append(f"{node.name}: drops no layer")
    return stages, not problems


def _write_stages(
    plan: Plan, small: Mapping[str, Stage]
) -> tuple[dict[str, Any], list[Difference]]:
    """Write the `stages` group of the small recipe, and list what changes beside its models."""
    stages, changes = dict(plan.composed.values["stages"]), list[Difference]()
    real = {node.name.partition("@")[0]: node for node in plan.nodes}
    for name, stage in small.items():
        kind = {"stage": real[name].kind}
        stages[name] = kind | stage.model_dump(mode="json", exclude_unset=True)
        if not isinstance(stage, Load):
            before, after = (s.model_dump(mode="json") for s in (real[name].stage, stage))
            changes += find_differences(before, after, f"stages.{name}")
    return stages, changes


def shrink_load(load: Load, real: Facts, layers: int, tokenizer: str | None) -> Load:
    """Load a fresh small model of the kind that `load` gives, whose facts are `real`.

    With a tokenizer of its own, a directory, it keeps its vocabulary.
    """
    config, generation = shrink_config(real, layers), load.generation
    vocabulary: str | TrainTokenizer | None = tokenizer
    if tokenizer == TRAINED:  # whose tokens have other numbers
        config = _resize_vocabulary(config, min(VOCABULARY, config["vocab_size"]))
        size = config["vocab_size"]
        if isinstance(load.tokenizer, TrainTokenizer):
            size = min(size, load.tokenizer.vocab_size)
        vocabulary = TrainTokenizer(vocab_size=size)
        generation = {k: v for k, v in generation.items() if k not in OF_TOKENS}
    changed = {"generation": generation, "config": config, "tokenizer": vocabulary}
    return load.model_copy(update=changed | {"source": None, "trust_remote_code": False})


def _resize_vocabulary(config: Mapping[str, Any], size: int) -> dict[str, Any]:
    kept = {k: v for k, v in config.items() if not k.endswith(("_token_id", "_token_ids"))}
    sizes = [key for key in ("vocab_size", "decoder_vocab_size") if kept.get(key)]
    return {**kept, **dict.fromkeys(sizes, size)}


def shrink_config(real: Facts, layers: int) -> dict[str, Any]:
    """Make the config of a model like `real`, `WIDTH` wide, with at most `layers` in each stack.

    All else stays: attention, activation, what is tied, positions, and widths that are no wider.
    """
    module = load_architecture(real.model_type)
    left_out = {*_NO_SHAPE, *module.ALIASES}
    config = {k: v for k, v in real.config.items() if k not in left_out and v is not None}
    for stack in real.list_stacks().values():
        kept = evenly_spaced(stack.layers, min(layers, stack.layers))
        config |= stack.config_after(real.config, kept)
    if "lm_head.weight" in real.shapes:
        config["tie_word_embeddings"] = False
    return {**config, **_narrow(real.config, module.WIDTHS)}


def _narrow(config: Mapping[str, Any], widths: Widths) -> dict[str, Any]:
    """Choose other widths for a model that is wider; heads that share keys go on sharing them."""
    if int(config[widths.hidden]) <= WIDTH:
        return {}
    sizes = {widths.hidden: WIDTH, widths.head_size: WIDTH // HEADS, widths.embedding: WIDTH // 2}
    sizes |= dict.fromkeys(widths.feed_forward, 2 * WIDTH) | dict.fromkeys(widths.heads, HEADS)
    if (keys := config.get(widths.key_heads)) is not None:
        sizes[widths.key_heads] = {1: 1, config[widths.heads[0]]: HEADS}.get(keys, HEADS // 2)
    return {key: size for key, size in sizes.items() if config.get(key)}
