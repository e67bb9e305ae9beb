"""The stage `approximate`: rows of noise and of text, the loss, the floor, and whole runs."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import compressor
from compressor.compression.approximation import (
    ApproximationLoss,
    Constant,
    NoiseRows,
    Teacher,
    running_mean,
)
from compressor.core.files import hash_file
from compressor.data.bills import Bills
from compressor.data.examples import Examples
from compressor.models.block import Block
from compressor.models.block_config import BLOCKS_FILE, BlockSizes
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import list_stacks
from compressor.models.surgery import keep_layers
from compressor.stages.approximate import Approximate
from compressor.stages.load import Load
from compressor.training.losses import mean_loss
from tests.engine.test_plan import plan_recipe
from tests.harness.command import Command, start
from tests.harness.command import compressor as command
from tests.harness.models import TWO_LABELS
from tests.harness.runs import find_stage, kill, losses, wait_for_step
from tests.harness.stages import preview, run_stage
from tests.models.test_block import IDS, LENGTHS, SIZES, fresh, outputs, pico

SMALL = {"block": {"heads": 2, "head_size": 4, "depth": 1}, "batch_size": 4}


def run_approximate(
    checkpoint: Checkpoint, folder: Path, **settings: Any
) -> tuple[Checkpoint, dict[str, Any]]:
    little = {"layers": [0, 1], "batches": 2, "validation_batches": 1}
    return run_stage(Approximate(**SMALL | little | settings), checkpoint, folder)


def test_the_recipes_block_is_the_published_one() -> None:
    """Planned without the hub: two layers less and a block more, in each way to have one."""
    nodes = plan_recipe("bert/approximate_blocks").nodes
    counts = {node.name: node.facts.parameters for node in nodes if node.facts is not None}
    for name in ("noise", "text", "random", "random_tuned"):
        assert counts["teacher"] - counts[name] == 14_175_744 - 5_022_336
    assert counts["teacher"] - counts["dropped_tuned"] == 14_175_744


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
    together = loss(rows.batch([0, 1, 2], 0))
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
    assert together.item() == pytest.approx(expected, rel=1e-4)
    cut = loss(rows.batch([0], 0)) + loss(rows.batch([2, 1], 0))
    assert cut.item() == pytest.approx(expected, rel=1e-4)
    assert loss(rows.batch([], 0)).item() == 0
    assert mean_loss(loss, rows, 0, torch.device("cpu")) == pytest.approx(expected / 12, rel=1e-4)


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
    after, metrics = run_approximate(
        start, tmp_path, layers=layers, learning_rate=1e-2, loss="mse", **settings
    )
    assert metrics["steps"] == 120
    assert metrics["validation_loss"] < 0.7 * metrics["baseline_loss"]
    stack = list_stacks(start.model.config, start.head)["encoder"]
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
    planned, _ = preview(Approximate(layers=layers, **SMALL), start.derive_facts())
    assert planned.shapes == after.derive_facts().shapes
    assert planned.parameters == after.model.num_parameters()


def test_without_epochs_the_block_is_as_it_was_drawn(tmp_path) -> None:
    """The start of a trained one, whichever its inputs: so the two can be compared."""
    after, metrics = run_approximate(fresh(), tmp_path, epochs=0)
    torch.manual_seed(0)
    drawn = Block(16, BlockSizes(**SMALL["block"])).state_dict()
    block = after.model.encoder.layer[0].state_dict()
    assert block.keys() == drawn.keys()
    assert all(torch.equal(block[name], drawn[name]) for name in drawn)
    assert metrics.keys() == {"teacher_parameters", "block_parameters"}


def test_a_blocks_place_can_be_taken_again(tmp_path) -> None:
    """A block and the layer behind it are a teacher as any layers are; masks of others stay."""
    start, _ = run_approximate(fresh(), tmp_path / "first", layers=[0, 1], epochs=0)
    names = ["encoder.layer.0.query.0.weight", "encoder.layer.1.output.dense.weight"]
    start.masks = {name: torch.rand(start.get_parameter(name).shape) > 0.5 for name in names}
    start.apply_masks()
    tiny = {"heads": 1, "head_size": 2, "depth": 0}
    after, metrics = run_approximate(start, tmp_path / "second", layers=[0], block=tiny)
    assert metrics["steps"] == 4
    assert list(after.masks) == names[1:]
    blocks = after.model.config.encoder_blocks
    assert blocks == [tiny | {"dropout": 0.1}, None]
    table = start.derive_facts().prune(frozenset(names[:1]), 10).prune(frozenset(names[1:]), 20)
    planned, _ = preview(Approximate(layers=[0], **SMALL | {"block": tiny}), table)
    assert planned.masked == ((frozenset(names[1:]), 20),)
    whole, _ = run_approximate(start, tmp_path / "third", layers=[0, 1], epochs=0)
    assert whole.model.config.encoder_blocks == [SIZES.model_dump()]
    assert whole.model.config.num_hidden_layers == 1
    assert not torch.equal(outputs(whole.model), outputs(start.model))


# Planning


@pytest.mark.parametrize(
    ("settings", "path", "expected"),
    [
        ({"layers": [1, 3]}, "layers.1", "3 is outside 0 … 2"),
        ({"layers": [0, 2]}, "layers", "expected neighbours in their order, got [0, 2]"),
        ({"layers": [0], "block": {}}, "block", "has 323,088 parameters, and the layers"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing", "no memory to save"),
        ({"inputs": "data", "batches": 3, "epochs": 0}, "batches", "no meaning with"),
        ({"inputs": "data"}, "data.max_source_length", "20 positions, too few for 64"),
    ],
)
def test_what_cannot_be_approximated_is_found_while_planning(settings, path, expected) -> None:
    """With the key, and the layer or the reason."""
    stage = Approximate(**SMALL | {"layers": [0, 1]} | settings)
    data = Bills(source="bills", max_source_length=64)
    ((key, message),) = preview(stage, pico("bert"), data)[1]
    assert key == path and expected in message


# As a user runs it

RECIPE = """
defaults: [/base, /model: tiny_bert, /data: messages, _self_]
pipeline: [load, noise, text, finetune, prune, shrink, evaluate, export]
model:
  config: {vocab_size: 400, hidden_size: 32, intermediate_size: 64, hidden_dropout_prob: 0.1}
  head_bias: zero      # twelve steps that learn how rare labels are show a falling loss
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


def run_recipe(folder: Path, *overrides: str) -> Command:
    folder.mkdir(exist_ok=True)
    (folder / "mine.yaml").write_text(RECIPE)
    done = command("run", "mine.yaml", *overrides, cwd=folder)
    assert done.code == 0, done.err
    return done


def test_a_chain_as_a_user_runs_it(tmp_path: Path) -> None:
    """Two blocks, on noise and on text, then pruned and shrunk: planned counts, and it loads."""
    done = run_recipe(tmp_path)
    nodes = {node.name: node for node in plan_recipe(tmp_path / "mine.yaml").nodes}
    for name in ("load", "noise", "text", "finetune", "prune", "shrink"):
        table = nodes[name].facts
        assert table is not None and done.record(name)["parameters"] == table.parameters, name
    noise = find_stage(done.run_folder, "noise")
    assert done.record("noise")["metrics"]["validation_loss"] < losses(noise)[0]
    assert done.record("finetune")["metrics"]["steps"] == 12
    curve = losses(find_stage(done.run_folder, "finetune"))
    assert sum(curve[-3:]) < sum(curve[:3])
    assert 0 <= done.record("evaluate@shrink")["metrics"]["micro_f1"] <= 1
    pruned = find_stage(done.run_folder, "prune")
    masks, weights = load_file(pruned / "masks.safetensors"), load_file(pruned / BLOCKS_FILE)
    assert {name.split(".layer.")[1][0] for name in masks if ".value." in name} == {"0", "2"}
    model = compressor.load_model(done.run_folder / "model")
    assert model.config.num_hidden_layers == 2
    assert [block is None for block in model.config.encoder_blocks] == [False, True]
    name = "bert.encoder.layer.0.query.0.weight"
    assert torch.equal(model.get_parameter(name), weights[name])
    assert not model.get_parameter(name)[~masks[name]].any()
    load = Load(source=str(done.run_folder / "model"), head="sequence_classification")
    facts, _ = preview(load, None, TWO_LABELS)
    saved = load_file(done.run_folder / "model" / BLOCKS_FILE)
    assert facts is not None and facts.shapes.keys() == saved.keys()


NOISE = ("pipeline=[load,noise]", "stages.noise.epochs=8")


def test_a_killed_one_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL in the middle, with dropout in play: the same SHA-256, and the same metrics."""
    whole, folder = run_recipe(tmp_path / "whole", *NOISE), tmp_path / "killed"
    folder.mkdir()
    (folder / "mine.yaml").write_text(RECIPE)
    process = start("run", "mine.yaml", *NOISE, cwd=folder)
    wait_for_step(process)
    kill(process)
    done = run_recipe(folder, *NOISE)
    assert "goes on from step" in done.out
    files = (find_stage(one.run_folder, "noise") / BLOCKS_FILE for one in (whole, done))
    assert len({hash_file(file) for file in files}) == 1
    for key in ("validation_loss", "baseline_loss"):
        assert done.record("noise")["metrics"][key] == whole.record("noise")["metrics"][key]


def test_two_processes_with_micro_batches_give_one_processs_losses(tmp_path: Path) -> None:
    """The curve, the validation loss and the floor, within 1e-5."""
    same = (NOISE[0], "stages.noise.epochs=1", "stages.noise.block.dropout=0")
    other = ("launch.num_processes=2", "stages.noise.micro_batch_size=3")
    one, two = run_recipe(tmp_path / "1", *same), run_recipe(tmp_path / "2", *same, *other)
    curves = [losses(find_stage(done.run_folder, "noise")) for done in (one, two)]
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    for key in ("validation_loss", "baseline_loss"):
        expected = pytest.approx(one.record("noise")["metrics"][key], abs=1e-5)
        assert two.record("noise")["metrics"][key] == expected


def test_a_fine_tunings_learning_rate_is_not_the_blocks(tmp_path: Path) -> None:
    """Batch size and caps come from the recipe's `training:`; the published rate and decay stay."""
    (tmp_path / "mine.yaml").write_text(RECIPE)
    stage = plan_recipe(tmp_path / "mine.yaml", "training.max_steps=3").node("noise").stage
    assert isinstance(stage, Approximate)
    assert (stage.batch_size, stage.checkpoint_seconds, stage.max_steps) == (8, 0, 3)
    assert (stage.learning_rate, stage.weight_decay, stage.warmup_steps) == (1e-3, 1e-4, 0)


def test_only_what_decides_the_block_is_part_of_its_key() -> None:
    """On text its rows are, and no amount of noise; on noise no rows are."""
    noise = Approximate(**SMALL, layers=[0, 1], batches=10)
    text = Approximate(**SMALL, layers=[0, 1], inputs="data")
    assert noise.reads() == {}
    assert text.reads() == {"train": "sources", "validation": "sources"}
    assert noise.parameters().keys() - text.parameters().keys() == {
        "sequence_length", "batches", "validation_batches",
    }  # fmt: skip
