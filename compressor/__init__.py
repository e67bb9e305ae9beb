"""Compress transformer models from YAML recipes. Importing this loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compressor.backends.predictor import Predictor

__version__ = "0.1.0"


def load(place: str | Path, *, threads: int | None = None) -> Predictor:
    """Load a model of any backend with its tokenizer, to `.write`, `.classify` or `.tag` texts.

    `place` is a directory that `export` wrote; one of a run's `stages/…`; or a run's folder, for
    its last export or, without one, the model of its last stage that has one. Texts are read as in
    the recipe: prefix, limit, truncation. A model of CTranslate2 or ONNX Runtime is loaded without
    torch. `threads` to compute with: None is the backend's default. Raises
    `compressor.core.errors.StageError` if there is no model, or it cannot be loaded.
    """
    from compressor.backends import predictor

    return predictor.load_predictor(Path(place), threads=threads)


def load_model(directory: str | Path) -> PreTrainedModel:
    """Load the model in a directory that this package wrote, as a plain transformers model.

    The directory is an export as `huggingface` or `packed`, or the folder of a run's stage; for the
    other formats see `load`. The model is in float32 (after `quantize`, as it was quantized), on
    the CPU and in evaluation mode, with its tied weights and its generation config. Load its
    tokenizer by `AutoTokenizer.from_pretrained(directory)`. Raises
    `compressor.core.errors.StageError` if a file is damaged or does not fit its config; no code is
    read from it.
    """
    from compressor.backends import packed as packed_model
    from compressor.models.checkpoint import Checkpoint
    from compressor.models.loading import CHECKPOINT_JSON, find_head, load_pretrained

    folder = Path(directory)
    if (folder / packed_model.FILE).is_file():
        return packed_model.load_packed(folder)
    if (folder / CHECKPOINT_JSON).is_file():
        return Checkpoint.load(folder).model
    return load_pretrained(folder, find_head(folder))
