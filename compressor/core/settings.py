"""The types of what a recipe sets, stricter than pydantic's own; what a field means is elsewhere.

YAML and Hydra's overrides give typed values, so that nothing has to be guessed: a text is no number
and `true` is no 1. JSON, and so a schema and an editor, knows one kind of number: 3.0 is 3.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, Strict

SETTINGS = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
"""The configuration of every model that a recipe's values go into."""


def whole(value: Any) -> Any:
    """A float without a fraction as the integer that it is; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _index(value: Any) -> Any:
    """A key of a mapping: a number in YAML, a text in JSON."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


_T = TypeVar("_T")

Integer = Annotated[int, BeforeValidator(whole)]
"""A whole number; 1e3 and 3.0 are some."""
# A range stands before the validator: behind it, pydantic leaves it out of the schema.
Natural = Annotated[int, Field(ge=0), BeforeValidator(whole)]
Counted = Annotated[int, Field(ge=1), BeforeValidator(whole)]
"""How many there are of something."""
Index = Annotated[int, Field(ge=0), BeforeValidator(_index)]
"""A place in a list, from 0, as the key of a mapping."""
Listed = Annotated[tuple[_T, ...], Strict(strict=False)]
"""What a recipe writes as a list."""
