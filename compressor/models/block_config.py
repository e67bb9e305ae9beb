"""The block that can stand in the place of encoder layers: its sizes, and what follows from them.

No tensors here: the module is `compressor.models.block.Block`.
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from compressor.core.settings import SETTINGS, Integer

BLOCKS_KEY = "encoder_blocks"
"""The config's list with one entry a layer of the encoder: null where the layer is the
architecture's own, else the sizes of the block that stands there."""
BLOCKS_FILE = "model_with_blocks.safetensors"
"""The weights of a model with blocks. Under the usual name, `from_pretrained` would take what it
knows of them, draw the layers that it misses, and say so in a log."""
PARTS = ("query", "key", "value", "output")


class BlockSizes(BaseModel):
    """How large a block is, beside the width of the model that it stands in.

    Example: `{heads: 12, head_size: 32, depth: 2, dropout: 0.1}`
    """

    model_config = SETTINGS

    heads: Integer = Field(12, ge=1, description="Attention heads of the block.")
    head_size: Integer = Field(32, ge=1, description="Width of each head.")
    depth: Integer = Field(
        2, ge=0, description="Linear layers with GELU before each projection of the block."
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout before the residual is added.")

    @property
    def inner_width(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_size

    def list_parameters(self, width: int) -> dict[str, tuple[int, ...]]:
        """Map every parameter to its shape, in a model of `width`."""
        shapes: dict[str, tuple[int, ...]] = {"norm.weight": (width,), "norm.bias": (width,)}
        for part in PARTS:
            into, out = (self.inner_width, width) if part == "output" else (width, self.inner_width)
            for layer in range(self.depth + 1):
                rows = out if layer == self.depth else into
                name = f"{part}.{2 * layer}"  # between two of them is a GELU
                shapes |= {f"{name}.weight": (rows, into), f"{name}.bias": (rows,)}
        return shapes

    def list_weights(self) -> list[str]:
        """List the names of the `Linear` weights."""
        return [name for name, shape in self.list_parameters(1).items() if len(shape) == 2]
