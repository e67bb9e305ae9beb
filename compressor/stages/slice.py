"""`slice`: cut heads, neurons and layers out of a model, the least important first.

`architectures/` knows where they lie, `models.surgery` has the maths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from compressor.compression.pruning import Grouping, Pruner
from compressor.core.errors import StageError, nearest
from compressor.core.numbers import require_finite
from compressor.core.settings import SETTINGS, Integer, to_int
from compressor.data.source_base import Reads, Split
from compressor.models.facts import Facts
from compressor.models.structure import UnitKind, Units
from compressor.stages.base import Context, Inputs, Planning, Stage, load_calibration_rows

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.compression.calibration import Calibration
    from compressor.models.checkpoint import Checkpoint

_NAMES: dict[UnitKind, str] = {"heads": "heads", "feed_forward": "feed-forward neurons"}
_WIDTH = "How many stay: a whole number, or a share in (0, 1]"

Width = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)]


def _refuse(path: str, message: str) -> None:
    raise StageError(f"{path}: {message}")


def _count(amount: float, count: int) -> int:
    """Turn a number, or a share of `count`, into a number."""
    return amount if isinstance(amount, int) else max(1, round(amount * count))


class Widths(BaseModel):
    """Say how wide a model, or one stack of it, is to be.

    Example: `encoder: {feed_forward: 0.5}`
    """

    model_config = SETTINGS

    heads: Width | None = Field(
        None, description=f"{_WIDTH}; of each attention, in groups where heads share keys."
    )
    feed_forward: Width | None = Field(None, description=f"{_WIDTH}; of each layer.")
    layers: Width | None = Field(None, description=f"{_WIDTH}; of each stack.")

    @field_validator("heads", "feed_forward", "layers", mode="before")
    @classmethod
    def _is_a_width(cls, value: Any) -> Any:
        value = value if value == 1 else to_int(value)  # 1.0 is a share: all
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if value is None or is_count or (isinstance(value, float) and 0 < value <= 1):
            return value
        raise ValueError("expected a whole number of at least 1, or a share in (0, 1] such as 0.5")

    def units(self) -> Iterator[tuple[UnitKind, int | float]]:
        """Yield each kind of unit with its width."""
        if self.heads is not None:
            yield "heads", self.heads
        if self.feed_forward is not None:
            yield "feed_forward", self.feed_forward


class Slice(Widths, Stage):
    """Cut heads, feed-forward neurons and layers out of a model: it gets smaller and faster.

    A unit is rows of q, k and v and columns of o for a head; a row of each input matrix (two where
    gated) and a column of the output matrix for a neuron. Biases and masks go with their unit. A
    unit whose matrices are zero goes first, and changes no output. The sliced model needs
    fine-tuning.

    `importance: obs`, the default for a trained model whose loss the data's rows tell, lets each
    attention and each feed-forward layer lose one unit after another: the one without which its
    output, weighted by the loss's squared gradients, is least wrong when the other units' weights
    make up for it (structured OBS, as in ZipLM, 2302.04089). Layers are dropped first: those
    without which the loss is least, as in `shrink`. `magnitude` keeps the units with the largest L2
    norm over all matrices (Li et al., 1608.08710), `taylor` those with the largest sum of
    |w · dL/dw|; so they do with layers.

    Where queries share keys and values (Llama, Qwen), a unit is a head that has keys with all its
    queries: `heads: 2` keeps two such groups, and the config gets its `head_dim`.

    Every layer keeps as many units, since a config has one number for all. In T5 each column of the
    relative-position bias in block 0 serves one head in all layers of its stack, so the
    self-attentions of a stack lose the same heads, those that all of its layers need least.
    Cross-attentions, which have no such bias, and feed-forward layers each choose for themselves.

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
    importance: Literal["magnitude", "random", "taylor", "obs"] | None = Field(
        None,
        description="What a unit is judged by: the L2 norm of its weights, chance, the sum of "
        "|w · dL/dw| over its weights, or (obs) how much the loss grows without it when the others "
        "make up for it. Default: obs where training rows have a loss, else magnitude.",
    )
    reconstruct: bool | None = Field(
        None,
        description="Refit what multiplies the outputs of heads and neurons to those that stay, by "
        "least squares on training rows. Default: true with taylor and obs.",
    )
    calibration_rows: Integer = Field(
        64, ge=1, description="Training rows that taylor, obs and the refit look at."
    )

    @model_validator(mode="after")
    def _asks_for_something(self) -> Slice:
        if not list(self._units()) and not list(self._layers(("encoder", "decoder"))):
            raise ValueError("set `heads`, `feed_forward` or `layers`")
        return self

    def resolve(self, planning: Planning) -> Slice:
        if self.importance is not None or planning.facts is None:
            return self
        importance, reason = planning.choose_importance("obs")
        return self.choose(reason, importance=importance)

    @property
    def _refits(self) -> bool:
        return self._calibrates if self.reconstruct is None else self.reconstruct

    @property
    def _calibrates(self) -> bool:
        return self.importance in ("taylor", "obs")

    @property
    def _needs_rows(self) -> bool:
        return self._calibrates or self._refits

    def is_random(self) -> bool:
        return self.importance == "random"

    def reads(self) -> Mapping[Split, Reads]:
        return {"train": "pairs"} if self._needs_rows else {}

    def parameters(self) -> dict[str, Any]:
        """Leave out the number of calibration rows where none is read, and a refit that is none."""
        unused = {"reconstruct"} | (set() if self._needs_rows else {"calibration_rows"})
        fields = {key: v for key, v in super().parameters().items() if key not in unused}
        return fields | ({"reconstruct": True} if self._refits else {})

    def _units(self) -> Iterator[tuple[str, UnitKind, int | float]]:
        """Yield (stack, or "" for all, kind of unit, width)."""
        for stack, widths in (("", self), ("encoder", self.encoder), ("decoder", self.decoder)):
            for kind, width in widths.units() if widths else ():
                yield stack, kind, width

    def _layers(self, stacks: Iterable[str]) -> Iterator[tuple[str, str, int | float]]:
        """Yield (key in the recipe, stack, how many of its layers stay)."""
        for stack in stacks:
            widths: Widths | None = getattr(self, stack)
            if widths is not None and widths.layers is not None:
                yield f"{stack}.layers", stack, widths.layers
            elif self.layers is not None:
                yield "layers", stack, self.layers

    def depths(self, facts: Facts, report: Callable[[str, str], None] = _refuse) -> dict[str, int]:
        """Count the layers of each stack that stay. Reports more than there are, or raises."""
        stacks, kept = facts.list_stacks(), dict[str, int]()
        for stack, widths in (("encoder", self.encoder), ("decoder", self.decoder)):
            if widths is not None and widths.layers is not None and stack not in stacks:
                report(stack, f"{facts.model_type} has no {stack}; {nearest(stack, stacks)}")
        for path, stack, amount in self._layers(stacks):
            count = stacks[stack].layers
            if any(stacks[stack].blocks):
                message = f"the {stack}'s layers are not all alike, one is a block; `shrink` them"
                report(path, message)
            elif amount > count:
                report(path, f"{amount} is outside 1 … {count}, the layers there are")
            else:
                kept[stack] = _count(amount, count)
        return kept

    def preview(self, planning: Planning) -> Facts | None:
        """Count exactly; report widths that are too large, or that no config can express."""
        facts = planning.facts
        if facts is None or not planning.require_float("slice"):
            return facts
        if self._needs_rows:
            planning.check_rows(trains=True)
        depths = self.depths(facts, planning.report)
        facts = facts.keep_layers({stack: list(range(n)) for stack, n in depths.items()})
        widths = self.widths(facts, planning.report)
        for width in sorted({width for _, width in widths}):
            facts = facts.resize([units for units, other in widths if other == width], width)
        return facts

    def widths(
        self, facts: Facts, report: Callable[[str, str], None] = _refuse
    ) -> list[tuple[Units, int]]:
        """List units that change, and how many of each stay. Reports what cannot be, or raises."""
        chosen: dict[str, tuple[str, Units, int]] = {}
        for stack, kind, amount in self._units():
            path = f"{stack}.{kind}" if stack else kind
            if stack and stack not in facts.list_stacks():
                hint = nearest(stack, facts.list_stacks())
                report(stack, f"{facts.model_type} has no {stack}; {hint}")
                continue
            if kind == "heads" and facts.why_heads_stay:
                report(path, facts.why_heads_stay)
                continue
            members = [units for units in facts.list_units(kind) if stack in ("", units.stack)]
            if not members:
                report(path, f"{facts.model_type} has no {_NAMES[kind]} that could be sliced")
            elif (most := min(units.count for units in members)) < amount:
                report(path, f"{amount} is outside 1 … {most}, the {_NAMES[kind]} there are")
            else:
                for units in members:
                    chosen[units.name] = (path, units, self._width(amount, units.count, kind))
        for path, units, width in {part[0]: part for part in chosen.values()}.values():
            if width not in (widths := units.list_widths()):
                valid = ", ".join(map(str, widths))
                report(path, f"no config of a {facts.model_type} has {width} of them; set {valid}")
        self._check_expressible(facts, chosen, report)
        return [(units, width) for _, units, width in chosen.values()]

    def _width(self, amount: float, count: int, kind: UnitKind) -> int:
        width = _count(amount, count)
        if kind == "feed_forward":
            width = min(count, -(-width // self.multiple_of) * self.multiple_of)
        return width

    def _check_expressible(
        self,
        facts: Facts,
        chosen: dict[str, tuple[str, Units, int]],
        report: Callable[[str, str], None],
    ) -> None:
        """Report two widths where a config has one number for both."""
        members: dict[str, list[Units]] = {}
        for units in (*facts.list_units("heads"), *facts.list_units("feed_forward")):
            members.setdefault(units.config_key, []).append(units)
        wrong: dict[str, str] = {}
        for path, units, width in chosen.values():
            others = [chosen.get(other.name) for other in members[units.config_key]]
            if any(other is None or other[2] != width for other in others):
                wrong.setdefault(units.config_key, path)
        for key, path in wrong.items():
            message = f"{facts.model_type} has one {key} for all of its layers; set "
            report(path, f"{message}{path.rpartition('.')[2]!r} for the whole model")

    def run(self, inputs: Inputs, context: Context) -> Checkpoint:
        """Judge, choose, and build the smaller model."""
        from compressor.models.surgery import keep_layers, keep_units

        checkpoint = inputs.checkpoint()
        kept: dict[str, Any] = {}
        if depths := self.depths(checkpoint.derive_facts()):
            layers = self._choose_layers(checkpoint, depths, context)
            kept |= {f"{stack} layers": indices for stack, indices in layers.items()}
            checkpoint = keep_layers(checkpoint, layers)
        choice = self._choose_units(checkpoint, context)
        for units, indices in choice:
            kept[units.name] = indices if units.config_key.endswith("heads") else len(indices)
        context.metrics["kept"] = kept
        return keep_units(checkpoint, choice)

    def _calibrate(self, checkpoint: Checkpoint, context: Context) -> Calibration:
        from compressor.compression.calibration import Calibration

        rows = context.rows("train").first(self.calibration_rows)
        return Calibration(checkpoint, checkpoint.tokenize_rows(rows, context.data))

    def _scores(
        self, checkpoint: Checkpoint, names: Iterable[str], context: Context
    ) -> Mapping[str, Tensor]:
        """Score each entry of the matrices; no score is negative."""
        weights = {name: checkpoint.get_parameter(name) for name in names}
        if self.importance in (None, "magnitude"):
            squares = {name: weight.detach().square() for name, weight in weights.items()}
            require_finite(squares, "the square of ", "its largest entry is beyond 1.8e19")
            return squares
        grouping = Grouping(importance=self.importance, calibration_rows=self.calibration_rows)
        examples = load_calibration_rows(grouping, checkpoint, context)
        pruner = Pruner(checkpoint, grouping, seed=context.seed, examples=examples)
        return pruner.compute_scores(weights)

    def _choose_layers(
        self, checkpoint: Checkpoint, depths: Mapping[str, int], context: Context
    ) -> dict[str, list[int]]:
        import torch

        from compressor.compression.depth import choose_layers
        from compressor.models.surgery import select_strongest, unit_sums

        if self.importance == "obs":
            calibration = self._calibrate(checkpoint, context)
            return choose_layers(checkpoint, depths, {}, calibration.examples, lambda: None)[0]
        facts, kept = checkpoint.derive_facts(), {}
        matrices = dict.fromkeys(n for names in facts.list_groups().values() for n in names)
        for stack, depth in depths.items():
            spec = facts.list_stacks()[stack]
            members = [
                [n for n in matrices if n.startswith(f"{spec.prefix}.{layer}.")]
                for layer in range(spec.layers)
            ]
            scores = self._scores(checkpoint, [n for names in members for n in names], context)
            sums = [unit_sums(((scores[n], 0) for n in names), 1) for names in members]
            kept[stack] = select_strongest(torch.cat(sums), depth)
        return kept

    def _choose_units(
        self, checkpoint: Checkpoint, context: Context
    ) -> list[tuple[Units, list[int]]]:
        """Choose the units that stay, and refit what multiplies their outputs, in place."""
        from compressor.compression.reconstruction import refit_outputs
        from compressor.compression.structured import choose_units

        widths = self.widths(checkpoint.derive_facts())
        if not widths:
            return []
        if self.importance == "obs":
            calibration = self._calibrate(checkpoint, context)
            steps = len(calibration.examples) + len(widths)
            with context.progress.bar("slice", steps) as bar:
                return choose_units(calibration, widths, refits=self._refits, advance=bar.advance)
        choice = self._choose_by_score(widths, checkpoint, context)
        if self._refits:
            refit_outputs(self._calibrate(checkpoint, context), choice)
        return choice

    def _choose_by_score(
        self, widths: Sequence[tuple[Units, int]], checkpoint: Checkpoint, context: Context
    ) -> list[tuple[Units, list[int]]]:
        """Choose the units of largest score; where several choose together, of the largest sum."""
        from compressor.models.surgery import select_strongest, unit_sums

        matrices = dict.fromkeys(name for units, _ in widths for name in units.matrices)
        scores = self._scores(checkpoint, matrices, context)
        together: dict[str, list[Units]] = {}
        for units, _ in widths:
            together.setdefault(units.chosen_with or units.name, []).append(units)
        sums = {}
        for name, members in together.items():
            axes = {matrix: axis for units in members for matrix, axis in units.matrices.items()}
            sums[name] = unit_sums(
                ((scores[n], axis) for n, axis in axes.items()), members[0].count
            )
        return [
            (units, select_strongest(sums[units.chosen_with or units.name], width))
            for units, width in widths
        ]
