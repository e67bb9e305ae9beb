"""`export`: a directory that plain transformers loads."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from compressor.architectures import Facts
from compressor.errors import StageError
from compressor.stage import Context, Inputs, Planning, Stage


class Export(Stage):
    """Write `model/`, which `AutoModelForSeq2SeqLM.from_pretrained` loads without this package.

    The directory is loaded again and must give the same logits. An int8 model is written with the
    float values that its weights stand for: plain transformers has no int8 layer of this kind, so
    the file is as large as the float model's. `dtype: bfloat16` halves it, and rounds.

    Example: `export: {model: recover, dtype: float32}`
    """

    version: ClassVar[int] = 1
    changes_model: ClassVar[bool] = False

    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Of the weights written.")

    def preview(self, planning: Planning) -> Facts | None:
        return replace(planning.facts, int8=frozenset()) if planning.facts else None

    def run(self, inputs: Inputs, context: Context) -> None:
        """Write, load again, compare."""
        import torch

        from compressor.checkpoint import WEIGHTS, dequantized, load_pretrained, save_pretrained

        checkpoint = inputs.checkpoint()
        if checkpoint.int8_activations is not None:
            checkpoint = dequantized(checkpoint)
        model = checkpoint.model.to(getattr(torch, self.dtype))
        folder = context.folder / "model"
        save_pretrained(model, folder)
        if checkpoint.tokenizer is not None:
            checkpoint.tokenizer.save_pretrained(folder)
        again = load_pretrained(folder, checkpoint.head)
        ids = torch.arange(2, 34).remainder(model.config.vocab_size)[None]
        inputs_ = {"input_ids": ids}
        if model.config.is_encoder_decoder:
            inputs_["decoder_input_ids"] = ids[:, :8]
        with torch.inference_mode():
            expected = next(iter(model.float()(**inputs_).values()))
            got = next(iter(again(**inputs_).values()))
        difference = float((expected - got).abs().max())
        if difference != 0:
            raise StageError(
                f"the exported model's logits differ from its source's by {difference:g}"
            )
        context.metrics.update(
            bytes=(folder / WEIGHTS).stat().st_size, dtype=self.dtype, logits_difference=difference
        )
