"""`quantize`: store weights in fewer bits. The layers are in `models.quantized_layers`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from compressor.models.facts import Facts
from compressor.models.quantization import (
    ACTIVATIONS,
    Activations,
    Grid,
    Kind,
    Quantization,
    Weights,
)
from compressor.stages.base import Context, Inputs, Planning, Stage

if TYPE_CHECKING:
    from compressor.models.checkpoint import Checkpoint


class Quantize(Grid, Stage):
    """Store the model's weights in fewer bits. Later stages evaluate, measure and save the
    quantized model. A zero stays a zero, whatever the weights become:

    - int8: one float32 scale for each row, symmetric; an entry moves by at most half a scale.
    - int4: one bfloat16 scale for each `group_size` entries of a row. Embeddings are int8, also
      where a head is tied to one, and so are weights whose columns the groups do not divide.
    - bfloat16, float16: everything in that type, and computed in it.

    int8 and int4 are for the weights of all linear layers and word embeddings of at least 1,024
    rows; norms, biases, position embeddings and GPT-2's `Conv1D` layers stay float32.

    Every kind runs on any CPU and, untested, on a GPU. How fast:

    | weights  | activations | on a CPU                                             | on a GPU |
    |----------|-------------|------------------------------------------------------|----------|
    | int8     | int8        | fastest; x86 without VNNI has 7 bits for activations | as float |
    | int8     | float       | turned to float for each product: slower than float  | the same |
    | int4     | bfloat16    | fast for few tokens, with AVX-512 or AVX2            | as float |
    | int4     | float       | turned to float for each product: slowest for few    | the same |
    | bfloat16 |             | fast where the processor has such products           | Ampere   |
    | float16  |             | slower than float32 without AVX512-FP16              | any      |

    float16 ends at 65,504, which activations of some models exceed, such as larger T5s': take
    bfloat16 for those.

    Example: `quantize: {weights: int8, activations: int8}`
    Example: `quantize: {weights: int4, group_size: 64}`
    """

    version: ClassVar[int] = 2

    weights: Weights = Field("int8", description="How weights are stored.")
    activations: Activations | None = Field(
        None,
        description="On a CPU. int8, the default for int8 weights: integer products, with a scale "
        "for each token; fastest. bfloat16, the default for int4: inputs are rounded to it. float: "
        "weights are turned to float for each product; exact, slower.",
    )

    @property
    def quantization(self) -> Quantization:
        """What the model becomes, with defaults filled in."""
        activations = self.activations or ACTIVATIONS[self.weights][0]
        return Quantization(weights=self.weights, activations=activations)

    @property
    def kind(self) -> Kind | None:
        """The integers that weights become; None where they stay floating-point."""
        return self.weights if self.weights in ("int8", "int4") else None

    def parameters(self) -> dict[str, Any]:
        """Leave out settings of other weights, and fill in the defaults of these."""
        parameters = super().parameters() | self.quantization.model_dump()
        unused = {"int8": {"group_size"}, "int4": set()}.get(
            self.weights, {"group_size", "embeddings"}
        )
        return {key: value for key, value in parameters.items() if key not in unused}

    def preview(self, planning: Planning) -> Facts | None:
        facts = planning.facts
        valid = ACTIVATIONS[self.weights]
        if self.activations is not None and self.activations not in valid:
            message = f"{self.weights} weights go with {' or '.join(map(repr, valid))}"
            planning.report("activations", f"{message}, got {self.activations!r}")
        for key in {"group_size", "embeddings"} & self.model_fields_set - self.parameters().keys():
            planning.report(key, f"has no meaning with {self.weights} weights")
        if facts is None:
            return None
        if facts.quantized_kind:
            planning.report("", f"this is {facts.quantized_kind} already")
        if self.kind is None:
            return replace(facts, weights=self.weights, exact=False)
        self.check_groups(self.kind, facts, planning.report)
        kinds = self.choose_kinds(self.kind, facts)
        int8, int4 = (
            frozenset(name for name, kind in kinds.items() if kind == wanted)
            for wanted in ("int8", "int4")
        )
        sizes: dict[str, Any] = {"int8": int8, "int4": int4, "group_size": self.group_size}
        return replace(facts, weights=self.weights, exact=False, **sizes)

    def run(self, inputs: Inputs, context: Context) -> Checkpoint:
        """Quantize, and count how many tensors became what."""
        from compressor.models.loading import cast_weights
        from compressor.models.quantized_layers import quantize_weights, set_activations

        checkpoint = inputs.checkpoint()
        if self.kind is None:
            count = cast_weights(checkpoint.model, self.weights)
            context.metrics["quantized_tensors"] = {self.weights: count}
        else:
            kinds = self.choose_kinds(self.kind, checkpoint.derive_facts())
            quantize_weights(checkpoint.model, kinds, self.group_size)
            set_activations(checkpoint.model, self.quantization)
            context.metrics["quantized_tensors"] = dict(Counter(kinds.values()))
        checkpoint.quantization = self.quantization
        checkpoint.masks = {}  # zeros are still zeros, and nothing trains after this
        return checkpoint
