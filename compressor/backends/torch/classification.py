"""A classifier's logits for rows of text, for evaluation and timing. Scores are not here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from compressor.backends.outputs import NOT_FINITE, Report, ignore
from compressor.core.errors import StageError
from compressor.core.ranks import ALONE, Ranks
from compressor.data.batching import evaluation_batches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compressor.models.checkpoint import Checkpoint

BATCH_TOKENS = 16_384
"""Padded tokens of a batch: bounds its memory."""


@torch.inference_mode()
def compute_logits(
    checkpoint: Checkpoint,
    sources: Sequence[list[int]],
    *,
    progress: Report = ignore,
    ranks: Ranks = ALONE,
) -> NDArray[np.float64]:
    """Compute the logits [N, L] of token ids, in their order; several `ranks` in shares."""
    from compressor.data.examples import Examples

    model = checkpoint.model.eval()
    examples = Examples(list(sources), [[0]] * len(sources), "class")
    logits: dict[int, NDArray[np.float64]] = {}
    batches = evaluation_batches(examples.lengths(), tokens=BATCH_TOKENS)
    for batch, done in ranks.shares(batches):
        inputs = examples.batch(batch, checkpoint.pad_id)
        del inputs["labels"]
        out = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
        if not bool(torch.isfinite(out.logits).all()):
            raise StageError(NOT_FINITE)
        logits |= dict(zip(batch, out.logits.double().cpu().numpy(), strict=True))
        progress(done)
    logits = ranks.together(logits)
    if not logits:
        return np.empty((0, model.config.num_labels))
    return np.stack([logits[row] for row in range(len(sources))])
