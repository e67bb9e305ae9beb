"""`shrink`: drop whole layers: by number, evenly, or those that the loss needs least."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from compressor.core.settings import Counted, to_int
from compressor.data.source_base import Reads, Split
from compressor.models.facts import Facts, evenly_spaced
from compressor.stages.base import Context, Inputs, Planning, Stage

if TYPE_CHECKING:
    from compressor.models.checkpoint import Checkpoint

Layers = int | Annotated[float, Field(gt=0, le=1)] | list[int]
_LAYERS = "How many stay, their share in (0, 1], or which (from 0)."


class Shrink(Stage):
    """Drop whole layers of a stack: keep so many, or the listed ones.

    They are evenly spaced from the first: 6 layers to 3, or to a share of 0.5, keeps 0, 2, 4; to 4
    keeps 0, 1, 3, 4. As in "shrink and fine-tune" (Shleifer & Rush, 2010.13002), the smaller model
    needs fine-tuning. `importance: loss` measures the model on a few training rows without each
    layer in turn, drops the one that is missed least, and measures again, in at most four rounds; a
    decoder's first and last layers stay. Try both: on a real T5 the even ones lost less.

    Example: `shrink: {decoder_layers: 3}` or `shrink: {encoder_layers: [0, 2, 5]}`
    Example: `shrink: {encoder_layers: 0.5, decoder_layers: 0.5, importance: loss}`
    """

    version: ClassVar[int] = 2

    encoder_layers: Layers | None = Field(None, description=_LAYERS)
    decoder_layers: Layers | None = Field(None, description=_LAYERS)
    importance: Literal["even", "loss"] = Field(
        "even", description="Which of the layers stay where their number is given."
    )
    calibration_rows: Counted = Field(
        16, description="Training rows that `importance: loss` reads."
    )

    @field_validator("encoder_layers", "decoder_layers", mode="before")
    @classmethod
    def _is_a_share(cls, value: Any) -> Any:
        if isinstance(value, list):
            return [to_int(layer) for layer in value]
        value = value if value == 1 else to_int(value)  # 1.0 is a share: all
        if isinstance(value, float) and not 0 < value <= 1:
            raise ValueError(f"expected a number of layers, or a share in (0, 1], got {value}")
        return value

    @model_validator(mode="after")
    def _asks_for_something(self) -> Shrink:
        if self.encoder_layers is None and self.decoder_layers is None:
            raise ValueError("set `encoder_layers` or `decoder_layers`")
        return self

    def _stacks(self) -> dict[str, Layers]:
        """Map each stack that changes to its layers that stay."""
        both = {"encoder": self.encoder_layers, "decoder": self.decoder_layers}
        return {stack: layers for stack, layers in both.items() if layers is not None}

    @property
    def _counted(self) -> list[str]:
        """The stacks of which the recipe says how many layers stay, and not which."""
        return [s for s, layers in self._stacks().items() if not isinstance(layers, list)]

    @property
    def _measures(self) -> bool:
        return self.importance == "loss" and bool(self._counted)

    def reads(self) -> Mapping[Split, Reads]:
        return {"train": "pairs"} if self._measures else {}

    def parameters(self) -> dict[str, Any]:
        """Leave out how layers are chosen where their numbers alone decide it."""
        unused = set() if self._measures else {"importance", "calibration_rows"}
        return {key: value for key, value in super().parameters().items() if key not in unused}

    def preview(self, planning: Planning) -> Facts | None:
        """Count exactly; report a stack that is missing and a layer that is out of range."""
        facts = planning.facts
        if facts is None or not planning.require_float("shrink"):
            return facts
        if self._measures:
            planning.check_rows(trains=True)
        stacks, kept = facts.list_stacks(), dict[str, list[int]]()
        for stack, layers in self._stacks().items():
            field = f"{stack}_layers"
            if stack not in stacks:
                planning.report(field, f"{facts.model_type} has no {stack}")
                continue
            count = stacks[stack].layers
            if isinstance(layers, list):
                if not layers or layers != sorted(set(layers) & set(range(count))):
                    message = f"expected a rising list of layers from 0 to {count - 1}"
                    planning.report(field, f"{message}, got {layers}")
                    continue
            elif not 0 < layers <= count:
                planning.report(field, f"{layers} is outside 1 … {count}, the layers there are")
                continue
            elif self._measures and any(stacks[stack].blocks):
                message = "the loss chooses among layers that are all alike, and one is a block"
                planning.report("importance", f"{message}; set 'even' or list the layers")
                continue
            kept[stack] = _choose(layers, count)
        return facts.keep_layers(kept) if kept else facts

    def run(self, inputs: Inputs, context: Context) -> Checkpoint:
        """Build the smaller model, and copy the layers that stay, renumbered, into it."""
        from compressor.models.loading import list_stacks
        from compressor.models.surgery import keep_layers

        checkpoint = inputs.checkpoint()
        stacks = list_stacks(checkpoint.model.config, checkpoint.head)
        kept = {s: _choose(layers, stacks[s].layers) for s, layers in self._stacks().items()}
        if self._measures:
            kept = self._choose_by_loss(checkpoint, kept, context)
        context.metrics["kept"] = kept
        return keep_layers(checkpoint, kept)

    def _choose_by_loss(
        self, checkpoint: Checkpoint, kept: dict[str, list[int]], context: Context
    ) -> dict[str, list[int]]:
        """Choose as many layers as `kept` has, of the stacks whose layers are not listed."""
        from compressor.compression.depth import choose_layers, count_models
        from compressor.models.loading import list_stacks

        stacks = list_stacks(checkpoint.model.config, checkpoint.head)
        depths = {stack: len(kept[stack]) for stack in self._counted}
        listed = {stack: layers for stack, layers in kept.items() if stack not in depths}
        rows = context.rows("train").first(self.calibration_rows)
        examples = checkpoint.tokenize_rows(rows, context.data)
        total = sum(count_models(s, stacks[s].layers, depth) for s, depth in depths.items())
        with context.progress.bar("shrink", total) as bar:
            chosen, losses = choose_layers(checkpoint, depths, listed, examples, bar.advance)
        for stack, measured in losses.items():
            shown = ", ".join(f"{layer}: {loss:.3f}" for layer, loss in measured.items())
            context.progress.say(f"  {stack}, loss without a layer: {shown}; {chosen[stack]} stay")
        context.metrics["losses_without"] = losses
        return chosen


def _choose(layers: Layers, count: int) -> list[int]:
    """Choose which of `count` layers stay, evenly spaced where only their number is given."""
    if isinstance(layers, list):
        return layers
    left = layers if isinstance(layers, int) else max(1, round(layers * count))
    return evenly_spaced(count, left)
