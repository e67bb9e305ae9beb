"""Which models can be written as ONNX graphs, and what has to be installed. Imports no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from compressor.core.errors import StageError
from compressor.core.packages import suggest_install

SUPPORTED: Mapping[str, frozenset[str]] = {
    "seq2seq_lm": frozenset({"t5", "mt5", "bart", "mbart", "pegasus", "marian"}),
    "sequence_classification": frozenset(
        {"bert", "roberta", "electra", "distilbert", "gpt2", "llama", "qwen2", "qwen3"}
    ),
}
"""Head → model types that `export.write` takes. A model with blocks is taken as its type is.

Left out: LongT5, whose transient-global attention is traced for one length alone.
"""

WRITES = ("onnx", "onnxscript")
"""What writing needs beside torch."""

RUNS = ("onnxruntime",)
"""What running needs beside numpy."""


def require_packages(*packages: str) -> None:
    """Raise StageError for a package that is not installed, naming the extra that brings it."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise StageError(
                f"the package {package} is not installed; {suggest_install('onnx')} brings it"
            )
