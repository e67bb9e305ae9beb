"""`smooth`: move the outliers of activations into the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from compressor.core.settings import Integer
from compressor.data.source_base import Reads, Split
from compressor.models.facts import Facts
from compressor.stages.base import Context, Inputs, Planning, Stage

if TYPE_CHECKING:
    from compressor.models.checkpoint import Checkpoint


class Smooth(Stage):
    """Make activations easier to round for int8 products: SmoothQuant, arXiv 2211.10438.

    A few channels of a layer's input are much larger than the others, and use up the one scale that
    int8 has for a token. Each channel is divided by a factor where it is written, and multiplied by
    it in the weights that read it, so that the float model gives what it gave. The factor is
    `max|x|^alpha / max|w|^(1 - alpha)`, over `calibration_rows` rows of the training split.

    For T5 and mT5: the outputs of norms, values and neurons, but not what a tied head reads. Put it
    before `quantize` or an int8 `export`; it helps where activations are rounded too: ONNX Runtime,
    `activations: int8`, CTranslate2, whose `export` does it by itself.

    Example: `smooth: {model: recover, alpha: 0.5}`
    """

    version: ClassVar[int] = 1

    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="How much of the outliers moves into weights; 0.5 shares them evenly.",
    )
    calibration_rows: Integer = Field(32, ge=1, description="Training rows that are looked at.")

    def reads(self) -> Mapping[Split, Reads]:
        return {"train": "pairs"}

    def preview(self, planning: Planning) -> Facts | None:
        facts = planning.facts
        if facts is None:
            return None
        if planning.require_float("smooth") and not facts.list_channels():
            planning.report("", f"knows T5 and mT5, and this is a {facts.model_type}")
        planning.check_rows(trains=True)
        return replace(facts, smoothed=True)

    def run(self, inputs: Inputs, context: Context) -> Checkpoint:
        """Read some rows, then rescale."""
        from compressor.compression.smoothing import smooth_checkpoint

        checkpoint = inputs.checkpoint()
        rows = context.rows("train").first(self.calibration_rows)
        examples = checkpoint.tokenize_rows(rows, context.data)
        factors = smooth_checkpoint(checkpoint, examples, self.alpha)
        context.metrics["channels"] = sum(len(factor) for factor in factors)
        context.metrics["largest_factor"] = max(float(factor.max()) for factor in factors)
        return checkpoint
