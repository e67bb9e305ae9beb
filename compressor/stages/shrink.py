"""`shrink`: drop whole layers by number or evenly. `slice` drops the least important ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from compressor.core.settings import to_int
from compressor.models.facts import Facts, evenly_spaced
from compressor.stages.base import Context, Inputs, Planning, Stage

if TYPE_CHECKING:
    from compressor.models.checkpoint import Checkpoint

Layers = int | Annotated[float, Field(gt=0, le=1)] | list[int]
_LAYERS = "How many stay, their share in (0, 1], or which (from 0)."


class Shrink(Stage):
    """Drop whole layers of a stack: keep so many, evenly spaced from the first, or the listed ones.

    6 layers to 3, or to a share of 0.5, keeps 0, 2, 4; to 4 keeps 0, 1, 3, 4. As in "shrink and
    fine-tune" (Shleifer & Rush, 2010.13002), the smaller model needs fine-tuning.

    Example: `shrink: {decoder_layers: 3}` or `shrink: {encoder_layers: [0, 2, 5]}`
    Example: `shrink: {encoder_layers: 0.5, decoder_layers: 0.5}`
    """

    version: ClassVar[int] = 2

    encoder_layers: Layers | None = Field(None, description=_LAYERS)
    decoder_layers: Layers | None = Field(None, description=_LAYERS)

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

    def preview(self, planning: Planning) -> Facts | None:
        """Count exactly; report a stack that is missing and a layer that is out of range."""
        facts = planning.facts
        if facts is None or not planning.require_float("shrink"):
            return facts
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
            kept[stack] = _choose(layers, count)
        return facts.keep_layers(kept) if kept else facts

    def run(self, inputs: Inputs, context: Context) -> Checkpoint:
        """Build the smaller model, and copy the layers that stay, renumbered, into it."""
        from compressor.models.loading import list_stacks
        from compressor.models.surgery import keep_layers

        checkpoint = inputs.checkpoint()
        stacks = list_stacks(checkpoint.model.config, checkpoint.head)
        kept = {s: _choose(layers, stacks[s].layers) for s, layers in self._stacks().items()}
        context.metrics["kept"] = kept
        return keep_layers(checkpoint, kept)


def _choose(layers: Layers, count: int) -> list[int]:
    """Choose which of `count` layers stay."""
    if isinstance(layers, list):
        return layers
    left = layers if isinstance(layers, int) else max(1, round(layers * count))
    return evenly_spaced(count, left)
