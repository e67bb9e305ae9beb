"""Share what stages that prune do: which groups, how much of each, by which importance.

`prune`, `sensitivity` and a gradual `finetune` are told the same things in the same words. torch is
imported by what prunes, not by what plans.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from compressor.core.errors import nearest
from compressor.core.numbers import require_finite
from compressor.core.settings import SETTINGS, Integer, Listed
from compressor.models.architectures.t5 import T5_TYPES
from compressor.models.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.compression.calibration import Calibration
    from compressor.compression.layer_amounts import LayerAmount
    from compressor.compression.sparsegpt import Curvature
    from compressor.data.examples import Examples
    from compressor.models.checkpoint import Checkpoint


Amount = Annotated[float, Field(ge=0, le=1)]

Importance = Literal["magnitude", "random", "taylor", "wanda", "sparsegpt"]

CALIBRATED = frozenset({"taylor", "wanda", "sparsegpt"})
"""Importances that look at rows of the data."""

BY_LAYER = frozenset({"wanda", "sparsegpt"})
"""Those of them that look at what comes into each layer alone."""

Origin = Literal["dense", "pruned"]
"""Where a layer's inputs come from: from the layers before it unpruned, or as they are by then."""

TOO_LARGE = (
    "activations or gradients on the calibration rows are too large for the importance; take "
    "importance: magnitude, or a model whose training has not diverged"
)


def _find_kind(value: Any) -> str:
    return "mapping" if isinstance(value, Mapping) else "number"


Amounts = dict[
    str,
    Annotated[
        Annotated[Amount, Tag("number")] | Annotated[dict[str, Amount], Tag("mapping")],
        Discriminator(_find_kind),
    ],
]


def flatten_amounts(amounts: Amounts) -> dict[str, float]:
    """Map each group path, such as `encoder.feed_forward`, to its amount."""
    flat: dict[str, float] = {}
    for name, value in amounts.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{part}": amount for part, amount in value.items()}
        else:
            flat[name] = value
    return flat


def nest_amounts(amounts: Mapping[str, float]) -> dict[str, Any]:
    """Undo `flatten_amounts`: as a recipe has them, for overrides need keys without dots."""
    nested: dict[str, Any] = {}
    for path, amount in amounts.items():
        place, dot, part = path.partition(".")
        if dot:
            nested.setdefault(place, {})[part] = amount
        else:
            nested[path] = amount
    return nested


class Grouping(BaseModel):
    """Which weights are pruned together, and by which importance."""

    model_config = SETTINGS

    groups: dict[str, Listed[str]] = Field(
        {},
        description="Groups of your own: name → patterns of parameter names, such as "
        "`encoder.block.[012].*.wi.weight` (`*` any text, `?` a letter, `[…]` one of these).",
    )
    importance: Importance | None = Field(
        None,
        description="magnitude |w|; random; taylor |w · dL/dw|; wanda |w| · ‖x‖, compared inside a "
        "row; sparsegpt, which also updates what stays. Default: sparsegpt where training rows "
        "have a loss and the groups are weights of linear layers, else magnitude.",
    )
    calibration_rows: Integer = Field(
        64, ge=1, description="Training rows that taylor, wanda and sparsegpt look at."
    )

    @property
    def needs_calibration(self) -> bool:
        return self.importance in CALIBRATED

    def explain_not_linear(self, facts: Facts, paths: Iterable[str]) -> str:
        """Name a weight of these groups that no layer multiplies by; "" where there is none."""
        groups = self.all_groups(facts)
        names = {name for path in paths for name in groups.get(path, ())}
        others = sorted(names - _list_matrices(facts))
        return f"{others[0]} is no Linear layer's weight" if others else ""

    def all_groups(self, facts: Facts) -> dict[str, tuple[str, ...]]:
        """List the architecture's groups and the recipe's; a name that is both is the recipe's."""
        return facts.list_groups() | {
            name: tuple(n for n in facts.shapes if any(fnmatchcase(n, p) for p in patterns))
            for name, patterns in self.groups.items()
        }

    def check_groups(self, facts: Facts, report: Callable[[str, str], None]) -> None:
        """Report patterns that match nothing."""
        for name, patterns in self.groups.items():
            for index, pattern in enumerate(patterns):
                if not any(fnmatchcase(shape, pattern) for shape in facts.shapes):
                    hint = nearest(pattern, facts.shapes)
                    report(f"groups.{name}.{index}", f"matches no parameter; {hint}")

    def choose_groups(
        self,
        paths: Iterable[tuple[str, str]],
        facts: Facts,
        report: Callable[[str, str], None],
        *,
        by_row: bool = False,
    ) -> Iterator[tuple[str, frozenset[str]]]:
        """Yield (path, names) for each (path, key in the recipe); report unknown and shared groups.

        `by_row`: rows are inputs of a layer, so only weights that a layer multiplies by will do.
        """
        groups, owner = self.all_groups(facts), dict[str, str]()
        matrices = _list_matrices(facts)
        for path, key in paths:
            if path not in groups:
                report(key, f"no such group; {nearest_group(path, groups)}")
                continue
            names = frozenset(groups[path])
            if not names:
                report(key, "the group has no weights in this model")
                continue
            twice = next((owner[name] for name in sorted(names) if name in owner), None)
            if twice is not None:
                report(key, f"shares weights with the group {twice!r}")
                continue
            other = sorted(names - matrices)
            if other and (by_row or self.needs_calibration):
                report(key, f"{other[0]} is no Linear layer's weight, which this needs")
            owner |= dict.fromkeys(names, path)
            yield path, names


def _list_matrices(facts: Facts) -> set[str]:
    """List the weights that layers multiply by."""
    matrices = {name for names in facts.list_groups().values() for name in names}
    return matrices | set(facts.list_linear_weights())


def nearest_group(path: str, groups: Mapping[str, Any]) -> str:
    """Hint at a group for an unknown one: in the same stack first, as most slips are."""
    stack, _, part = path.partition(".")
    inside = [name.partition(".")[2] for name in groups if name.startswith(f"{stack}.")]
    if part and inside:
        return f"in {stack!r}: {nearest(part, inside)}"
    return nearest(path, groups)


def default_groups(grouping: Grouping, facts: Facts) -> list[str]:
    """List the recipe's groups, or else the architecture's, each weight in one of them."""
    if grouping.groups:
        return list(grouping.groups)
    taken: set[str] = set()
    paths = []
    for path, names in facts.list_groups().items():
        if names and not taken & set(names):
            taken |= set(names)
            paths.append(path)
    return paths


def walks_layers(model_type: str) -> bool:
    """Tell whether a model's layers can be run one by one: T5's hand on position biases too."""
    return model_type not in T5_TYPES


def count_unmasked(checkpoint: Checkpoint, names: Iterable[str]) -> tuple[int, int]:
    """Count (entries that no mask has taken, all entries) of a group."""
    from compressor.models.masks import count_left

    weights = {name: checkpoint.get_parameter(name) for name in names}
    return count_left(checkpoint.masks, weights), sum(weight.numel() for weight in weights.values())


_N_M = re.compile(r"^([1-9]\d*):([1-9]\d*)$")


def n_of_m(pattern: str) -> tuple[int, int] | None:
    """Read (N, M) from `N:M`; None from `unstructured`. Raises ValueError on anything else."""
    if pattern == "unstructured":
        return None
    match = _N_M.match(pattern)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"expected unstructured or N:M with N < M, such as 2:4, got {pattern!r}")
    return int(match[1]), int(match[2])


class Pruner:
    """Prunes groups of one checkpoint, in place: chooses entries, masks them, sets them to zero.

    examples: calibration rows, where the importance needs some. seed: of random scores. origin: of
    what comes into a layer, for importances of `BY_LAYER`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        grouping: Grouping,
        *,
        seed: int = 0,
        examples: Examples | None = None,
        origin: Origin = "dense",
    ) -> None:
        self.checkpoint, self.grouping, self.seed = checkpoint, grouping, seed
        self.examples, self.origin = examples, origin
        self._sums: list[tuple[dict[str, Any], Any]] | None = None
        self.advance: Callable[[int], object] = lambda _: None
        """Told how many more weights are done, where they are pruned layer by layer."""

    def prune_group(
        self,
        names: Iterable[str],
        count: int | Mapping[str, LayerAmount],
        n_m: tuple[int, int] | None = None,
    ) -> int:
        """Prune `count` more entries of these parameters together, or what each loses, or to N:M.

        Gives how many went.
        """
        from compressor.compression.thresholds import prune_smallest
        from compressor.models.masks import apply_mask, count_left

        names = list(names)
        weights = {name: self.checkpoint.get_parameter(name) for name in names}
        masks = self.checkpoint.masks
        before = count_left(masks, weights)
        if self.grouping.importance in BY_LAYER:
            self._prune_by_layer(weights, count, n_m)
        elif n_m is not None:
            self._prune_blocks(weights, n_m)
        elif isinstance(count, int):
            prune_smallest(self.compute_scores(weights), masks, count, release=True)
        else:
            scores = self.compute_scores(weights)
            for name in names:
                prune_smallest({name: scores.pop(name)}, masks, count[name].count)
        for name in names:
            apply_mask(weights[name].data, masks[name])
        return before - count_left(masks, weights)

    def try_counts(self, names: Iterable[str], counts: Iterable[int]) -> Iterator[None]:
        """Prune as many entries of these parameters as each count says, and restore them after it.

        What comes into their layers is summed up once.
        """
        names = list(names)
        if self.grouping.importance in BY_LAYER:
            weights = {name: self.checkpoint.get_parameter(name) for name in names}
            self._sums = list(self._sum_inputs(self._list_modules(weights)))
        for count in counts:
            with self.restore_after(names):
                self.prune_group(names, count)
                yield
        self._sums = None

    @contextmanager
    def restore_after(self, names: Iterable[str]) -> Iterator[None]:
        """Give these parameters their weights and masks back at the end."""
        names, masks = list(names), self.checkpoint.masks
        weights = {name: self.checkpoint.get_parameter(name).detach().clone() for name in names}
        old = {name: masks[name].clone() for name in names if name in masks}
        try:
            yield
        finally:
            for name, weight in weights.items():
                self.checkpoint.get_parameter(name).data.copy_(weight)
                masks.pop(name, None)
            masks.update(old)

    def compute_scores(self, weights: Mapping[str, Any]) -> dict[str, Tensor]:
        """Score each entry; the sign does not count, and 0 is where a mask has False."""
        from compressor.compression import importance
        from compressor.compression.calibration import list_layers

        kind, masks = self.grouping.importance, self.checkpoint.masks
        if kind in (None, "magnitude"):
            return {name: weight.detach() for name, weight in weights.items()}
        if kind == "taylor":
            calibration = self._prepare_calibration()
            rows, layers = calibration.list_batches(), list_layers(self.checkpoint)
            scores = importance.taylor_scores(weights, calibration.loss, rows, chain(*layers))
            require_finite(scores, "the taylor importance of ", TOO_LARGE)
        else:
            scores = importance.random_scores(weights, self.seed)
        return {n: s.masked_fill_(~masks[n], 0) if n in masks else s for n, s in scores.items()}

    def _prune_blocks(self, weights: Mapping[str, Any], n_m: tuple[int, int]) -> None:
        """Compare entries with their neighbours in the row only, by a score of each entry."""
        from compressor.compression.thresholds import prune_blocks

        modules, masks = self._list_modules(weights), self.checkpoint.masks
        scores = self.compute_scores(weights)
        for name in weights:
            rows = {"": self._mask_as_rows(name, modules[name])}
            prune_blocks({"": as_rows(scores.pop(name), modules[name])}, rows, *n_m)
            masks[name] = as_rows(rows[""], modules[name]).contiguous()

    def _prune_by_layer(
        self,
        weights: Mapping[str, Any],
        count: int | Mapping[str, LayerAmount],
        n_m: tuple[int, int] | None,
    ) -> None:
        """Prune by what comes into each weight's module: with the sums of one layer at a time."""
        from compressor.compression import sparsegpt, thresholds

        modules = self._list_modules(weights)
        old = {name: self._mask_as_rows(name, module) for name, module in modules.items()}
        updates = self.grouping.importance == "sparsegpt"
        split: Any = sparsegpt.block_counts if updates else thresholds.row_counts
        goes: dict[str, Any] = dict.fromkeys(modules)  # with N:M the pattern says how many
        gradients: dict[str, Tensor] = {}
        if isinstance(count, Mapping):
            gradients = {name: amount.gradients for name, amount in count.items()}
            for name, amount in count.items():
                goes[name] = amount.blocks if updates else split([old[name]], amount.count)[0]
        elif n_m is None:
            goes = dict(zip(modules, split(list(old.values()), count), strict=True))
        prune = self._prune_with_sparsegpt if updates else self._prune_with_wanda
        for shared, known in self._sums or self._sum_inputs(modules):
            prune(shared, known, goes, gradients, n_m)
            self.advance(len(shared))

    def _sum_inputs(self, modules: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], Any]]:
        """Yield modules that read the same, by name, with what their importance has to know of it:
        the norm of each input, or the Hessian's factor.
        """
        from compressor.compression import layer_inputs
        from compressor.compression.calibration import factorize

        updates = self.grouping.importance == "sparsegpt"
        statistic = layer_inputs.add_products if updates else layer_inputs.add_squares
        sums = self._prepare_calibration().sum_by_layer(modules, statistic, self.origin)
        for shared, total in sums:
            name = next(iter(shared))
            if not updates:
                require_finite({name: total}, "the norm of what comes into ", TOO_LARGE)
            yield shared, factorize(name, total, TOO_LARGE) if updates else total.sqrt()

    def _prune_with_wanda(
        self,
        modules: Mapping[str, Any],
        norms: Tensor,
        goes: Mapping[str, Any],
        _: Mapping[str, Tensor],
        n_m: tuple[int, int] | None,
    ) -> None:
        from compressor.compression import importance, thresholds

        for name, module in modules.items():
            rows = {"": self._mask_as_rows(name, module)}
            score = importance.wanda_scores(as_rows(module.weight, module), norms)
            if n_m is not None:
                thresholds.prune_blocks({"": score}, rows, *n_m)
            else:
                rows[""] = thresholds.prune_rows(score, rows[""], goes[name])
            self.checkpoint.masks[name] = as_rows(rows[""], module).contiguous()

    def _prune_with_sparsegpt(
        self,
        modules: Mapping[str, Any],
        curvature: Curvature,
        goes: Mapping[str, Any],
        gradients: Mapping[str, Tensor],
        n_m: tuple[int, int] | None,
    ) -> None:
        from compressor.compression.sparsegpt import prune_with_sparsegpt

        for name, module in modules.items():
            weight, mask = as_rows(module.weight, module), self._mask_as_rows(name, module)
            matters = gradients.get(name)
            new, mask = prune_with_sparsegpt(weight, curvature, mask, goes[name], n_m, matters)
            module.weight.data.copy_(as_rows(new, module))
            self.checkpoint.masks[name] = as_rows(mask, module).contiguous()

    def _mask_as_rows(self, name: str, module: Any) -> Tensor:
        """View a weight's mask as [outputs, inputs]; a missing one takes no memory."""
        import torch

        mask = self.checkpoint.masks.get(name)
        if mask is None:
            weight = module.weight
            mask = torch.ones((), dtype=torch.bool, device=weight.device).expand(weight.shape)
        return as_rows(mask, module)

    def _list_modules(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        from compressor.compression.importance import linear_modules

        return linear_modules(self.checkpoint.model, weights)

    def _prepare_calibration(self) -> Calibration:
        from compressor.compression.calibration import Calibration

        assert self.examples is not None, "stages read rows for importances that need them"
        return Calibration(self.checkpoint, self.examples)


def as_rows(tensor: Tensor, module: Any) -> Tensor:
    """View a weight, or what has its shape, as [outputs, inputs]; its own inverse."""
    from compressor.compression.importance import is_transposed

    return tensor.T if is_transposed(module) else tensor
