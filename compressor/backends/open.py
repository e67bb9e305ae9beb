"""Open a saved model with whatever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.backends.base import EXPORT, Model
from compressor.core.ranks import ALONE, Ranks


def open_artifact(folder: Path, *, threads: int | None = None, ranks: Ranks = ALONE) -> Model:
    """Open the model in a stage's artifact: an export's by its format, any other with torch."""
    exported = folder / "model"
    if (exported / EXPORT).is_file():
        from compressor.backends.formats import ExportInfo

        about = ExportInfo.load(exported).model_dump()
        return open_export(exported, about, threads=threads, ranks=ranks)
    from compressor.backends.torch.model import TorchModel
    from compressor.models.checkpoint import Checkpoint

    return TorchModel(Checkpoint.load(folder), threads=threads, ranks=ranks)


def open_export(
    folder: Path, about: Mapping[str, Any], *, threads: int | None = None, ranks: Ranks = ALONE
) -> Model:
    """Open an exported directory with what its format is made for.

    `about` is what its `compressor.json` says; `threads` how many it computes with. What torch
    runs is shared out over `ranks`.
    """
    if about["format"] == "ctranslate2":
        from compressor.backends import ctranslate2

        return ctranslate2.load_model(folder, about, threads=threads)
    if about["format"] == "onnx":
        from compressor.backends.onnx.runtime import OnnxModel

        return OnnxModel.load(folder, threads=threads)
    if about["format"] == "gguf":
        from compressor.backends.gguf.runtime import LlamaCppModel

        return LlamaCppModel(folder, threads)
    from compressor.backends.torch import model

    return model.load_model(folder, about, threads=threads, ranks=ranks)
