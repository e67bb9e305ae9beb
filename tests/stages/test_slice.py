"""`slice`: units leave physically; what is left is the model that planning promised."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, BertConfig, T5Config

from compressor.core.errors import StageError
from compressor.data.bills import Bills
from compressor.data.tokenizers import train_tokenizer
from compressor.models.checkpoint import Checkpoint
from compressor.models.facts import Facts
from compressor.models.loading import build_model, has_untied_head
from compressor.models.surgery import select_strongest, take_units, unit_sums
from compressor.stages.slice import Slice
from tests.harness.stages import preview, run_stage

T5 = {
    "vocab_size": 60, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_heads": 4,
    "num_layers": 3, "num_decoder_layers": 3, "decoder_start_token_id": 0,
}  # fmt: skip
BERT = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 32,
}  # fmt: skip
IDS = torch.arange(2, 12)[None]


def t5(*, untied: bool = False, **config: Any) -> Checkpoint:
    """Weights large enough that each matters, position biases and norms too."""
    torch.manual_seed(0)
    model = build_model(T5Config(**T5 | config), "seq2seq_lm", untied_head=untied).eval()
    return Checkpoint(shake(model), None, "seq2seq_lm")


def bert(head: str = "none") -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(shake(build_model(BertConfig(**BERT, num_labels=3), head).eval()), None, head)


def shake(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def output(model: Any) -> torch.Tensor:
    targets = {"decoder_input_ids": IDS[:, :5]} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        return next(iter(model(input_ids=IDS, **targets).values()))


def zero_heads(model: Any, stack: Any, lost: set[int]) -> None:
    """Take what the heads add away; their columns of the position bias stay as they are."""
    width = model.config.d_kv
    for block in stack.block:
        for layer in block.layer[:-1]:
            attention = getattr(layer, "SelfAttention", None) or layer.EncDecAttention
            for head in lost:
                part = slice(head * width, (head + 1) * width)
                for matrix in (attention.q, attention.k, attention.v):
                    matrix.weight[part] = 0
                attention.o.weight[:, part] = 0


def zero_neurons(block: Any, lost: list[int]) -> None:
    dense = block.layer[-1].DenseReluDense
    for name, parameter in dense.named_parameters():
        (parameter.T if name == "wo.weight" else parameter)[lost] = 0


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("projection", ["relu", "gated-gelu"])
def test_units_that_are_zero_go_first_and_take_nothing_along(tmp_path, untied, projection) -> None:
    """Logits within 1e-5, with and without a cache; a plain reload gives the same bits."""
    checkpoint = t5(untied=untied, feed_forward_proj=projection)
    model = checkpoint.model
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        zero_heads(model, model.encoder, {0, 2})
        zero_heads(model, model.decoder, {1, 3})
        for block in (*model.encoder.block, *model.decoder.block):
            zero_neurons(block, torch.randperm(32, generator=draw)[:20].tolist())
    expected = output(model)
    smaller = run_stage(Slice(heads=0.5, feed_forward=12), checkpoint, tmp_path)[0]
    assert (smaller.model.config.num_heads, smaller.model.config.d_ff) == (2, 12)
    torch.testing.assert_close(output(smaller.model), expected, atol=1e-5, rtol=0)
    assert has_untied_head(smaller.model) == untied
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "after").eval()
    assert torch.equal(output(plain), output(smaller.model))
    cached = plain.generate(IDS, max_length=12, do_sample=False)
    slow = plain.generate(IDS, max_length=12, do_sample=False, use_cache=False)
    assert torch.equal(cached, slow)
    assert torch.equal(cached, model.generate(IDS, max_length=12, do_sample=False))


def test_a_stack_of_t5_loses_the_same_heads_everywhere_but_cross_attention(tmp_path) -> None:
    """Head h reads column h of block 0's position bias in all layers; the columns go along."""
    checkpoint = t5()
    blocks = checkpoint.model.decoder.block
    weak = (1, 3, 2)
    with torch.no_grad():
        for block, head in zip(blocks, weak, strict=True):
            cross = block.layer[1].EncDecAttention
            for matrix in (cross.q, cross.k):
                matrix.weight[head * 4 : head * 4 + 4] = 0
        blocks[0].layer[0].SelfAttention.q.weight[8:12] *= 0.9
        for matrix in (blocks[2].layer[0].SelfAttention.k, blocks[2].layer[0].SelfAttention.v):
            matrix.weight[0:4] *= 0.01
    smaller = run_stage(Slice(heads=3), checkpoint, tmp_path)[0].model.decoder.block
    for old, new, head in zip(blocks, smaller, weak, strict=True):
        before, after = old.layer[0].SelfAttention, new.layer[0].SelfAttention
        cross, new_cross = old.layer[1].EncDecAttention, new.layer[1].EncDecAttention
        assert torch.equal(after.q.weight, before.q.weight[4:])
        rows = [row for row in range(16) if row // 4 != head]
        assert torch.equal(new_cross.v.weight, cross.v.weight[rows])
        assert torch.equal(new_cross.o.weight, cross.o.weight[:, rows])
    bias, new_bias = (
        stack[0].layer[0].SelfAttention.relative_attention_bias.weight
        for stack in (blocks, smaller)
    )
    assert torch.equal(new_bias, bias[:, 1:])


@pytest.mark.parametrize("head", ["none", "sequence_classification"])
def test_neurons_leave_a_bert_with_their_bias(tmp_path, head) -> None:
    """A neuron of zero matrices adds nothing whatever its bias; a plain config gives it back."""
    checkpoint = bert(head)
    body = checkpoint.model if head == "none" else checkpoint.model.bert
    with torch.no_grad():
        for index, layer in enumerate(body.encoder.layer):
            lost = slice(index, index + 15)
            layer.intermediate.dense.weight[lost] = 0
            layer.output.dense.weight[:, lost] = 0
            layer.intermediate.dense.bias[lost] = 9.0
    smaller = run_stage(Slice(feed_forward=17), checkpoint, tmp_path)[0]
    assert smaller.model.config.intermediate_size == 17
    torch.testing.assert_close(output(smaller.model), output(checkpoint.model), atol=1e-5, rtol=0)
    plain = type(smaller.model).from_pretrained(tmp_path / "after").eval()
    torch.testing.assert_close(output(plain), output(smaller.model), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("make", "stage"),
    [
        (t5, Slice(heads=3, feed_forward=0.3, multiple_of=8)),
        (lambda: t5(untied=True, feed_forward_proj="gated-gelu"), Slice(heads=1, feed_forward=5)),
        (t5, Slice(encoder={"heads": 2}, decoder={"heads": 0.5})),
        (bert, Slice(feed_forward=0.99)),
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


def test_units_are_cut_out_of_either_axis() -> None:
    """Blocks in the order asked for; an axis that does not divide is refused."""
    tensor = torch.arange(24.0).reshape(6, 4)
    assert take_units(tensor, 0, 3, [2, 0]).tolist() == tensor[[4, 5, 0, 1]].tolist()
    assert take_units(tensor, 1, 4, [1]).tolist() == tensor[:, 1:2].tolist()
    with pytest.raises(ValueError, match="4 equal blocks"):
        take_units(tensor, 0, 4, [0])


def test_a_unit_is_judged_by_all_that_it_owns() -> None:
    """By hand: rows 0+1 and column 0 belong to unit 0, rows 2+3 and column 1 to unit 1."""
    rows, columns = torch.tensor([[1.0], [2.0], [3.0], [0.0]]), torch.tensor([[10.0, 1.0]])
    assert unit_sums([(rows, 0), (columns, 1)], 2).tolist() == [13.0, 4.0]
    assert select_strongest(torch.tensor([1.0, 3.0, 1.0, 2.0]), 3) == [0, 1, 3]
