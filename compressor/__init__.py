"""Compress transformer models from YAML recipes. Importing this loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compressor.backends.predictor import Predictor

__version__ = "0.1.0"


def load(place: str | Path, *, threads: int | None = None) -> Predictor:
    """A model with its tokenizer: `.summarize(texts)` or `.classify(texts)`, whatever runs it.

    `place` is a directory that `export` wrote; a run's folder, for what its last `export` wrote or,
    without one, the model of its last stage that gives one; or one of its `stages/…`. Texts are
    read as in the recipe: prefix, limit, truncation. What CTranslate2 or ONNX Runtime runs is
    loaded without torch. `threads`: how many it computes with; default: the backend's own choice.
    Raises `compressor.core.errors.StageError` where there is no model, or it cannot be loaded.
    """
    from compressor.backends import predictor

    return predictor.load_predictor(Path(place), threads=threads)


def load_model(directory: str | Path) -> PreTrainedModel:
    """The model in a directory that this package wrote, as plain transformers'.

    That is what `export` writes as `huggingface` or `packed`, and the folder of a run's stage; for
    the other formats see `load`. In float32 (a `quantize` stage's as it was quantized), on the CPU,
    in evaluation mode; tied weights are tied,
    and the generation config is the written one. The tokenizer beside it:
    `AutoTokenizer.from_pretrained(directory)`. Raises StageError (`compressor.core.errors`) where a
    file is damaged or is not what its config says; no code is read from it.
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
