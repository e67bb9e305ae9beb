"""A training does what the usual one does: Hugging Face's Trainer, in plain torch, step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import Trainer, get_linear_schedule_with_warmup

from compressor.data.batching import global_batches
from compressor.models.block import Block
from compressor.stages.approximate import BlockSizes
from compressor.training.distillation import DistillationLoss
from compressor.training.hyperparameters import Hyperparameters
from compressor.training.loop import Training, learning_rate
from compressor.training.losses import LabelLoss
from compressor.training.parallel import make_optimizer
from tests.harness.models import CASES, build_case, examples
from tests.harness.training import make_training
from tests.training import sharded

SETTINGS: dict[str, Any] = {
    "epochs": 3, "batch_size": 5, "learning_rate": 1e-2, "weight_decay": 0.5, "clip_norm": 1.0,
    "checkpoint_seconds": 1e9,
}  # fmt: skip
Masks, Settings = dict[str, Tensor], dict[str, Any]


def decayed_names(model: nn.Module, loss: nn.Module, **settings: Any) -> set[str]:
    """The names, in the loss, of what our optimizer decays."""
    optimizer = make_optimizer(model, loss, Hyperparameters(weight_decay=0.5, **settings))
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    return {name for name, parameter in loss.named_parameters() if id(parameter) in decayed}


def test_what_decays_is_what_decays_in_transformers_trainer() -> None:
    """Every family and head, a block in its place, a learned projection: no bias, no norm."""
    for kind, changes, head in CASES:
        model = build_case(kind, changes, head).model
        model.requires_grad_(requires_grad=True)
        names = Trainer.get_decay_parameter_names(None, model)
        expected = {name for name, _ in model.named_parameters() if name in names}
        assert decayed_names(model, model) == expected, (kind, changes, head)
        whole = {name for name, _ in model.named_parameters()}
        assert not any(name.endswith("bias") or "norm" in name.lower() for name in expected)
        assert decayed_names(model, model, decay_biases_and_norms=True) == whole
    block = Block(16, BlockSizes(heads=2, head_size=4, depth=1))
    names = Trainer.get_decay_parameter_names(None, block)
    assert decayed_names(block, block) == {n for n, _ in block.named_parameters() if n in names}
    student, teacher = sharded.start("t5", d_model=8).model, sharded.start("t5").model
    loss = DistillationLoss(
        student, teacher, {"hidden": 1.0}, layers={"encoder": {0: 0}, "decoder": {0: 1}}
    )
    projections = {n for n in decayed_names(student, loss) if n.startswith("projections.")}
    assert projections == {"projections.encoder.weight", "projections.decoder.weight"}


@pytest.mark.parametrize(
    ("warmup", "total", "steps"),
    [(0, 5, 0), (3, 7, 3), (5, 5, 5), (9, 4, 9), (1, 1, 1), (0, 1, 0), (0.4, 9, 3), (0.06, 9, 0)],
)
def test_the_rate_of_every_step_is_that_of_transformers_schedule(
    warmup: float, total: int, steps: int
) -> None:
    """From the first step, of 0 where there is a warm-up, to the last, one share before 0; a share
    of the steps is as many whole ones.
    """
    settings = Hyperparameters(learning_rate=0.3, warmup_steps=warmup)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = get_linear_schedule_with_warmup(optimizer, steps, total)
    for step in range(total):
        expected = scheduler.get_last_lr()[0]
        assert learning_rate(step, total, settings) == pytest.approx(expected, abs=1e-15)
        optimizer.step()
        scheduler.step()


def plain_training(
    model: nn.Module, settings: Settings, masks: Masks, revise: Callable[[int], None]
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and weights: as Trainer does it, with w · mask for a weight w."""
    loss, rows = LabelLoss(model), examples("seq2seq_lm", 13)
    names = Trainer.get_decay_parameter_names(None, model)
    groups = [
        {"params": [p for n, p in model.named_parameters() if n in names]},
        {"params": [p for n, p in model.named_parameters() if n not in names], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.5)
    scheduler = get_linear_schedule_with_warmup(optimizer, settings.get("warmup_steps", 0), 9)
    losses = []
    lengths = rows.lengths(), [len(target) for target in rows.targets]
    for epoch in range(3):
        for batch in global_batches(*lengths, batch_size=5, seed=3, epoch=epoch):
            masked = {
                f"model.{name}": parameter * masks.get(name, torch.tensor(1.0))
                for name, parameter in model.named_parameters()
            }
            tokens = sum(len(rows.targets[row]) for row in batch)
            mean = functional_call(loss, masked, (rows.batch(batch, 0),)) / tokens
            mean.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip_norm"])
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            losses.append(mean.item())
            revise(len(losses))
    weights = {
        name: (parameter * masks.get(name, torch.tensor(1.0))).detach()
        for name, parameter in model.named_parameters()
    }
    return losses, weights


def our_training(
    model: nn.Module, settings: Settings, masks: Masks, revise: Callable[[int], None], where: Path
) -> tuple[list[float], Training]:
    training = make_training(
        model, examples("seq2seq_lm", 13), where, settings, masks=masks, seed=3,
        after_step=lambda step, total, whole: revise(step),
    )  # fmt: skip
    return training.run().losses, training


def smallest(model: nn.Module, amount: float) -> Masks:
    """Masks of every matrix without its smallest entries."""
    with torch.no_grad():
        return {
            name: p.abs() > p.abs().flatten().kthvalue(round(amount * p.numel())).values
            for name, p in model.named_parameters()
            if p.dim() == 2
        }


@pytest.mark.parametrize("warmup", [0, 4, 20])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_losses_and_weights_are_those_of_the_usual_loop(tmp_path, kind, warmup) -> None:
    """Schedule, clipping, and a decay of 0.5 that leaves biases and norms alone."""
    settings = SETTINGS | {"warmup_steps": warmup}
    losses, weights = plain_training(sharded.start(kind).model, settings, {}, lambda step: None)
    model = sharded.start(kind).model
    losses_of_ours, _ = our_training(model, settings, {}, lambda step: None, tmp_path)
    assert losses_of_ours == pytest.approx(losses, abs=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gradual", [False, True])
def test_what_is_pruned_counts_in_no_norm_and_no_average(tmp_path, gradual) -> None:
    """At 80 % pruned, steps are clipped as those of the weights that are left: the losses are those
    of a training of w · mask, to 1e-6. `gradual`: the masks come after the third step.
    """
    settings = SETTINGS | {"clip_norm": 0.05}
    final = smallest(sharded.start("t5").model, 0.8)

    def reviser(masks: Masks) -> Callable[[int], None]:
        return lambda step: masks.update(final if step >= 3 else {})

    first = {} if gradual else final
    mine, theirs = dict(first), dict(first)
    losses, weights = plain_training(sharded.start("t5").model, settings, theirs, reviser(theirs))
    model = sharded.start("t5").model
    for name, mask in first.items():
        model.get_parameter(name).data.mul_(mask)
    losses_of_ours, training = our_training(model, settings, mine, reviser(mine), tmp_path)
    assert losses_of_ours == pytest.approx(losses, abs=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-4, atol=1e-5)
    if not gradual:
        for name, mask in final.items():
            state = training.weights.gather_state(name)
            assert state["exp_avg"][mask].any()
            assert not state["exp_avg"][~mask].any() and not state["exp_avg_sq"][~mask].any()
