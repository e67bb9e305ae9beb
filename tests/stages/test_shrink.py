"""`shrink`: the layers that the loss needs least go, against plain transformers without them."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn

from compressor.compression.depth import choose_layers, count_models, list_rounds
from compressor.data.examples import Examples
from compressor.models.checkpoint import Checkpoint
from compressor.stages.shrink import Shrink
from tests.harness.models import BLOCKS, build_case, examples
from tests.harness.stages import (
    pico_classifier,
    preview,
    rows_of_labels,
    rows_of_text,
    run_stage,
    tokenizer,
)


def pico(model_type: str, head: str, **changes: int) -> Checkpoint:
    checkpoint = build_case(model_type, {"vocab_size": 304, **changes}, head)
    checkpoint.tokenizer = tokenizer()
    for parameter in checkpoint.model.parameters():  # fresh layers change their states little
        parameter.data *= 4 if parameter.dim() == 2 else 1
    return checkpoint


def drop_layer(model: nn.Module, path: str, layer: int) -> nn.Module:
    """Take a layer out of plain transformers; T5's second one gets what its first one has."""
    model = copy.deepcopy(model)
    layers = model.get_submodule(path)
    if layer == 0 and path.endswith("block"):
        bias = layers[0].layer[0].SelfAttention.relative_attention_bias
        layers[1].layer[0].SelfAttention.relative_attention_bias = bias
        layers[1].layer[0].SelfAttention.has_relative_attention_bias = True
    del layers[layer]
    model.config.use_cache = False
    return model


def measure(model: nn.Module, checkpoint: Checkpoint, rows: Examples) -> float:
    """The mean loss by label, row by row, as transformers computes it."""
    total = labels = 0.0
    with torch.no_grad():
        for row in range(len(rows)):
            batch = rows.batch([row], checkpoint.pad_id)
            if checkpoint.head == "sequence_classification":
                batch["labels"] = batch["labels"].float()
            count = len(rows.targets[row])
            total, labels = total + model(**batch).loss.item() * count, labels + count
    return total / labels


@pytest.mark.parametrize(
    ("make", "path", "stack", "depth"),
    [
        (lambda: pico("t5", "seq2seq_lm", num_layers=4), "encoder.block", "encoder", 2),
        (lambda: pico("t5", "seq2seq_lm", num_decoder_layers=4), "decoder.block", "decoder", 2),
        (lambda: pico("llama", "causal_lm", num_hidden_layers=5), "model.layers", "decoder", 3),
        (lambda: pico_classifier(num_hidden_layers=4), "bert.encoder.layer", "encoder", 1),
    ],
)
def test_those_layers_go_that_the_loss_needs_least(tmp_path, make, path, stack, depth) -> None:
    """One by one, each the one without which the loss on the rows is least; a decoder's first and
    last stay.
    """
    checkpoint = make()
    labels = checkpoint.head == "sequence_classification"
    about = {"task": "language_modeling"} if checkpoint.head == "causal_lm" else {}
    data = rows_of_labels(tmp_path) if labels else rows_of_text(tmp_path, **about)
    rows = checkpoint.tokenize_rows(data.load("train").first(4), data)
    model, left, first = (
        checkpoint.model,
        list(range(len(checkpoint.model.get_submodule(path)))),
        {},
    )
    ends = {0, left[-1]} if stack == "decoder" else set()
    while len(left) > depth:
        places = [place for place, layer in enumerate(left) if layer not in ends]
        losses = {p: measure(drop_layer(model, path, p), checkpoint, rows) for p in places}
        first = first or {left[place]: loss for place, loss in losses.items()}
        gone = min(losses, key=lambda place: losses[place])
        model = drop_layer(model, path, gone)
        del left[gone]
    stage = Shrink(**{f"{stack}_layers": depth}, importance="loss", calibration_rows=4)
    smaller, metrics = run_stage(stage, checkpoint, tmp_path / "run", data)
    assert metrics["kept"] == {stack: left}
    assert metrics["losses_without"][stack] == pytest.approx(first, rel=1e-4)
    assert measure(smaller.model, checkpoint, rows) == pytest.approx(
        measure(model, checkpoint, rows), rel=1e-5
    )
    plan, problems = preview(stage, checkpoint.derive_facts(), data)
    assert problems == [] and plan is not None
    assert plan.parameters == smaller.derive_facts().parameters


def test_listed_layers_stay_whatever_the_loss_says(tmp_path) -> None:
    """The other stack's are chosen with these in place."""
    checkpoint = pico("t5", "seq2seq_lm", num_layers=3)
    stage = Shrink(encoder_layers=[0, 2], decoder_layers=1, importance="loss", calibration_rows=2)
    smaller, metrics = run_stage(stage, checkpoint, tmp_path, rows_of_text(tmp_path))
    assert metrics["kept"]["encoder"] == [0, 2] and len(metrics["kept"]["decoder"]) == 1
    assert list(metrics["losses_without"]) == ["decoder"]
    assert (smaller.model.config.num_layers, smaller.model.config.num_decoder_layers) == (2, 1)


def test_a_measured_model_is_gone_before_the_next_one() -> None:
    """Not when the collector comes by: of a large model there is one beside its source."""
    checkpoint, alive = pico("t5", "seq2seq_lm", num_decoder_layers=4), []

    def count_models_alive() -> None:
        models = [item for item in gc.get_objects() if isinstance(item, type(checkpoint.model))]
        alive.append(sum(len(model.decoder.block) == 3 for model in models))

    gc.collect()
    gc.disable()
    try:
        choose_layers(checkpoint, {"decoder": 3}, {}, examples("seq2seq_lm", 2), count_models_alive)
    finally:
        gc.enable()
    assert alive == [1, 1]


def test_blocks_are_not_chosen_by_the_loss() -> None:
    """A plan could not count what stays, since a block is of another size."""
    facts = build_case("bart", BLOCKS, "seq2seq_lm").derive_facts()
    _, problems = preview(Shrink(encoder_layers=1, importance="loss"), facts)
    assert "importance" in [path for path, _ in problems]


@pytest.mark.parametrize(("layers", "depth", "rounds"), [(8, 4, 4), (30, 15, 4), (5, 5, 0)])
def test_there_are_at_most_four_rounds(layers, depth, rounds) -> None:
    """One layer a round, or more; all that have to go are gone after them."""
    goes = list_rounds(layers, depth)
    assert (len(goes), sum(goes)) == (rounds, layers - depth)
    left = [layers - sum(goes[:index]) for index in range(rounds)]
    assert count_models("encoder", layers, depth) == sum(left)
    assert count_models("decoder", layers, depth) == sum(left) - 2 * rounds
