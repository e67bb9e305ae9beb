"""`smooth`: move the outliers of activations into the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from compressor.core.numbers import require_finite
from compressor.core.settings import Integer
from compressor.data.source_base import Reads, Split
from compressor.models.facts import Facts
from compressor.stages.base import Context, Inputs, Planning, Stage

if TYPE_CHECKING:
    from compressor.models.checkpoint import Checkpoint

CALIBRATION_BATCH = 8


class Smooth(Stage):
    """Make activations easier to round for int8 products: SmoothQuant, arXiv 2211.10438.

    A few channels of a layer's input are much larger than the others, and use up the one scale that
    int8 has for a token. Each channel is divided by a factor where it is written, and multiplied by
    it in the weights that read it, so that the float model gives what it gave. The factor is
    `max|x|^alpha / max|w|^(1 - alpha)`, over `calibration_rows` rows of the training split.

    For T5 and mT5: the outputs of norms, values and neurons, but not what a tied head reads. Put it
    before `quantize` or an int8 `export`; it helps where activations are rounded too: CTranslate2,
    ONNX Runtime, `activations: int8`.

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
        return facts

    def run(self, inputs: Inputs, context: Context) -> Checkpoint:
        """Read some rows, then rescale."""
        import torch

        from compressor.compression.smoothing import input_peaks, rescale_channels

        checkpoint = inputs.checkpoint()
        model, channels = checkpoint.model, checkpoint.derive_facts().list_channels()
        chosen = context.rows("train").first(self.calibration_rows)
        examples = checkpoint.tokenize_rows(chosen, context.data)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model.to(device)
        with input_peaks(model, [c.readers[0] for c in channels]) as peaks, torch.no_grad():
            for start in range(0, len(examples), CALIBRATION_BATCH):
                rows = list(range(start, min(start + CALIBRATION_BATCH, len(examples))))
                batch = examples.batch(rows, checkpoint.pad_id)
                model(**{name: tensor.to(device) for name, tensor in batch.items()})
        require_finite(
            peaks,
            "what comes into ",
            "activations on the calibration rows overflow, as after a training that diverged",
        )
        factors = rescale_channels(model, channels, peaks, self.alpha)
        model.to("cpu")
        context.metrics["channels"] = sum(len(factor) for factor in factors)
        context.metrics["largest_factor"] = max(float(factor.max()) for factor in factors)
        return checkpoint
