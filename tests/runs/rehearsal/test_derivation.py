"""A rehearsal's recipe: the same chain on small models, for every recipe, and counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.data.bills import Bills
from compressor.engine.plan import Plan, plan
from compressor.engine.store.store import Store
from compressor.models.facts import _MODULES, Facts, derive_facts, load_architecture
from compressor.recipe.compose import compose, validate_values
from compressor.recipe.files import list_recipes
from compressor.runs.rehearsal.derivation import TRAINED, derive, shrink_config
from compressor.runs.rehearsal.rows import sample_rows, write_rows
from compressor.stages.base import Planning
from compressor.stages.finetune import Finetune
from compressor.stages.load import Load


def derive_plan(recipe: str, folder: Path) -> tuple[Plan, Plan, dict[str, Any]]:
    """Plan the recipe and its rehearsal; with each change of a key, (before, after)."""
    composed = compose(recipe, [f"outputs={folder / 'real'}"])
    real = plan(composed, Store.of(composed.recipe.outputs))
    sample = sample_rows(composed.recipe.data, {"train", "validation", "test"})
    data = write_rows(composed.recipe.data, sample.rows, folder)
    tokenizers = {n.name: TRAINED for n in real.nodes if isinstance(n.stage, Load)}
    small = derive(real, data, tokenizers, folder / "outputs")
    again = validate_values(small.values, "again", (), ())
    changes = {change.path: (change.before, change.after) for change in small.changes}
    return real, plan(again, Store.of(again.recipe.outputs)), changes


def write(folder: Path, text: str, *, model: str = "t5_small", data: str = "bills") -> str:
    path = folder / "mine.yaml"
    path.write_text(f"defaults: [/base, /model: {model}, /data: {data}, _self_]\n{text}")
    return str(path)


def fail(path: str, message: str) -> None:
    raise AssertionError(message)


def layers(known: Facts | None) -> list[int]:
    return [] if known is None else [stack.layers for stack in known.list_stacks().values()]


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_has_a_rehearsal_of_the_same_chain(name: str, tmp_path: Path) -> None:
    """Same stages in the same order, on models of the same kind, all reachable and 64 wide; what
    drops layers in the recipe does so here.
    """
    real, small, _ = derive_plan(name, tmp_path)
    assert not small.unreached
    assert [(n.name, n.kind, n.model) for n in small.nodes] == [
        (n.name, n.kind, n.model) for n in real.nodes
    ]
    assert all(node.facts is not None for node in real.nodes if node.kind != "baseline")
    for node in real.nodes:
        known = small.node(node.name).facts
        if node.facts is None or known is None:
            continue
        assert known.model_type == node.facts.model_type
        assert known.config["head"] == node.facts.config["head"]
        assert ("lm_head.weight" in known.shapes) == ("lm_head.weight" in node.facts.shapes)
        assert known.parameters < 600_000
        if node.model is not None:
            before, taken = real.node(node.model).facts, small.node(node.model).facts
            if sum(layers(before)) > sum(layers(node.facts)):
                assert sum(layers(taken)) > sum(layers(known))


def test_models_have_as_many_layers_as_the_recipe_names(tmp_path: Path) -> None:
    """Two for none; 6 → 4 → 2 decoder layers want five, to drop some twice; a group of the layers
    2 and 3 wants three.
    """
    text = """
pipeline: [load, first, second]
stages:
  load: {}
  first: {stage: shrink, decoder_layers: 4}
  second: {stage: shrink, decoder_layers: 2}
"""
    _, small, _ = derive_plan(write(tmp_path, text), tmp_path)
    assert [layers(node.facts) for node in small.nodes] == [[5, 5], [5, 4], [5, 2]]
    text = """
pipeline: [load, prune]
stages:
  load: {}
  prune: {groups: {a: ["encoder.block.[23].*.wi.weight"]}, amounts: {a: 0.1}}
"""
    _, small, changes = derive_plan(write(tmp_path, text), tmp_path)
    assert layers(small.node("load").facts) == [3, 3] and changes == {
        "data.max_target_length": (64, 32)
    }


def test_settings_are_lowered_and_told(tmp_path: Path) -> None:
    """Widths, groups of int4, steps, lengths; also inside of other settings and where the recipe
    has their default. Each change is told at its key, and what is small enough stays.
    """
    text = """
pipeline: [load, teacher, slice, distill, quantize, evaluate]
stages:
  load: {}
  teacher: {stage: finetune, epochs: 20, quantization_aware: {weights: int4, group_size: 128}}
  slice: {heads: 4, feed_forward: 512}
  distill: {teacher: teacher, max_steps: 2, layers: {decoder: {1: 1}}}
  quantize: {weights: int8, model: teacher}
  evaluate: {model: teacher, max_length: [8, 500]}
"""
    _, small, changes = derive_plan(write(tmp_path, text), tmp_path)
    assert not small.unreached
    for stage in ("teacher", "distill"):
        assert changes.pop(f"stages.{stage}.batch_size") == (8, 4)
    assert changes == {
        "stages.teacher.epochs": (20, 1),
        "stages.teacher.max_steps": (None, 3),
        "stages.teacher.quantization_aware.group_size": (128, 32),
        "stages.slice.heads": (4, 2),
        "stages.slice.feed_forward": (512, 32),
        "stages.evaluate.max_length": ([8, 500], [8, 16]),
        "data.max_target_length": (64, 32),
    }
    planning = Planning(None, Bills(source="bills"), fail, fail)
    assert Finetune(trackers=("wandb",)).smoke_test_settings(planning).trackers == ()


def test_a_target_is_half_of_what_can_go(tmp_path: Path) -> None:
    """0.7 of T5-small, where only feed-forward may go; of the small model so much cannot."""
    text = """
pipeline: [load, sensitivity, prune]
stages:
  load: {}
  sensitivity: {}
  prune: {target: {nonzero_ratio: 0.7}, only: [feed_forward]}
"""
    _, small, _ = derive_plan(write(tmp_path, text), tmp_path)
    load, pruned = small.node("load").facts, small.node("prune").facts
    assert load is not None and pruned is not None
    whole = load.count_entries(frozenset(load.list_groups()["feed_forward"]))
    assert sum(count for _, count in pruned.masked) == pytest.approx(whole / 2, abs=1)


LARGE = {"bart": {"encoder_attention_heads": 16, "decoder_attention_heads": 16}}


@pytest.mark.parametrize("model_type", _MODULES)
def test_every_kind_of_model_has_a_small_one(model_type: str) -> None:
    """Of each model type's own defaults: what is planned is what transformers builds, with two
    layers in each stack, and it reads a text.
    """
    from transformers import AutoConfig

    from compressor.models.loading import build_model

    head = load_architecture(model_type).HEADS[0]
    real = derive_facts({"model_type": model_type, **LARGE.get(model_type, {})}, head=head)
    config = shrink_config(real, 2)
    config |= {"vocab_size": 300, "pad_token_id": 0}  # as of a tokenizer that is trained
    config = {k: v for k, v in config.items() if not (k == "decoder_vocab_size" and v)}
    planned = derive_facts(config, head=head)
    assert set(layers(planned)) == {2}
    values = {k: v for k, v in config.items() if k != "model_type"}
    built = AutoConfig.for_model(model_type, **values)
    model = build_model(built, head, untied_head="lm_head.weight" in planned.shapes)
    assert sum(p.numel() for p in model.parameters()) == planned.parameters
    ids = torch.tensor([[5, 6, 7, 8]])
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if head == "seq2seq_lm" else {})
    with torch.inference_mode():
        assert next(iter(model(**inputs).values())).isfinite().all()


def test_a_model_keeps_what_is_not_a_size() -> None:
    """Activation, attention, untied head, positions and shared keys stay; a model that is narrow
    already keeps its widths.
    """
    long = derive_facts(
        {
            "model_type": "longt5", "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12,
            "num_heads": 12, "feed_forward_proj": "gated-gelu", "local_radius": 127,
            "encoder_attention_type": "transient-global", "tie_word_embeddings": False,
        },
        head="seq2seq_lm",
    )  # fmt: skip
    small = shrink_config(long, 2)
    assert (small["d_model"], small["d_ff"], small["num_heads"], small["d_kv"]) == (64, 128, 4, 16)
    assert small["feed_forward_proj"] == "gated-gelu" and small["local_radius"] == 127
    assert small["encoder_attention_type"] == "transient-global"
    assert small["tie_word_embeddings"] is False
    assert (small["num_layers"], small["num_decoder_layers"]) == (2, 2)
    for keys, expected in ((1, 1), (8, 2), (32, 4)):
        llama = derive_facts({"model_type": "llama", "num_key_value_heads": keys}, head="causal_lm")
        assert shrink_config(llama, 2)["num_key_value_heads"] == expected
    roberta = derive_facts({"model_type": "roberta", "max_position_embeddings": 514}, head="none")
    assert derive_facts(shrink_config(roberta, 2), head="none").positions == 512
    pico = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2,
            "intermediate_size": 48, "num_hidden_layers": 1}  # fmt: skip
    kept = shrink_config(derive_facts(pico, head="none"), 2)
    assert {key: kept[key] for key in pico} == pico
