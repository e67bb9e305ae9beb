"""What a quantized model is, and which of its weights become what. No tensors, no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from compressor.core.settings import SETTINGS, Integer
from compressor.models.facts import Facts

Weights = Literal["int8", "int4", "bfloat16", "float16"]
Activations = Literal["float", "bfloat16", "int8"]
Kind = Literal["int8", "int4"]
Method = Literal["round", "gptq"]

ACTIVATIONS: dict[Weights, tuple[Activations, ...]] = {
    "int8": ("int8", "float"),
    "int4": ("bfloat16", "float"),
    "bfloat16": ("float",),
    "float16": ("float",),
}
"""What can be done with what comes in; the first is the default."""
SMALL_TABLE = 1024
"""Tables of fewer rows stay float: there is nothing to gain."""


class Quantization(BaseModel):
    """How a quantized model's weights are stored, and what its products do with what comes in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: Weights
    activations: Activations = "float"


class Grid(BaseModel):
    """The integers that weights are rounded to."""

    model_config = SETTINGS

    group_size: Integer = Field(
        32, ge=8, multiple_of=8, description="Columns that share a scale, with int4."
    )
    embeddings: bool = Field(
        True,
        description="Store word embeddings as int8 too, where no head is tied to them (those that "
        "a head is tied to always are); tables of under 1,024 rows stay float.",
    )

    def choose_kinds(self, weights: Kind, facts: Facts) -> dict[str, Kind]:
        """Name → kind of each weight that is quantized; the others stay float.

        Tables are int8, also where a head is tied to one, and so is in an int4 model what groups do
        not divide.
        """
        linear, tables = facts.list_linear_weights(), facts.word_embeddings()
        kinds: dict[str, Kind] = {
            name: weights
            if name not in tables and facts.shapes[name][1] % self.group_size == 0
            else "int8"
            for name in linear
        }
        large = [n for n in tables if facts.shapes[n][0] >= SMALL_TABLE]
        return kinds | dict.fromkeys(large if self.embeddings else (), "int8")

    def choose_calibrated(self, weights: Kind, facts: Facts) -> dict[str, Kind]:
        """Name → kind of those that are weights of `Linear` layers, and no tables."""
        kinds, tables = self.choose_kinds(weights, facts), facts.word_embeddings()
        linear = facts.list_linear_weights()
        return {name: kind for name, kind in kinds.items() if name in linear and name not in tables}

    def check_groups(self, weights: Kind, facts: Facts, report: Callable[[str, str], None]) -> None:
        """Report groups that fit no weight."""
        if weights not in self.choose_kinds(weights, facts).values():
            sizes = sorted({facts.shapes[name][1] for name in facts.list_linear_weights()})
            message = f"{self.group_size} divides the columns of no linear layer; they have "
            report("group_size", message + ", ".join(map(str, sizes)))


class QuantizationAware(Grid):
    """What a training's weights are rounded to, as the `quantize` after it will round them.

    Example: `quantization_aware: {weights: int4, group_size: 64}`
    """

    weights: Kind = Field("int8", description="What `quantize` will store.")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"weights": given} if isinstance(given, str) else given

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"enum": list(get_args(Kind))}, handler(core_schema)]}

    def key_parts(self) -> dict[str, Any]:
        """Dump what decides the weights."""
        return self.model_dump(exclude={"group_size"} if self.weights == "int8" else set())
