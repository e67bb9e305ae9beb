"""A model that can be run, whatever runs it. Each backend's own code is in the module of its name.

Nothing here imports torch: what ONNX Runtime, CTranslate2 or llama.cpp runs needs neither
torch nor transformers in its process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from compressor.backends.generation_config import BackendName
from compressor.backends.outputs import GenerationOutput, Report, Search, decode_limits, ignore
from compressor.core.errors import StageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


EXPORT = "compressor.json"
"""The file of an exported model that says what runs it, and how its texts are read."""
WRITERS = ("seq2seq_lm", "causal_lm")
"""The heads of models that write text."""
CLASSIFIERS = ("sequence_classification", "token_classification")
"""The heads of models that give labels, of a text or of its tokens."""


class Model:
    """A loaded model of any backend. A row is a list of token ids, the end token included."""

    backend: BackendName
    device: str = "cpu"
    """The device it runs on, such as "cpu" or "cuda:0"."""
    tokenizer: Any = None
    """A tokenizer that `compressor.data.examples` takes; None for a model without one."""
    generation_config: Mapping[str, Any] = MappingProxyType({})
    continues: bool = False
    """Whether it is a decoder, whose output goes on from its source."""

    def generate_each_limit(
        self,
        sources: Sequence[list[int]],
        *,
        max_lengths: Sequence[int],
        num_beams: int = 1,
        min_length: int = 0,
        progress: Report = ignore,
    ) -> dict[int, GenerationOutput]:
        """Generate under each of `max_lengths`; if greedy, at the cost of the longest alone.

        Lengths count an encoder-decoder's start token; a decoder's sources are prompts, and its
        lengths count new tokens. `min_length` 0 leaves it, like all else but beams, to the
        generation config. `progress` gets the number of rows just done. Raises ValueError
        for a limit below 1, StageError where the model or a setting is none to decode with.
        """
        return decode_limits(
            lambda search: self._decode_rows(sources, search, progress),
            max_lengths,
            self.generation_config,
            self.backend,
            num_beams=num_beams,
            min_length=min_length,
            counts_start=not self.continues,
        )

    def _decode_rows(
        self, sources: Sequence[list[int]], search: Search, progress: Report
    ) -> list[list[int]]:
        """Decode under one limit: rows up to their end token, in the order of the sources."""
        raise StageError("a model without a language head writes no text")

    def sum_losses(
        self,
        sources: Sequence[list[int]],
        targets: Sequence[list[int]],
        *,
        progress: Report = ignore,
    ) -> list[float]:
        """Sum a decoder's negative log-likelihoods of the tokens of each target after its source.

        In nats. A source has at least one token.
        """
        raise StageError("perplexity is a decoder's")

    def logits(
        self, sources: Sequence[list[int]], *, progress: Report = ignore
    ) -> NDArray[np.float64]:
        """Compute a classifier's logits [rows, labels], in the order of the rows.

        One with the head `token_classification` gives those of every token, row after row: [tokens,
        labels].
        """
        raise StageError("an encoder-decoder gives no labels")
