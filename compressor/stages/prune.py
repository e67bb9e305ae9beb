"""`prune`: mask entries of groups of weights. `compression.pruning` chooses them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from compressor.compression.pruning import (
    BY_LAYER,
    Amounts,
    Grouping,
    Origin,
    count_unmasked,
    default_groups,
    flatten_amounts,
    n_of_m,
    nest_amounts,
    walks_layers,
)
from compressor.core.errors import StageError
from compressor.core.settings import SETTINGS, Counted, Listed
from compressor.data.source_base import Reads, Split
from compressor.models.facts import Facts, count_entries
from compressor.stages.base import Artifact, Context, Inputs, Planning, Stage, load_calibration_rows

if TYPE_CHECKING:
    from compressor.compression.layer_amounts import LayerAmount
    from compressor.data.examples import Examples
    from compressor.models.checkpoint import Checkpoint

VALUE_BYTES = {"int8": 1, "bfloat16": 2, "float32": 4}
SMALL = 1024
"""Matrices with fewer entries are packed as float32, as vectors are (`backends.packed`)."""
HEADER_BYTES = 200
"""Most bytes that describe a packed tensor in its file, beside its name, which stands 4 times."""


DIGITS = 12
"""Of a printed amount: enough that `round(amount × left)` gives the same count again."""


class Target(BaseModel):
    """Say how small the model must get: a share of non-zero entries, or bytes of a packed file.

    Example: `target: {nonzero_ratio: 0.3}`
    """

    model_config = SETTINGS

    nonzero_ratio: float | None = Field(
        None, gt=0, le=1, description="Non-zero entries / all parameters of the model."
    )
    bytes: Counted | None = Field(
        None, description="Of the weights as `export: {format: packed}` writes them."
    )
    values: Literal["int8", "bfloat16", "float32"] = Field(
        "int8", description="What a packed file's values are, for `bytes`."
    )

    @model_validator(mode="after")
    def _one(self) -> Target:
        if (self.nonzero_ratio is None) == (self.bytes is None):
            raise ValueError("set nonzero_ratio or bytes")
        return self

    def count_kept(self, facts: Facts) -> int:
        """Count how many entries of the whole model may stay."""
        if self.nonzero_ratio is not None:
            return round(self.nonzero_ratio * facts.parameters)
        assert self.bytes is not None
        size = VALUE_BYTES[self.values]
        free = float(self.bytes)
        for name, shape in facts.shapes.items():
            entries = math.prod(shape)
            free -= HEADER_BYTES + 4 * len(name)
            if len(shape) != 2 or entries < SMALL:
                free -= (4 - size) * entries  # stays float32
            else:
                free -= entries / 8 + (4 * shape[0] if self.values == "int8" else 0)
        return int(free // size)

    def prune_facts(
        self, facts: Facts, names: frozenset[str], report: Callable[[str, str], None]
    ) -> Facts:
        """Derive the facts after as many entries of these parameters have gone as must.

        Reports, at a key of the stage's, a target that is out of reach.
        """
        masked = sum(count for _, count in facts.masked)
        count = facts.parameters - self.count_kept(facts) - masked
        left, _ = facts.count_remaining(names)
        key = "target.bytes" if self.bytes is not None else "target.nonzero_ratio"
        if not facts.exact_size:
            return facts.prune(names, max(0, min(count, left)), exact=False)
        if count < 0:
            ratio = f"{facts.nonzero_ratio:.4f}"
            report(key, f"the model is smaller than that already: {ratio} non-zero")
        elif count > left:
            report(key, f"out of reach: the groups have {left} entries, {count} must go")
        else:
            facts = facts.prune(names, count)
        return facts

    def count_pruned(self, checkpoint: Checkpoint) -> int:
        """Count the entries of a model that have to go."""
        facts = checkpoint.derive_facts()
        masked = sum(int((~mask).count_nonzero()) for mask in checkpoint.masks.values())
        return facts.parameters - self.count_kept(facts) - masked

    def split_evenly(
        self, checkpoint: Checkpoint, groups: Mapping[str, Iterable[str]]
    ) -> dict[str, int]:
        """Count what has to go of each group: one share of what is left in all of them."""
        from compressor.compression.thresholds import split_count

        left = [count_unmasked(checkpoint, names)[0] for names in groups.values()]
        counts = split_count(left, self.count_pruned(checkpoint))
        return dict(zip(groups, counts, strict=True))


class Prune(Grouping, Stage):
    """Set the least important weights of each group to zero, exactly as many as asked.

    `amounts`: each group loses `round(amount × what is left)` entries, the smallest over all its
    tensors together. Name a group in one stack, `encoder: {feed_forward: 0.1}`, or in all stacks at
    once, `feed_forward: 0.1`. A tied head and embedding are one tensor. `pattern: "2:4"` keeps two
    of every four neighbours in a row instead. `target` chooses the amounts: each layer's, by what
    the loss does without its weights; or, after a `sensitivity` stage, each group's, for which the
    curves of that stage, added up, predict the least loss.

    By itself this makes nothing smaller or faster: zeros are stored as any number is, until the
    model is packed, quantized or sliced.

    Example: `prune: {amounts: {decoder: {self_attention: 0.3, feed_forward: 0.3}, lm_head: 0.3}}`
    Example: `prune: {target: {nonzero_ratio: 0.5}}`
    Example: `prune: {pattern: "2:4", only: [feed_forward], importance: sparsegpt}`
    Example: `prune: {amounts: {feed_forward: 0.5}, importance: sparsegpt, inputs_from: pruned}`
    """

    version: ClassVar[int] = 4

    amounts: Amounts | None = Field(None, description="Group → share to prune, in [0, 1].")
    of: Literal["remaining", "all"] = Field(
        "remaining", description="What an amount is a share of: what is left, or all entries."
    )
    pattern: str = Field(
        "unstructured",
        description="Or N:M: N of M neighbours in a row stay.",
        json_schema_extra={"pattern": "^(unstructured|[1-9][0-9]*:[1-9][0-9]*)$"},
    )
    target: Target | None = Field(None, description="Instead of amounts: how small to get.")
    sensitivity: str | None = Field(
        None,
        description="With a target: the earlier stage that measured the curves; default: that of "
        "the name 'sensitivity', if there is one.",
    )
    allocation: Literal["curves", "loss", "uniform"] | None = Field(
        None,
        description="With a target, how amounts are chosen. curves: of groups, by a `sensitivity` "
        "stage. loss: of layers, by how much the loss of training rows is predicted to grow. "
        "uniform: one for all groups. Default: curves where there is such a stage, else loss where "
        "training rows have one, else uniform.",
    )
    only: Listed[str] = Field(
        (), description="With a pattern or target: the groups that take part; default: all."
    )

    inputs_from: Origin = Field(
        "dense",
        description="For wanda and sparsegpt, what a layer's inputs are. dense: as the layers "
        "before it made them before this group was pruned. pruned: as they make them now, so that "
        "a layer makes up for errors before it (as in both papers).",
    )

    @field_validator("pattern")
    @classmethod
    def _pattern(cls, value: str) -> str:
        n_of_m(value)
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Prune:
        ways = (self.amounts is not None, self.target is not None, n_of_m(self.pattern) is not None)
        if sum(ways) != 1:
            raise ValueError("set one of amounts, target and pattern: N:M")
        if self.only and self.amounts is not None:
            raise ValueError("`only` goes with a pattern or a target; amounts name their groups")
        if self.target is None and self.allocation is not None:
            raise ValueError("`allocation` goes with a target")
        if self.sensitivity is not None and self.allocation in ("loss", "uniform"):
            raise ValueError("`sensitivity` goes with `allocation: curves`")
        return self

    def is_random(self) -> bool:
        return self.importance == "random"

    @property
    def needs_calibration(self) -> bool:
        return super().needs_calibration or self.allocation == "loss"

    def resolve(self, planning: Planning) -> Prune:
        """Choose the importance by what is there, and what chooses the amounts."""
        facts, chosen, reason = planning.facts, dict[str, Any](), ""
        if facts is None:
            return self
        missing = self.explain_not_linear(facts, [path for path, _ in self._paths(facts)])
        if self.importance is None:
            chosen["importance"], reason = planning.choose_importance("sparsegpt", missing=missing)
        if self.target is not None and self.allocation is None:
            if "sensitivity" in planning.artifacts:
                chosen["allocation"] = "curves"
            else:
                allocation, reason = planning.choose_importance(
                    "loss", otherwise="uniform", missing=missing
                )
                chosen["allocation"] = allocation
        return self.choose(reason or "the curves are there", **chosen) if chosen else self

    def reads(self) -> Mapping[Split, Reads]:
        return {"train": "pairs"} if self.needs_calibration else {}

    def artifacts(self) -> Mapping[str, Artifact]:
        if self.target is None or self.allocation in ("loss", "uniform"):
            return {}
        name, is_open = self.sensitivity or "sensitivity", self.sensitivity is None
        curves = Artifact(name, "sensitivity", True, is_open and self.allocation is None)
        return {"sensitivity": curves}

    def parameters(self) -> dict[str, Any]:
        """Leave out the number of calibration rows where none is read. Where they are, a group is
        scored in the model that the groups before it have left, so their order is added.
        """
        unused = {"sensitivity", "allocation"} | (
            set() if self.needs_calibration else {"calibration_rows"}
        )
        unused |= {"inputs_from"} if self.inputs_from == "dense" else set()
        fields = {key: v for key, v in super().parameters().items() if key not in unused}
        fields["importance"] = self.importance or "magnitude"
        if self.target is not None:
            fields["allocation"] = self.allocation or "curves"
        order = [] if self.only else list(flatten_amounts(self.amounts or {}) or self.groups)
        return fields | ({"order": order} if self.needs_calibration and len(order) > 1 else {})

    def _paths(self, facts: Facts) -> list[tuple[str, str]]:
        """List (group, key in the recipe) of the groups that take part."""
        if self.amounts is not None:
            return [(path, f"amounts.{path}") for path in flatten_amounts(self.amounts)]
        if self.only:
            return [(path, f"only.{index}") for index, path in enumerate(self.only)]
        return [(path, "pattern") for path in default_groups(self, facts)]

    def preview(self, planning: Planning) -> Facts | None:
        """Count exactly; report unknown and overlapping groups."""
        facts = planning.facts
        if facts is None or not planning.require_float("prune"):
            return facts
        if self.needs_calibration:
            planning.check_rows(trains=True)
        self._check_origin(facts, planning)
        self.check_groups(facts, planning.report)
        n_m = n_of_m(self.pattern)
        paths, by_row = self._paths(facts), n_m is not None
        chosen = dict(self.choose_groups(paths, facts, planning.report, by_row=by_row))
        if self.target is not None:
            names = frozenset[str]().union(*chosen.values())
            return self.target.prune_facts(facts, names, planning.report)
        if n_m is not None:
            return self._preview_pattern(facts, chosen, n_m, planning)
        amounts = flatten_amounts(self.amounts or {})
        for path, names in chosen.items():
            count, exact = facts.count_to_prune(names, amounts[path], of_all=self.of == "all")
            facts = facts.prune(names, count, exact=exact)
        return facts

    def _check_origin(self, facts: Facts, planning: Planning) -> None:
        """Report inputs of pruned layers where they mean nothing, or cannot be had."""
        if self.inputs_from == "dense":
            return
        if self.importance not in BY_LAYER:
            message = f"means nothing for {self.importance}; take wanda or sparsegpt, or 'dense'"
            planning.report("inputs_from", message)
        elif not walks_layers(facts.model_type):
            message = f"layers of a {facts.model_type} hand on position biases beside states; take"
            planning.report("inputs_from", f"{message} 'dense'")

    def _preview_pattern(
        self,
        facts: Facts,
        chosen: Mapping[str, frozenset[str]],
        n_m: tuple[int, int],
        planning: Planning,
    ) -> Facts:
        for path, names in chosen.items():
            linear = set(facts.list_linear_weights())  # others are [inputs, outputs], as GPT-2's
            shapes = {name: facts.shapes[name] for name in sorted(names)}
            rows = {name: s[-1] if name in linear else s[0] for name, s in shapes.items()}
            odd = next((name for name, inputs in rows.items() if inputs % n_m[1]), None)
            if odd is not None:
                message = f"{odd} has rows of {rows[odd]}, no multiple of {n_m[1]}"
                planning.report("pattern", f"{path}: {message}")
                continue
            left, exact = facts.count_remaining(names)
            whole = left == facts.count_entries(names)
            stays = facts.count_entries(names) * n_m[0] // n_m[1]
            count = left - stays if whole else round(left * (1 - n_m[0] / n_m[1]))
            facts = facts.prune(names, count, exact=exact and whole)
        return facts

    def smoke_test_settings(self, planning: Planning) -> Self:
        """Take a target that the small model can reach: half of what its groups can lose."""
        small, facts = super().smoke_test_settings(planning), planning.facts
        if self.target is None or facts is None:
            return small
        groups = self.all_groups(facts)
        names = {name for path, _ in self._paths(facts) for name in groups.get(path, ())}
        pruned = facts.count_remaining(frozenset(names))[0] // 2
        ratio = round(facts.nonzero_ratio - pruned / facts.parameters, 6)
        return small.model_copy(update={"target": Target(nonzero_ratio=ratio)})

    def run(self, inputs: Inputs, context: Context) -> Checkpoint:
        """Mask entries, and count those of each group."""
        from compressor.compression.pruning import Pruner

        checkpoint = inputs.checkpoint()
        groups = self.all_groups(checkpoint.derive_facts())
        examples = load_calibration_rows(self, checkpoint, context)
        pruner = Pruner(
            checkpoint, self, seed=context.seed, examples=examples, origin=self.inputs_from
        )
        counts = self._choose_counts(checkpoint, inputs, context)
        before = {path: count_unmasked(checkpoint, groups[path]) for path in counts}
        if self.allocation == "loss":  # at once: no layer sees what another has lost
            by_layer = self._choose_by_layer(checkpoint, groups, examples, context)
            jobs: list[tuple[Iterable[str], Any]] = [(by_layer, by_layer)]
        else:
            jobs = [(groups[path], count) for path, count in counts.items()]
        with ExitStack() as shown:
            if self.importance in BY_LAYER:  # minutes or hours, where others take seconds
                total = sum(len(groups[path]) for path in counts)
                pruner.advance = shown.enter_context(context.progress.bar("prune", total)).advance
            for names, count in jobs:
                pruner.prune_group(names, count, n_of_m(self.pattern))
        left = {path: count_unmasked(checkpoint, groups[path])[0] for path in counts}
        context.metrics["groups"] = {
            path: {
                "amount": round((had - left[path]) / had, DIGITS) if had else 0.0,
                "weights": size,
                "left": left[path],
                "pruned": had - left[path],
            }
            for path, (had, size) in before.items()
        }
        return checkpoint

    def _choose_counts(
        self, checkpoint: Checkpoint, inputs: Inputs, context: Context
    ) -> dict[str, int]:
        """Choose how many entries each group loses; 0 where that is chosen otherwise."""
        facts = checkpoint.derive_facts()
        groups, paths = self.all_groups(facts), [path for path, _ in self._paths(facts)]
        left = {path: count_unmasked(checkpoint, groups[path]) for path in paths}
        if self.target is None:  # with N:M the pattern says how many
            amounts = dict.fromkeys(paths, 0.0) | flatten_amounts(self.amounts or {})
            of_all = self.of == "all"
            return {p: count_entries(amounts[p], *left[p], of_all=of_all) for p in paths}
        if self.allocation == "loss":
            return dict.fromkeys(paths, 0)
        if self.allocation == "uniform":
            return self.target.split_evenly(checkpoint, {path: groups[path] for path in paths})
        return self._allocate(checkpoint, facts, inputs, context)

    def _choose_by_layer(
        self,
        checkpoint: Checkpoint,
        groups: Mapping[str, Sequence[str]],
        examples: Examples | None,
        context: Context,
    ) -> dict[str, LayerAmount]:
        """Choose how many entries each layer loses by the predicted loss; print their shares."""
        from compressor.compression.calibration import Calibration
        from compressor.compression.layer_amounts import choose_layer_amounts

        assert examples is not None and self.target is not None
        paths = [path for path, _ in self._paths(checkpoint.derive_facts())]
        names = [name for path in paths for name in groups[path]]
        left = {name: max(1, count_unmasked(checkpoint, [name])[0]) for name in names}
        calibration = Calibration(checkpoint, examples)
        amounts = choose_layer_amounts(calibration, names, self.target.count_pruned(checkpoint))
        shares = {name: round(amounts[name].count / left[name], DIGITS) for name in names}
        context.metrics["layer_amounts"] = shares
        for path in paths:
            of_group = [shares[name] for name in groups[path]]
            span = f"{min(of_group):.2f} … {max(of_group):.2f}"
            context.progress.say(f"  {path}: layers lose {span} of what is left")
        return amounts

    def _allocate(
        self, checkpoint: Checkpoint, facts: Facts, inputs: Inputs, context: Context
    ) -> dict[str, int]:
        """Choose from the curves how many entries each group loses; print and save it."""
        from compressor.compression.allocation import Curve, allocate_counts

        assert self.target is not None
        path = inputs.artifacts["sensitivity"] / "sensitivity.json"
        measured = json.loads(path.read_text(encoding="utf-8"))
        groups = self.all_groups(facts)
        curves = {}
        for name, curve in measured["groups"].items():
            if self.only and name not in self.only:
                continue
            if name not in groups or count_unmasked(checkpoint, groups[name])[0] != curve["left"]:
                stage = self.sensitivity or "sensitivity"
                raise StageError(f"{stage!r} measured {name!r} of another model")
            losses = [point["loss"] for point in curve["points"]]
            curves[name] = Curve(curve["left"], [p["amount"] for p in curve["points"]], losses)
        try:
            total = self.target.count_pruned(checkpoint)
            counts = allocate_counts(curves, measured["loss"], total)
        except ValueError as error:
            raise StageError(f"target: {error}, at the amounts that were measured") from error
        amounts = {n: round(c / max(1, curves[n].left), DIGITS) for n, c in counts.items()}
        context.metrics["amounts"] = nest_amounts(amounts)
        context.progress.say(f"  amounts: {json.dumps(nest_amounts(amounts))}")
        return counts
