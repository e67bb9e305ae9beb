"""Models that torch runs: what stages hand to each other, and exports that transformers reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compressor.backends.base import Model
from compressor.backends.generation_config import BackendName
from compressor.backends.outputs import Report, Search, ignore
from compressor.backends.packed import FILE as PACKED
from compressor.backends.packed import load_packed
from compressor.backends.torch import classification, generation
from compressor.core.ranks import ALONE, Ranks
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import has_tokenizer, load_pretrained, load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TorchModel(Model):
    """A checkpoint's model, on a GPU where there is one.

    Of several `ranks` each computes a share of the batches that one process would make, and has
    what all of them found. Every one of them must ask for the same.
    """

    backend: BackendName = "torch"

    def __init__(
        self, checkpoint: Checkpoint, *, threads: int | None = None, ranks: Ranks = ALONE
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        ranks.join()
        self.checkpoint, self.ranks = checkpoint, ranks
        self.tokenizer = checkpoint.tokenizer
        if checkpoint.head == "seq2seq_lm":
            self.generation_config = checkpoint.model.generation_config.to_dict()
        checkpoint.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.device = str(checkpoint.model.device)

    def _decode_rows(
        self, sources: Sequence[list[int]], search: Search, progress: Report
    ) -> list[list[int]]:
        if self.checkpoint.head != "seq2seq_lm":
            return super()._decode_rows(sources, search, progress)
        tokens = generation.BATCH_TOKENS
        model = self.checkpoint.model
        return generation.decode_rows(model, sources, search, tokens, progress, self.ranks)

    def logits(
        self, sources: Sequence[list[int]], *, progress: Report = ignore
    ) -> NDArray[np.float64]:
        """Compute a classifier's logits [rows, labels]; of another head, its first output at one
        token of each row: the last one where it tells the next, else the first.
        """
        if self.checkpoint.head == "sequence_classification":
            return classification.compute_logits(
                self.checkpoint, sources, progress=progress, ranks=self.ranks
            )
        place = -1 if self.checkpoint.head == "causal_lm" else 0
        model, rows = self.checkpoint.model, []
        with torch.inference_mode():
            for source in sources:
                outputs = model(input_ids=torch.tensor([source], device=model.device))
                rows.append(next(iter(outputs.values()))[0, place].double().cpu())
        return torch.stack(rows).numpy()


def load_exported(folder: Path, head: Any) -> Checkpoint:
    """Load an exported model of the format `huggingface` or `packed`."""
    packed = (folder / PACKED).is_file()
    model = load_packed(folder) if packed else load_pretrained(folder, head, dtype="auto")
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    return Checkpoint(model, tokenizer, head)
