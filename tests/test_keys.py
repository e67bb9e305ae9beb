"""Keys: what decides a result is in them, and what cannot decide one is not."""

from __future__ import annotations

import pytest
import torch
from transformers import T5Config

from compressor.architectures import facts
from compressor.checkpoint import Checkpoint, build
from compressor.data.examples import Examples
from compressor.pruning import Grouping, Pruner
from compressor.stages.distill import Distill
from tests.pico import T5
from tests.test_plan import planned

AMOUNTS = "amounts: {encoder: {feed_forward: 0.5}, lm_head: 0.3}"
REVERSED = "amounts: {lm_head: 0.3, encoder: {feed_forward: 0.5}}"
ORDERED = ("taylor", "wanda", "sparsegpt")
"""Importances that see a model as the groups before have left it."""


def key_of(recipe, settings: str, stage: str = "prune", old: str = AMOUNTS) -> str | None:
    return planned(recipe((old, settings))).node(stage).key


@pytest.mark.parametrize("importance", ["magnitude", "random", *ORDERED])
def test_the_order_of_amounts_is_in_the_key_where_it_decides(recipe, importance) -> None:
    """What is pruned first changes what a data-driven importance sees of the later groups."""
    suffix = f", importance: {importance}"
    keys = {key_of(recipe, order + suffix) for order in (AMOUNTS, REVERSED)}
    assert len(keys) == (2 if importance in ORDERED else 1)


@pytest.mark.parametrize("importance", ["magnitude", "random", "taylor", "wanda"])
def test_the_order_of_groups_changes_masks_just_where_it_is_in_the_key(importance) -> None:
    """Two groups of one model, pruned in either order."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    start = build(T5Config(**T5, decoder_start_token_id=0), "seq2seq_lm").eval()
    ids = torch.randint(3, 50, (4, 12)).tolist()
    groups = Checkpoint(start, None, "seq2seq_lm").facts().groups()
    masks = []
    for paths in (["encoder.feed_forward", "lm_head"], ["lm_head", "encoder.feed_forward"]):
        model = build(start.config, "seq2seq_lm").eval()
        model.load_state_dict(start.state_dict())
        checkpoint = Checkpoint(model, PadOnly(), "seq2seq_lm")
        examples = Examples(ids, [row[:6] for row in ids])
        pruner = Pruner(checkpoint, Grouping(importance=importance), examples=examples)
        for path in paths:
            entries = sum(model.get_parameter(name).numel() for name in groups[path])
            pruner.prune(groups[path], entries // 2)
        masks.append(checkpoint.masks)
    same = all(torch.equal(masks[0][name], mask) for name, mask in masks[1].items())
    assert same == (importance not in ORDERED)


class PadOnly:
    """What pruning asks of a tokenizer."""

    pad_token_id = eos_token_id = 0


def test_the_order_of_a_recipes_own_groups_is_in_the_key_where_no_list_names_one(recipe) -> None:
    """With a pattern all own groups are pruned, in their order; with `only` in that list's."""
    groups = ["a: ['encoder.*.wi.weight']", "b: ['decoder.*.wi.weight']"]
    settings = "pattern: '2:4', importance: wanda"
    orders = [f"groups: {{{', '.join(order)}}}" for order in (groups, groups[::-1])]
    assert len({key_of(recipe, f"{settings}, {order}") for order in orders}) == 2
    assert len({key_of(recipe, f"{settings}, only: [a, b], {order}") for order in orders}) == 1


def test_a_sensitivitys_key_has_the_order_that_a_target_follows(recipe) -> None:
    """`prune: {target: …}` goes through the groups as the curves list them."""
    groups = ["a: ['encoder.*.wi.weight']", "b: ['decoder.*.wi.weight']"]
    old = "prune: {" + AMOUNTS + "}"
    keys = {
        key_of(recipe, f"prune: {{stage: sensitivity, groups: {{{', '.join(order)}}}}}", old=old)
        for order in (groups, groups[::-1])
    }
    assert len(keys) == 2


def test_the_columns_of_generated_bills_are_in_the_key(recipe) -> None:
    """`data.text: summary` learns other texts; the usual names change no key."""
    path = recipe()
    keys = [
        planned(path, *overrides).node("finetune").key
        for overrides in ((), ("data.text=summary", "data.summary=text"), ("data.text=text",))
    ]
    assert keys[0] == keys[2] != keys[1]


def test_the_order_of_a_layer_map_decides_nothing(tmp_path) -> None:
    """Projections are drawn in the order of the layers, however a map lists them."""
    stages = [
        Distill(teacher="t", layers={"encoder": layers}) for layers in ({0: 1, 1: 0}, {1: 0, 0: 1})
    ]
    small = facts({"model_type": "t5", **T5}, head="seq2seq_lm")
    maps = [list(stage._layer_map(small, small)["encoder"].items()) for stage in stages]
    assert maps[0] == maps[1] == [(0, 1), (1, 0)]
