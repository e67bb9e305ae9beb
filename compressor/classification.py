"""A classifier's logits for rows of text, for evaluation and timing. Scores are not here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from compressor.data.batching import evaluation_batches

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compressor.checkpoint import Checkpoint

BATCH_TOKENS = 16_384
"""Padded tokens of a batch: bounds its memory."""


@torch.inference_mode()
def of_sources(
    checkpoint: Checkpoint,
    sources: Sequence[list[int]],
    *,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """The logits [N, L] of token ids, in their order."""
    from compressor.data.examples import Examples

    model = checkpoint.model.eval()
    examples = Examples(list(sources), [[0]] * len(sources), "class")
    found = torch.empty(len(sources), model.config.num_labels, dtype=torch.float64)
    for batch in evaluation_batches(examples.lengths(), tokens=BATCH_TOKENS):
        inputs = examples.batch(batch, checkpoint.pad_id)
        del inputs["labels"]
        out = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
        found[batch] = out.logits.double().cpu()
        if progress is not None:
            progress(len(batch))
    return found.numpy()
