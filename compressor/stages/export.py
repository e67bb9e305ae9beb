"""`export`: a directory that plain transformers loads, or a packed one that is much smaller."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from compressor.architectures import HALF, Facts
from compressor.errors import StageError
from compressor.stage import Context, Inputs, Planning, Stage

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from compressor.checkpoint import Checkpoint


EXACT_VALUES: dict[str, tuple[str, ...]] = {
    "int8": ("int8",),
    "int4": (),
    "bfloat16": ("bfloat16", "float32"),
    "float16": ("float32",),
}
"""Weights of a quantized model → values of a packed file that are the same numbers."""
ROUNDING = 1e-5
"""Of the largest logit: what float32 products of equal numbers may differ by."""


class Export(Stage):
    """Write `model/`, which plain transformers loads: `AutoModelForSeq2SeqLM.from_pretrained`, or
    the class of the model's head. A model with a block (see `approximate`) is loaded by
    `compressor.load_model` alone: plain transformers finds no weights there, and says so. The
    directory is loaded again and must give the same logits. An int8 or int4 model is written with
    the float values that its weights stand for: plain transformers has no such layer, so the file
    is as large as the float model's. `dtype: bfloat16` halves it, and rounds. A bfloat16 or float16
    model is written in its own type.

    `format: packed` writes a file that `compressor.load_model` gives back as a plain model: of a
    weight with zeros a bit for each entry and the others' values, matrices in int8 (one scale a
    row; an entry moves by at most half of it), bfloat16 or float32. An int8 model's values and
    scales stay as they are; there is no int4. What it computes is checked against the same rounding
    in memory.

    Example: `export: {model: recover, format: packed, values: int8}`
    """

    version: ClassVar[int] = 1
    changes_model: ClassVar[bool] = False

    format: Literal["huggingface", "packed"] = Field(
        "huggingface", description="huggingface: plain. packed: small, for `load_model`."
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None,
        description="Of the weights written, with `format: huggingface`; default: a bfloat16 or "
        "float16 model's own, else float32.",
    )
    values: Literal["int8", "bfloat16", "float32"] = Field(
        "int8", description="How matrices are stored, with `format: packed`."
    )

    def preview(self, planning: Planning) -> Facts | None:
        other, own = ("dtype", "values") if self.format == "packed" else ("values", "dtype")
        if other in self.model_fields_set:
            planning.problem(other, f"has no meaning with format {self.format!r}; set {own!r}")
        facts = planning.facts
        if facts is None:
            return None
        if self.format == "packed":
            self._check_packed(facts, planning)
            return facts.dequantized()
        return replace(facts.dequantized(), weights=self._dtype(facts.weights))

    def _check_packed(self, facts: Facts, planning: Planning) -> None:
        """Report values that are not those of a quantized model."""
        exact = EXACT_VALUES.get(facts.weights, (self.values,))
        if not exact:
            planning.problem("format", "a packed file has no int4; take 'huggingface'")
        elif self.values not in exact:
            expected = " or ".join(map(repr, exact))
            message = f"the model is {facts.weights} already; expected {expected}"
            planning.problem("values", f"{message}, got {self.values!r}")

    def _dtype(self, weights: str) -> str:
        """The type of a plain file's weights, of a model with such weights."""
        return self.dtype or (weights if weights in HALF else "float32")

    def run(self, inputs: Inputs, context: Context) -> None:
        """Write, load again, compare."""
        checkpoint = inputs.checkpoint()
        write = self._packed if self.format == "packed" else self._plain
        context.metrics.update(format=self.format, **write(checkpoint, context))

    def _plain(self, checkpoint: Checkpoint, context: Context) -> dict[str, Any]:
        import torch

        from compressor.checkpoint import (
            dequantized,
            load_pretrained,
            save_pretrained,
            weights_file,
        )

        weights = "float32"
        if checkpoint.quantization is not None:
            weights = checkpoint.quantization.weights
            checkpoint = dequantized(checkpoint)
        dtype = self._dtype(weights)
        model = checkpoint.model.to(getattr(torch, dtype))
        folder = context.folder / "model"
        save_pretrained(model, folder)
        if checkpoint.tokenizer is not None:
            checkpoint.tokenizer.save_pretrained(folder)
        again = load_pretrained(folder, checkpoint.head)
        difference = _require_equal(model.float(), again)
        return {
            "bytes": weights_file(folder).stat().st_size,
            "dtype": dtype,
            "logits_difference": difference,
        }

    def _packed(self, checkpoint: Checkpoint, context: Context) -> dict[str, Any]:
        import torch

        from compressor.checkpoint import dequantized
        from compressor.packed_model import FILE, load_packed, save_packed

        folder = context.folder / "model"
        if checkpoint.quantization is not None and checkpoint.quantization.half:
            checkpoint = dequantized(checkpoint)
        packed = save_packed(checkpoint, folder, self.values)
        if checkpoint.quantization is not None:
            checkpoint = dequantized(checkpoint)
        model = checkpoint.model
        source = _logits(model)
        state = model.state_dict()
        with torch.no_grad():
            for name, entry in packed.items():
                state[name].copy_(entry.unpack())
        _require_equal(model, load_packed(folder))
        tensors = {
            name: {
                "shape": list(entry.shape),
                "values": str(entry.values.dtype).removeprefix("torch."),
                "kept": entry.values.numel(),
                "mask_bytes": entry.mask_bytes,
                "value_bytes": entry.value_bytes,
            }
            for name, entry in packed.items()
        }
        return {
            "bytes": (folder / FILE).stat().st_size,
            "mask_bytes": sum(entry.mask_bytes for entry in packed.values()),
            "value_bytes": sum(entry.value_bytes for entry in packed.values()),
            "values": self.values,
            "logits_difference": float((source - _logits(model)).abs().max()),
            "tensors": tensors,
        }


def _logits(model: PreTrainedModel) -> Tensor:
    """The first output for some ids: enough to tell one set of weights from another."""
    import torch

    ids = torch.arange(2, 34).remainder(model.config.vocab_size)[None]
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :8]
    with torch.inference_mode():
        logits: Tensor = next(iter(model(**inputs).values()))
    return logits


def _require_equal(expected: PreTrainedModel, got: PreTrainedModel) -> float:
    """The largest difference of some logits. Raises StageError unless all tensors are equal.

    Equal tensors may differ in their last bit of a product, by where in memory they lie.
    """
    import torch

    found = got.state_dict()
    for name, tensor in expected.state_dict().items():
        if name not in found or not torch.equal(tensor, found[name]):
            raise StageError(f"the exported model's {name} is not its source's")
    source, again = _logits(expected), _logits(got)
    difference = float((source - again).abs().max())
    if not difference <= ROUNDING * float(source.abs().max()):
        raise StageError(f"the exported model's logits differ from its source's by {difference:g}")
    return difference
