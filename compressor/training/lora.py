"""Settings of a training of adapters, and what it trains. No adapters here, and no torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec

from pydantic import BaseModel, Field

from compressor.core.errors import nearest
from compressor.core.packages import suggest_install
from compressor.core.settings import SETTINGS, Integer, Listed
from compressor.models.facts import FRESH_HEADS, Facts


class Lora(BaseModel):
    """Train two narrow matrices beside each weight W, and leave W as it is (arXiv 2106.09685).

    The model computes with `W + scale · B·A`, B of `rank` columns and A of `rank` rows; at the end
    that becomes W. What is pruned of W is left out of the product too. A classifier's head, and
    the layer before it (pooler, pre_classifier), have no adapters and are trained whole; nothing
    else is trained.

    Example: `lora: {rank: 8, targets: [decoder.self_attention, decoder.cross_attention]}`
    """

    model_config = SETTINGS

    rank: Integer = Field(16, ge=1, description="Columns of B, and rows of A.")
    alpha: float = Field(32.0, gt=0, description="The scale is alpha / rank.")
    rslora: bool = Field(
        False, description="The scale is alpha / √rank, for large ranks (arXiv 2312.03732)."
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of its inputs that an adapter does not see in a step."
    )
    targets: Listed[str] = Field(
        (),
        description="Groups of `prune` whose weights get adapters, such as decoder.self_attention; "
        "default: all of the layers, without the head.",
    )

    def list_targets(self, facts: Facts) -> set[str]:
        """Name the weights that get adapters; groups that the model lacks have none."""
        groups = facts.list_groups()
        paths = self.targets or [path for path in groups if "." in path]
        return {name for path in paths for name in groups.get(path, ())}

    def list_head(self, facts: Facts) -> set[str]:
        """Name the parameters that are trained whole: what stands on a classifier's body."""
        return {name for name in facts.shapes if name.startswith(FRESH_HEADS)}

    def count_trained(self, facts: Facts) -> int:
        """Count the parameters that are trained."""
        rows = sum(sum(facts.shapes[name]) for name in self.list_targets(facts))
        head = sum(math.prod(facts.shapes[name]) for name in self.list_head(facts))
        return self.rank * rows + head

    def check(self, facts: Facts, report: Callable[[str, str], None]) -> None:
        """Report groups that have no weights of their own, at keys below `lora`."""
        groups, ties = facts.list_groups(), set(facts.list_ties().values())
        for index, path in enumerate(self.targets):
            if path not in groups:
                report(f"targets.{index}", f"no such group; {nearest(path, groups)}")
            elif not groups[path]:
                report(f"targets.{index}", "the group has no weights in this model")
            elif ties & set(groups[path]):
                message = "is tied to the word embeddings, which an adapter would change too; "
                report(f"targets.{index}", f"{path!r} {message}leave it out")

    def explain_missing(self) -> str | None:
        """Say what to install where peft is not; None where it is."""
        missing = find_spec("peft") is None
        return f"needs peft, not installed: {suggest_install('lora')}" if missing else None
