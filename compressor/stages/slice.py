"""`slice`: heads, neurons and layers leave a model, the least important first. Which ones lie where
is in `architectures/`, the maths in `compressor.models.surgery`. `shrink` drops layers by number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, WithJsonSchema, field_validator, model_validator

from compressor.compression.pruning import Grouping, Pruner
from compressor.core.errors import StageError, nearest
from compressor.core.numbers import require_finite
from compressor.core.settings import SETTINGS, Integer, whole
from compressor.data.source_base import Reads, Split
from compressor.models.facts import Facts, UnitKind, Units
from compressor.stages.base import Context, Inputs, Planning, Stage, calibration

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.models.checkpoint import Checkpoint

_WORDS: dict[UnitKind, str] = {"heads": "heads", "feed_forward": "feed-forward neurons"}
_WIDTH = "How many stay: a whole number, or a share in (0, 1]"


def _refuse(path: str, message: str) -> None:
    raise StageError(f"{path}: {message}")


_WIDTHS = ("heads", "feed_forward", "layers")
Width = Annotated[
    int | float,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            ]
        }
    ),
]


class Widths(BaseModel):
    """How wide a model, or one stack of it, is to be.

    Example: `encoder: {feed_forward: 0.5}`
    """

    model_config = SETTINGS

    heads: Width | None = Field(None, description=f"{_WIDTH}; of each attention.")
    feed_forward: Width | None = Field(None, description=f"{_WIDTH}; of each layer.")
    layers: Width | None = Field(None, description=f"{_WIDTH}; of each stack.")

    @field_validator(*_WIDTHS, mode="before")
    @classmethod
    def _is_a_width(cls, value: Any) -> Any:
        value = value if value == 1 else whole(value)  # 1.0 is a share: all
        counted = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if value is None or counted or (isinstance(value, float) and 0 < value <= 1):
            return value
        raise ValueError("expected a whole number of at least 1, or a share in (0, 1] such as 0.5")

    def wanted(self) -> Iterator[tuple[UnitKind, int | float]]:
        if self.heads is not None:
            yield "heads", self.heads
        if self.feed_forward is not None:
            yield "feed_forward", self.feed_forward


class Slice(Widths, Stage):
    """Take heads, feed-forward neurons and layers out of a model: it gets smaller and faster.

    Of each attention and each feed-forward layer the units of largest L2 norm stay, over all the
    matrices that a unit has: rows of q, k and v and columns of o for a head; a row of each input
    matrix (two where gated) and a column of the output matrix for a neuron. Biases and masks go
    with their unit. A unit whose matrices are zero goes first, and changes no output. This is
    structured pruning by magnitude (Li et al., 1608.08710, for units of transformers); the
    sliced model needs fine-tuning. `importance: taylor` judges by the loss on rows of the data
    instead. Layers leave first, those of the smallest sum over all of their matrices.

    In every layer as many stay, since a config has one number for all. In T5 each column of the
    relative-position bias, which block 0 has, serves one head in all layers of its stack: so the
    self-attentions of a stack lose the same heads, those of smallest norm over all of its layers.
    Each cross-attention, having no such bias, and each feed-forward layer chooses for itself.

    Example: `slice: {heads: 0.5, feed_forward: 0.5}` or
    `slice: {heads: 4, feed_forward: 1000, multiple_of: 8}`
    """

    version: ClassVar[int] = 3

    encoder: Widths | None = Field(
        None, description="Widths of this stack alone, where the config has one for each stack."
    )
    decoder: Widths | None = Field(
        None, description="Widths of this stack alone, where the config has one for each stack."
    )
    multiple_of: Integer = Field(
        1, ge=1, description="Round the number of neurons up to a multiple of this."
    )
    importance: Literal["magnitude", "random", "taylor"] = Field(
        "magnitude",
        description="What a unit is judged by: the L2 norm of its weights, nothing, or the sum of "
        "|w · dL/dw| over its weights.",
    )
    calibration_rows: Integer = Field(64, ge=1, description="Training rows that taylor looks at.")

    @model_validator(mode="after")
    def _asks_for_something(self) -> Slice:
        if not list(self._wanted()) and not list(self._wanted_layers(("encoder", "decoder"))):
            raise ValueError("set `heads`, `feed_forward` or `layers`")
        return self

    def is_random(self) -> bool:
        return self.importance == "random"

    def reads(self) -> Mapping[Split, Reads]:
        return {"train": "pairs"} if self.importance == "taylor" else {}

    def parameters(self) -> dict[str, Any]:
        """Calibration rows decide nothing where no row is looked at."""
        left_out = set() if self.importance == "taylor" else {"calibration_rows"}
        return {key: value for key, value in super().parameters().items() if key not in left_out}

    def _wanted(self) -> Iterator[tuple[str, UnitKind, int | float]]:
        """(stack, or "" for all, kind of unit, width)."""
        for stack, widths in (("", self), ("encoder", self.encoder), ("decoder", self.decoder)):
            for kind, width in widths.wanted() if widths else ():
                yield stack, kind, width

    def _wanted_layers(self, stacks: Iterable[str]) -> Iterator[tuple[str, str, int | float]]:
        """(key in the recipe, stack, how many layers of it stay)."""
        for stack in stacks:
            own: Widths | None = getattr(self, stack)
            if own is not None and own.layers is not None:
                yield f"{stack}.layers", stack, own.layers
            elif self.layers is not None:
                yield "layers", stack, self.layers

    def depths(self, facts: Facts, problem: Callable[[str, str], None] = _refuse) -> dict[str, int]:
        """How many layers of each stack stay. Reports more than there are, or raises."""
        stacks, kept = facts.stacks(), dict[str, int]()
        for stack, own in (("encoder", self.encoder), ("decoder", self.decoder)):
            if own is not None and own.layers is not None and stack not in stacks:
                problem(stack, f"{facts.model_type} has no {stack}; {nearest(stack, stacks)}")
        for path, stack, amount in self._wanted_layers(s for s in stacks if hasattr(self, s)):
            count = stacks[stack].layers
            if any(stacks[stack].blocks):
                message = f"the {stack}'s layers are not all alike, one is a block; `shrink` them"
                problem(path, message)
            elif amount > count:
                problem(path, f"{amount} is outside 1 … {count}, the layers there are")
            else:
                kept[stack] = amount if isinstance(amount, int) else max(1, round(amount * count))
        return kept

    def preview(self, planning: Planning) -> Facts | None:
        """Exact sizes; reports widths that are too large, or that no config can express."""
        facts = planning.facts
        if facts is None:
            return None
        if facts.quantized:
            planning.problem("", f"cannot slice {facts.quantized}; put `quantize` after it")
            return facts
        if self.importance == "taylor":
            planning.check_rows(trains=True)
        depths = self.depths(facts, planning.problem)
        facts = facts.keep_layers({stack: list(range(n)) for stack, n in depths.items()})
        chosen = self.widths(facts, planning.problem)
        for width in sorted({width for _, width in chosen}):
            facts = facts.resize([units for units, own in chosen if own == width], width)
        return facts

    def widths(
        self, facts: Facts, problem: Callable[[str, str], None] = _refuse
    ) -> list[tuple[Units, int]]:
        """The units that change, and how many of each stay. Reports what cannot be, or raises."""
        chosen: dict[str, tuple[str, Units, int]] = {}
        for stack, kind, amount in self._wanted():
            path = f"{stack}.{kind}" if stack else kind
            if stack and stack not in facts.stacks():
                hint = nearest(stack, facts.stacks())
                problem(stack, f"{facts.model_type} has no {stack}; {hint}")
                continue
            found = [u for u in facts.units(kind) if stack in ("", u.stack)]
            if not found:
                problem(path, f"{facts.model_type} has no {_WORDS[kind]} that could be sliced")
            elif found[0].stays:
                problem(path, found[0].stays)
            elif (most := min(units.count for units in found)) < amount:
                problem(path, f"{amount} is outside 1 … {most}, the {_WORDS[kind]} there are")
            else:
                for units in found:
                    width = self._rounded(amount, units.count, kind)
                    chosen[units.name] = (path, units, width)
        self._check_expressible(facts, chosen, problem)
        return [(units, width) for _, units, width in chosen.values()]

    def _rounded(self, amount: float, count: int, kind: UnitKind) -> int:
        width = amount if isinstance(amount, int) else max(1, round(amount * count))
        if kind == "feed_forward":
            width = min(count, -(-width // self.multiple_of) * self.multiple_of)
        return width

    def _check_expressible(
        self,
        facts: Facts,
        chosen: dict[str, tuple[str, Units, int]],
        problem: Callable[[str, str], None],
    ) -> None:
        """Report a width of which a config has one number and the recipe would have two."""
        every = [*facts.units("heads"), *facts.units("feed_forward")]
        told = set()
        for path, units, width in chosen.values():
            others = [other for other in every if other.config_key == units.config_key]
            same = all(o.name in chosen and chosen[o.name][2] == width for o in others)
            if not same and units.config_key not in told:
                told.add(units.config_key)
                problem(
                    path,
                    f"{facts.model_type} has one {units.config_key} for all of its layers; set "
                    f"{path.rpartition('.')[2]!r} for the whole model",
                )

    def run(self, inputs: Inputs, context: Context) -> Checkpoint:
        """Judge, choose, and build the smaller model."""
        from compressor.models.surgery import keep_layers, keep_units

        checkpoint = inputs.checkpoint()
        metrics: dict[str, Any] = {}
        if depths := self.depths(checkpoint.facts()):
            layers = self._choose_layers(checkpoint, depths, context)
            metrics |= {f"{stack} layers": indices for stack, indices in layers.items()}
            checkpoint = keep_layers(checkpoint, layers)
        kept = self._choose(checkpoint, context)
        metrics |= {
            units.name: indices if units.config_key.endswith("heads") else len(indices)
            for units, indices in kept
        }
        context.metrics["kept"] = metrics
        return keep_units(checkpoint, kept)

    def _scores(
        self, checkpoint: Checkpoint, names: Iterable[str], context: Context
    ) -> Mapping[str, Tensor]:
        """A score that is not negative for each entry of the matrices."""
        weights = {name: checkpoint.parameter(name) for name in names}
        if self.importance == "magnitude":
            squares = {name: weight.detach().square() for name, weight in weights.items()}
            require_finite(squares, "the square of ", "its largest entry is beyond 1.8e19")
            return squares
        judged_by = Grouping(importance=self.importance, calibration_rows=self.calibration_rows)
        examples = calibration(judged_by, checkpoint, context)
        return Pruner(checkpoint, judged_by, seed=context.seed, examples=examples).scores(weights)

    def _choose_layers(
        self, checkpoint: Checkpoint, depths: Mapping[str, int], context: Context
    ) -> dict[str, list[int]]:
        import torch

        from compressor.models.surgery import strongest, unit_sums

        facts, kept = checkpoint.facts(), {}
        matrices = dict.fromkeys(n for names in facts.groups().values() for n in names)
        for stack, depth in depths.items():
            spec = facts.stacks()[stack]
            members = [
                [n for n in matrices if n.startswith(f"{spec.prefix}.{layer}.")]
                for layer in range(spec.layers)
            ]
            scores = self._scores(checkpoint, [n for names in members for n in names], context)
            sums = [unit_sums(((scores[n], 0) for n in names), 1) for names in members]
            kept[stack] = strongest(torch.cat(sums), depth)
        return kept

    def _choose(self, checkpoint: Checkpoint, context: Context) -> list[tuple[Units, list[int]]]:
        """The units of largest score; where several choose together, of the sum over all."""
        from compressor.models.surgery import strongest, unit_sums

        widths = self.widths(checkpoint.facts())
        if not widths:
            return []
        matrices = dict.fromkeys(name for units, _ in widths for name in units.matrices)
        scores = self._scores(checkpoint, matrices, context)
        together: dict[str, list[Units]] = {}
        for units, _ in widths:
            together.setdefault(units.chosen_with or units.name, []).append(units)
        sums = {
            name: unit_sums(
                (
                    (scores[matrix], axis)
                    for units in members
                    for matrix, axis in units.matrices.items()
                ),
                members[0].count,
            )
            for name, members in together.items()
        }
        return [
            (units, strongest(sums[units.chosen_with or units.name], width))
            for units, width in widths
        ]
