"""Open a saved model with whatever runs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compressor.backends.base import EXPORT, Model
from compressor.core.errors import StageError
from compressor.core.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from compressor.backends.formats import ExportInfo


def open_artifact(folder: Path, *, threads: int | None = None, ranks: Ranks = ALONE) -> Model:
    """Open the model in a stage's artifact: an export's by its format, any other with torch."""
    exported = folder / "model"
    if (exported / EXPORT).is_file():
        from compressor.backends.formats import ExportInfo

        return open_export(exported, ExportInfo.load(exported), threads=threads, ranks=ranks)
    from compressor.backends.torch.model import TorchModel
    from compressor.models.checkpoint import Checkpoint

    return TorchModel(Checkpoint.load(folder), threads=threads, ranks=ranks)


def open_export(
    folder: Path, info: ExportInfo, *, threads: int | None = None, ranks: Ranks = ALONE
) -> Model:
    """Open an exported directory with what its format is made for.

    `threads`: how many it computes with. What torch runs is shared out over `ranks`. Raises
    StageError where a package is missing.
    """
    from compressor.backends.formats import FORMATS, explain_missing

    if missing := explain_missing(info.format, FORMATS[info.format].runs):
        raise StageError(missing)
    if info.format == "ctranslate2":
        from compressor.backends.ctranslate2.runtime import load_model

        return load_model(folder, info.head, threads=threads)
    if info.format == "onnx":
        from compressor.backends.onnx.runtime import OnnxModel

        return OnnxModel(folder, threads)
    if info.format == "gguf":
        from compressor.backends.gguf.runtime import LlamaCppModel

        return LlamaCppModel(folder, threads)
    from compressor.backends.torch.model import TorchModel, load_exported

    return TorchModel(load_exported(folder, info.head), threads=threads, ranks=ranks)
