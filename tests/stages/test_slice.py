"""`slice`: units leave physically; what is left is the model that planning promised."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.core.errors import StageError
from compressor.data.bills import Bills
from compressor.data.tokenizers import train_tokenizer
from compressor.models.checkpoint import Checkpoint
from compressor.models.facts import Facts
from compressor.models.surgery import select_strongest, unit_sums
from compressor.stages.slice import Slice
from tests.harness.models import BLOCKS, UNTIED, build_case
from tests.harness.stages import preview, run_stage

T5 = {"vocab_size": 60, "d_ff": 32, "num_heads": 4, "num_layers": 3}


def t5(**changes: Any) -> Checkpoint:
    return build_case("t5", T5 | changes, "seq2seq_lm")


def bert() -> Checkpoint:
    return build_case("bert", {"intermediate_size": 32}, "none")


def llama() -> Checkpoint:
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 32}
    return build_case("llama", heads, "none")


@pytest.mark.parametrize(
    ("make", "stage"),
    [
        (t5, Slice(heads=3, feed_forward=0.3, multiple_of=8)),
        (lambda: t5(**UNTIED, feed_forward_proj="gated-gelu"), Slice(heads=1, feed_forward=5)),
        (t5, Slice(encoder={"heads": 2}, decoder={"heads": 0.5})),
        (bert, Slice(feed_forward=0.99)),
        (lambda: build_case("llama", {"mlp_bias": True}, "causal_lm"), Slice(feed_forward=0.5)),
        (lambda: build_case("bart", BLOCKS, "seq2seq_lm"), Slice(feed_forward=0.5)),
        (t5, Slice(encoder={"layers": 2}, decoder={"layers": 0.67})),
    ],
)
def test_a_plan_knows_the_sliced_model_exactly(tmp_path, make, stage) -> None:
    """Names, shapes and config equal the real model's."""
    checkpoint = make()
    plan, problems = preview(stage, checkpoint.derive_facts())
    real = run_stage(stage, checkpoint, tmp_path)[0]
    assert problems == [] and plan is not None and plan.exact and plan.exact_size
    shapes = {name: tuple(p.shape) for name, p in real.model.named_parameters()}
    assert dict(plan.shapes) == dict(real.derive_facts().shapes) == shapes
    for key in ("num_heads", "d_ff", "intermediate_size", "num_layers", "num_decoder_layers"):
        assert plan.config.get(key) == getattr(real.model.config, key, None)


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("llama", {"attention_bias": True, "num_key_value_heads": 2}),
        ("llama", {"num_attention_heads": 2, "num_key_value_heads": 2}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 12}),
    ],
)
def test_groups_of_heads_leave_with_their_keys(tmp_path, model_type, values) -> None:
    """In each layer the group whose weights are zero leaves first, its queries with it: logits are
    those of before, in plain transformers too, and the plan knows the model exactly.
    """
    shape = {"vocab_size": 60, "num_attention_heads": 8, "num_key_value_heads": 4}
    shape |= {"hidden_size": 32} | values
    checkpoint = build_case(model_type, shape, "causal_lm")
    config, layers = checkpoint.model.config, checkpoint.model.model.layers
    groups, last = config.num_key_value_heads, config.num_key_value_heads - 1
    size, queries = layers[0].self_attn.head_dim, config.num_attention_heads // groups
    for number, layer in enumerate(layers):
        for norm in (p for name, p in layer.named_parameters() if "norm" in name or "bias" in name):
            torch.nn.init.normal_(norm)
        gone = min(number, last)
        cut = slice(gone * queries * size, (gone + 1) * queries * size)
        layer.self_attn.o_proj.weight.data[:, cut] = 0
        layer.self_attn.q_proj.weight.data[cut] *= 1e-3
    kept = groups - 1
    stage = Slice(heads=kept)
    ids = torch.randint(0, 60, (3, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = checkpoint.model.eval()(ids).logits
    plan, problems = preview(stage, checkpoint.derive_facts())
    real = run_stage(stage, checkpoint, tmp_path)[0]
    assert problems == [] and plan is not None and plan.exact
    assert dict(plan.shapes) == {n: tuple(p.shape) for n, p in real.model.named_parameters()}
    real.model.save_pretrained(tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    config = again.config
    heads = (config.num_key_value_heads, config.num_attention_heads, config.head_dim)
    assert heads == (kept, kept * queries, size)
    assert {key: plan.config[key] for key in ("num_key_value_heads", "head_dim")} == {
        "num_key_value_heads": kept, "head_dim": size,
    }  # fmt: skip
    with torch.inference_mode():
        torch.testing.assert_close(again(ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_widths_are_rounded_up_to_a_multiple() -> None:
    """30 % of 32 neurons are 10, rounded up to 16; never more than there are, never none."""
    facts = t5().derive_facts()
    for width, multiple, expected in ((0.3, 8, 16), (0.3, 1, 10), (31, 12, 32), (1e-9, 1, 1)):
        plan, _ = preview(Slice(feed_forward=width, multiple_of=multiple), facts)
        assert plan is not None and plan.config["d_ff"] == expected


def test_masks_are_cut_as_their_weights_are(tmp_path) -> None:
    """What is masked stays masked; the ratio of a pruned, sliced model is an estimate, but for
    tensors that stay whole.
    """
    checkpoint, stage = t5(), Slice(feed_forward=0.5)
    names = [f"encoder.block.0.layer.1.DenseReluDense.{n}.weight" for n in ("wi", "wo")]
    draw = torch.Generator().manual_seed(3)
    for name in (*names, "shared.weight"):
        shape = checkpoint.get_parameter(name).shape
        checkpoint.masks[name] = torch.rand(shape, generator=draw) > 0.4
    checkpoint.apply_masks()
    smaller = run_stage(stage, checkpoint, tmp_path)[0]
    assert [tuple(smaller.masks[n].shape) for n in names] == [(16, 16), (16, 16)]
    for name, mask in smaller.masks.items():
        assert torch.equal(smaller.get_parameter(name) != 0, mask), name
    assert torch.equal(smaller.masks["shared.weight"], checkpoint.masks["shared.weight"])

    def plan_half_pruned(pruned: frozenset[str]) -> Facts:
        facts = checkpoint.derive_facts()
        plan, _ = preview(stage, facts.prune(pruned, facts.count_entries(pruned) // 2))
        assert plan is not None
        return plan

    plan = plan_half_pruned(frozenset(names))
    assert (plan.exact, plan.exact_size, plan.masked[0][1]) == (False, True, 16 * 16)
    assert plan_half_pruned(frozenset(["shared.weight"])).exact


@pytest.mark.parametrize(
    ("make", "stage", "path", "message"),
    [
        (t5, {"heads": 5}, "heads", "5 is outside 1 … 4, the heads there are"),
        (t5, {"feed_forward": 33}, "feed_forward", "1 … 32"),
        (t5, {"encoder": {"heads": 2}}, "encoder.heads", "one num_heads for all of its layers"),
        (t5, {"feed_forward": 8, "decoder": {"feed_forward": 4}}, "feed_forward", "one d_ff for"),
        (llama, {"heads": 3}, "heads", "no config of a llama has 3 of them; set 1, 2, 4"),
        (bert, {"heads": 1}, "heads", "hidden_size / num_attention_heads"),
        (bert, {"decoder": {"feed_forward": 4}}, "decoder", "bert has no decoder"),
    ],
)  # fmt: skip
def test_what_no_model_can_be_is_found_when_planned(tmp_path, make, stage, path, message) -> None:
    """The key, and why; a run that was not planned is refused too."""
    checkpoint = make()
    _, problems = preview(Slice(**stage), checkpoint.derive_facts())
    assert [key for key, _ in problems] == [path]
    assert message in problems[0][1]
    with pytest.raises(StageError, match=path):
        run_stage(Slice(**stage), checkpoint, tmp_path)[0]


@pytest.mark.parametrize("importance", ["taylor", "random"])
@pytest.mark.parametrize("widths", [{"heads": 2, "layers": 1}, {"layers": 1}])
def test_units_can_be_judged_otherwise(tmp_path, widths, importance) -> None:
    """By the loss on rows, or by nothing: the planned widths, and layers as well."""
    data = Bills(source="bills", rows={"train": 4}, max_source_length=40, max_target_length=16)
    checkpoint = t5(vocab_size=300)
    checkpoint.tokenizer = train_tokenizer(data.load("train").texts, vocab_size=300)
    stage = Slice(**widths, importance=importance, calibration_rows=4)
    plan, problems = preview(stage, checkpoint.derive_facts(), data)
    smaller, _ = run_stage(stage, checkpoint, tmp_path, data)
    assert problems == [] and plan is not None
    assert plan.shapes == smaller.derive_facts().shapes != checkpoint.derive_facts().shapes


def test_a_unit_is_judged_by_all_that_it_owns() -> None:
    """By hand: rows 0+1 and column 0 belong to unit 0, rows 2+3 and column 1 to unit 1."""
    rows, columns = torch.tensor([[1.0], [2.0], [3.0], [0.0]]), torch.tensor([[10.0, 1.0]])
    assert unit_sums([(rows, 0), (columns, 1)], 2).tolist() == [13.0, 4.0]
    assert select_strongest(torch.tensor([1.0, 3.0, 1.0, 2.0]), 3) == [0, 1, 3]
