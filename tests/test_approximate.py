"""A block in the place of encoder layers: what it computes, what it learns, where it goes."""

from __future__ import annotations

import copy
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
)

import compressor
from compressor.approximation import ApproximationLoss, Constant, NoiseRows, Teacher, running_mean
from compressor.architectures import architecture, facts
from compressor.architectures.block import FILE, BlockSizes
from compressor.block import Block
from compressor.checkpoint import (
    Checkpoint,
    Head,
    build,
    keep_layers,
    load_pretrained,
    replace_layers,
    stacks_of,
)
from compressor.data.examples import Examples
from compressor.data.sources import Bills
from compressor.distillation import DistillationLoss
from compressor.errors import RecipeError, StageError
from compressor.plan import Plan, plan
from compressor.progress import Progress
from compressor.recipe import compose
from compressor.stage import Context, Inputs, Launch, Planning
from compressor.stages.approximate import Approximate
from compressor.stages.distill import Distill
from compressor.stages.export import Export
from compressor.stages.quantize import Quantize
from compressor.stages.slice import Slice
from compressor.store import Store, file_digest
from compressor.training import mean_loss
from tests.conftest import Command
from tests.conftest import compressor as command
from tests.pico import BLOCKS, PICO

FAMILIES = ("bert", "roberta", "electra", "distilbert", "bart", "marian")
SIZES = BlockSizes(heads=2, head_size=4, depth=1)
SMALL = {"block": {"heads": 2, "head_size": 4, "depth": 1}, "batch_size": 4}
LONG = {"max_position_embeddings": 32}  # as many as an export reads
IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0], [13, 14, 15, 16, 0]])
LENGTHS = (5, 3, 4)
REAL = torch.tensor([[i < n for i in range(5)] for n in LENGTHS])


def fresh(model_type: str = "bert", head: Head | None = None, **changes: Any) -> Checkpoint:
    """A pico model whose weights are large enough for its layers to matter."""
    torch.manual_seed(0)
    head = head or architecture(model_type).HEADS[0]
    config = AutoConfig.for_model(model_type, **(PICO[model_type] | {"pad_token_id": 0} | changes))
    model = build(config, head).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and "norm" not in str(parameter.shape):
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return Checkpoint(model, None, head)


def outputs(model: Any, ids: Tensor = IDS, real: Tensor = REAL) -> Tensor:
    given = {"input_ids": ids, "attention_mask": real.long()}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = ids[:, :2]
    with torch.inference_mode():
        return next(iter(model(**given).values()))


def context(folder: Path) -> Context:
    return Context(
        folder=folder, resume=folder / "resume", data=Bills(source="bills"), seed=3,
        launch=Launch(), progress=Progress(Console(), quiet=True),
    )  # fmt: skip


def approximated(
    checkpoint: Checkpoint, folder: Path, **settings: Any
) -> tuple[Checkpoint, dict[str, Any]]:
    """What the stage makes of a checkpoint, and its metrics."""
    checkpoint.save(folder / "before")
    where = context(folder)
    little = {"layers": [0, 1], "batches": 2, "validation_batches": 1}
    stage = Approximate(**SMALL | little | settings)
    return stage.run(Inputs(folder / "before"), where), where.metrics


# The block


def test_the_published_shape_has_the_published_counts() -> None:
    """Two layers of BERT-base, 14,175,744 parameters; the block, 5,022,336; both real modules."""
    with torch.device("meta"):
        layers = build(AutoConfig.for_model("bert"), "none").encoder.layer[:2]
        block = Block(768, BlockSizes())
    assert sum(p.numel() for p in layers.parameters()) == 14_175_744
    assert sum(p.numel() for p in block.parameters()) == 5_022_336
    base = facts({"model_type": "bert"}, head="none")
    smaller = base.replace_layers("encoder", [0, 1], BlockSizes())
    assert base.parameters - smaller.parameters == 14_175_744 - 5_022_336
    assert len(smaller.groups()["encoder.block"]) == 12


def test_the_recipes_block_is_the_published_one(tmp_path) -> None:
    """Planned without the hub: two layers less and a block more, in each way to have one."""
    found = plan(compose("bert/approximate_blocks"), Store(tmp_path))
    counts = {node.name: node.facts.parameters for node in found.nodes if node.facts is not None}
    for name in ("noise", "text", "random", "random_tuned"):
        assert counts["teacher"] - counts[name] == 14_175_744 - 5_022_336
    assert counts["teacher"] - counts["dropped_tuned"] == 14_175_744


def by_hand(block: Block, x: Tensor) -> Tensor:
    """The block on one row [T, D] without padding, head by head."""

    def network(part: nn.Sequential, x: Tensor) -> Tensor:
        *hidden, last = [layer for layer in part if isinstance(layer, nn.Linear)]
        for layer in hidden:
            z = x @ layer.weight.T + layer.bias
            x = z * 0.5 * (1 + torch.erf(z / 2**0.5))
        return x @ last.weight.T + last.bias

    size = block.sizes.head_size
    parts = (network(part, x).split(size, dim=-1) for part in (block.query, block.key, block.value))
    attended = [
        functional.softmax(q @ k.T / size**0.5, dim=-1) @ v for q, k, v in zip(*parts, strict=True)
    ]
    y = x + network(block.output, torch.cat(attended, dim=-1))
    centred = y - y.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
    return scaled * block.norm.weight + block.norm.bias


MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "boolean": lambda real: real[:, None, None, :],
    "boolean of all queries": lambda real: real[:, None, None, :].expand(-1, 1, 5, -1),
    "additive": lambda real: (~real)[:, None, None, :] * torch.finfo(torch.float32).min,
    "additive, infinite": lambda real: torch.zeros(3, 1, 1, 5).masked_fill(
        ~real[:, None, None, :], float("-inf")
    ),
    "flash attention's": lambda real: real.long(),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("depth", [0, 2])
def test_a_block_is_its_equations_and_padding_does_not_reach_them(kind: str, depth: int) -> None:
    """Each padded row gives what its real positions alone give, written out, under every mask."""
    torch.manual_seed(0)
    block = Block(6, BlockSizes(heads=3, head_size=4, depth=depth)).eval()
    nn.init.normal_(block.norm.weight), nn.init.normal_(block.norm.bias)
    x = torch.randn(3, 5, 6)
    found = block(x, MASKS[kind](REAL))
    assert not found.isnan().any()
    for row, length in enumerate(LENGTHS):
        expected = by_hand(block, x[row, :length])
        torch.testing.assert_close(found[row, :length], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block(x)[0], found[0], rtol=1e-4, atol=1e-5)  # nothing is padded


def test_a_block_drops_while_training_alone() -> None:
    """Its output, not the residual: with p near 1 what is left is the norm of what it reads."""
    torch.manual_seed(0)
    block = Block(8, SIZES.model_copy(update={"dropout": 0.999}))
    x = torch.randn(4, 5, 8)
    same = torch.isclose(block(x), block.norm(x), atol=1e-5).float().mean()
    assert same > 0.9
    assert not torch.isclose(block.eval()(x), block.norm(x), atol=1e-5).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_in_a_model_a_padded_row_gives_what_it_gives_alone(model_type: str, attention: str) -> None:
    """Whatever mask the encoder hands to its layers; and hidden states are those between layers."""
    model: Any = fresh(model_type, **BLOCKS).model
    model.set_attn_implementation(attention)
    found = outputs(model)
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    for row, length in enumerate(LENGTHS):
        alone = outputs(model, IDS[row : row + 1, :length], torch.ones(1, length))
        seen = slice(None, 2 if model.config.is_encoder_decoder else length)
        torch.testing.assert_close(found[row, seen], alone[0, seen], rtol=1e-4, atol=1e-5)
    states = encoder(IDS[:1], output_hidden_states=True).hidden_states
    assert len(states) == 4
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    torch.testing.assert_close(blocks[0](states[1]), states[2])


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    """In a fine-tuning of the whole model the block is one of its layers here too."""
    gradients = []
    for checkpointing in (False, True):
        model: Any = fresh(
            **BLOCKS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        ).model
        for block in model.modules():
            if isinstance(block, Block):
                block.dropout.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.encoder.layer[1].gradient_checkpointing
        model.train()(IDS, attention_mask=REAL.long()).last_hidden_state[REAL].sum().backward()
        gradients.append([p.grad for p in model.encoder.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


# Rows and loss


def test_a_row_of_noise_is_the_same_in_every_batch() -> None:
    """Whatever stands beside it; another seed, stream or row is another one; all are normal."""
    rows = NoiseRows(count=50, length=7, width=20, seed=1, stream=0)
    assert len(rows) == 50 and rows.lengths() == [7] * 50
    assert [len(target) for target in rows.targets] == [7] * 50
    one, many = rows.batch([9], 0), rows.batch([3, 9, 40], 0)
    assert many["hidden_states"].shape == (3, 7, 20)
    assert torch.equal(one["hidden_states"][0], many["hidden_states"][1])
    assert torch.equal(many["attention_mask"], torch.ones(3, 7).long())
    others = [
        replace(rows, seed=2).batch([9], 0),
        replace(rows, stream=1).batch([9], 0),
        rows.batch([10], 0),
    ]
    for other in others:
        assert not torch.isclose(other["hidden_states"], one["hidden_states"]).any()
    drawn = rows.batch(list(range(50)), 0)["hidden_states"]
    assert drawn.dtype == torch.float32
    assert drawn.mean().abs() < 0.04 and (drawn.std() - 1).abs() < 0.04  # 7,000 numbers


def teacher_and_block(layers: list[int], **changes: Any) -> tuple[Checkpoint, Teacher, Block]:
    checkpoint = fresh(**changes)
    torch.manual_seed(1)
    return checkpoint, Teacher(checkpoint, layers), Block(16, SIZES).eval()


@pytest.mark.parametrize("difference", ["l1", "mse"])
@pytest.mark.parametrize("layers", [[0, 1], [1], [1, 2]])
def test_the_loss_on_real_rows_counts_real_tokens(layers: list[int], difference: Any) -> None:
    """By hand: each row alone, layer by layer, the mean over its own elements; any cut adds up."""
    checkpoint, teacher, block = teacher_and_block(layers)
    sources = [row[:length].tolist() for row, length in zip(IDS, LENGTHS, strict=True)]
    rows = Examples(sources, sources)
    loss = ApproximationLoss(teacher, block, difference)
    found = loss(rows.batch([0, 1, 2], 0))
    model: Any = checkpoint.model
    expected = 0.0
    for source in sources:
        hidden = model.embeddings(torch.tensor([source]))
        for layer in model.encoder.layer[: layers[0]]:
            hidden = layer(hidden)
        wanted = hidden
        for layer in model.encoder.layer[layers[0] : layers[-1] + 1]:
            wanted = layer(wanted)
        gap = block(hidden) - wanted
        gap = gap.abs() if difference == "l1" else gap**2
        expected += float(gap.detach().sum()) / 16
    assert found.item() == pytest.approx(expected, rel=1e-4)
    cut = loss(rows.batch([0], 0)) + loss(rows.batch([2, 1], 0))
    assert cut.item() == pytest.approx(expected, rel=1e-4)
    assert loss(rows.batch([], 0)).item() == 0
    assert mean_loss(loss, rows, 0, torch.device("cpu")) == pytest.approx(expected / 12, rel=1e-4)


def test_the_loss_on_noise_reads_the_noise() -> None:
    """By hand, without embeddings; no gradient and no dropout in the teacher; none for no rows."""
    checkpoint, teacher, block = teacher_and_block([1, 2])
    rows = NoiseRows(count=4, length=6, width=16, seed=0, stream=0)
    loss = ApproximationLoss(teacher, block, "l1")
    loss.train()
    block.eval()
    x = rows.batch([0, 3], 0)["hidden_states"]
    model: Any = checkpoint.model
    wanted = model.encoder.layer[2](model.encoder.layer[1](x))
    expected = (block(x) - wanted).abs().mean() * 12
    found = loss(rows.batch([0, 3], 0))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert loss(rows.batch([], 0)).item() == 0


def test_the_floor_is_the_running_mean_of_the_teachers_outputs() -> None:
    """By hand over three batches of real rows: the first mean, then 0.01 of the way to each."""
    checkpoint, teacher, _ = teacher_and_block([0, 1])
    sources = [row[:length].tolist() for row, length in zip(IDS, LENGTHS, strict=True)]
    rows = Examples(sources, sources)
    model: Any = keep_layers(checkpoint, {"encoder": [0, 1]}).model

    def given(row: int) -> Tensor:
        return model(torch.tensor([sources[row]])).last_hidden_state[0].detach()

    expected = given(0).mean(0)
    for batch in ((1, 2), (1,)):
        now = torch.cat([given(row) for row in batch]).mean(0)
        expected = 0.99 * expected + 0.01 * now
    cpu = torch.device("cpu")
    mean = running_mean(teacher, rows, [[0], [1, 2], [1]], 0, cpu)
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
    floor = ApproximationLoss(teacher, Constant(mean), "mse")
    squares = [((given(row) - expected) ** 2).flatten() for row in range(3)]
    assert mean_loss(floor, rows, 0, cpu) == pytest.approx(
        torch.cat(squares).mean().item(), rel=1e-4
    )


# The stage


@pytest.mark.parametrize(("model_type", "layers"), [("bert", [0, 1]), ("bart", [1, 2])])
def test_a_block_learns_more_than_the_running_mean(tmp_path, model_type, layers) -> None:
    """On noise; its counts are told; all that is not replaced is what it was."""
    start = fresh(model_type)
    before = copy.deepcopy(start.model).state_dict()
    settings = {"batches": 60, "validation_batches": 4, "sequence_length": 8}
    after, metrics = approximated(
        start, tmp_path, layers=layers, learning_rate=1e-2, loss="mse", **settings
    )
    assert metrics["steps"] == 120
    assert metrics["validation_loss"] < 0.7 * metrics["baseline_loss"]
    stack = stacks_of(start.model.config, start.head)["encoder"]
    counted = [n for n in before if n.startswith(tuple(f"{stack.prefix}.{i}." for i in layers))]
    assert metrics["teacher_parameters"] == sum(before[n].numel() for n in counted)
    block = after.model.get_submodule(f"{stack.prefix}.{layers[0]}")
    assert metrics["block_parameters"] == sum(p.numel() for p in block.parameters())
    left = [i for i in range(3) if i not in layers[1:]]
    for name, tensor in after.model.state_dict().items():
        if name.startswith(f"{stack.prefix}."):
            index, rest = name.removeprefix(f"{stack.prefix}.").split(".", 1)
            if left[int(index)] != layers[0]:
                assert torch.equal(tensor, before[f"{stack.prefix}.{left[int(index)]}.{rest}"])
        else:
            assert torch.equal(tensor, before[name])
    planned = Approximate(layers=layers, **SMALL).preview(planning(start.facts()))
    assert planned.shapes == after.facts().shapes
    assert planned.parameters == after.model.num_parameters()


def test_without_epochs_the_block_is_as_it_was_drawn(tmp_path) -> None:
    """The start of a trained one, whichever its inputs: so the two can be compared."""
    after, metrics = approximated(fresh(), tmp_path, epochs=0)
    torch.manual_seed(3)
    drawn = Block(16, BlockSizes(**SMALL["block"])).state_dict()
    block = after.model.encoder.layer[0].state_dict()
    assert block.keys() == drawn.keys()
    assert all(torch.equal(block[name], drawn[name]) for name in drawn)
    assert metrics.keys() == {"teacher_parameters", "block_parameters"}


def test_a_blocks_place_can_be_taken_again(tmp_path) -> None:
    """A block and the layer behind it are a teacher as any layers are; masks of others stay."""
    start, _ = approximated(fresh(), tmp_path / "first", layers=[0, 1], epochs=0)
    names = ["encoder.layer.0.query.0.weight", "encoder.layer.1.output.dense.weight"]
    start.masks = {name: torch.rand(start.parameter(name).shape) > 0.5 for name in names}
    start.apply_masks()
    tiny = {"heads": 1, "head_size": 2, "depth": 0}
    after, metrics = approximated(start, tmp_path / "second", layers=[0], block=tiny)
    assert metrics["steps"] == 4
    assert list(after.masks) == names[1:]
    blocks = after.model.config.encoder_blocks
    assert blocks == [tiny | {"dropout": 0.1}, None]
    table = start.facts().prune(frozenset(names[:1]), 10).prune(frozenset(names[1:]), 20)
    planned = Approximate(layers=[0], **SMALL | {"block": tiny}).preview(planning(table))
    assert planned.masked == ((frozenset(names[1:]), 20),)
    whole, _ = approximated(start, tmp_path / "third", layers=[0, 1], epochs=0)
    assert whole.model.config.encoder_blocks == [SIZES.model_dump()]
    assert whole.model.config.num_hidden_layers == 1
    assert not torch.equal(outputs(whole.model), outputs(start.model))


# What comes after


def test_it_comes_back_everywhere(tmp_path) -> None:
    """Saved, exported both ways, int8: each loads in a fresh process with the same logits."""
    start, _ = approximated(
        fresh("bert", "sequence_classification", num_labels=3, **LONG), tmp_path
    )
    start.save(tmp_path / "saved")
    where = {"saved": tmp_path / "saved"}
    for name, settings in (("plain", {}), ("packed", {"format": "packed", "values": "float32"})):
        folder = tmp_path / name
        Export(**settings).run(Inputs(tmp_path / "saved"), context(folder))
        where[name] = folder / "model"
    int8 = Quantize(activations="float").run(Inputs(tmp_path / "saved"), context(tmp_path / "q"))
    int8.save(tmp_path / "int8")
    where["int8"] = tmp_path / "int8"
    Export().run(Inputs(tmp_path / "int8"), context(tmp_path / "dequantized"))
    where["dequantized"] = tmp_path / "dequantized" / "model"
    assert sum(isinstance(m, Block) for m in int8.model.modules()) == 1
    assert len(Quantize().preview(planning(start.facts())).int8) == len(
        [name for name in int8.model.state_dict() if name.endswith("_scale")]
    )
    code = (
        "import sys, json, compressor;"
        "models = [compressor.load_model(path) for path in sys.argv[1:]];"
        "import torch; ids = torch.arange(2, 9)[None];"
        "print(json.dumps([m(ids).logits.tolist() for m in models]))"
    )
    run = [sys.executable, "-c", code, *map(str, where.values())]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = dict(zip(where, map(torch.tensor, json.loads(done.stdout)), strict=True))
    with torch.inference_mode():
        ids = torch.arange(2, 9)[None]
        expected = start.model(ids).logits, int8.model(ids).logits
    for name in ("saved", "plain", "packed"):
        assert torch.equal(found[name], expected[0]), name
    for name in ("int8", "dequantized"):
        torch.testing.assert_close(found[name], expected[1])
    assert not torch.allclose(*expected, atol=1e-6)


def test_plain_transformers_does_not_load_half_of_it(tmp_path) -> None:
    """Each way of asking fails, instead of giving a model with a layer drawn anew."""
    start, _ = approximated(fresh("bert", "sequence_classification", **LONG), tmp_path, epochs=0)
    start.save(tmp_path / "saved")
    Export().run(Inputs(tmp_path / "saved"), context(tmp_path / "export"))
    classes = AutoModel, AutoModelForSequenceClassification, BertForSequenceClassification
    for folder in (tmp_path / "saved", tmp_path / "export" / "model"):
        for cls in classes:
            with pytest.raises(OSError, match=r"no file named model\.safetensors"):
                cls.from_pretrained(folder)
        assert isinstance(compressor.load_model(folder), BertForSequenceClassification)


def test_load_model_loads_plain_directories_with_their_head(tmp_path) -> None:
    """What `from_pretrained` of the right class gives; and says where there is no model."""
    for model_type, head in (
        ("bert", "sequence_classification"), ("distilbert", "none"), ("marian", "seq2seq_lm"),
        ("t5", "seq2seq_lm"), ("gpt2", "causal_lm"),
    ):  # fmt: skip
        checkpoint = fresh(model_type, head, decoder_start_token_id=0)
        folder = tmp_path / model_type
        checkpoint.model.save_pretrained(folder)
        loaded = compressor.load_model(folder)
        assert type(loaded) is type(checkpoint.model) and not loaded.training
        assert torch.equal(outputs(loaded), outputs(checkpoint.model))
    with pytest.raises(StageError, match=r"expected a config\.json"):
        compressor.load_model(tmp_path / "none")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config | {"architectures": ["X"]}))
    with pytest.raises(StageError, match=r"what kind of model .* \['X'\]"):
        compressor.load_model(tmp_path / "bert")


def test_a_block_is_distilled_by_its_hidden_states() -> None:
    """By hand: the block's own output against the teacher's second layer; its weights learn."""
    teacher = fresh("bert", "sequence_classification", num_labels=2)
    torch.manual_seed(1)
    student = replace_layers(teacher, [0, 1], Block(16, SIZES))
    loss = DistillationLoss(
        student.model, teacher.model, {"hidden": 1.0}, layers={"encoder": {0: 1}}
    )
    batch = Examples([IDS[0].tolist()], [[1]], "class").batch([0], 0)
    hidden = teacher.model.bert.embeddings(IDS[:1])
    first, second, _ = teacher.model.bert.encoder.layer
    gap = student.model.bert.encoder.layer[0](hidden) - second(first(hidden))
    found = loss(batch)
    assert found.item() == pytest.approx(gap.square().mean().item(), rel=1e-4)
    found.backward()
    assert student.model.bert.encoder.layer[0].query[0].weight.grad.abs().sum() > 0


def test_a_body_with_a_block_takes_a_fresh_head(tmp_path) -> None:
    """As plain ones do: a body under a classifier of new labels, a classifier's body alone."""
    body, _ = approximated(fresh("roberta"), tmp_path, epochs=0)
    body.save(tmp_path / "body")
    labels = {"num_labels": 4, "problem_type": "multi_label_classification"}
    loaded: Any = load_pretrained(tmp_path / "body", "sequence_classification", config=labels)
    assert loaded.config.num_labels == 4 and loaded.classifier.out_proj.weight.shape == (4, 16)
    expected = body.model(IDS, REAL.long()).last_hidden_state
    assert torch.equal(loaded.roberta(IDS, REAL.long()).last_hidden_state, expected)
    Checkpoint(loaded, None, "sequence_classification").save(tmp_path / "classifier")
    more: Any = load_pretrained(
        tmp_path / "classifier", "sequence_classification", config=labels | {"num_labels": 5}
    )
    assert more.classifier.out_proj.weight.shape == (5, 16)
    assert torch.equal(more.roberta(IDS, REAL.long()).last_hidden_state, expected)
    with pytest.raises(StageError, match="missing tensors, such as classifier"):
        load_pretrained(tmp_path / "body", "sequence_classification")
    start, _ = approximated(fresh("bert", "sequence_classification"), tmp_path / "2", epochs=0)
    start.save(tmp_path / "bert")
    alone: Any = load_pretrained(tmp_path / "bert", "none")
    assert torch.equal(outputs(alone), outputs(start.model.base_model))


def spoiled(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / FILE)
        change(tensors)
        save_file(tensors, folder / FILE, metadata={"format": "pt"})

    return damage


def configured(**values: Any) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return damage


QUERY = "encoder.layer.0.query.0.weight"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a tensor less": (spoiled(lambda t: t.pop(QUERY)), f"1 missing tensors, such as {QUERY}"),
    "a tensor more": (spoiled(lambda t: t.update(x=torch.ones(1))), "1 unexpected .* x"),
    "another shape": (
        spoiled(lambda t: t.update({QUERY: torch.ones(1)})),
        f"1 mismatched tensors, such as {QUERY}",
    ),
    "half a file": (lambda f: (f / FILE).write_bytes(b"x" * 50), "cannot load the model"),
    "no block told of": (configured(encoder_blocks=None), "missing tensors"),
    "another block": (
        configured(encoder_blocks=[SIZES.model_dump() | {"depth": 0}, None]),
        "8 mismatched tensors, such as encoder.layer.0.key.0.bias",
    ),
    "a list too short": (configured(encoder_blocks=[None]), "expected a list of 2"),
    "an unknown key": (configured(encoder_blocks=[{"head": 2}, None]), "head: Extra inputs"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_directory_is_refused(tmp_path, damage: str) -> None:
    """A StageError that says what is wrong with which tensor or key."""
    start, _ = approximated(fresh(), tmp_path, epochs=0)
    start.save(tmp_path / "saved")
    do, message = DAMAGES[damage]
    do(tmp_path / "saved")
    with pytest.raises(StageError, match=message):
        compressor.load_model(tmp_path / "saved")


# Planning


def planning(table: Any, told: list[tuple[str, str]] | None = None, **data: Any) -> Planning:
    def problem(path: str, message: str) -> None:
        if told is None:
            raise AssertionError(f"{path}: {message}")
        told.append((path, message))

    return Planning(table, Bills(source="bills", **data), Launch(), Path(), problem, problem)


def pico(model_type: str, **changes: Any) -> Any:
    known = {"model_type": model_type, **PICO[model_type], **changes}
    return facts(known, head=architecture(model_type).HEADS[0])


@pytest.mark.parametrize(
    ("model_type", "settings", "path", "expected"),
    [
        ("bert", {"layers": [1, 3]}, "layers.1", "3 is outside 0 … 2"),
        ("bert", {"layers": [-1, 0]}, "layers.0", "-1 is outside 0 … 2"),
        ("bert", {"layers": [0, 2]}, "layers", "expected neighbours in their order, got [0, 2]"),
        ("bert", {"layers": [1, 0]}, "layers", "expected neighbours in their order, got [1, 0]"),
        ("bert", {"layers": [0], "block": {}}, "block", "has 323,088 parameters, and the layers"),
        ("bert", {"gradient_checkpointing": True}, "gradient_checkpointing", "no memory to save"),
        ("bert", {"inputs": "data", "batches": 3, "epochs": 0}, "batches", "no meaning with"),
        ("bert", {"inputs": "data"}, "", "20 positions, and rows of up to 64 tokens"),
        ("bert", {"trackers": ["wand"]}, "trackers.0", "no tracker 'wand'"),
        ("t5", {}, "", "no block can stand in a t5: its first layer hands a position bias"),
        ("longt5", {}, "", "no block can stand in a longt5: its first layer"),
        ("pegasus", {}, "", "no block can stand in a pegasus: its layers norm what they read"),
        ("gpt2", {}, "", "no block can stand in a gpt2: it has no encoder"),
    ],
)
def test_what_cannot_be_approximated_is_found_while_planning(
    model_type, settings, path, expected
) -> None:
    """With the key, and the layer or the reason."""
    told: list[tuple[str, str]] = []
    stage = Approximate(**SMALL | {"layers": [0, 1]} | settings)
    stage.preview(planning(pico(model_type), told, max_source_length=64))
    assert [key for key, _ in told] == [path]
    assert expected in told[0][1]


def test_stages_that_a_block_cannot_serve_say_so() -> None:
    """No attention maps of it, no cutting of unlike layers, no training of int8."""
    with_block, plain = pico("bert", **BLOCKS), pico("bert")
    told: list[tuple[str, str]] = []
    stage = Distill(teacher="x", losses={"attention": 1.0})
    for student, teacher in ((with_block, plain), (plain, with_block)):
        where = replace(planning(student, told), others={"teacher": teacher})
        stage._check_teacher(student, teacher, where)
    assert [message for _, message in told] == [
        "the student has a block, which gives no attention maps",
        "the teacher has a block, which gives no attention maps",
    ]
    told.clear()
    Slice(layers=2).preview(planning(with_block, told))
    assert told == [("layers", "the encoder's layers are not all alike, one is a block; "
                     "`shrink` them")]  # fmt: skip
    told.clear()
    int8 = Quantize().preview(planning(plain))
    Approximate(layers=[0]).preview(planning(int8, told))
    assert "int8" in told[0][1]


# As a user runs it

RECIPE = """
defaults: [/base, /data: messages, _self_]
pipeline: [load, noise, text, finetune, prune, shrink, evaluate, export]
model:
  config: {model_type: bert, vocab_size: 400, hidden_size: 32, num_hidden_layers: 4,
           num_attention_heads: 2, intermediate_size: 64, max_position_embeddings: 32}
  head: sequence_classification
  tokenizer: {vocab_size: 400}
data: {rows: {train: 48, validation: 16, test: 20}, max_source_length: 32}
training: {batch_size: 8, learning_rate: 0.003, warmup_steps: 7, checkpoint_seconds: 0}
stages:
  load: {}
  noise:
    stage: approximate
    layers: [0, 1]
    block: {heads: 2, head_size: 8}
    sequence_length: 16
    batches: 10
    validation_batches: 2
  text: {stage: approximate, layers: [2], block: {heads: 2, head_size: 8, depth: 1}, inputs: data}
  finetune: {epochs: 2}
  prune: {amounts: {encoder: {block: 0.5, feed_forward: 0.25}}}
  shrink: {encoder_layers: [0, 1]}
  evaluate: {models: [finetune, shrink]}
  export: {model: shrink}
"""


PIPELINE = next(line for line in RECIPE.splitlines() if line.startswith("pipeline"))


def planned(folder: Path, *replacements: tuple[str, str]) -> Plan:
    text = RECIPE
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new)
    (folder / "mine.yaml").write_text(text)
    return plan(compose(str(folder / "mine.yaml")), Store(folder / "outputs" / "store"))


def ran(folder: Path, *overrides: str) -> tuple[Command, list[Path], dict[str, Any]]:
    """Run the recipe; the command, the folders of its stages, and its records by name."""
    done = command("run", "mine.yaml", *overrides, cwd=folder)
    assert done.code == 0, done.err
    stages = sorted((folder / done.run_folder / "stages").iterdir())
    records = json.loads((folder / done.run_folder / "metrics.json").read_text())
    return done, stages, {record["name"]: record for record in records}


def losses(stage: Path) -> list[float]:
    with (stage / "losses.csv").open() as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]


def test_a_chain_as_a_user_runs_it(tmp_path: Path, monkeypatch) -> None:
    """Two blocks, on noise and on text, then pruned and shrunk: planned counts, and it loads."""
    monkeypatch.chdir(tmp_path)
    nodes = {node.name: node for node in planned(tmp_path).nodes}
    done, stages, records = ran(tmp_path)
    for name in ("load", "noise", "text", "finetune", "prune", "shrink"):
        table = nodes[name].facts
        assert table is not None and records[name]["parameters"] == table.parameters, name
    assert records["text"]["metrics"]["steps"] == 12
    assert len(losses(stages[1])) == 20
    assert records["noise"]["metrics"]["validation_loss"] < losses(stages[1])[0]
    assert records["finetune"]["metrics"]["steps"] == 12
    curve = losses(stages[3])
    assert sum(curve[-3:]) < sum(curve[:3])
    assert 0 <= records["evaluate@shrink"]["metrics"]["micro_f1"] <= 1
    masks = load_file(stages[4] / "masks.safetensors")
    assert {name.split(".layer.")[1][0] for name in masks if ".value." in name} == {"0", "2"}
    model = compressor.load_model(tmp_path / done.run_folder / "model")
    assert model.config.num_hidden_layers == 2
    assert [block is None for block in model.config.encoder_blocks] == [False, True]
    pruned = load_file(stages[4] / FILE)
    name = "bert.encoder.layer.0.query.0.weight"
    assert torch.equal(model.get_parameter(name), pruned[name])
    assert not model.get_parameter(name)[~masks[name]].any()

    source = f"{{stage: load, source: {tmp_path / done.run_folder / 'model'}}}"
    changes = (PIPELINE, "pipeline: [again]"), ("stages:\n", f"stages:\n  again: {source}\n")
    again = planned(tmp_path, *changes).node("again").facts
    assert again is not None and again.parameters == records["shrink"]["parameters"]
    *_, records = ran(tmp_path)
    assert records["again"]["parameters"] == again.parameters


NOISE = ("pipeline=[load,noise]", "stages.noise.epochs=60")


def test_a_killed_one_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL in the middle, with dropout in play: the same SHA-256, and the same metrics."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.yaml").write_text(RECIPE)
    _, stages, expected = ran(tmp_path / "whole", *NOISE)
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "compressor", "run", "mine.yaml", *NOISE],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ,
    )
    deadline, reached = time.monotonic() + 60, False
    while time.monotonic() < deadline and process.poll() is None and not reached:
        found = folder.glob("outputs/store/partial/*.resume/step-*/tensors")
        reached = any(int(path.parent.name[5:]) > 2 for path in found)
        time.sleep(0.005)
    assert process.poll() is None and reached
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done, killed, records = ran(folder, *NOISE)
    assert "goes on from step" in done.out
    assert file_digest(killed[1] / FILE) == file_digest(stages[1] / FILE)
    for name in ("validation_loss", "baseline_loss"):
        assert records["noise"]["metrics"][name] == expected["noise"]["metrics"][name]


def test_two_processes_with_micro_batches_give_one_processs_losses(tmp_path: Path) -> None:
    """The curve, the validation loss and the floor, within 1e-5."""
    ways = (), ("launch.num_processes=2", "stages.noise.micro_batch_size=3")
    curves, metrics = [], []
    for number, way in enumerate(ways):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "mine.yaml").write_text(RECIPE)
        _, stages, records = ran(
            folder, NOISE[0], "stages.noise.epochs=1", "stages.noise.block.dropout=0", *way
        )
        curves.append(losses(stages[1]))
        metrics.append(records["noise"]["metrics"])
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    for key in ("validation_loss", "baseline_loss"):
        assert metrics[1][key] == pytest.approx(metrics[0][key], abs=1e-5)


def test_a_fine_tunings_learning_rate_is_not_the_blocks(tmp_path: Path) -> None:
    """Batch size and caps come from the recipe's `training:`; the published rate and decay stay."""
    stage = planned(tmp_path).node("noise").stage
    assert isinstance(stage, Approximate)
    assert (stage.batch_size, stage.checkpoint_seconds) == (8, 0)
    assert (stage.learning_rate, stage.weight_decay, stage.warmup_steps) == (1e-3, 1e-4, 0)
    capped = planned(tmp_path, ("checkpoint_seconds: 0}", "checkpoint_seconds: 0, max_steps: 3}"))
    assert capped.node("noise").stage.max_steps == 3
    with pytest.raises(RecipeError, match=r"stages\.noise\.learning_rate: .*greater than 0"):
        planned(tmp_path, ("    batches: 10", "    learning_rate: 0\n    batches: 10"))


def test_what_decides_the_block_is_its_key(tmp_path: Path) -> None:
    """The sizes, the inputs, the noise's amount are; on text the amount of noise is not."""

    def keys(*changes: tuple[str, str]) -> tuple[str | None, str | None]:
        nodes = planned(tmp_path, *changes)
        return nodes.node("noise").key, nodes.node("text").key

    first = keys()
    for old, new in (
        ("batches: 10\n", "batches: 11\n"),
        ("sequence_length: 16", "sequence_length: 17"),
        ("{heads: 2, head_size: 8}", "{heads: 1, head_size: 8}"),
        ("    layers: [0, 1]", "    layers: [1, 2]"),
        ("    batches: 10", "    loss: mse\n    batches: 10"),
    ):
        assert keys((old, new))[0] != first[0]
    rows = ("{train: 48,", "{train: 40,")
    tokenizer = ("tokenizer: {vocab_size: 400}", "tokenizer: {vocab_size: 400, data: "
                 "{source: messages, labels: [a], rows: {train: 48}}}")  # fmt: skip
    fixed = keys(tokenizer)
    assert keys(tokenizer, rows)[0] == fixed[0]
    assert keys(tokenizer, rows)[1] != fixed[1]
