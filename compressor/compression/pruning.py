"""Share what stages that prune do: which groups, how much of each, by which importance.

`prune`, `sensitivity` and a gradual `finetune` are told the same things in the same words. torch is
imported by what prunes, not by what plans.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from compressor.core.errors import StageError, nearest
from compressor.core.numbers import require_finite
from compressor.core.settings import SETTINGS, Integer, Listed
from compressor.models.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.data.examples import Examples
    from compressor.models.checkpoint import Checkpoint


Amount = Annotated[float, Field(ge=0, le=1)]

Importance = Literal["magnitude", "random", "taylor", "wanda", "sparsegpt"]

CALIBRATED = frozenset({"taylor", "wanda", "sparsegpt"})
"""Importances that look at rows of the data."""

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
    importance: Importance = Field(
        "magnitude",
        description="magnitude |w|; random; taylor |w · dL/dw|; wanda |w| · ‖x‖, compared inside a "
        "row; sparsegpt, which also updates what stays.",
    )
    calibration_rows: Integer = Field(
        64, ge=1, description="Training rows that taylor, wanda and sparsegpt look at."
    )

    @property
    def needs_calibration(self) -> bool:
        return self.importance in CALIBRATED

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
        matrices = {name for names in facts.list_groups().values() for name in names}
        matrices |= set(facts.list_linear_weights())
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

    examples: calibration rows, where the importance needs some. seed: of random scores.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        grouping: Grouping,
        *,
        seed: int = 0,
        examples: Examples | None = None,
    ) -> None:
        self.checkpoint, self.grouping, self.seed = checkpoint, grouping, seed
        self.examples = examples

    def prune_group(
        self, names: Iterable[str], count: int, n_m: tuple[int, int] | None = None
    ) -> int:
        """Prune `count` more entries of these parameters together, or to N:M; count what went."""
        from compressor.compression.thresholds import prune_smallest
        from compressor.models.masks import apply_mask, count_left

        names = list(names)
        weights = {name: self.checkpoint.get_parameter(name) for name in names}
        masks = self.checkpoint.masks
        before = count_left(masks, weights)
        if self.grouping.importance == "sparsegpt":
            self._prune_with_sparsegpt(weights, count, n_m)
        elif n_m is not None or self.grouping.importance == "wanda":
            self._in_rows(weights, count, n_m)
        else:
            prune_smallest(self.compute_scores(weights), masks, count)
        for name in names:
            apply_mask(weights[name].data, masks[name])
        return before - count_left(masks, weights)

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

        kind, masks = self.grouping.importance, self.checkpoint.masks
        if kind == "magnitude":
            return {name: weight.detach() for name, weight in weights.items()}
        if kind == "wanda":
            modules = self._list_modules(weights)
            norms = importance.input_norms(modules, *self._prepare_calibration())
            require_finite(norms, "the norm of what comes into ", TOO_LARGE)
            norms = {
                n: x[:, None] if importance.is_transposed(modules[n]) else x
                for n, x in norms.items()
            }
            return importance.wanda_scores(weights, norms)
        if kind == "taylor":
            scores = importance.taylor_scores(weights, *self._prepare_calibration())
            require_finite(scores, "the taylor importance of ", TOO_LARGE)
        else:
            scores = importance.random_scores(weights, self.seed)
        return {n: s.masked_fill(~masks[n], 0) if n in masks else s for n, s in scores.items()}

    def _in_rows(self, weights: Mapping[str, Any], count: int, n_m: tuple[int, int] | None) -> None:
        """Compare entries with others of the same row only: in blocks of M, or in whole rows."""
        from compressor.compression.thresholds import prune_blocks, prune_rows

        modules, masks = self._list_modules(weights), self.checkpoint.masks
        scores = {n: _as_rows(s, modules[n]) for n, s in self.compute_scores(weights).items()}
        rows = {n: _as_rows(masks[n], modules[n]) for n in scores if n in masks}
        if n_m is not None:
            prune_blocks(scores, rows, *n_m)
        else:
            prune_rows(scores, rows, count)
        masks |= {n: _as_rows(mask, modules[n]).contiguous() for n, mask in rows.items()}

    def _prune_with_sparsegpt(
        self, weights: Mapping[str, Any], count: int, n_m: tuple[int, int] | None
    ) -> None:
        import torch

        from compressor.compression import importance
        from compressor.compression.sparsegpt import block_counts, prune_with_sparsegpt

        modules, masks = self._list_modules(weights), self.checkpoint.masks
        hessians = importance.compute_hessians(modules, *self._prepare_calibration())
        require_finite(hessians, "the Hessian of ", TOO_LARGE)
        rows = {n: _as_rows(w.detach(), modules[n]) for n, w in weights.items()}
        ones = {n: torch.ones_like(w, dtype=torch.bool) for n, w in rows.items()}
        old = ones | {n: _as_rows(masks[n], modules[n]) for n in rows if n in masks}
        counts: list[list[int] | None] = [None] * len(rows)
        if n_m is None:
            counts = [*block_counts(list(old.values()), count)]
        for (name, weight), goes in zip(rows.items(), counts, strict=True):
            try:
                new, mask = prune_with_sparsegpt(weight, hessians.pop(name), old[name], goes, n_m)
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # it is there
                raise StageError(f"the Hessian of {name} has no inverse; {TOO_LARGE}") from error
            weights[name].data.copy_(_as_rows(new, modules[name]))
            masks[name] = _as_rows(mask, modules[name]).contiguous()

    def _list_modules(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        from compressor.compression.importance import linear_modules

        return linear_modules(self.checkpoint.model, weights)

    def _prepare_calibration(self) -> tuple[Any, list[dict[str, Tensor]]]:
        """Give the loss of a batch, and batches of one row each: without padding."""
        from compressor.training.losses import LabelLoss

        assert self.examples is not None, "stages read rows for importances that need them"
        pad_id, device = self.checkpoint.pad_id, self.checkpoint.model.device
        batches = []
        for index in range(len(self.examples)):
            batch = self.examples.batch([index], pad_id)
            batches.append({name: tensor.to(device) for name, tensor in batch.items()})
        return LabelLoss(self.checkpoint.model), batches


def _as_rows(tensor: Tensor, module: Any) -> Tensor:
    """View a weight, or what has its shape, as [outputs, inputs]; its own inverse."""
    from compressor.compression.importance import is_transposed

    return tensor.T if is_transposed(module) else tensor
