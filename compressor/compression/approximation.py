"""Teach a block what layers of an encoder do: its rows, its loss, and the floor beside it.

No training here, and no block: those are `compressor.training.loop` and `compressor.models.block`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from compressor.data.batching import IGNORED
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import list_stacks
from compressor.models.surgery import keep_layers

if TYPE_CHECKING:
    from compressor.training.losses import TrainingRows

Difference = Literal["l1", "mse"]
SMOOTHING = 0.01
"""What the newest batch weighs in the running mean: the published α."""


@dataclass(frozen=True)
class NoiseRows:
    """Rows of standard normal hidden states, without text.

    Each row [length, width] is drawn from (seed, stream, row) by a generator of its own: whatever
    the batches and however many the processes, the same row has the same numbers.
    """

    count: int
    length: int
    width: int
    seed: int
    stream: int
    """Rows of another stream are other rows: validation's are not the training's."""

    @property
    def targets(self) -> Sequence[range]:
        """Every position counts."""
        return [range(self.length)] * self.count

    def __len__(self) -> int:
        return self.count

    def lengths(self) -> list[int]:
        return [self.length] * self.count

    def batch(self, rows: list[int], pad_id: int) -> dict[str, Tensor]:
        """Make `hidden_states` [B, T, D], `attention_mask` and `labels` [B, T].

        Labels say what counts: 0 does, -100 does not. Without rows: one position that does not.
        """
        del pad_id
        if not rows:
            one = torch.ones((1, 1), dtype=torch.int64)
            hidden = torch.zeros((1, 1, self.width))
            return {"hidden_states": hidden, "attention_mask": one, "labels": one * IGNORED}
        hidden = torch.from_numpy(np.stack([self._make_row(row) for row in rows]))
        real = torch.ones(hidden.shape[:2], dtype=torch.int64)
        return {"hidden_states": hidden, "attention_mask": real, "labels": real * 0}

    def _make_row(self, row: int) -> np.ndarray:
        chance = np.random.default_rng((self.seed, self.stream, row))
        drawn: np.ndarray = chance.standard_normal((self.length, self.width), dtype=np.float32)
        return drawn


class Teacher(nn.Module):
    """Consecutive layers of an encoder, frozen and without dropout.

    Of a batch with `hidden_states` they read these; of one with `input_ids`, what the embeddings
    and the layers before them make of the text.
    """

    def __init__(self, checkpoint: Checkpoint, layers: Sequence[int]) -> None:
        """Copy what is needed of the model: no layer behind the last of `layers`."""
        super().__init__()
        up_to = keep_layers(checkpoint, {"encoder": list(range(layers[-1] + 1))})
        stack = list_stacks(up_to.model.config, up_to.head)["encoder"]
        model: Any = up_to.model
        self.encoder = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
        self.encoder.eval().requires_grad_(requires_grad=False)
        self.first = layers[0]
        self.layers = model.get_submodule(stack.prefix)[self.first :]

    def train(self, mode: bool = True) -> Teacher:  # noqa: FBT001, FBT002  # as torch's
        """Stay in evaluation mode: a teacher never trains."""
        return super().train(mode=False)

    @torch.no_grad()
    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Give what the layers read [B, T, D], the mask they are handed, what they give [B, T, D].

        In the precision the weights are in, also under autocast.
        """
        real = batch["attention_mask"]
        with torch.autocast(real.device.type, enabled=False):
            if "hidden_states" in batch:
                given = wanted = batch["hidden_states"]
                mask = self._make_mask(given, real)
                for layer in self.layers:
                    wanted = layer(wanted, mask)
                return given, mask, wanted
            states = self.encoder(
                input_ids=batch["input_ids"], attention_mask=real, output_hidden_states=True
            ).hidden_states
            return states[self.first], self._make_mask(states[self.first], real), states[-1]

    def _make_mask(self, hidden: Tensor, real: Tensor) -> Tensor | None:
        """Make the mask that the encoder itself would hand to its layers."""
        mask: Tensor | None = create_bidirectional_mask(self.encoder.config, hidden, real)
        return mask


class ApproximationLoss(nn.Module):
    """How far a block is from a teacher, summed over the N positions that count.

    At a position it is the mean over its D entries of |block - teacher|, or of the square: divided
    by N, a mean over all elements. In float32. Padding counts nowhere.
    """

    def __init__(self, teacher: Teacher, block: nn.Module, difference: Difference) -> None:
        super().__init__()
        self.teacher, self.block, self.difference = teacher, block, difference

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Compute the summed loss, a float32 scalar."""
        given, mask, wanted = self.teacher(batch)
        difference = self.block(given, mask).float() - wanted.float()
        entries = difference.abs() if self.difference == "l1" else difference.square()
        summed: Tensor = (entries.mean(-1) * (batch["labels"] != IGNORED)).sum()
        return summed


class Constant(nn.Module):
    """The floor: one vector [D] for every position, whatever it reads."""

    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.register_buffer("vector", vector)

    vector: Tensor

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
        """Give the vector, [B, T, D]."""
        del mask
        return self.vector.expand_as(hidden_states)


def running_mean(
    teacher: Teacher,
    rows: TrainingRows,
    batches: Iterable[list[int]],
    pad_id: int,
    device: torch.device,
) -> Tensor:
    """Compute the running mean [D] of what the teacher gives, batch after batch.

    It begins with the first batch's mean; each further batch moves it by `SMOOTHING` of the way to
    its own.
    """
    mean: Tensor | None = None
    for chosen in batches:
        batch = {name: t.to(device) for name, t in rows.batch(chosen, pad_id).items()}
        _, _, wanted = teacher(batch)
        now = wanted[batch["labels"] != IGNORED].mean(0)
        mean = now if mean is None else mean + SMOOTHING * (now - mean)
    assert mean is not None, "there is a batch in every epoch"
    return mean
