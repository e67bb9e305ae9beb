"""`distill`: train on a teacher. The loss: `training.distillation`; the loop: `training.loop`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, WithJsonSchema, model_validator

from compressor.core.errors import StageError, nearest
from compressor.core.settings import SETTINGS, Index, Integer
from compressor.models.facts import Facts, matched_layers
from compressor.stages.base import Artifact, Context, Inputs, Planning
from compressor.stages.finetune import Finetune

if TYPE_CHECKING:
    from torch import nn

    from compressor.data.examples import Examples
    from compressor.models.checkpoint import Checkpoint

TEACHER = "teacher"

PARTS = ("labels", "logits", "hidden", "attention")
LayerMap = Annotated[
    dict[Index, Integer],
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]+$"},
            "additionalProperties": {"type": "integer"},
        }
    ),
]


class Losses(BaseModel):
    """The weight of each part of the loss.

    Example: `losses: {labels: 0.5, logits: 0.5}`
    """

    model_config = SETTINGS

    labels: float = Field(0.5, ge=0, description="Cross-entropy with the labels.")
    logits: float = Field(0.5, ge=0, description="T² · KL(teacher ‖ student), over the vocabulary.")
    hidden: float = Field(0.0, ge=0, description="Mean squared difference of hidden states.")
    attention: float = Field(
        0.0, ge=0, description="Mean squared difference of attention probabilities."
    )

    @model_validator(mode="after")
    def _something(self) -> Losses:
        if not any(self.model_dump().values()):
            raise ValueError("all weights are zero; set one above 0")
        return self


class Distill(Finetune):
    """Train the model, the student, to give what an earlier stage's model, the teacher, gives.

    Each part of the loss is a mean over the label tokens of the global batch: the cross-entropy
    with the labels, the divergence from the teacher's logits at a temperature (arXiv 1503.02531),
    and the squared difference of hidden states and of attention maps through a layer map (TinyBERT,
    1909.10351). Where the widths differ, a linear layer is learned beside the student and thrown
    away after it. All settings of `finetune` are here too, and what is pruned stays pruned; the
    validation loss is that of the labels, as a `finetune`'s.

    A teacher from a path or the hub is a second `load` stage under another name; its own model must
    have the student's tokenizer.

    `cache_logits` has the teacher read every training row once, before the first step, and keeps
    its logits in a file until the stage is done: for trainings of several epochs, and disks with
    room for label tokens × vocabulary × 4 bytes (2 in bfloat16). It does not go with `hidden` and
    `attention`, for which the teacher runs in any case.

    Example: `distill: {teacher: finetune, epochs: 2, temperature: 2.0}`
    Example: `distill: {teacher: big, losses: {hidden: 1.0}, layers: {decoder: {0: 1, 1: 3}}}`
    """

    version: ClassVar[int] = 3

    teacher: str = Field(description="Name of the earlier stage whose model is the teacher.")
    losses: Losses = Field(default_factory=Losses, description="The weight of each part.")
    temperature: float = Field(
        2.0, gt=0, description="Divides both models' logits before they are compared."
    )
    layers: dict[Literal["encoder", "decoder"], LayerMap] = Field(
        default_factory=dict,
        description="Student's layer → teacher's, from 0, for hidden states and attention maps; a "
        "stack that is not named is matched evenly, last to last; {} leaves it out.",
    )
    cache_logits: bool = Field(
        False, description="Run the teacher once over all training rows, not in every step."
    )

    def artifacts(self) -> Mapping[str, Artifact]:
        return {**super().artifacts(), TEACHER: Artifact(self.teacher)}

    def parameters(self) -> dict[str, Any]:
        """Without what decides nothing: the teacher's name, settings of parts without weight."""
        own: dict[str, Any] = {"losses": self.losses.model_dump()}
        if self.losses.logits:
            own["temperature"] = self.temperature
        if self._through_layers:
            own["layers"] = {stack: sorted(pairs.items()) for stack, pairs in self.layers.items()}
        if self.cache_logits:  # rows that are computed together differ, and so do last bits
            own["cache_logits"] = True
        return super().parameters() | own

    @property
    def _through_layers(self) -> bool:
        return bool(self.losses.hidden or self.losses.attention)

    def preview(self, planning: Planning) -> Facts | None:
        """The student's counts; reports a teacher or a layer map that does not go with it."""
        self._check_cache(planning)
        student, teacher = planning.facts, planning.others[TEACHER]
        if student is not None and teacher is not None:
            self._check_teacher(student, teacher, planning)
            self._check_layers(student, teacher, planning)
        return super().preview(planning)

    def _check_cache(self, planning: Planning) -> None:
        if self.cache_logits and planning.data.task != "summarization":
            planning.problem("cache_logits", "keeps logits over a vocabulary, not over labels")
        elif self.cache_logits and self._through_layers:
            message = "hidden states and attention maps are not cached, and need the teacher in "
            message += "every step; leave out losses.hidden and losses.attention"
            planning.problem("cache_logits", message)
        elif self.cache_logits and not self.losses.logits:
            planning.problem("cache_logits", "there is nothing to cache: losses.logits is 0")

    def _check_teacher(self, student: Facts, teacher: Facts, planning: Planning) -> None:
        heads = student.config["head"], teacher.config["head"]
        if heads[0] != heads[1]:
            message = f"{self.teacher!r} has the head {heads[1]!r}, the student {heads[0]!r}"
            planning.problem(TEACHER, message)
            return
        if teacher.positions is not None and teacher.positions != student.positions:
            planning.check_rows(trains=True, whose="teacher", facts=teacher)
        sizes = _vocabularies(student.config), _vocabularies(teacher.config)
        # Where only the rows decide how many pieces go, the run finds out.
        if sizes[0] != sizes[1] and student.exact_size and teacher.exact_size:
            message = f"{self.teacher!r} has a vocabulary of {sizes[1][-1]}, the student one of "
            planning.problem(TEACHER, f"{message}{sizes[0][-1]}; both must have the same")
        if not self.losses.attention:
            return
        types = student.model_type, teacher.model_type
        if types[0] != types[1]:
            message = f"the teacher is a {types[1]}, the student a {types[0]}; their attention maps"
            planning.problem("losses.attention", f"{message} do not compare")
        elif types[0] == "longt5":
            message = "LongT5's encoder attends to blocks and has no maps of whole rows"
            planning.problem("losses.attention", message)
        for whose, facts in (("student", student), ("teacher", teacher)):
            if any(any(stack.blocks) for stack in facts.stacks().values()):
                message = f"the {whose} has a block, which gives no attention maps"
                planning.problem("losses.attention", message)

    def _check_layers(self, student: Facts, teacher: Facts, planning: Planning) -> None:
        both = {"student": _layers(student), "teacher": _layers(teacher)}
        for stack, pairs in self.layers.items():
            missing = [whose for whose, counts in both.items() if stack not in counts]
            if missing:
                hint = nearest(stack, both[missing[0]])
                planning.problem(f"layers.{stack}", f"the {missing[0]} has no {stack}; {hint}")
                continue
            for mine, theirs in pairs.items():
                for (whose, counts), layer in zip(both.items(), (mine, theirs), strict=True):
                    if not 0 <= layer < counts[stack]:
                        planning.problem(
                            f"layers.{stack}.{mine}",
                            f"{layer} is outside 0 … {counts[stack] - 1}, the {whose}'s layers",
                        )
        if self._through_layers and not any(self._layer_map(student, teacher).values()):
            planning.problem("layers", "leaves no layer for hidden states or attention maps")

    def _layer_map(self, student: Facts, teacher: Facts) -> dict[str, dict[int, int]]:
        mine, theirs = _layers(student), _layers(teacher)
        even = {s: matched_layers(mine[s], theirs[s]) for s in mine if s in theirs}
        # In one order, however they are written: it decides which projection is drawn first.
        return even | {str(s): dict(sorted(pairs.items())) for s, pairs in self.layers.items()}

    def _learning(
        self, checkpoint: Checkpoint, train: Examples, inputs: Inputs, context: Context
    ) -> tuple[nn.Module, Examples]:
        import torch

        from compressor.training.distillation import DistillationLoss

        teacher = inputs.checkpoint(TEACHER)
        _require_one_vocabulary(checkpoint, teacher, self.teacher)
        weights = self.losses.model_dump()
        if self.cache_logits:
            train = self._cached(teacher, train, context)
            loss = DistillationLoss(checkpoint.model, None, weights, temperature=self.temperature)
            return loss, train
        layers = self._layer_map(checkpoint.facts(), teacher.facts())
        if self._through_layers:
            context.metrics["layers"] = layers
        torch.manual_seed(context.seed)  # of the projections
        loss = DistillationLoss(
            checkpoint.model, teacher.model, weights, temperature=self.temperature, layers=layers
        )
        return loss, train

    def _cached(self, teacher: Checkpoint, train: Examples, context: Context) -> Examples:
        """The rows with the teacher's logits, which nothing else then holds on to."""
        import time

        from compressor.training.loop import accelerator_for
        from compressor.training.teacher_cache import with_teacher_logits

        started = time.monotonic()
        taught = with_teacher_logits(
            train,
            teacher.model,
            teacher.pad_id,
            context.resume,
            accelerator=accelerator_for(self, None),
            progress=context.progress,
            flush_seconds=self.checkpoint_seconds,
        )
        context.metrics.update(
            cached_logits_bytes=taught.logits.numel() * taught.logits.itemsize,
            cached_logits_seconds=time.monotonic() - started,
        )
        return taught


def _layers(facts: Facts) -> dict[str, int]:
    return {name: stack.layers for name, stack in facts.stacks().items()}


def _vocabularies(config: Mapping[str, Any]) -> tuple[int, int]:
    """Sizes of what is read and of what is written; only Marian's can differ."""
    size = int(config["vocab_size"])
    return size, int(config.get("decoder_vocab_size") or size)


def _require_one_vocabulary(student: Checkpoint, teacher: Checkpoint, name: str) -> None:
    """Raise StageError where the same number would be another piece of text to the teacher."""
    if student.tokenizer is None or teacher.tokenizer is None:
        whose = "the student" if student.tokenizer is None else f"the teacher {name!r}"
        raise StageError(f"{whose} has no tokenizer; set model.tokenizer")
    sizes = [_vocabularies(each.model.config.to_dict()) for each in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise StageError(
            f"the teacher {name!r} has a vocabulary of {sizes[1][-1]}, the student one of "
            f"{sizes[0][-1]}; trim both alike, or distil before trimming"
        )
    mine, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if mine != theirs:
        piece = min(p for p in mine.keys() | theirs.keys() if mine.get(p) != theirs.get(p))
        raise StageError(
            f"the teacher {name!r} has another tokenizer: {piece!r} is its piece "
            f"{theirs.get(piece)}, the student's {mine.get(piece)}"
        )
