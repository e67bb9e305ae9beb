"""`quantize`: store weights in fewer bits. The layers are in `models.quantized_layers`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from compressor.core.settings import Integer
from compressor.data.source_base import Reads, Split
from compressor.models.facts import Facts
from compressor.models.quantization import (
    ACTIVATIONS,
    Activations,
    Grid,
    Kind,
    Method,
    Quantization,
    Weights,
)
from compressor.stages.base import Context, Inputs, Planning, Stage

if TYPE_CHECKING:
    from compressor.models.checkpoint import Checkpoint
    from compressor.models.quantized_layers import Quantized


class Quantize(Grid, Stage):
    """Store the model's weights in fewer bits. Later stages evaluate, measure and save the
    quantized model. A zero stays a zero, whatever the weights become:

    - int8: one float32 scale for each row, symmetric; an entry moves by at most half a scale.
    - int4: one bfloat16 scale for each `group_size` entries of a row. Embeddings are int8, also
      where a head is tied to one, and so are weights whose columns the groups do not divide.
    - bfloat16, float16: everything in that type, and computed in it.

    int8 and int4 are for the weights of all linear layers and word embeddings of at least 1,024
    rows; norms, biases, position embeddings and GPT-2's `Conv1D` layers stay float32.

    `method: gptq` (arXiv 2210.17323) rounds the weights of linear layers column by column, and lets
    those still to come make up for the error on `calibration_rows` rows of the training split; the
    scale of a group is the one of least error. It takes minutes, where `round`, to the nearest,
    takes seconds. Tables are rounded to the nearest.

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
    Example: `quantize: {weights: int4, method: round}`
    """

    version: ClassVar[int] = 2

    weights: Weights = Field("int8", description="How weights are stored.")
    activations: Activations | None = Field(
        None,
        description="On a CPU. int8, the default for int8 weights: integer products, with a scale "
        "for each token; fastest. bfloat16, the default for int4: inputs are rounded to it. float: "
        "weights are turned to float for each product; exact, slower.",
    )
    method: Method | None = Field(
        None,
        description="How int8 and int4 are chosen. round: to the nearest. gptq: by the error on "
        "training rows. Default: gptq for int4 where training rows have a loss, but not after a "
        "`quantization_aware` training, whose values are those of round; else round.",
    )
    calibration_rows: Integer = Field(64, ge=1, description="Training rows that gptq looks at.")

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
        if self.method != "gptq" or self.kind is None:
            unused |= {"method", "calibration_rows"}
        return {key: value for key, value in parameters.items() if key not in unused}

    def reads(self) -> Mapping[Split, Reads]:
        return {"train": "pairs"} if self.method == "gptq" else {}

    def resolve(self, planning: Planning) -> Quantize:
        if self.method is not None or self.weights != "int4" or planning.facts is None:
            return self
        if planning.facts.rounded_for == self.weights:
            return self.choose("the model was trained for these values", method="round")
        missing = planning.explain_missing_loss()
        reason = missing or "training rows have a loss"
        return self.choose(reason, method="round" if missing else "gptq")

    def preview(self, planning: Planning) -> Facts | None:
        facts = planning.facts
        valid = ACTIVATIONS[self.weights]
        if self.activations is not None and self.activations not in valid:
            message = f"{self.weights} weights go with {' or '.join(map(repr, valid))}"
            planning.report("activations", f"{message}, got {self.activations!r}")
        self._check_method(planning)
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

    def _check_method(self, planning: Planning) -> None:
        """Report settings that mean nothing, and a calibration that cannot be made."""
        unused = self.model_fields_set - self.parameters().keys()
        of_weights = {"group_size", "embeddings"} | ({"method"} if self.kind is None else set())
        for key in sorted(of_weights & unused):
            planning.report(key, f"has no meaning with {self.weights} weights")
        if "calibration_rows" in unused:
            planning.report("calibration_rows", "means nothing without `method: gptq`")
        if self.method != "gptq" or self.kind is None:
            return
        planning.check_rows(trains=True)
        facts = planning.facts
        if facts is not None and not self.choose_calibrated(self.kind, facts):
            message = f"no weight of a {facts.model_type} is one that gptq rounds; take 'round'"
            planning.report("method", message)

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
            rounded = self._calibrate(checkpoint, context) if self.method == "gptq" else {}
            quantize_weights(checkpoint.model, kinds, self.group_size, rounded)
            set_activations(checkpoint.model, self.quantization)
            context.metrics["quantized_tensors"] = dict(Counter(kinds.values()))
        checkpoint.quantization = self.quantization
        checkpoint.masks = {}  # zeros are still zeros, and nothing trains after this
        return checkpoint

    def _calibrate(self, checkpoint: Checkpoint, context: Context) -> dict[str, Quantized]:
        """Round the weights of linear layers by what comes into them."""
        from compressor.compression.calibration import Calibration
        from compressor.compression.gptq import quantize_with_gptq

        assert self.kind is not None, "planned"
        kinds = self.choose_calibrated(self.kind, checkpoint.derive_facts())
        rows = context.rows("train").first(self.calibration_rows)
        calibration = Calibration(checkpoint, checkpoint.tokenize_rows(rows, context.data))
        with context.progress.bar("quantize", len(kinds)) as bar:
            rounded = quantize_with_gptq(calibration, kinds, self.group_size, bar.advance)
        context.metrics["calibrated_tensors"] = len(rounded)
        return rounded
