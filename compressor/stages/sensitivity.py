"""`sensitivity`: measure how much each group of weights matters by pruning it alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, field_validator

from compressor.backends.base import WRITERS
from compressor.compression.pruning import Grouping, Pruner, count_unmasked, default_groups
from compressor.core.errors import StageError
from compressor.core.files import write_json
from compressor.core.packages import versions
from compressor.core.settings import Integer, Length, Listed
from compressor.data.rows import Rows
from compressor.data.source_base import Reads, Split
from compressor.evaluation.rouge import SCORING_PACKAGES
from compressor.models.facts import Facts
from compressor.stages.base import Context, Inputs, Planning, Report, load_calibration_rows

if TYPE_CHECKING:
    from compressor.data.examples import Examples
    from compressor.models.checkpoint import Checkpoint

CURVES = "sensitivity.json"


class Sensitivity(Grouping, Report):
    """Prune each group alone, at each amount, and measure the loss on rows of the validation split.

    Writes `sensitivity.json`, from which `prune: {target: …}` chooses amounts; the
    run's `report.html` draws the curves. The model is loaded once: each group is restored before
    the next.

    Example: `sensitivity: {rows: 64, amounts: [0.3, 0.5, 0.7, 0.9]}`
    """

    version: ClassVar[int] = 2

    amounts: Listed[Annotated[float, Field(gt=0, le=1)]] = Field(
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        min_length=1,
        description="Shares of what is left in a group, above 0 and at most 1.",
    )
    rows: Integer = Field(64, ge=1, description="Validation rows that are looked at.")
    rouge: bool = Field(False, description="Write from the rows too, and score: slow.")
    max_length: Length = Field(64, description="Limit of those texts, in tokens.")
    only: Listed[str] = Field((), description="The groups that are measured; default: all.")

    @field_validator("amounts")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(value)))

    def identity(self, planning: Planning) -> Mapping[str, Any]:
        """Name the releases of what counts words: others may give other scores."""
        return versions(SCORING_PACKAGES) if self.rouge else {}

    def resolve(self, planning: Planning) -> Sensitivity:
        if self.importance is not None or planning.facts is None:
            return self
        paths = [path for path, _ in self._paths(planning.facts)]
        missing = self.explain_not_linear(planning.facts, paths)
        importance, reason = planning.choose_importance("sparsegpt", missing=missing)
        return self.choose(reason, importance=importance)

    def is_random(self) -> bool:
        return self.importance == "random"

    def reads(self) -> Mapping[Split, Reads]:
        calibration: dict[Split, Reads] = {"train": "pairs"} if self.needs_calibration else {}
        return {**calibration, "validation": "pairs"}

    def parameters(self) -> dict[str, Any]:
        """Add the order of the recipe's own groups: a `prune` with a target follows it."""
        order = [] if self.only else list(self.groups)
        importance = {"importance": self.importance or "magnitude"}
        return super().parameters() | importance | ({"order": order} if len(order) > 1 else {})

    def preview(self, planning: Planning) -> Facts | None:
        facts = planning.facts
        if facts is None:
            return None
        planning.require_float("prune")
        planning.check_rows(trains=True)
        self.check_groups(facts, planning.report)
        if self.rouge and facts.config["head"] not in WRITERS:
            planning.report("rouge", "scores what encoder-decoders and decoders write")
        elif self.rouge and planning.data.is_text_alone:
            planning.report("rouge", "nothing is written for texts alone; set data.completion")
        elif self.rouge:
            planning.check_decoding({"max_length": self.max_length})
        list(self.choose_groups(self._paths(facts), facts, planning.report))
        return facts

    def _paths(self, facts: Facts) -> list[tuple[str, str]]:
        paths = self.only or default_groups(self, facts)
        key = "only." if self.only else ""
        return [(path, f"{key}{i}" if key else "") for i, path in enumerate(paths)]

    def run(self, inputs: Inputs, context: Context) -> None:
        """Measure, and write the curves."""
        import torch

        from compressor.training.loop import NO_LABELS

        checkpoint = inputs.checkpoint()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        checkpoint.model.to(device)
        for name, mask in checkpoint.masks.items():
            checkpoint.masks[name] = mask.to(device)
        rows = context.rows("validation").first(self.rows)
        validation = checkpoint.tokenize_rows(rows, context.data)
        if not any(validation.targets):
            raise StageError(NO_LABELS.format("validation"))
        measure = partial(self._measure, checkpoint, rows, validation)
        result: dict[str, Any] = {**measure("the model as it is"), "rows": len(rows), "groups": {}}
        examples = load_calibration_rows(self, checkpoint, context)
        pruner = Pruner(checkpoint, self, seed=context.seed, examples=examples)
        facts = checkpoint.derive_facts()
        groups, paths = self.all_groups(facts), [path for path, _ in self._paths(facts)]
        with context.progress.bar("sensitivity", len(paths) * len(self.amounts)) as bar:
            for path in paths:
                left, size = count_unmasked(checkpoint, groups[path])
                points = []
                counts = [round(amount * left) for amount in self.amounts]  # at once, as `prune`
                tries = pruner.try_counts(groups[path], counts)
                for _, amount in zip(tries, self.amounts, strict=True):
                    point = {"amount": amount, **measure(f"{path} pruned at {amount:g}")}
                    points.append(point)
                    bar.advance(group=path, loss=f"{point['loss']:.3f}")
                result["groups"][path] = {"weights": size, "left": left, "points": points}
        write_json(context.folder / CURVES, result)
        self._print_losses(result, context)
        context.metrics.update(result)

    def _print_losses(self, result: dict[str, Any], context: Context) -> None:
        """Print a line for each group: the loss at each amount."""
        width = max(len(path) for path in result["groups"])
        amounts = "".join(f"{amount:>8g}" for amount in self.amounts)
        context.progress.say(f"  loss {result['loss']:.3f}, with this share pruned:")
        context.progress.say(f"  {'':<{width}}{amounts}")
        for path, curve in result["groups"].items():
            losses = "".join(f"{point['loss']:>8.3f}" for point in curve["points"])
            context.progress.say(f"  {path:<{width}}{losses}")

    def _measure(
        self, checkpoint: Checkpoint, rows: Rows, examples: Examples, what: str
    ) -> dict[str, float]:
        """Measure the model, which is `what`. Raises StageError where it has no finite loss."""
        from compressor.backends.torch.model import TorchModel
        from compressor.evaluation.rouge import score_rows, summarize_scores
        from compressor.training.losses import LabelLoss, mean_loss

        model = checkpoint.model
        loss = mean_loss(LabelLoss(model), examples, checkpoint.pad_id, model.device)
        if not math.isfinite(loss):
            raise StageError(
                f"the loss of {what} is {loss} on the validation rows: its activations overflow, "
                "as after a training that diverged"
            )
        if not self.rouge:
            return {"loss": loss}
        swept = TorchModel(checkpoint).generate_each_limit(
            examples.sources, max_lengths=[self.max_length]
        )
        tokens = swept[self.max_length].tokens
        texts = checkpoint.require_tokenizer().batch_decode(tokens, skip_special_tokens=True)
        scores = summarize_scores(score_rows(texts, rows.references))
        return {"loss": loss, "rougeLsum": scores["rougeLsum"]}
