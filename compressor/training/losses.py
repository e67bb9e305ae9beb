"""The loss of a model on its own labels, summed over them. No distillation, no training.

The head is run where there is a label, not on padding: for a vocabulary of 32,000 a row of logits
is 128 kB, and a padded position costs as much as a real one, forth and back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.data.batching import IGNORED, evaluation_batches
from compressor.models.architectures.t5 import T5_TYPES, scales_outputs
from compressor.models.longt5 import decode_in_chunks, encode_in_chunks

MULTI_LABEL = "multi_label_classification"
"""`config.problem_type` of a model with a yes or no for each of its labels, in transformers."""

EVALUATION_TOKENS = 16_384
"""Padded source tokens of one batch of the validation loss: bounds its memory."""

BART_TYPES = frozenset({"bart", "mbart", "pegasus", "marian"})

CAUSAL_TYPES = frozenset({"gpt2", "llama", "qwen2", "qwen3"})


class TrainingRows(Protocol):
    """Rows that batches can be made of, in any order; `Examples` are such."""

    @property
    def targets(self) -> Sequence[Sized]:
        """For each row as many items as the loss sums over in it."""

    def __len__(self) -> int: ...

    def lengths(self) -> list[int]:
        """Count the tokens of each row that a model reads at once."""

    def batch(self, rows: list[int], pad_id: int) -> dict[str, Tensor]:
        """Make a batch as the loss takes it; of no rows, one with a loss of 0."""


class LabelLoss(nn.Module):
    """The sum of the cross-entropy over the label tokens of a batch (not the mean).

    Divide by the labels of the whole global batch, over ranks and micro-batches, to get a result
    that does not depend on how the batch was cut. Value and gradients are those of
    `model(**batch).loss` times the number of labels; the cross-entropy is float32 under autocast
    too. A batch whose labels are all -100 gives 0, with a gradient of 0 for what comes before the
    head.

    `labels` are class indices: [B, T] for language models and token classification, [B] for
    sequence classification. Of a multi-label classifier they are 0 or 1, [B, L], the loss is the
    binary cross-entropy, and each of a row's L labels counts as a label token does. Not covered:
    regression.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        hf: Any = model
        self._kind = hf.config.model_type
        # A causal model reads its labels itself: the logits at a place predict the next label.
        self._causal = not hf.config.is_encoder_decoder and hf.can_generate()
        self.classifies = type(model).__name__.endswith("ForSequenceClassification")
        self.multi_label = hf.config.problem_type == MULTI_LABEL

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Sum the loss of a batch: a float32 scalar."""
        return self.of_logits(*self.compute_logits(batch))

    def of_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum the loss of what `compute_logits` gives: a float32 scalar."""
        if self.multi_label:
            return functional.binary_cross_entropy_with_logits(
                logits.float(), labels.float(), reduction="sum"
            )
        return functional.cross_entropy(logits.float(), labels, reduction="sum")

    def compute_logits(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the logits [N, V] where there is a label, and the N labels.

        Of a multi-label classifier there is one logit for each label: [N].
        """
        labels = self.select_labels(batch["labels"])
        if hasattr(self.model, "lm_head"):
            kept = labels != IGNORED
            return self._compute_kept(batch, kept), labels[kept]
        given = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return self.keep_labelled(self.model(**given).logits, batch["labels"])

    def keep_labelled(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Select what `compute_logits` gives from all the logits of a model's forward."""
        labels = self.select_labels(labels)
        if self.multi_label:
            labels = labels.expand_as(logits)  # a batch of no rows has one for all
        kept = labels != IGNORED
        return (logits[:, :-1] if self._causal else logits)[kept], labels[kept]

    def select_labels(self, labels: Tensor) -> Tensor:
        """Select the labels that positions predict: a causal model's but the first, [B, T - 1]."""
        return labels[:, 1:] if self._causal else labels

    def _compute_kept(self, batch: dict[str, Tensor], kept: Tensor) -> Tensor:
        """Compute the logits [N, V] at the kept positions alone."""
        if self._kind in T5_TYPES:
            return t5_logits(self.model, batch, kept)
        if self._kind in BART_TYPES:
            return bart_logits(self.model, batch, kept)
        return causal_logits(self.model, batch, kept)


def t5_logits(model: Any, batch: dict[str, Tensor], kept: Tensor) -> Tensor:
    """Do as `T5ForConditionalGeneration.forward` does, with its head on the kept positions only."""
    mask = batch["attention_mask"]
    encoded = encode_in_chunks(model.encoder, batch["input_ids"], mask)
    ids = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    hidden = decode_in_chunks(model.decoder, ids, encoded, mask)[kept]
    if scales_outputs(model.config.model_type, vars(model.config)):
        hidden = hidden * model.model_dim**-0.5
    logits: Tensor = model.lm_head(hidden)
    return logits


def bart_logits(model: Any, batch: dict[str, Tensor], kept: Tensor) -> Tensor:
    """Do as the BART family's forward does, with its head on the kept positions only."""
    hidden = model.model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=decoder_inputs(model, batch["labels"]),
        use_cache=False,
    )[0][kept]
    logits: Tensor = model.lm_head(hidden) + model.final_logits_bias
    return logits


def decoder_inputs(model: Any, labels: Tensor) -> Tensor:
    """Make what an encoder-decoder's decoder reads of its labels [B, T]."""
    if model.config.model_type == "mbart" and not (labels != IGNORED).any():
        # Its decoder starts with a row's last label, and here no row has one.
        return labels.masked_fill(labels == IGNORED, model.config.pad_token_id)
    ids: Tensor = model.prepare_decoder_input_ids_from_labels(labels)
    return ids


def causal_logits(model: Any, batch: dict[str, Tensor], kept: Tensor) -> Tensor:
    """Do as a decoder's forward does, with its head where the next label is kept only."""
    hidden = model.base_model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    )[0]
    logits: Tensor = model.lm_head(hidden[:, :-1][kept])
    return logits


@torch.no_grad()
def summed_loss(
    loss: Callable[[dict[str, Tensor]], Tensor],
    examples: TrainingRows,
    pad_id: int,
    device: torch.device,
    *,
    rank: int = 0,
    world: int = 1,
) -> Tensor:
    """Sum the loss over the label tokens of every row, or of a rank's share: float64, [1]."""
    summed = torch.zeros(1, device=device, dtype=torch.float64)
    batches = evaluation_batches(examples.lengths(), tokens=EVALUATION_TOKENS)
    # As many turns on every rank: where weights are sharded, all take part in each.
    batches += [[] for _ in range(-len(batches) % world)]
    for rows in batches[rank::world]:
        batch = examples.batch(rows, pad_id)
        summed += loss({name: tensor.to(device) for name, tensor in batch.items()}).double()
    return summed


def mean_loss(loss: nn.Module, examples: TrainingRows, pad_id: int, device: torch.device) -> float:
    """Average the loss over every label token of the rows, each counted once."""
    tokens = sum(len(target) for target in examples.targets)
    return summed_loss(loss, examples, pad_id, device).item() / tokens
