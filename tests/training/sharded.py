"""Trainings of pico models, run in one process by a test and in several by torch's launcher.

`python -m tests.training.sharded FOLDER` trains every case under every scheme, and leaves
`SCHEME/CASE.json` and `SCHEME/CASE.safetensors` in the folder.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from compressor.core.errors import StageError
from compressor.data.examples import Examples
from compressor.models.checkpoint import Checkpoint
from compressor.models.quantized_layers import round_weights
from compressor.stages.finetune import GradualPruning
from compressor.training.adapters import attach_adapters
from compressor.training.distillation import DistillationLoss
from compressor.training.dropout import disable_layer_drop
from compressor.training.launch_config import Scheme
from compressor.training.lora import Lora
from compressor.training.losses import LabelLoss
from tests.faults import LONG
from tests.harness.models import BLOCKS, CASES, build_case, examples
from tests.harness.training import make_training

SHORT = (
    *("t5-seq2seq_lm", "bart-seq2seq_lm-tie_word_embeddings", "pegasus-seq2seq_lm"),
    "marian-seq2seq_lm-share_encoder_decoder_embeddings-decoder_vocab_size",
    *("bert-sequence_classification", "gpt2-causal_lm", "qwen3-sequence_classification"),
)
FAMILIES = {
    name: case
    for case in CASES
    for kind, changes, head in [case]
    if head != "none" and changes != BLOCKS
    for name in ["-".join([kind, head, *changes])]
    if LONG or name in SHORT
}
"""Every family that can be trained, with what makes it another one; a few in `make test`."""
SETTINGS: dict[str, Any] = {
    "epochs": 9, "max_steps": 6, "batch_size": 5, "micro_batch_size": 2, "learning_rate": 5e-3,
    "weight_decay": 0.1, "clip_norm": 0.5, "checkpoint_seconds": 1e9,
}  # fmt: skip
SCHEMES: tuple[Literal["ddp", "fsdp2"], ...] = ("ddp", "fsdp2")


def start(kind: str, head: str = "seq2seq_lm", **changes: Any) -> Checkpoint:
    torch.manual_seed(7)
    config = AutoConfig.for_model(kind).to_dict().items()
    no_dropout = {key: 0.0 for key, value in config if "drop" in key and isinstance(value, float)}
    model = build_case(kind, no_dropout | changes, head)
    model.model.requires_grad_(requires_grad=True)  # as after a reload, fixed tables too
    disable_layer_drop(model.model)  # as `finetune` does in several processes
    return model


def prune_half(model: Checkpoint) -> None:
    """Mask the smaller half of each matrix, but for tables that a file does not have."""
    for name, parameter in model.model.named_parameters():
        if parameter.dim() == 2 and "embed_positions" not in name:
            model.masks[name] = parameter.detach().abs() > parameter.detach().abs().median()
    model.apply_masks()


def train(
    model: Checkpoint, where: Path, scheme: Scheme, more: dict[str, Any] | None = None, **rest: Any
) -> dict[str, Any]:
    """Train a checkpoint in place, and tell what happened."""
    rows = rest.pop("rows", None) or examples(model.head, 13)
    history = make_training(
        model.model, rows, where, SETTINGS | (more or {}), validation=rows, masks=model.masks,
        measure=LabelLoss(model.model), seed=3, scheme=scheme, **rest,
    ).run()  # fmt: skip
    return {"losses": history.losses, "validation": history.validation_losses}


Result = tuple[Checkpoint, dict[str, Any]]


def train_family(case: tuple[str, dict[str, Any], str], where: Path, scheme: Scheme) -> Result:
    kind, changes, head = case
    model = start(kind, head, **changes)
    return model, train(model, where, scheme)


def train_t5(more: dict[str, Any], where: Path, scheme: Scheme, **changes: Any) -> Result:
    model = start("t5", **changes)
    return model, train(model, where, scheme, more)


def aware(where: Path, scheme: Scheme) -> Result:
    """Rounded weights: int8 has a scale for each row."""
    model = start("t5")
    kinds = dict.fromkeys(model.derive_facts().list_linear_weights(), "int8")
    within = partial(round_weights, model.model, kinds, 4)
    return model, train(model, where, scheme, {"learning_rate": 1e-4}, forward_weights=within)


def gradual(where: Path, scheme: Scheme) -> Result:
    """Global thresholds over groups of several layers, while nothing moves the weights."""
    model = start("t5")
    amounts = {"encoder": {"feed_forward": 0.5}, "decoder": {"self_attention": 0.4}, "lm_head": 0.3}
    prune = GradualPruning(amounts=amounts, end=0.7, times=3)
    still = {"learning_rate": 1e-30}
    return model, train(model, where, scheme, still, after_step=prune.make_callback(model, 0))


def masked(where: Path, scheme: Scheme) -> Result:
    """Pruned before; a high rate, momentum and decay would bring what is pruned to life."""
    model = start("t5")
    prune_half(model)
    return model, train(model, where, scheme, {"learning_rate": 1e-2})


def adapted(where: Path, scheme: Scheme) -> Result:
    """Adapters of pruned weights, merged; not in shards, which planning refuses."""
    model = start("t5")
    prune_half(model)
    adapters = attach_adapters(model, Lora(rank=3), seed=0)
    told = train(model, where, scheme)
    adapters.merge()
    return model, told


def taught(where: Path, scheme: Scheme) -> Result:
    """A frozen teacher of another width: a projection is trained beside the student."""
    teacher, student = start("t5"), start("t5", d_model=12, num_heads=2)
    torch.manual_seed(1)
    loss = DistillationLoss(
        student.model, teacher.model, {"labels": 0.5, "logits": 0.5, "hidden": 1.0},
        layers={"encoder": {0: 0, 1: 1}, "decoder": {0: 1}},
    )  # fmt: skip
    return student, train(student, where, scheme, loss=loss)


def taught_hidden(where: Path, scheme: Scheme) -> Result:
    """Nothing reaches the head, nor the decoder's last layer."""
    teacher, student = start("bart"), start("bart", tie_word_embeddings=False)
    loss = DistillationLoss(
        student.model, teacher.model, {"hidden": 1.0}, layers={"encoder": {0: 0}, "decoder": {0: 1}}
    )
    return student, train(student, where, scheme, loss=loss)


def long_inputs(where: Path, scheme: Scheme) -> Result:
    """A stack whose layers one process calls in runs."""
    model = start("longt5")
    return model, train(model, where, scheme, {"gradient_checkpointing": True})


def of_some_rows(where: Path, scheme: Scheme) -> Result:
    """Global biases, which rows of 16 tokens use: one process has such, or both, or none."""
    model = start("longt5", encoder_attention_type="transient-global")
    sources = [
        [3 + (row * 7 + i * i) % 40 for i in range(20 if row % 3 else 6)] for row in range(13)
    ]
    rows = Examples(sources, examples(model.head, 13).targets)
    return model, train(model, where, scheme, {"micro_batch_size": 1, "batch_size": 3}, rows=rows)


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


def stop_training(where: Path, scheme: Scheme, model: Checkpoint, **rest: Any) -> Result:
    try:
        return model, train(model, where, scheme, **rest)
    except StageError as error:
        return model, {"error": str(error).replace(str(where), "FOLDER")}


def not_a_number(where: Path, scheme: Scheme) -> Result:
    model = start("t5")
    with torch.no_grad():
        model.model.get_parameter("encoder.final_layer_norm.weight")[3] = torch.nan
    return stop_training(where, scheme, model)


def overflown(where: Path, scheme: Scheme) -> Result:
    model = start("t5")
    return stop_training(where, scheme, model, loss=Steep(model.model))


def interrupt(model: Checkpoint, where: Path, scheme: Scheme) -> None:
    """Train up to the fourth step; the last checkpoint is of an earlier one."""

    def after_step(step: int, total: int, whole: Any) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        train(model, where, scheme, {"checkpoint_seconds": 0}, after_step=after_step)


def gone_on(where: Path, scheme: Scheme) -> Result:
    """Interrupted, and gone on from its checkpoint, with dropout."""
    interrupt(start("t5", dropout_rate=0.1), where, scheme)
    return train_t5({}, where, scheme, dropout_rate=0.1)


def left_over(where: Path, scheme: Scheme) -> Result:
    """Interrupted; the checkpoint stays, for another number of processes."""
    model = start("t5")
    interrupt(model, where, scheme)
    return model, {"error": "interrupted"}


TRAININGS = {
    **{name: partial(train_family, case) for name, case in FAMILIES.items()},
    "one_row": partial(train_t5, {"batch_size": 1}),  # the other process has none
    "checkpointed": partial(train_t5, {"gradient_checkpointing": True}),
    "bfloat16": partial(train_t5, {"precision": "bfloat16"}),
    "with_dropout": partial(train_t5, {}, dropout_rate=0.1),
    "taken_over": partial(train_t5, {}),  # from what another number of processes has left
    **{case.__name__: case for case in (aware, gradual, masked, taught, taught_hidden)},
    **{case.__name__: case for case in (gone_on, left_over, long_inputs, of_some_rows)},
    **{case.__name__: case for case in (not_a_number, overflown, adapted)},
}
WHOLE = {"adapted"}
"""Trainings that are not in shards."""


def run(name: str, folder: Path, scheme: Scheme, *, first: bool) -> dict[str, Any]:
    """One case; its weights and masks are left in the folder by the first process."""
    model, told = TRAININGS[name](folder / f"{name}.resume", scheme)
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
    for kind in SCHEMES:
        for name in [n for n in TRAININGS if kind == "ddp" or n not in WHOLE]:
            is_first = os.environ["RANK"] == "0"
            run(name, Path(sys.argv[1]) / kind, Scheme(kind=kind), first=is_first)
    sys.stdout.flush()
    os._exit(0)  # see compressor.engine.worker.main
