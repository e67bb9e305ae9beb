"""Models that torch runs: what stages hand to each other, and exports that transformers reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compressor.backends.generation_config import BackendName
from compressor.backends.packed import FILE as PACKED
from compressor.backends.packed import load_packed
from compressor.backends.torch import classification, generation
from compressor.core.ranks import ALONE, Ranks
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import has_tokenizer, load_pretrained, load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compressor.backends.outputs import GenerationOutput


class TorchModel:
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
        self.tokenizer: Any = checkpoint.tokenizer
        checkpoint.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.device = str(checkpoint.model.device)

    def sweep(
        self,
        sources: Sequence[list[int]],
        *,
        max_lengths: Sequence[int],
        num_beams: int = 1,
        min_length: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> dict[int, GenerationOutput]:
        """Decode at each limit."""
        return generation.decode_sweep(
            self.checkpoint.model,
            sources,
            max_lengths=max_lengths,
            num_beams=num_beams,
            min_length=min_length,
            progress=progress,
            ranks=self.ranks,
        )

    def logits(
        self, sources: Sequence[list[int]], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float64]:
        """A classifier's logits [rows, labels]. Of another head, its first output at one token of
        each row: the last one where it tells the next, else the first.
        """
        if self.checkpoint.head == "sequence_classification":
            return classification.of_sources(
                self.checkpoint, sources, progress=progress, ranks=self.ranks
            )
        place = -1 if self.checkpoint.head == "causal_lm" else 0
        model, found = self.checkpoint.model, []
        with torch.inference_mode():
            for source in sources:
                outputs = model(input_ids=torch.tensor([source], device=model.device))
                found.append(next(iter(outputs.values()))[0, place].double().cpu())
        return torch.stack(found).numpy()


def load_model(
    folder: Path, about: Mapping[str, Any], *, threads: int | None = None, ranks: Ranks = ALONE
) -> TorchModel:
    """An exported model of the format `huggingface` or `packed`."""
    head = about["head"]
    packed = (folder / PACKED).is_file()
    model = load_packed(folder) if packed else load_pretrained(folder, head, dtype="auto")
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    return TorchModel(Checkpoint(model, tokenizer, head), threads=threads, ranks=ranks)
