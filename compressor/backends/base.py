"""A model that can be run, whatever runs it. Each backend's own code is in the module of its name.

Nothing here imports torch: what ONNX Runtime, CTranslate2 or llama.cpp runs needs neither
torch nor transformers in its process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from compressor.backends.generation_config import BackendName

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compressor.backends.outputs import GenerationOutput


EXPORT = "compressor.json"
"""The file of an exported model that says what runs it, and how its texts are read."""


class Model(Protocol):
    """A loaded model. Rows are token ids, the end token included."""

    backend: BackendName
    device: str
    """Where it is computed: "cpu", "cuda:0"."""
    tokenizer: Any
    """What `compressor.data.examples` takes, or None for a model without one."""

    def sweep(
        self,
        sources: Sequence[list[int]],
        *,
        max_lengths: Sequence[int],
        num_beams: int = 1,
        min_length: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> dict[int, GenerationOutput]:
        """Decode at each limit: see `compressor.backends.torch.generation.decode_sweep`."""

    def logits(
        self, sources: Sequence[list[int]], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float64]:
        """A classifier's logits [rows, labels], in the order of the rows."""
