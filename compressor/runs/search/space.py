"""Read the space of a search, as Hydra's override grammar writes it. Draws nothing.

`a=interval(0, 1)`, `a=int(interval(1, 9))`, `a=tag(log, interval(1e-5, 1e-2))`, `a=range(1, 9, 2)`
and `a=x,y` or `a=choice(x, y)`, as in Hydra's Optuna plug-in, but ranges end before their stop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, ValueType

from compressor.core.errors import Problem, RecipeError, nearest
from compressor.recipe.hydra import parse_override
from compressor.runs.sweeps.points import shorten_keys

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

LOG = "log"
_NOT_SEARCHED = ("search", "objective", "outputs")
"""Top-level keys that are the same for a whole search."""


@dataclass(frozen=True)
class Numbers:
    """A key whose values are numbers in an interval; both ends are among them."""

    key: str
    element: str
    """The key as an override writes it, with Hydra's prefix and package."""
    low: float
    high: float
    step: float | None = None
    """Between values, from `low` on; None where there is none."""
    log: bool = False
    whole: bool = False

    @property
    def probes(self) -> tuple[str, ...]:
        """Values that show whether all are valid."""
        return (self.write(self.low), self.write(self.high))

    @property
    def middle(self) -> str:
        between = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        if self.step is not None:
            between = self.low + round((between - self.low) / self.step) * self.step
        return self.write(round(between) if self.whole else between)

    def write(self, value: float) -> str:
        """Write a value as an override has it: exact, but for what adding up steps leaves."""
        if self.whole:
            return str(int(value))
        return repr(float(value) if self.step is None else float(f"{value:.12g}"))

    def show(self, value: float) -> str:
        return f"{value:.4g}" if not self.whole else str(int(value))

    def describe(self) -> str:
        step = f", in steps of {self.show(self.step)}" if self.step and self.step != 1 else ""
        kind = "whole numbers, " if self.whole else ""
        scale = ", log scale" if self.log else ""
        return f"{kind}{self.show(self.low)} … {self.show(self.high)}{step}{scale}"

    def make_distribution(self) -> BaseDistribution:
        """Make what Optuna draws from."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return IntDistribution(low, high, log=self.log, step=step)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


@dataclass(frozen=True)
class Choices:
    """A key with values that have no order."""

    key: str
    element: str
    probes: tuple[str, ...]
    """The values, as an override has them."""

    @property
    def middle(self) -> str:
        return self.probes[0]

    def write(self, value: str) -> str:
        return value

    def show(self, value: str) -> str:
        return value.strip("'\"")

    def describe(self) -> str:
        return ", ".join(map(self.show, self.probes))

    def make_distribution(self) -> BaseDistribution:
        """Make what Optuna draws from."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.probes)


Dimension = Numbers | Choices


@dataclass(frozen=True)
class Space:
    """The overrides of a search: some set a key, the others leave one open."""

    overrides: tuple[str | Dimension, ...]

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        return tuple(item for item in self.overrides if not isinstance(item, str))

    @property
    def middle(self) -> dict[str, str]:
        """Key → a value in the middle; of choices the first."""
        return {dimension.key: dimension.middle for dimension in self.dimensions}

    @property
    def probes(self) -> list[dict[str, str]]:
        """The middle, and around it both ends of each interval and each choice."""
        around = [
            self.middle | {dimension.key: text}
            for dimension in self.dimensions
            for text in dimension.probes
        ]
        distinct = dict.fromkeys(tuple(values.items()) for values in (self.middle, *around))
        return [dict(items) for items in distinct]

    def at(self, values: Mapping[str, str]) -> tuple[str, ...]:
        """List all that Hydra gets for the point with these values, in the command's order."""
        return tuple(
            item if isinstance(item, str) else f"{item.element}={values[item.key]}"
            for item in self.overrides
        )

    def write(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Write drawn values as overrides have them."""
        return {d.key: d.write(values[d.key]) for d in self.dimensions}

    def show(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Write drawn values as a person reads them."""
        return {d.key: d.show(values[d.key]) for d in self.dimensions}

    def make_title(self, values: Mapping[str, Any]) -> str:
        """Make what tells a point from others, such as `lm_head=0.31,learning_rate=0.0021`."""
        short = shorten_keys([dimension.key for dimension in self.dimensions])
        return ",".join(f"{short[key]}={text}" for key, text in self.show(values).items())

    def describe(self) -> dict[str, str]:
        return {dimension.key: dimension.describe() for dimension in self.dimensions}


def read_space(overrides: Sequence[str]) -> Space:
    """Read a space. Raises RecipeError with all that is wrong with it."""
    items: list[str | Dimension] = []
    problems: list[Problem] = []
    keys: set[str] = set()
    for text in overrides:
        override = parse_override(text)
        if override is None or not override.is_sweep_override():
            items.append(text)
            continue
        key = override.key_or_group
        try:
            if key.partition(".")[0] in _NOT_SEARCHED:
                raise ValueError("is the same for a whole search, and has one value")
            if key in keys:
                raise ValueError("is left open twice")
            keys.add(key)
            items.append(_read_dimension(override))
        except ValueError as error:
            problems.append(Problem(key, f"{error} (in the space of the search: {text})"))
    if not keys:
        example = "stages.prune.amounts.lm_head='interval(0.1,0.9)'"
        message = f"nothing to search over: leave a key open, as in {example}"
        problems.append(Problem("search", message))
    if problems:
        raise RecipeError(problems)
    return Space(tuple(items))


def _read_dimension(override: Override) -> Dimension:
    value: Any = override.value()
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        raise ValueError("name each value; a pattern is not expanded")
    if unknown := sorted(value.tags - {LOG}):
        raise ValueError(f"no tag {unknown[0]!r}; {nearest(unknown[0], [LOG])}")
    log = LOG in value.tags
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        ends, whole = (float(value.start), float(value.end)), isinstance(value.start, int)
        return _make_numbers(override, *ends, None, log=log, whole=whole)
    if isinstance(value, RangeSweep):
        return _read_range(override, value, log=log)
    if log:
        raise ValueError("choices have no scale, and no log")
    texts = dict.fromkeys(override.sweep_string_iterator())
    return Choices(override.key_or_group, str(override.get_key_element()), tuple(texts))


def _read_range(override: Override, value: RangeSweep, *, log: bool) -> Numbers:
    whole = all(isinstance(n, int) for n in (value.start, value.stop, value.step))
    if not value.step:
        raise ValueError("a range needs a step other than 0")
    values = sorted(value.range())
    if not values:
        raise ValueError("is empty: a range ends before its stop")
    step = float(abs(value.step))
    if log and not (whole and step == 1):
        raise ValueError("a range with steps has no log scale; an interval can have one")
    return _make_numbers(override, values[0], values[-1], step, log=log, whole=whole)


def _make_numbers(
    override: Override, low: float, high: float, step: float | None, *, log: bool, whole: bool
) -> Numbers:
    if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
        raise ValueError(f"expected a lower end and a higher one, got {low:g} and {high:g}")
    if log and low <= 0:
        raise ValueError(f"a log scale begins above 0, not at {low:g}")
    element = str(override.get_key_element())
    return Numbers(override.key_or_group, element, low, high, step, log, whole)
