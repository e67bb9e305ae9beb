"""`approximate`: replace encoder layers by a block that learns their outputs.

The block is in `models.block`, its loss in `compression.approximation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from compressor.core.settings import Integer, Listed
from compressor.data.source_base import Reads, Split
from compressor.models.block_config import BlockSizes
from compressor.models.facts import Facts
from compressor.models.structure import Stack
from compressor.stages.base import Context, Inputs, Planning, Stage
from compressor.stages.finetune import run_training
from compressor.training.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    from compressor.compression.approximation import Teacher
    from compressor.models.block import Block
    from compressor.models.checkpoint import Checkpoint
    from compressor.training.losses import TrainingRows

_NOISE = ("sequence_length", "batches", "validation_batches")
TRAIN, VALIDATION = 0, 1
"""Streams of noise."""


class Approximate(Hyperparameters, Stage):
    """Replace consecutive encoder layers by one smaller block that learns their outputs.

    Block-wise approximation: the frozen layers are the teacher; the student is a block of attention
    between small networks, trained on the mean difference between the two outputs. With
    `inputs: random` both read standard normal hidden states and no text; with `inputs: data` they
    read what the layers below make of the data's rows. `epochs: 0` keeps the block as it was drawn,
    to compare with. The rest of the model does not change: a `finetune` or `distill` after it
    trains the whole.

    Metrics: `validation_loss`; `baseline_loss`, of predicting the running mean of the teacher's
    outputs; `teacher_parameters` and `block_parameters`. Sizes, optimizer, epochs and numbers of
    batches are the published ones for BERT-base, whose length and batch size are not known. The
    learning rate of a fine-tuning is another matter: it is not taken from `training:`.

    For BERT, RoBERTa, ELECTRA, DistilBERT, and the encoders of BART and Marian. Load the result
    with `compressor.load_model`: plain transformers knows no such block, and finds no weights.

    Example: `approximate: {layers: [0, 1], block: {heads: 12, head_size: 32}}`
    Example: `approximate: {layers: [2, 3, 4], inputs: data, loss: mse, max_steps: 500}`
    """

    version: ClassVar[int] = 2
    section: ClassVar[str | None] = "training"
    measures: ClassVar[tuple[str, ...]] = ("train_loss", "validation_loss", "baseline_loss")
    section_keys: ClassVar[frozenset[str] | None] = frozenset(
        ("batch_size", "micro_batch_size", "max_epochs", "max_steps")
    ) | {"precision", "checkpoint_seconds", "trackers"}
    is_distributed: ClassVar[bool] = True

    epochs: Integer = Field(2, ge=0, description="Passes over the rows; 0 trains nothing.")
    learning_rate: float = Field(
        1e-3, gt=0, description="At the end of the warm-up; then linear to 0."
    )
    weight_decay: float = Field(1e-4, ge=0, description="Decoupled, as in AdamW (1711.05101).")
    layers: Listed[Integer] = Field(
        min_length=1, description="Which layers of the encoder, from 0: one, or neighbours."
    )
    block: BlockSizes = Field(
        default_factory=BlockSizes,
        description="Its `heads` and `head_size`, the `depth` of linear layers with GELU before "
        "each projection, and `dropout`.",
    )
    inputs: Literal["random", "data"] = Field(
        "random",
        description="random: standard normal hidden states; data: the hidden states of the rows.",
    )
    loss: Literal["l1", "mse"] = Field(
        "l1", description="Mean over elements of the absolute difference, or of its square."
    )
    sequence_length: Integer = Field(128, ge=1, description="Positions of a row of noise.")
    batches: Integer = Field(1000, ge=1, description="Batches of noise in an epoch.")
    validation_batches: Integer = Field(100, ge=1, description="Batches of noise to validate with.")

    def is_random(self) -> bool:
        return True

    def reads(self) -> Mapping[Split, Reads]:
        used = self.inputs == "data" and self.capped_epochs
        return {"train": "sources", "validation": "sources"} if used else {}

    def parameters(self) -> dict[str, Any]:
        """Leave out the amount of noise where there is none."""
        names = {"layers", "block", "inputs", "loss"}
        names |= set(_NOISE) if self.inputs == "random" else set()
        return self.key_parts() | self.model_dump(mode="json", include=names)

    def preview(self, planning: Planning) -> Facts | None:
        """Count exactly; report layers that are missing, or that no block can replace."""
        facts = planning.facts
        self._check_settings(planning)
        if facts is None or not planning.require_float("train on"):
            return facts
        stack = facts.list_stacks().get("encoder")
        if stack is None or stack.stays:
            reason = stack.stays if stack else "it has no encoder"
            planning.report("", f"no block can stand in a {facts.model_type}: {reason}")
            return facts
        if not self._check_layers(stack, planning):
            return facts
        smaller = facts.replace_layers("encoder", self.layers, self.block)
        others = [layer for layer in range(stack.layers) if layer not in self.layers]
        rest = facts.keep_layers({"encoder": others}).parameters
        before, after = facts.parameters - rest, smaller.parameters - rest
        if after >= before:
            message = f"has {after:,} parameters, and the layers only {before:,}; lower heads, "
            planning.report("block", f"{message}head_size or depth")
        return smaller

    def _check_settings(self, planning: Planning) -> None:
        self.check_trackers(planning.report)
        self.check_decay(planning.report)
        if self.gradient_checkpointing:
            planning.report("gradient_checkpointing", "one block has no memory to save by it")
        if self.inputs == "random":
            return
        for name in _NOISE:
            if name in self.model_fields_set:
                planning.report(name, "has no meaning with inputs 'data', which has its own rows")
        if self.capped_epochs and planning.facts is not None:
            path, length = "data.max_source_length", planning.data.max_source_length
            planning.check_length(path, length, f"; lower {path}", facts=planning.facts)

    def _check_layers(self, stack: Stack, planning: Planning) -> bool:
        """Report layers that are missing, or not neighbours; tell whether all is well."""
        outside = [i for i, layer in enumerate(self.layers) if not 0 <= layer < stack.layers]
        for index in outside:
            message = f"{self.layers[index]} is outside 0 … {stack.layers - 1}, the layers it has"
            planning.report(f"layers.{index}", message)
        expected = tuple(range(self.layers[0], self.layers[0] + len(self.layers)))
        if not outside and self.layers != expected:
            layers = list(self.layers)
            planning.report("layers", f"expected neighbours in their order, got {layers}")
        return not outside and self.layers == expected

    def run(self, inputs: Inputs, context: Context) -> Checkpoint:
        """Draw the block, train it beside the layers, and put it in their place."""
        import torch

        from compressor.compression.approximation import Teacher
        from compressor.models.block import Block
        from compressor.models.surgery import replace_layers

        checkpoint = inputs.checkpoint()
        teacher = Teacher(checkpoint, self.layers)
        torch.manual_seed(context.seed)  # of the block
        block = Block(checkpoint.model.config.hidden_size, self.block)
        context.metrics.update(
            teacher_parameters=sum(p.numel() for p in teacher.layers.parameters()),
            block_parameters=sum(p.numel() for p in block.parameters()),
        )
        if self.capped_epochs:
            self._train(block, teacher, checkpoint, context)
        return replace_layers(checkpoint, self.layers, block)

    def _train(
        self, block: Block, teacher: Teacher, checkpoint: Checkpoint, context: Context
    ) -> None:
        from compressor.compression.approximation import ApproximationLoss, Constant, running_mean
        from compressor.data.batching import global_batches
        from compressor.training.losses import mean_loss

        train, validation = self._rows(checkpoint, context)
        pad_id = checkpoint.pad_id if self.inputs == "data" else 0
        training = run_training(
            self,
            context,
            loss=ApproximationLoss(teacher, block, self.loss),
            model=block,
            train=train,
            validation=validation,
            masks={},
            pad_id=pad_id,
        )
        if training.rank != 0:
            return
        lengths, device = train.lengths(), training.accelerator.device
        batches = global_batches(
            lengths, lengths, batch_size=self.batch_size, seed=context.seed, epoch=0
        )
        mean = running_mean(teacher, train, batches[: training.total_steps], pad_id, device)
        floor = ApproximationLoss(teacher, Constant(mean), self.loss)
        context.metrics["baseline_loss"] = mean_loss(floor, validation, pad_id, device)

    def _rows(self, checkpoint: Checkpoint, context: Context) -> tuple[TrainingRows, TrainingRows]:
        """Make or read the rows to train on, and those to validate with."""
        from compressor.compression.approximation import NoiseRows
        from compressor.data.examples import Examples, tokenize_sources

        if self.inputs == "random":
            shape = (self.sequence_length, checkpoint.model.config.hidden_size, context.seed)
            return (
                NoiseRows(self.batches * self.batch_size, *shape, TRAIN),
                NoiseRows(self.validation_batches * self.batch_size, *shape, VALIDATION),
            )
        tokenizer = checkpoint.require_tokenizer()
        train, validation = (
            tokenize_sources(context.rows(split).texts, tokenizer, context.data)
            for split in ("train", "validation")
        )
        # The tokens that are read count, so a row's own ids are its targets.
        return Examples(train, train), Examples(validation, validation)
