"""The types of a recipe's values, stricter than pydantic's own: a text is no number, true no 1.

JSON, and so a schema and an editor, has only one kind of number: 3.0 is 3.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, Strict, ValidationError

SETTINGS = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
"""The configuration of every model that a recipe's values go into."""


def first_problem(error: ValidationError) -> str:
    """Name the first wrong value of an error, and say what is wrong with it, as pydantic does."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def to_int(value: Any) -> Any:
    """Turn a float without a fraction into the integer that it is; leave anything else."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _to_index(value: Any) -> Any:
    """Turn a mapping's key, a number in YAML and a text in JSON, into the number."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


_T = TypeVar("_T")

Integer = Annotated[int, BeforeValidator(to_int)]
"""A whole number; 1e3 and 3.0 are some."""
# A range stands before the validator: behind it, pydantic leaves it out of the schema.
Natural = Annotated[int, Field(ge=0), BeforeValidator(to_int)]
Counted = Annotated[int, Field(ge=1), BeforeValidator(to_int)]
"""How many there are of something."""
Length = Annotated[int, Field(ge=2), BeforeValidator(to_int)]
"""Tokens of a text, one that starts or ends it included."""
Index = Annotated[int, Field(ge=0), BeforeValidator(_to_index)]
"""A place in a list, from 0, as the key of a mapping."""
Listed = Annotated[tuple[_T, ...], Strict(strict=False)]
"""What a recipe writes as a list."""
