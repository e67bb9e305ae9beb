"""`shrink`: whole layers leave a model. Copying what stays is in `compressor.checkpoint`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from compressor.architectures import Facts, evenly_spaced
from compressor.stage import Context, Inputs, Planning, Stage

if TYPE_CHECKING:
    from compressor.checkpoint import Checkpoint

Layers = int | list[int]


class Shrink(Stage):
    """Drop whole layers of a stack: keep so many, evenly spaced from the first, or the listed ones.

    6 layers to 3 keeps 0, 2, 4; to 4 keeps 0, 1, 3, 4. As in "shrink and fine-tune" (Shleifer &
    Rush, 2010.13002): the smaller model needs fine-tuning.

    Example: `shrink: {decoder_layers: 3}` or `shrink: {encoder_layers: [0, 2, 5]}`
    """

    version: ClassVar[int] = 1

    encoder_layers: Layers | None = Field(None, description="How many, or which (from 0).")
    decoder_layers: Layers | None = Field(None, description="How many, or which (from 0).")

    @model_validator(mode="after")
    def _asks_for_something(self) -> Shrink:
        if self.encoder_layers is None and self.decoder_layers is None:
            raise ValueError("set `encoder_layers` or `decoder_layers`")
        return self

    def _wanted(self) -> dict[str, Layers]:
        both = {"encoder": self.encoder_layers, "decoder": self.decoder_layers}
        return {stack: layers for stack, layers in both.items() if layers is not None}

    def preview(self, planning: Planning) -> Facts | None:
        """Exact sizes; reports a stack that is not there and a layer that is out of range."""
        facts = planning.facts
        if facts is None:
            return None
        if facts.int8:
            planning.problem("", "cannot shrink an int8 model; put `quantize` after it")
            return facts
        stacks, kept = facts.stacks(), dict[str, list[int]]()
        for stack, layers in self._wanted().items():
            field = f"{stack}_layers"
            if stack not in stacks:
                planning.problem(field, f"{facts.model_type} has no {stack}")
                continue
            count = stacks[stack].layers
            if isinstance(layers, int):
                if not 1 <= layers <= count:
                    planning.problem(
                        field, f"{layers} is outside 1 … {count}, the layers there are"
                    )
                    continue
                kept[stack] = evenly_spaced(count, layers)
            elif (
                not layers
                or sorted(set(layers)) != layers
                or not 0 <= layers[0] <= layers[-1] < count
            ):
                message = f"expected a rising list of layers from 0 to {count - 1}, got {layers}"
                planning.problem(field, message)
            else:
                kept[stack] = layers
        return facts.keep_layers(kept) if kept else facts

    def run(self, inputs: Inputs, context: Context) -> Checkpoint:
        """Build the smaller model and copy the kept layers, renumbered, into it."""
        from compressor.architectures import architecture
        from compressor.checkpoint import keep_layers

        checkpoint = inputs.checkpoint()
        config = checkpoint.model.config
        stacks = architecture(config.model_type).stacks(
            {**config.to_dict(), "head": checkpoint.head}
        )
        kept = {
            stack: evenly_spaced(stacks[stack].layers, layers)
            if isinstance(layers, int)
            else layers
            for stack, layers in self._wanted().items()
        }
        context.metrics["kept"] = kept
        return keep_layers(checkpoint, kept)
