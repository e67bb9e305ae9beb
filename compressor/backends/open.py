"""Open a saved model with whatever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.backends import EXPORT, Model
from compressor.ranks import ALONE, Ranks


def open_artifact(folder: Path, *, threads: int | None = None, ranks: Ranks = ALONE) -> Model:
    """Open the model in a stage's artifact: an export's by its format, any other with torch."""
    exported = folder / "model"
    if (exported / EXPORT).is_file():
        from compressor.formats import Exported

        about = Exported.load(exported).model_dump()
        return open_export(exported, about, threads=threads, ranks=ranks)
    from compressor.backends.pytorch import TorchModel
    from compressor.checkpoint import Checkpoint

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

        return ctranslate2.load(folder, about, threads=threads)
    if about["format"] == "onnx":
        from compressor.backends.onnxruntime import OnnxModel

        return OnnxModel.load(folder, threads=threads)
    if about["format"] == "gguf":
        from compressor.backends.llamacpp import LlamaCppModel

        return LlamaCppModel(folder, threads)
    from compressor.backends import pytorch

    return pytorch.load(folder, about, threads=threads, ranks=ranks)
