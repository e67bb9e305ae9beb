"""Training with rounded weights: what was trained is what `quantize` writes; nothing else stays."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import TypeAdapter
from torch import nn

from compressor.data.sources import Data
from compressor.models.checkpoint import Checkpoint
from compressor.models.quantization import Kind
from compressor.models.quantized_layers import (
    dequantize_weight,
    quantize_weight,
    quantize_weights,
    round_weights,
)
from compressor.models.surgery import dequantize_checkpoint
from compressor.stages.finetune import Finetune
from compressor.training.losses import LabelLoss, mean_loss
from tests.harness.models import UNTIED, examples
from tests.harness.runs import weights
from tests.harness.training import make_training
from tests.stages.test_quantize import pico, preview_facts

INT4 = "{weights: int4, group_size: 16}"
KINDS: list[tuple[Kind, int]] = [("int8", 32), ("int4", 16)]


def kinds(checkpoint: Checkpoint, kind: Kind, group_size: int) -> dict[str, Kind]:
    return Finetune(
        quantization_aware={"weights": kind, "group_size": group_size}
    ).quantization_aware.choose_kinds(kind, checkpoint.derive_facts())


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    rows = examples("seq2seq_lm", 4)
    batch = rows.batch([0, 1, 2, 3], 0)
    model.zero_grad()
    LabelLoss(model)(batch).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("kind", "group_size"), KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_go_straight_through_the_rounding(kind, group_size, checkpointing) -> None:
    """They are those of a model with the rounded values, to the bit; the weights are untouched."""
    start, twin = pico(dropout_rate=0.0), pico(dropout_rate=0.0)
    names = kinds(start, kind, group_size)
    with torch.no_grad():
        for name, chosen in names.items():
            parameter = twin.model.get_parameter(name)
            parameter.copy_(dequantize_weight(*quantize_weight(parameter, chosen, group_size)))
    if checkpointing:
        for model in (start.model, twin.model):
            model.train()
            model.gradient_checkpointing_enable()
    expected = gradients(twin.model)
    before = {name: (p, p.detach().clone()) for name, p in start.model.named_parameters()}
    attributes = {name: set(vars(module)) for name, module in start.model.named_modules()}
    with round_weights(start.model, names, group_size):
        through = gradients(start.model)
    assert through.keys() == expected.keys()
    assert all(torch.equal(through[name], expected[name]) for name in expected)
    after = dict(start.model.named_parameters())
    assert all(after[n] is p and torch.equal(p.detach(), value) for n, (p, value) in before.items())
    assert {n: set(vars(m)) for n, m in start.model.named_modules()} == attributes
    assert start.model.lm_head.weight is start.model.shared.weight


def test_an_error_leaves_the_weights_as_they_were() -> None:
    """Whatever ends a step, the float weights are back."""
    start = pico()
    before = start.model.shared.weight.detach().clone()

    def step() -> None:
        with round_weights(start.model, kinds(start, "int8", 32), 32):
            assert not torch.equal(start.model.shared.weight, before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step()
    assert torch.equal(start.model.shared.weight, before)


def test_what_training_measured_is_what_quantize_writes(recipe, run) -> None:
    """The last validation loss is the quantized model's: int8 and int4, masks, checkpointing."""
    path = recipe(
        ("prune, recover, evaluate]", "prune, a, q8, b, q4]"),
        (
            "recover: {stage: finetune, epochs: 1}",
            "a: {stage: finetune, quantization_aware: int8, epochs: 1, micro_batch_size: 3}\n"
            "  q8: {stage: quantize, activations: float}\n"
            "  b: {stage: finetune, model: a, epochs: 1, gradient_checkpointing: true,"
            f" quantization_aware: {INT4}}}\n"
            "  q4: {stage: quantize, weights: int4, group_size: 16, activations: float}",
        ),
        ("  evaluate: {max_length: [8, 16]}\n", ""),
    )
    done = run("run", path)
    assert done.code == 0, done.err
    folder = path.parent / done.run_folder
    data = TypeAdapter(Data).validate_python(
        yaml.safe_load((folder / "recipe.yaml").read_text())["data"]
    )
    for trained, quantized in (("a", "q8"), ("b", "q4")):
        model = Checkpoint.load(weights(folder, quantized).parent)
        rows = model.tokenize_rows(data.load("validation"), data)
        expected = done.record(trained)["metrics"]["validation_loss"]
        for other in (model, dequantize_checkpoint(model)):
            loss = mean_loss(LabelLoss(other.model), rows, model.pad_id, torch.device("cpu"))
            assert loss == pytest.approx(expected, rel=1e-6)
        plain = Checkpoint.load(weights(folder, trained).parent)
        loss = mean_loss(LabelLoss(plain.model), rows, model.pad_id, torch.device("cpu"))
        assert abs(loss - expected) > 1e-5  # the stage itself gives float weights
        assert plain.masks and all(
            not torch.any(plain.get_parameter(name)[~mask]) for name, mask in plain.masks.items()
        )


def tune(
    start: Checkpoint, steps: int, rate: float, folder: Path, *, aware: bool, stop: int = 0
) -> Checkpoint:
    """A trained copy; `aware` as int4 in groups of 32. `stop`: Ctrl-C after this step."""
    tuned = Checkpoint(copy.deepcopy(start.model), None, start.head)
    within = partial(round_weights, tuned.model, kinds(tuned, "int4", 32), 32)

    def after_step(step: int, total: int, whole: Any) -> None:
        if step == stop:
            raise KeyboardInterrupt

    settings = {
        "epochs": 1000, "max_steps": steps, "batch_size": 8, "learning_rate": rate,
        "warmup_steps": 5, "checkpoint_seconds": 0 if stop else 20,
    }  # fmt: skip
    make_training(
        tuned.model, examples(start.head, 24), folder, settings, after_step=after_step,
        forward_weights=within if aware else nullcontext,
    ).run()  # fmt: skip
    return tuned


def test_stopped_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """What is checkpointed are the float weights. SIGKILL: test_distillation, tests/runs."""
    start = pico()
    expected = tune(start, 8, 1e-2, tmp_path / "whole", aware=True).model.state_dict()
    with pytest.raises(KeyboardInterrupt):
        tune(start, 8, 1e-2, tmp_path / "stopped", aware=True, stop=4)
    assert list((tmp_path / "stopped").glob("step-*"))
    again = tune(start, 8, 1e-2, tmp_path / "stopped", aware=True).model.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())


def test_int4_loses_less_after_training_for_it(tmp_path: Path) -> None:
    """After the same 40 steps rounding costs at most half of what it costs a plain training."""

    def loss(tuned: Checkpoint, *, quantized: bool) -> float:
        model = copy.deepcopy(tuned.model)
        if quantized:
            quantize_weights(model, kinds(tuned, "int4", 32), 32)
        return mean_loss(LabelLoss(model), examples(tuned.head, 24), 0, torch.device("cpu"))

    start = pico(**UNTIED, dropout_rate=0.0)
    start = tune(start, 300, 1e-2, tmp_path / "start", aware=False)
    plain = tune(start, 40, 1e-3, tmp_path / "plain", aware=False)
    aware = tune(start, 40, 1e-3, tmp_path / "aware", aware=True)
    best = loss(plain, quantized=False)
    cost = loss(plain, quantized=True) - best
    assert cost > 0.05 * best
    assert loss(aware, quantized=True) - best < 0.5 * cost


def test_the_key_changes_only_where_it_is_set() -> None:
    """Trainings of earlier versions stay in the store."""
    assert "quantization_aware" not in Finetune().parameters()
    aware = {"weights": "int8", "embeddings": True}
    assert Finetune(quantization_aware="int8").parameters() == {
        **Finetune().parameters(),
        "quantization_aware": aware,
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 0, "quantization_aware": "int8"}, "quantization_aware: there are no steps"),
        (
            {"quantization_aware": {"weights": "int4", "group_size": 40}},
            "quantization_aware.group_size: 40 divides the columns of no linear layer",
        ),
        (
            {"quantization_aware": {"weights": "int8", "group_size": 16}},
            "quantization_aware.group_size: has no meaning with int8",
        ),
    ],
)
def test_what_cannot_be_is_told(settings: dict[str, Any], expected: str) -> None:
    """Before anything is trained."""
    _, told = preview_facts(pico().derive_facts(), Finetune(**settings))
    assert len(told) == 1 and told[0].startswith(expected), told
