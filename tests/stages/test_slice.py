"""`slice`: units leave physically; what is left is the model that planning promised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, BertConfig, T5Config

from compressor.core.console import Console
from compressor.core.errors import StageError
from compressor.core.progress import Progress
from compressor.data.bills import Bills
from compressor.models.checkpoint import Checkpoint
from compressor.models.facts import Facts
from compressor.models.loading import build, has_untied_head
from compressor.models.surgery import strongest, take_units, unit_sums
from compressor.stages.base import Context, Inputs, Launch, Planning
from compressor.stages.slice import Slice

T5 = {
    "vocab_size": 60, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_heads": 4,
    "num_layers": 3, "num_decoder_layers": 3, "decoder_start_token_id": 0,
}  # fmt: skip
BERT = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 32,
}  # fmt: skip
IDS = torch.arange(2, 12)[None]
QUIET = Progress(Console(), quiet=True)
DATA = Bills(source="bills")


def t5(**config) -> Checkpoint:
    """Weights large enough that each matters, position biases and norms too."""
    torch.manual_seed(0)
    untied = config.pop("untied", False)
    model = build(T5Config(**T5 | config), "seq2seq_lm", untied_head=untied).eval()
    return Checkpoint(shaken(model), None, "seq2seq_lm")


def bert(**config) -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(shaken(build(BertConfig(**BERT | config), "none").eval()), None, "none")


def shaken(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def half_pruned(checkpoint: Checkpoint, names: frozenset[str]) -> Facts:
    facts = checkpoint.facts()
    return facts.prune(names, facts.numel(names) // 2)


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        if model.config.is_encoder_decoder:
            return model(input_ids=IDS, decoder_input_ids=IDS[:, :5]).logits
        return model(input_ids=IDS).last_hidden_state


def previewed(stage: Slice, facts: Facts) -> tuple[Facts | None, list[tuple[str, str]]]:
    problems: list[tuple[str, str]] = []

    def report(path: str, message: str) -> None:
        problems.append((path, message))

    planning = Planning(facts, DATA, Launch(), Path("outputs"), report, report)
    return stage.preview(planning), problems


def sliced(stage: Slice, checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    checkpoint.save(folder / "before")
    context = Context(folder / "after", folder / "resume", DATA, 0, Launch(), QUIET)
    result = stage.run(Inputs(folder / "before"), context)
    assert result is not None
    return result


def zero_heads(model, stack, lost: set[int]) -> None:
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


def zero_neurons(block, lost: list[int]) -> None:
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
    expected = logits(model)
    smaller = sliced(Slice(heads=0.5, feed_forward=12), checkpoint, tmp_path)
    assert smaller.model.config.num_heads == 2
    assert smaller.model.config.d_ff == 12
    torch.testing.assert_close(logits(smaller.model), expected, atol=1e-5, rtol=0)
    assert has_untied_head(smaller.model) == untied
    smaller.save(tmp_path / "saved")
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(logits(plain), logits(smaller.model))
    cached = plain.generate(IDS, max_length=12, do_sample=False)
    slow = plain.generate(IDS, max_length=12, do_sample=False, use_cache=False)
    assert torch.equal(cached, slow)
    assert torch.equal(cached, model.generate(IDS, max_length=12, do_sample=False))


def test_a_stack_of_t5_loses_the_same_heads_everywhere_but_cross_attention(tmp_path) -> None:
    """Head h reads column h of block 0's position bias in all layers; the columns go along."""
    checkpoint = t5()
    model = checkpoint.model
    with torch.no_grad():
        for layer, weak in ((0, 1), (1, 3), (2, 2)):
            zero = model.decoder.block[layer].layer[1].EncDecAttention
            zero.q.weight[weak * 4 : weak * 4 + 4] = 0
            zero.k.weight[weak * 4 : weak * 4 + 4] = 0
        model.decoder.block[0].layer[0].SelfAttention.q.weight[8:12] *= 0.9
        model.decoder.block[2].layer[0].SelfAttention.k.weight[0:4] *= 0.01
        model.decoder.block[2].layer[0].SelfAttention.v.weight[0:4] *= 0.01
    smaller = sliced(Slice(heads=3), checkpoint, tmp_path).model
    for layer, block in enumerate(model.decoder.block):
        new = smaller.decoder.block[layer]
        assert torch.equal(
            new.layer[0].SelfAttention.q.weight, block.layer[0].SelfAttention.q.weight[4:]
        )
        rows = [r for r in range(16) if r // 4 != (1, 3, 2)[layer]]
        cross = block.layer[1].EncDecAttention
        assert torch.equal(new.layer[1].EncDecAttention.v.weight, cross.v.weight[rows])
        assert torch.equal(new.layer[1].EncDecAttention.o.weight, cross.o.weight[:, rows])
    bias = model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    new_bias = smaller.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    assert torch.equal(new_bias, bias[:, 1:])


@pytest.mark.parametrize("head", ["none", "sequence_classification"])
def test_neurons_leave_a_bert_with_their_bias(tmp_path, head) -> None:
    """A neuron of zero matrices adds nothing whatever its bias; a plain config gives it back."""
    checkpoint = bert()
    if head != "none":
        model = shaken(build(BertConfig(**BERT, num_labels=3), head).eval())
        checkpoint = Checkpoint(model, None, head)
    layers = (checkpoint.model.bert if head != "none" else checkpoint.model).encoder.layer
    with torch.no_grad():
        for index, layer in enumerate(layers):
            lost = slice(index, index + 15)
            layer.intermediate.dense.weight[lost] = 0
            layer.output.dense.weight[:, lost] = 0
            layer.intermediate.dense.bias[lost] = 9.0

    def output(model) -> torch.Tensor:
        with torch.inference_mode():
            return next(iter(model(input_ids=IDS).values()))

    smaller = sliced(Slice(feed_forward=17), checkpoint, tmp_path)
    assert smaller.model.config.intermediate_size == 17
    torch.testing.assert_close(output(smaller.model), output(checkpoint.model), atol=1e-5, rtol=0)
    smaller.save(tmp_path / "saved")
    plain = type(smaller.model).from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(output(plain), output(smaller.model), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("make", "stage"),
    [
        (t5, Slice(heads=3, feed_forward=0.3, multiple_of=8)),
        (lambda: t5(untied=True, feed_forward_proj="gated-gelu"), Slice(heads=1, feed_forward=5)),
        (t5, Slice(encoder={"heads": 2}, decoder={"heads": 0.5})),
        (bert, Slice(feed_forward=0.99)),
    ],
)
def test_a_plan_knows_the_sliced_model_exactly(tmp_path, make, stage) -> None:
    """Names, shapes and config equal the real model's."""
    checkpoint = make()
    planned, problems = previewed(stage, checkpoint.facts())
    assert problems == []
    real = sliced(stage, checkpoint, tmp_path)
    assert dict(planned.shapes) == dict(real.facts().shapes)
    assert {n: tuple(p.shape) for n, p in real.model.named_parameters()} == dict(planned.shapes)
    for key in ("num_heads", "d_ff", "intermediate_size"):
        assert planned.config.get(key) == getattr(real.model.config, key, None)
    assert planned.exact and planned.exact_size


def test_widths_are_rounded_up_to_a_multiple() -> None:
    """30 % of 32 neurons are 10, rounded up to 16; never more than there are."""
    facts = t5().facts()
    for asked, multiple, expected in ((0.3, 8, 16), (0.3, 1, 10), (31, 12, 32), (0.001, 1, 1)):
        planned, _ = previewed(Slice(feed_forward=asked, multiple_of=multiple), facts)
        assert planned.config["d_ff"] == expected


def test_masks_are_cut_as_their_weights_are(tmp_path) -> None:
    """What is masked stays masked; the ratio of a pruned, sliced model is an estimate."""
    checkpoint = t5()
    names = [f"encoder.block.0.layer.1.DenseReluDense.{n}.weight" for n in ("wi", "wo")]
    draw = torch.Generator().manual_seed(3)
    for name in names:
        shape = checkpoint.parameter(name).shape
        checkpoint.masks[name] = torch.rand(shape, generator=draw) > 0.4
    checkpoint.masks["shared.weight"] = torch.rand((60, 16), generator=draw) > 0.4
    checkpoint.apply_masks()
    smaller = sliced(Slice(feed_forward=0.5), checkpoint, tmp_path)
    assert [tuple(smaller.masks[n].shape) for n in names] == [(16, 16), (16, 16)]
    for name, mask in smaller.masks.items():
        assert torch.equal(smaller.parameter(name) != 0, mask), name
    assert torch.equal(smaller.masks["shared.weight"], checkpoint.masks["shared.weight"])
    facts = half_pruned(checkpoint, frozenset(names))
    planned, _ = previewed(Slice(feed_forward=0.5), facts)
    assert not planned.exact
    assert planned.exact_size
    assert planned.masked[0][1] == sum(16 * 16 for _ in names) // 2
    # Tensors that stay whole keep an exact count.
    whole, _ = previewed(
        Slice(feed_forward=0.5), half_pruned(checkpoint, frozenset(["shared.weight"]))
    )
    assert whole.exact


@pytest.mark.parametrize(
    ("make", "stage", "path", "message"),
    [
        (t5, {"heads": 5}, "heads", "5 is outside 1 … 4, the heads there are"),
        (t5, {"feed_forward": 33}, "feed_forward", "1 … 32"),
        (t5, {"encoder": {"heads": 2}}, "encoder.heads", "one num_heads for all of its layers"),
        (
            t5,
            {"feed_forward": 8, "decoder": {"feed_forward": 4}},
            "feed_forward",
            "one d_ff for all",
        ),
        (bert, {"heads": 1}, "heads", "hidden_size / num_attention_heads"),
        (bert, {"decoder": {"feed_forward": 4}}, "decoder", "bert has no decoder"),
    ],
)
def test_what_no_model_can_be_is_found_when_planned(tmp_path, make, stage, path, message) -> None:
    """The key, and why; a run that was not planned is refused too."""
    checkpoint = make()
    _, problems = previewed(Slice(**stage), checkpoint.facts())
    assert [where for where, _ in problems] == [path]
    assert message in problems[0][1]
    with pytest.raises(StageError, match=path):
        sliced(Slice(**stage), checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{heads: 0}", "", ["stages.slice.heads", "at least 1", "got 0"]),
        ("{heads: 1.5}", "", ["stages.slice.heads", "share in (0, 1]", "got 1.5"]),
        ("{heads: true}", "", ["stages.slice.heads", "got true"]),
        ("{headz: 2}", "", ["stages.slice.headz", "did you mean 'heads'?"]),
        ("{encoder: {feedforward: 2}}", "", ["encoder.feedforward", "'feed_forward'"]),
        ("{importance: magnitud, heads: 1}", "", ["stages.slice.importance"]),
        ("{}", "", ["stages.slice", "set `heads`, `feed_forward` or `layers`"]),
        ("{heads: 9}", "", ["stages.slice.heads", "9 is outside 1 … 4"]),
        ("{heads: 2, model: quantize}", "quantize, ", ["cannot slice an int8 model"]),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_cure(recipe, run, old, new, expected) -> None:
    """Exit code 2, and nothing is written."""
    path = recipe(
        ("  load: {}", f"  load: {{}}\n  slice: {old}\n  quantize: {{}}"),
        ("recover, evaluate]", f"recover, {new}slice, evaluate]"),
    )
    result = run("plan", path)
    assert result.code == 2, result.out
    for text in expected:
        assert text in result.err


def test_a_sliced_model_is_trained_evaluated_and_exported(
    recipe, run, monkeypatch, tmp_path
) -> None:
    """Through the command: planned sizes are those of the run; masks hold through the repair."""
    path = recipe(
        ("  prune:", "  slice: {heads: 0.5, feed_forward: 20, multiple_of: 8}\n  prune:"),
        ("prune, recover, evaluate]", "prune, slice, recover, evaluate, export]"),
        ("evaluate: {", "export: {}\n  evaluate: {"),
    )
    monkeypatch.chdir(path.parent)
    plan = run("plan", path, "--json")
    assert plan.code == 0, plan.err
    done = run("run", path)
    assert done.code == 0, done.err
    planned = {node["name"]: node for node in json.loads(plan.out)}
    for name in ("slice", "recover"):
        assert done.record(name)["parameters"] == planned[name]["parameters"]
        assert abs(done.record(name)["nonzero_ratio"] - planned[name]["nonzero_ratio"]) < 0.05
    assert done.record("recover")["nonzero_ratio"] == done.record("slice")["nonzero_ratio"] < 0.99
    assert planned["slice"]["nonzero_exact"] is False
    assert planned["slice"]["parameters_exact"] is True
    model = AutoModelForSeq2SeqLM.from_pretrained(done.run_folder / "model")
    assert (model.config.num_heads, model.config.d_ff) == (2, 24)
    assert model.generate(IDS, max_length=8).shape[1] <= 8


def test_layers_that_are_zero_go_first_and_change_nothing(tmp_path) -> None:
    """A layer whose matrices are zero adds nothing to the residual stream; sizes are the plan's."""
    checkpoint = t5(num_layers=4, num_decoder_layers=4)
    lost = {"encoder": [0, 2], "decoder": [3]}
    with torch.no_grad():
        for name, parameter in checkpoint.model.named_parameters():
            stack, _, rest = name.partition(".block.")
            if rest and parameter.ndim == 2 and "bias" not in name:
                parameter.mul_(int(rest.partition(".")[0]) not in lost[stack])
    expected = logits(checkpoint.model)
    stage = Slice(encoder={"layers": 2}, decoder={"layers": 0.75})
    plan, problems = previewed(stage, checkpoint.facts())
    smaller = sliced(stage, checkpoint, tmp_path)
    assert problems == []
    assert plan is not None
    assert plan.shapes == smaller.facts().shapes
    assert torch.allclose(logits(smaller.model), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("widths", "importance"),
    [("heads: 2, layers: 1", "taylor"), ("heads: 2, layers: 1", "random"), ("layers: 1", "taylor")],
)
def test_units_can_be_judged_otherwise(recipe, run, widths, importance) -> None:
    """By the loss on rows, or by nothing: the planned widths, and layers as well."""
    settings = f"{{{widths}, importance: {importance}, calibration_rows: 4}}"
    path = recipe(
        ("  prune:", f"  slice: {settings}\n  prune:"),
        ("finetune, prune, recover, evaluate]", "finetune, slice]"),
        ("  recover: {stage: finetune, epochs: 1}\n", ""),
    )
    plan = run("plan", path, "--json")
    done = run("run", path, "skip=[finetune]")
    assert done.code == 0, done.err
    record = next(r for r in done_records(path, done) if r["name"] == "slice")
    assert record["parameters"] == json.loads(plan.out)[-1]["parameters"]


def done_records(path: Path, done) -> list[dict]:
    return json.loads((path.parent / done.run_folder / "metrics.json").read_text())


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
    assert strongest(torch.tensor([1.0, 3.0, 1.0, 2.0]), 3) == [0, 1, 3]
