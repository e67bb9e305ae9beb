"""A rehearsal's recipe: the same chain on small models, for every recipe, and counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.compression.pruning import regrouped
from compressor.engine.plan import Plan, plan
from compressor.engine.store.store import Store
from compressor.models.facts import _MODULES, Facts, architecture, facts, scaled, scaled_layers
from compressor.recipe.compose import compose, validate_values
from compressor.recipe.files import recipe_names
from compressor.runs.rehearsal.derivation import TRAINED, Derived, Substitutes, derive, small_config
from compressor.runs.rehearsal.rows import small_data, take
from compressor.stages.base import Planning, Stage
from compressor.stages.load import Load

BASE = "defaults: [/base, /model: {model}, /data: {data}, _self_]\n"


def derived(recipe: str, folder: Path, *overrides: str) -> tuple[Plan, Derived, Plan]:
    """The recipe's plan, what is derived of it, and the plan of that."""
    composed = compose(recipe, [*overrides, f"outputs={folder / 'real'}"])
    real = plan(composed, Store.of(composed.recipe.outputs))
    data = composed.recipe.data
    splits = {split for node in real.nodes for split in node.stage.reads()} | {"train"}
    tokenizers = {n.name: TRAINED for n in real.nodes if isinstance(n.stage, Load)}
    small = small_data(data, take(data, splits), folder)
    found = derive(real, Substitutes(small, tokenizers, folder / "outputs"))
    again = validate_values(found.values, "again", (), ())
    return real, found, plan(again, Store.of(again.recipe.outputs))


def mine(folder: Path, text: str, *, model: str = "t5_small", data: str = "bills") -> str:
    """The path of a recipe of one's own."""
    path = folder / "mine.yaml"
    path.write_text(BASE.format(model=model, data=data) + text)
    return str(path)


def layers(known: Facts | None) -> list[int]:
    return [] if known is None else [stack.layers for stack in known.stacks().values()]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_a_rehearsal_of_the_same_chain(name: str, tmp_path: Path) -> None:
    """Same stages in the same order, on models of the same kind, all reachable and in two or three
    layers of 64; what drops layers in the recipe does so here.
    """
    real, _, small = derived(name, tmp_path)
    assert not small.unreached
    assert [(n.name, n.kind, n.model) for n in small.nodes if n.kind != "benchmark"] == [
        (n.name, n.kind, n.model) for n in real.nodes if n.kind != "benchmark"
    ]
    for node in real.nodes:
        own, before = small.node(node.name).facts, None
        if node.facts is None or own is None:
            continue
        assert own.model_type == node.facts.model_type
        assert own.config["head"] == node.facts.config["head"]
        assert ("lm_head.weight" in own.shapes) == ("lm_head.weight" in node.facts.shapes)
        assert max(layers(own)) <= 3 and own.parameters < 600_000
        if node.model is not None:
            before = real.node(node.model).facts
            taken = small.node(node.model).facts
            if sum(layers(before)) > sum(layers(node.facts)):
                assert sum(layers(taken)) > sum(layers(own))


def test_numbers_of_layers_are_scaled() -> None:
    """Half stays half; some that go are never none, and what stays is never nothing."""
    assert [scaled(n, 6, 2) for n in (1, 2, 3, 4, 5, 6)] == [1, 1, 1, 1, 1, 2]
    assert [scaled(n, 12, 3) for n in (1, 6, 10, 12)] == [1, 2, 2, 3]
    assert scaled(1, 2, 1) == 0 + 1
    assert scaled_layers([2, 3, 4, 5, 6, 7, 8, 9, 10, 11], 12, 2) == [1]
    assert scaled_layers([0, 2, 5], 6, 2) == [0]
    assert scaled_layers([0, 1, 2, 3], 4, 2) == [0, 1]


def test_a_chain_that_drops_twice_has_a_layer_for_each(tmp_path: Path) -> None:
    """6 → 4 → 2 decoder layers need three, to be 3 → 2 → 1; one drop needs two."""
    text = """
pipeline: [load, first, second]
stages:
  load: {}
  first: {stage: shrink, decoder_layers: 4}
  second: {stage: shrink, decoder_layers: 2}
"""
    _, found, small = derived(mine(tmp_path, text), tmp_path)
    assert found.layers == 3
    counts = [layers(node.facts)[1] for node in small.nodes]
    assert counts == [3, 2, 1]


def settings(found: Derived, name: str) -> Any:
    return found.stages[name]


def test_settings_that_count_are_scaled_and_told(tmp_path: Path) -> None:
    """Widths become shares; a layer map names the layers there are; patterns of layers their part;
    int4's groups divide the columns. Each change is told at its key.
    """
    text = """
pipeline: [load, teacher, slice, shrink, distill, prune, quantize]
stages:
  load: {}
  teacher:
    stage: finetune
    epochs: 20
    prune: {groups: {low: ["encoder.block.[012].*.wi.weight"]}, amounts: {low: 0.5}}
  slice: {heads: 4, feed_forward: 512}
  shrink: {decoder_layers: 3}
  distill:
    teacher: teacher
    losses: {hidden: 1.0}
    layers: {decoder: {0: 1, 2: 5}, encoder: {5: 5}}
  prune: {pattern: "2:4", groups: {high: ["decoder.block.2.*.wo.weight"]}}
  quantize: {weights: int4, group_size: 128, model: distill}
"""
    _, found, small = derived(mine(tmp_path, text), tmp_path)
    assert found.layers == 2
    assert (settings(found, "slice").heads, settings(found, "slice").feed_forward) == (0.5, 0.25)
    assert settings(found, "shrink").decoder_layers == 1
    assert settings(found, "distill").layers == {"decoder": {0: 1}, "encoder": {1: 1}}
    low = settings(found, "teacher").prune.groups["low"]
    assert low == ("encoder.block.0.layer.1.DenseReluDense.wi.weight",)
    high = settings(found, "prune").groups["high"]
    assert high == ("decoder.block.0.layer.2.DenseReluDense.wo.weight",)
    assert settings(found, "quantize").group_size == 64
    told = {change.path: (change.before, change.after) for change in found.changes}
    assert told["stages.shrink.decoder_layers"] == (3, 1)
    assert told["stages.quantize.group_size"] == (128, 64)
    assert told["stages.teacher.epochs"] == (20, 1)
    assert small.node("slice").facts is not None


def test_groups_that_share_no_weight_share_none_in_the_rehearsal(tmp_path: Path) -> None:
    """Three pairs of layers are three groups: in two layers they would overlap, in three they do
    not, nor in six, of which each pair has its own.
    """
    text = """
pipeline: [load, prune]
stages:
  load: {}
  prune:
    groups: {a: ["encoder.block.[01].*.wi.weight"], b: ["encoder.block.[23].*.wi.weight"],
             c: ["encoder.block.[45].*.wi.weight"]}
    amounts: {a: 0.1, b: 0.2, c: 0.3}
"""
    _, found, _ = derived(mine(tmp_path, text), tmp_path)
    assert found.layers == 3
    groups = settings(found, "prune").groups
    assert [names[0].split(".")[2] for names in groups.values()] == ["0", "1", "2"]


def test_patterns_without_layers_stay() -> None:
    """`*` is every layer of any model."""
    real = facts({"model_type": "t5"}, head="seq2seq_lm")
    small = facts(small_config(real, 2), head="seq2seq_lm")
    assert regrouped(("encoder.*.wi.weight",), real, small) == ("encoder.*.wi.weight",)


def test_a_targets_part_of_what_can_go_is_kept(tmp_path: Path) -> None:
    """0.5 of all weights, where only feed-forward may go: T5-small's are 25.2 M of 60.5 M, and it
    is out of reach; 0.7 takes 18.15 M of them, 0.7212, and that part of the small model's goes.
    """
    text = """
pipeline: [load, sensitivity, prune]
stages:
  load: {}
  sensitivity: {}
  prune: {target: {nonzero_ratio: 0.7}, only: [feed_forward]}
"""
    real, found, small = derived(mine(tmp_path, text), tmp_path)
    load = small.node("load").facts
    pruned = small.node("prune").facts
    assert load is not None and pruned is not None
    names = frozenset(load.groups()["feed_forward"])
    whole = real.node("load").facts
    assert whole is not None
    part = 0.3 * whole.parameters / whole.numel(frozenset(whole.groups()["feed_forward"]))
    gone = sum(count for _, count in pruned.masked)
    assert gone / load.numel(names) == pytest.approx(part, abs=1e-3)
    assert settings(found, "sensitivity").amounts == (0.1, 0.5, 0.9)


def test_two_layers_become_a_block_in_three(tmp_path: Path) -> None:
    """`approximate` of two neighbours needs a third layer to leave; its block is smaller than they
    are.
    """
    _, found, small = derived("bert/approximate_blocks", tmp_path)
    assert found.layers == 3
    assert settings(found, "noise").layers == (0, 1)
    assert [layers(small.node(n).facts) for n in ("load", "noise", "dropped")] == [[3], [2], [2]]


@pytest.mark.parametrize(
    ("recipe", "timed"),
    [
        ("sft/headlines", ("original", "quantize")),
        ("bert/distil_tiny", ("teacher", "labels")),
        ("deploy", ("base", "quantize", "ct2", "onnx")),
    ],
)
def test_one_model_is_timed_of_those_that_are_computed_alike(
    recipe: str, timed: tuple[str, ...], tmp_path: Path
) -> None:
    """Of each architecture and kind of weights the first, and each export."""
    _, found, _ = derived(recipe, tmp_path)
    assert settings(found, "benchmark").models == timed


LARGE = {"bart": {"encoder_attention_heads": 16, "decoder_attention_heads": 16}}


@pytest.mark.parametrize("model_type", _MODULES)
def test_every_kind_of_model_has_a_small_one(model_type: str) -> None:
    """Of each model type's own defaults: what is planned is what transformers builds, with two
    layers in each stack, and it reads a text.
    """
    from transformers import AutoConfig

    from compressor.models.loading import build

    head = architecture(model_type).HEADS[0]
    real = facts({"model_type": model_type, **LARGE.get(model_type, {})}, head=head)
    config = small_config(real, 2)
    config |= {"vocab_size": 300, "pad_token_id": 0}  # as of a tokenizer that is trained
    config = {k: v for k, v in config.items() if not (k == "decoder_vocab_size" and v)}
    planned = facts(config, head=head)
    assert set(layers(planned)) == {2}
    own = {k: v for k, v in config.items() if k != "model_type"}
    built = AutoConfig.for_model(model_type, **own)
    model = build(built, head, untied_head="lm_head.weight" in planned.shapes)
    assert sum(p.numel() for p in model.parameters()) == planned.parameters
    ids = torch.tensor([[5, 6, 7, 8]])
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if head == "seq2seq_lm" else {})
    with torch.inference_mode():
        assert next(iter(model(**inputs).values())).isfinite().all()


def test_a_model_keeps_what_is_not_a_size() -> None:
    """Activation, attention, buckets, untied head, positions and shared keys stay; widths go down
    in proportion; a model that is narrow already keeps all of them.
    """
    long = facts(
        {
            "model_type": "longt5", "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12,
            "num_heads": 12, "feed_forward_proj": "gated-gelu", "local_radius": 127,
            "encoder_attention_type": "transient-global", "tie_word_embeddings": False,
        },
        head="seq2seq_lm",
    )  # fmt: skip
    small = small_config(long, 2)
    assert (small["d_model"], small["d_ff"], small["num_heads"], small["d_kv"]) == (64, 160, 4, 16)
    assert small["feed_forward_proj"] == "gated-gelu" and small["local_radius"] == 127
    assert small["encoder_attention_type"] == "transient-global"
    assert small["tie_word_embeddings"] is False
    assert (small["num_layers"], small["num_decoder_layers"]) == (2, 2)
    llama = facts({"model_type": "llama", "num_key_value_heads": 8}, head="causal_lm")
    assert small_config(llama, 2)["num_key_value_heads"] == 2
    roberta = facts({"model_type": "roberta", "max_position_embeddings": 514}, head="none")
    assert facts(small_config(roberta, 2), head="none").positions == 512
    pico = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2,
            "intermediate_size": 48, "num_hidden_layers": 1}  # fmt: skip
    kept = small_config(facts(pico, head="none"), 2)
    assert {key: kept[key] for key in pico} == pico


def test_a_stage_says_nothing_changes_by_default() -> None:
    """A stage that counts nothing is rehearsed as it is."""
    from compressor.stages.base import Scale

    class Plain(Stage):
        """Example: `plain: {}`"""

    plain = Plain()
    assert plain.rehearsed(Scale(None, None)) is plain
    assert Planning  # what a stage is planned with is untouched
