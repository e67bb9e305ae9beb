"""`prune`: masks over groups of weights. Which entries go is decided in `compressor.sparsity`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag

from compressor.architectures import Facts
from compressor.errors import nearest
from compressor.stage import Context, Inputs, Planning, Stage

if TYPE_CHECKING:
    from compressor.checkpoint import Checkpoint

Amount = Annotated[float, Field(ge=0, le=1, strict=False)]


def _kind(value: Any) -> str:
    return "mapping" if isinstance(value, Mapping) else "number"


Amounts = dict[
    str,
    Annotated[
        Annotated[Amount, Tag("number")] | Annotated[dict[str, Amount], Tag("mapping")],
        Discriminator(_kind),
    ],
]


class Prune(Stage):
    """Set the weights of smallest magnitude of each group to zero, exactly as many as asked.

    Global L1 inside each group: `round(amount × what is left)` entries go, counted over all
    tensors of the group together. A group is named by its place, `encoder: {feed_forward: 0.1}`,
    or for all stacks at once, `feed_forward: 0.1`. A tied head and embedding are one tensor.

    This makes nothing smaller or faster by itself: the zeros are stored as any number is, until
    the model is packed, quantized or sliced.

    Example: `prune: {amounts: {decoder: {self_attention: 0.3, feed_forward: 0.3}, lm_head: 0.3}}`
    """

    version: ClassVar[int] = 1

    amounts: Amounts = Field(min_length=1, description="Group → share of what is left, in [0, 1].")

    def flat(self) -> dict[str, float]:
        """Group path, such as `encoder.feed_forward`, → amount."""
        flat: dict[str, float] = {}
        for name, value in self.amounts.items():
            if isinstance(value, dict):
                flat |= {f"{name}.{part}": amount for part, amount in value.items()}
            else:
                flat[name] = value
        return flat

    def preview(self, planning: Planning) -> Facts | None:
        """Exact counts; reports unknown and overlapping groups."""
        facts = planning.facts
        if facts is None:
            return None
        if facts.int8:
            planning.problem("", "cannot prune an int8 model; put `quantize` after it")
            return facts
        groups, owner = facts.groups(), dict[str, str]()
        for path, amount in self.flat().items():
            if path not in groups:
                planning.problem(
                    f"amounts.{path}", f"no such group; {_nearest_group(path, groups)}"
                )
                continue
            names = frozenset(groups[path])
            if not names:
                planning.problem(f"amounts.{path}", "the group has no weights in this model")
            twice = next((owner[name] for name in sorted(names) if name in owner), None)
            if twice is not None:
                planning.problem(f"amounts.{path}", f"shares weights with the group {twice!r}")
                continue
            owner |= dict.fromkeys(names, path)
            facts = facts.prune(names, amount)
        return facts

    def run(self, inputs: Inputs, context: Context) -> Checkpoint:
        """Mask, and count what went from each group."""
        from compressor.architectures import facts as facts_of
        from compressor.checkpoint import has_untied_head
        from compressor.sparsity.magnitude import global_l1

        checkpoint = inputs.checkpoint()
        untied = has_untied_head(checkpoint.model)
        known = facts_of(
            checkpoint.model.config.to_dict(), head=checkpoint.head, untied_head=untied
        )
        groups = known.groups()
        context.metrics["groups"] = {}
        for path, amount in self.flat().items():
            weights = {name: checkpoint.parameter(name) for name in groups[path]}
            before = _left(checkpoint.masks, weights)
            checkpoint.masks |= global_l1(weights, checkpoint.masks, amount)
            after = _left(checkpoint.masks, weights)
            context.metrics["groups"][path] = {
                "amount": amount,
                "weights": sum(weight.numel() for weight in weights.values()),
                "left": after,
                "pruned": before - after,
            }
        checkpoint.apply_masks()
        return checkpoint


def _left(masks: Mapping[str, Any], weights: Mapping[str, Any]) -> int:
    return sum(
        int(masks[name].count_nonzero()) if name in masks else weight.numel()
        for name, weight in weights.items()
    )


def _nearest_group(path: str, groups: Mapping[str, Any]) -> str:
    """A hint for an unknown group: one in the same stack first, as most slips are in one part."""
    stack, _, part = path.partition(".")
    inside = [name.partition(".")[2] for name in groups if name.startswith(f"{stack}.")]
    if part and inside:
        return f"in {stack!r}: {nearest(part, inside)}"
    return nearest(path, groups)
