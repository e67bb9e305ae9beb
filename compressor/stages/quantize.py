"""`quantize`: int8 weights. The maths and the layers are in `compressor.sparsity.int8`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from compressor.architectures import Facts
from compressor.stage import Context, Inputs, Planning, Stage

if TYPE_CHECKING:
    from compressor.checkpoint import Checkpoint


class Quantize(Stage):
    """Store the weights of all linear layers, and of an embedding tied to one, as int8.

    One float32 scale for each row, symmetric: an entry moves by at most half a scale, a zero stays
    zero. The quantized model is what later stages evaluate, measure and save.

    Example: `quantize: {weights: int8, activations: int8}`
    """

    version: ClassVar[int] = 1

    weights: Literal["int8"] = Field("int8", description="How weights are stored.")
    activations: Literal["float", "int8"] = Field(
        "int8",
        description="int8: on a CPU, products are integer ones, with one scale for each input "
        "tensor: fastest. float: weights are turned to float for each product: exact, slower.",
    )

    def preview(self, planning: Planning) -> Facts | None:
        facts = planning.facts
        if facts is None:
            return None
        if facts.int8:
            planning.problem("", "the model is int8 already")
        names = facts.linear()
        # BART and mBART scale inside the embedding that int8 replaces; Pegasus and Marian outside.
        scales = facts.model_type in ("bart", "mbart") and facts.config.get("scale_embedding")
        if scales and "model.shared.weight" in names:
            planning.problem("", "the embedding is tied and scaled (scale_embedding); int8 is not")
        return replace(facts, int8=frozenset(names), exact=False)

    def run(self, inputs: Inputs, context: Context) -> Checkpoint:
        """Quantize, and measure the largest error relative to each weight's largest entry."""
        from compressor.sparsity.int8 import int8_layers, replace_by_int8

        checkpoint = inputs.checkpoint()
        context.metrics["quantized_tensors"] = len(replace_by_int8(checkpoint.model))
        for layer in int8_layers(checkpoint.model):
            layer.activations = self.activations
        checkpoint.int8_activations = self.activations
        checkpoint.masks = {}  # zeros are zeros in int8 too, and nothing trains after this
        return checkpoint
