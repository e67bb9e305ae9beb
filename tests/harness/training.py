"""Train a model without a stage around it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from compressor.core.console import Console
from compressor.core.progress import Progress
from compressor.data.examples import Examples
from compressor.training.hyperparameters import Hyperparameters
from compressor.training.loop import Training
from compressor.training.losses import LabelLoss


def make_training(
    model: nn.Module, rows: Examples, folder: Path, settings: Mapping[str, Any], **others: Any
) -> Training:
    """A training of a model on its labels, with its checkpoints in a folder."""
    usual: dict[str, Any] = {
        "loss": LabelLoss(model), "validation": None, "masks": {}, "pad_id": 0, "seed": 0,
        "progress": Progress(Console(quiet=True), quiet=True),
    }  # fmt: skip
    return Training(
        model=model, train=rows, settings=Hyperparameters(**settings), resume=folder,
        **usual | others,
    )  # fmt: skip
