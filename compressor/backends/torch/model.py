"""Models that torch runs: what stages hand to each other, and exports that transformers reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from compressor.backends.base import CLASSIFIERS, WRITERS, Model
from compressor.backends.generation_config import BackendName
from compressor.backends.outputs import NOT_FINITE, Report, Search, ignore
from compressor.backends.packed import FILE as PACKED
from compressor.backends.packed import load_packed
from compressor.backends.torch import generation
from compressor.core.errors import StageError
from compressor.core.ranks import ALONE, Ranks
from compressor.data.batching import IGNORED, evaluation_batches
from compressor.data.examples import Examples
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import has_tokenizer, load_pretrained, load_tokenizer

if TYPE_CHECKING:
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
        self.continues = checkpoint.head == "causal_lm"
        if checkpoint.head in WRITERS:
            self.generation_config = checkpoint.model.generation_config.to_dict()
        checkpoint.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.device = str(checkpoint.model.device)

    def _decode_rows(
        self, sources: Sequence[list[int]], search: Search, progress: Report
    ) -> list[list[int]]:
        if self.checkpoint.head not in WRITERS:
            return super()._decode_rows(sources, search, progress)
        model = self.checkpoint.model
        most = self.checkpoint.derive_facts().positions
        longest = max(map(len, sources), default=0)
        if self.continues and most is not None and longest + search.max_length > most:
            raise StageError(
                f"a prompt of {longest:,} tokens and {search.max_length:,} new ones are more than "
                f"the {most:,} positions of the model; lower max_length or data.max_source_length"
            )
        return generation.decode_rows(model, sources, search, progress, self.ranks)

    @torch.inference_mode()
    def sum_losses(
        self,
        sources: Sequence[list[int]],
        targets: Sequence[list[int]],
        *,
        progress: Report = ignore,
    ) -> list[float]:
        if not self.continues:
            return super().sum_losses(sources, targets)
        model: Any = self.checkpoint.model.eval()
        examples = Examples(sources, targets, "joined")
        losses: dict[int, float] = {}
        batches = evaluation_batches(examples.lengths(), tokens=generation.BATCH_TOKENS)
        for batch, done in self.ranks.iterate_batches(batches):
            inputs = examples.batch(batch, 0)
            labels = inputs.pop("labels")[:, 1:].to(model.device)
            inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            states = model.base_model(**inputs, use_cache=False)[0][:, :-1]
            for row, state, label in zip(batch, states, labels, strict=True):
                counted = label != IGNORED  # row by row: logits are as wide as the vocabulary
                logits = model.lm_head(state[counted]).float()
                losses[row] = cross_entropy(logits, label[counted], reduction="sum").item()
            progress(done)
        losses = self.ranks.gather(losses)
        if not all(map(math.isfinite, losses.values())):
            raise StageError(NOT_FINITE)
        return [losses[row] for row in range(len(sources))]

    def logits(
        self, sources: Sequence[list[int]], *, progress: Report = ignore
    ) -> NDArray[np.float64]:
        """Compute a classifier's logits [rows, labels], or those of each token [tokens, labels]; of
        another head, its first output at one token of each row: the last one where it tells the
        next, else the first.
        """
        if self.checkpoint.head in CLASSIFIERS:
            return self._classify(sources, progress)
        place = -1 if self.checkpoint.head == "causal_lm" else 0
        model, rows = self.checkpoint.model, []
        with torch.inference_mode():
            for source in sources:
                outputs = model(input_ids=torch.tensor([source], device=model.device))
                rows.append(next(iter(outputs.values()))[0, place].double().cpu())
        return torch.stack(rows).numpy()

    @torch.inference_mode()
    def _classify(self, sources: Sequence[list[int]], progress: Report) -> NDArray[np.float64]:
        model = self.checkpoint.model.eval()
        of_tokens = self.checkpoint.head == "token_classification"
        examples = Examples(list(sources), [[0]] * len(sources), "class")
        logits: dict[int, NDArray[np.float64]] = {}
        batches = evaluation_batches(examples.lengths(), tokens=generation.BATCH_TOKENS)
        for batch, done in self.ranks.iterate_batches(batches):
            inputs = examples.batch(batch, self.checkpoint.pad_id)
            del inputs["labels"]
            out = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
            if not bool(torch.isfinite(out.logits).all()):
                raise StageError(NOT_FINITE)
            values = out.logits.double().cpu().numpy()
            if of_tokens:
                values = [row[: len(sources[i])] for i, row in zip(batch, values, strict=True)]
            logits |= dict(zip(batch, values, strict=True))
            progress(done)
        logits = self.ranks.gather(logits)
        rows = [logits[row] for row in range(len(sources))]
        if not rows:
            return np.empty((0, model.config.num_labels))
        return np.concatenate(rows) if of_tokens else np.stack(rows)


def load_exported(folder: Path, head: Any) -> Checkpoint:
    """Load an exported model of the format `huggingface` or `packed`."""
    packed = (folder / PACKED).is_file()
    model = load_packed(folder) if packed else load_pretrained(folder, head, dtype="auto")
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    return Checkpoint(model, tokenizer, head)
