"""Compress transformer models from YAML recipes. Importing this loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__version__ = "0.1.0"


def load_packed(directory: str | Path) -> PreTrainedModel:
    """The model that `export: {format: packed}` wrote into `directory`, as plain transformers'.

    In float32, on the CPU, in evaluation mode; tied weights are tied, and the generation config is
    the written one. The tokenizer beside it: `AutoTokenizer.from_pretrained(directory)`. Raises
    `compressor.errors.StageError` where the file is damaged or is not what its config says; no
    code is read from it.
    """
    from compressor import packed_model

    return packed_model.load_packed(Path(directory))
