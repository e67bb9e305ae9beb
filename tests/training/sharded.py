"""Trainings of pico models, run in one process by a test and in several by torch's launcher.

`python -m tests.training.sharded SCHEME FOLDER` trains every case, and leaves `CASE.json`,
`CASE.safetensors` in the folder.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from compressor.core.console import Console
from compressor.core.errors import StageError
from compressor.core.progress import Progress
from compressor.data.examples import Examples
from compressor.models.checkpoint import Checkpoint
from compressor.models.quantized_layers import round_weights
from compressor.stages.finetune import Gradual
from compressor.training.distillation import DistillationLoss
from compressor.training.dropout import disable_layer_drop
from compressor.training.hyperparameters import Hyperparameters
from compressor.training.launch_config import Scheme
from compressor.training.loop import Training
from compressor.training.losses import LabelLoss
from tests.harness.models import BLOCKS, build_case, examples
from tests.models import test_families as families

FAMILIES = {
    "-".join([kind, head, *changes]): case
    for case in families.CASES
    for kind, changes, head in [case]
    if head != "none" and changes != BLOCKS
}
"""Every family that can be trained, with what makes it another one."""
SETTINGS: dict[str, Any] = {
    "epochs": 9, "max_steps": 6, "batch_size": 5, "micro_batch_size": 2, "learning_rate": 5e-3,
    "weight_decay": 0.1, "clip_norm": 0.5, "checkpoint_seconds": 1e9,
}  # fmt: skip
STILL = {"learning_rate": 1e-30}
"""Weights stay as they are, to the bit, whatever gradients come."""


def start(kind: str, **changes: Any) -> Checkpoint:
    return family(kind, changes, "seq2seq_lm")


def family(kind: str, changes: dict[str, Any], head: str) -> Checkpoint:
    torch.manual_seed(7)
    config = AutoConfig.for_model(kind).to_dict().items()
    no_dropout = {key: 0.0 for key, value in config if "drop" in key and isinstance(value, float)}
    model = build_case(kind, no_dropout | changes, head)
    model.model.requires_grad_(requires_grad=True)  # as after a reload, fixed tables too
    disable_layer_drop(model.model)  # as `finetune` does in several processes
    return model


def train(
    model: Checkpoint, where: Path, scheme: Scheme, more: dict[str, Any] | None = None, **rest: Any
) -> dict[str, Any]:
    """Train a checkpoint in place, and tell what happened."""
    rows = rest.pop("rows", None) or examples(model.head, 13)
    training = Training(
        **{"loss": LabelLoss(model.model)} | rest, model=model.model, train=rows, validation=rows,
        measure=LabelLoss(model.model), settings=Hyperparameters(**SETTINGS | (more or {})),
        masks=model.masks, pad_id=0, seed=3, resume=where, progress=Progress(Console(), quiet=True),
        scheme=scheme,
    )  # fmt: skip
    history = training.run()
    return {"losses": history.losses, "validation": history.validation_losses}


def plain(
    kind: str, changes: dict[str, Any], head: str
) -> Callable[..., tuple[Checkpoint, dict[str, Any]]]:
    def case(where: Path, scheme: Scheme) -> tuple[Checkpoint, dict[str, Any]]:
        model = family(kind, changes, head)
        return model, train(model, where, scheme)

    return case


def one_row(where: Path, scheme: Scheme) -> tuple[Checkpoint, dict[str, Any]]:
    """Batches of one row: the other process has none."""
    model = start("t5")
    return model, train(model, where, scheme, {"batch_size": 1})


def checkpointed(where: Path, scheme: Scheme) -> tuple[Checkpoint, dict[str, Any]]:
    model = start("t5")
    return model, train(model, where, scheme, {"gradient_checkpointing": True})


def aware(where: Path, scheme: Scheme) -> tuple[Checkpoint, dict[str, Any]]:
    """Rounded weights: int8 has a scale for each row."""
    model = start("t5")
    kinds = dict.fromkeys(model.derive_facts().list_linear_weights(), "int8")
    within = partial(round_weights, model.model, kinds, 4)
    return model, train(model, where, scheme, {"learning_rate": 1e-4}, forward_weights=within)


def gradual(where: Path, scheme: Scheme) -> tuple[Checkpoint, dict[str, Any]]:
    """Global thresholds over groups of several layers, while nothing moves the weights."""
    model = start("t5")
    amounts = {"encoder": {"feed_forward": 0.5}, "decoder": {"self_attention": 0.4}, "lm_head": 0.3}
    prune = Gradual(amounts=amounts, end=0.7, times=3)
    return model, train(model, where, scheme, STILL, after_step=prune.schedule(model, 0))


def masked(where: Path, scheme: Scheme) -> tuple[Checkpoint, dict[str, Any]]:
    """Pruned before; a high rate, momentum and decay would bring what is pruned to life."""
    model = start("t5")
    for name, parameter in model.model.named_parameters():
        if parameter.dim() == 2:
            model.masks[name] = parameter.detach().abs() > parameter.detach().abs().median()
    model.apply_masks()
    return model, train(model, where, scheme, {"learning_rate": 1e-2})


def taught(where: Path, scheme: Scheme) -> tuple[Checkpoint, dict[str, Any]]:
    """A frozen teacher of another width: a projection is trained beside the student."""
    teacher, student = start("t5"), start("t5", d_model=12, num_heads=2)
    torch.manual_seed(1)
    loss = DistillationLoss(
        student.model, teacher.model, {"labels": 0.5, "logits": 0.5, "hidden": 1.0},
        layers={"encoder": {0: 0, 1: 1}, "decoder": {0: 1}},
    )  # fmt: skip
    return student, train(student, where, scheme, loss=loss)


class Cliff(torch.autograd.Function):
    """The same value, with a gradient that is not finite."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.inf


class Steep(LabelLoss):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return Cliff.apply(super().forward(batch))


def stop_training(
    model: Checkpoint, where: Path, scheme: Scheme, **rest: Any
) -> tuple[Checkpoint, dict[str, Any]]:
    try:
        return model, train(model, where, scheme, **rest)
    except StageError as error:
        return model, {"error": str(error).replace(str(where), "FOLDER")}


def not_a_number(where: Path, scheme: Scheme) -> tuple[Checkpoint, dict[str, Any]]:
    model = start("t5")
    with torch.no_grad():
        model.model.get_parameter("encoder.final_layer_norm.weight")[3] = torch.nan
    return stop_training(model, where, scheme)


def overflown(where: Path, scheme: Scheme) -> tuple[Checkpoint, dict[str, Any]]:
    model = start("t5")
    return stop_training(model, where, scheme, loss=Steep(model.model))


class Interrupted(Exception):
    """As a kill would, but in the same process."""


def interrupted(model: Checkpoint, where: Path, scheme: Scheme) -> None:
    """Train up to the fourth step; the last checkpoint is of an earlier one."""

    def after_step(step: int, total: int, whole: Any) -> None:
        if step == 4:
            raise Interrupted

    with suppress(Interrupted):
        train(model, where, scheme, {"checkpoint_seconds": 0}, after_step=after_step)


def with_dropout(where: Path, scheme: Scheme) -> tuple[Checkpoint, dict[str, Any]]:
    model = start("t5", dropout_rate=0.1)
    return model, train(model, where, scheme)


def gone_on(where: Path, scheme: Scheme) -> tuple[Checkpoint, dict[str, Any]]:
    """Interrupted, and gone on from its checkpoint, with dropout."""
    interrupted(start("t5", dropout_rate=0.1), where, scheme)
    model = start("t5", dropout_rate=0.1)
    return model, train(model, where, scheme)


def taken_over(where: Path, scheme: Scheme) -> tuple[Checkpoint, dict[str, Any]]:
    """Gone on from what another number of processes has left, where a test has put it."""
    model = start("t5")
    return model, train(model, where, scheme)


def left_over(where: Path, scheme: Scheme) -> tuple[Checkpoint, dict[str, Any]]:
    """Interrupted; the checkpoint stays, for another number of processes."""
    model = start("t5")
    interrupted(model, where, scheme)
    return model, {"error": "interrupted"}


def long_inputs(where: Path, scheme: Scheme) -> tuple[Checkpoint, dict[str, Any]]:
    """A stack whose layers one process calls in runs."""
    model = start("longt5")
    return model, train(model, where, scheme, {"gradient_checkpointing": True})


def of_some_rows(where: Path, scheme: Scheme) -> tuple[Checkpoint, dict[str, Any]]:
    """Global biases, which rows of 16 tokens use: one process has such, or both, or none."""
    model = start("longt5", encoder_attention_type="transient-global")
    sources = [
        [3 + (row * 7 + i * i) % 40 for i in range(20 if row % 3 else 6)] for row in range(13)
    ]
    rows = Examples(sources, examples(model.head, 13).targets)
    return model, train(model, where, scheme, {"micro_batch_size": 1, "batch_size": 3}, rows=rows)


def taught_hidden(where: Path, scheme: Scheme) -> tuple[Checkpoint, dict[str, Any]]:
    """Nothing reaches the head, nor the decoder's last layer."""
    teacher, student = start("bart"), start("bart", tie_word_embeddings=False)
    loss = DistillationLoss(
        student.model, teacher.model, {"hidden": 1.0}, layers={"encoder": {0: 0}, "decoder": {0: 1}}
    )
    return student, train(student, where, scheme, loss=loss)


def bfloat16(where: Path, scheme: Scheme) -> tuple[Checkpoint, dict[str, Any]]:
    model = start("t5")
    return model, train(model, where, scheme, {"precision": "bfloat16"})


CASES = {
    **{name: plain(*case) for name, case in FAMILIES.items()},
    **{case.__name__: case for case in (one_row, checkpointed, aware, gradual, masked, taught)},
    **{case.__name__: case for case in (with_dropout, gone_on, taken_over, left_over)},
    **{case.__name__: case for case in (long_inputs, bfloat16)},
    **{case.__name__: case for case in (of_some_rows, taught_hidden)},
    **{case.__name__: case for case in (not_a_number, overflown)},
}


def run(name: str, folder: Path, scheme: Scheme, *, first: bool) -> dict[str, Any]:
    """One case; its weights and masks are left in the folder by the first process."""
    model, told = CASES[name](folder / f"{name}.resume", scheme)
    if first:
        if name != "left_over":
            shutil.rmtree(folder / f"{name}.resume", ignore_errors=True)
        state: dict[str, Tensor] = {n: p.detach() for n, p in model.model.named_parameters()}
        if "error" in told:
            state = {}
        state |= {f"mask.{n}": mask for n, mask in model.masks.items()}
        if state:
            save_file({n: t.contiguous() for n, t in state.items()}, folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps(told))
    return told


if __name__ == "__main__":
    kind, where = sys.argv[1], Path(sys.argv[2])
    for each in CASES:
        run(each, where, Scheme(kind=kind), first=os.environ["RANK"] == "0")
    sys.stdout.flush()
    os._exit(0)  # see compressor.engine.worker.main
