"""`distill`: train on a teacher. The loss is in `training.distillation`."""

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

_LAYER_MAP = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]+$"},
    "additionalProperties": {"type": "integer"},
}
LayerMap = Annotated[dict[Index, Integer], WithJsonSchema(_LAYER_MAP)]


class Losses(BaseModel):
    """The weight of each part of the loss.

    Example: `losses: {labels: 0.5, logits: 0.5}`
    """

    model_config = SETTINGS

    labels: float = Field(0.5, ge=0, description="Cross-entropy with the labels.")
    logits: float = Field(0.5, ge=0, description="T² · KL(teacher ‖ student), over the vocabulary.")
    hidden: float = Field(0.0, ge=0, description="Mean squared difference of hidden states.")
    features: float = Field(
        0.0,
        ge=0,
        description="The same as a share of the teacher's squared states (arXiv 2310.06927).",
    )
    attention: float = Field(
        0.0, ge=0, description="Mean squared difference of attention probabilities."
    )

    @model_validator(mode="after")
    def _something(self) -> Losses:
        if not any(self.model_dump().values()):
            raise ValueError("all weights are zero; set one above 0")
        return self


class Distill(Finetune):
    """Train the model, the student, to imitate the model of an earlier stage, the teacher.

    Each part of the loss is a mean over the label tokens of the global batch: the cross-entropy
    with the labels, the divergence from the teacher's logits at a temperature (arXiv 1503.02531),
    and the squared difference of hidden states and of attention maps through a layer map (TinyBERT,
    1909.10351). Where widths differ, a linear layer is learned beside the student and thrown away
    after the training. All settings of `finetune` apply, pruned weights stay pruned, and the
    validation loss is that of the labels.

    A teacher from a path or the hub is a second `load` stage under another name. It must have the
    student's tokenizer.

    `cache_logits` runs the teacher once over every training row, before the first step, and keeps
    its logits in a file until the stage is done: for several epochs, on a disk with room for label
    tokens × vocabulary × 4 bytes (2 in bfloat16). It does not go with `hidden` and `attention`,
    which need the teacher in every step.

    With no `losses` named, a student of the teacher's shapes, as after `prune`, learns the
    teacher's logits and hidden states (`features`), without dropout; the run says so.

    Example: `distill: {teacher: finetune, epochs: 2, temperature: 2.0}`
    Example: `distill: {teacher: big, losses: {hidden: 1.0}, layers: {decoder: {0: 1, 1: 3}}}`
    """

    version: ClassVar[int] = 3

    teacher: str = Field(description="Name of the earlier stage whose model is the teacher.")
    losses: Losses = Field(
        default_factory=Losses,
        description="The weight of each part; default: labels and logits 0.5, or for a student of "
        "the teacher's shapes, as after `prune`, logits and features 1.",
    )
    temperature: float = Field(
        2.0,
        gt=0,
        description="Divides both models' logits before they are compared; default beside those "
        "features: 1.",
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
        """Leave out the teacher's name, and settings of parts that have no weight."""
        unused = set() if self.losses.features else {"features"}
        parts: dict[str, Any] = {"losses": self.losses.model_dump(exclude=unused)}
        if self.losses.logits:
            parts["temperature"] = self.temperature
        if self._compares_layers:
            parts["layers"] = {stack: sorted(pairs.items()) for stack, pairs in self.layers.items()}
        if self.cache_logits:  # rows that are computed together differ, and so do last bits
            parts["cache_logits"] = True
        return super().parameters() | parts

    def resolve(self, planning: Planning) -> Distill:
        """Recover what a prune has left with the teacher's own states, and without dropout."""
        student, teacher = planning.facts, planning.others[TEACHER]
        named = self.model_fields_set
        if "losses" in named or self.cache_logits or student is None or teacher is None:
            return self
        kinds = student.model_type, teacher.model_type
        if student.shapes != teacher.shapes or kinds[0] != kinds[1]:
            return self
        losses = Losses(labels=0.0, logits=1.0, features=1.0)
        settings = {"losses": losses, "temperature": 1.0, "dropout": False}
        settings = {name: value for name, value in settings.items() if name not in named}
        return self.choose("the student has the teacher's shapes", **settings)

    @property
    def _compares_layers(self) -> bool:
        return bool(self.losses.hidden or self.losses.features or self.losses.attention)

    def preview(self, planning: Planning) -> Facts | None:
        """Report a teacher, or a layer map, that does not fit the student."""
        self._check_cache(planning)
        student, teacher = planning.facts, planning.others[TEACHER]
        if student is not None and teacher is not None:
            self._check_teacher(student, teacher, planning)
            self._check_layers(student, teacher, planning)
        return super().preview(planning)

    def _check_cache(self, planning: Planning) -> None:
        if not self.cache_logits:
            return
        if planning.has_labels:
            planning.report("cache_logits", "keeps logits over a vocabulary, not over labels")
        elif self._compares_layers:
            message = "hidden states and attention maps need the teacher in every step; leave out "
            planning.report("cache_logits", f"{message}losses.hidden, features and attention")
        elif not self.losses.logits:
            planning.report("cache_logits", "there is nothing to cache: losses.logits is 0")

    def _check_teacher(self, student: Facts, teacher: Facts, planning: Planning) -> None:
        head, other = student.config["head"], teacher.config["head"]
        if head != other:
            message = f"{self.teacher!r} has the head {other!r}, the student {head!r}"
            planning.report(TEACHER, message)
            return
        if teacher.positions is not None and teacher.positions != student.positions:
            planning.check_rows(trains=True, role="teacher", facts=teacher)
        size, other_size = _vocabularies(student.config), _vocabularies(teacher.config)
        # Where the rows decide how many tokens stay, the run compares them.
        if size != other_size and student.exact_size and teacher.exact_size:
            message = f"{self.teacher!r} has a vocabulary of {other_size[-1]}, the student one of "
            planning.report(TEACHER, f"{message}{size[-1]}; both must have the same")
        if self.losses.attention:
            self._check_attention(student, teacher, planning)

    def _check_attention(self, student: Facts, teacher: Facts, planning: Planning) -> None:
        key, kind, other = "losses.attention", student.model_type, teacher.model_type
        if kind != other:
            message = f"the teacher is a {other}, the student a {kind}; their attention maps do not"
            planning.report(key, f"{message} compare")
        elif kind == "longt5":
            message = "LongT5's encoder attends to blocks and has no maps of whole rows"
            planning.report(key, message)
        for role, facts in (("student", student), ("teacher", teacher)):
            if any(any(stack.blocks) for stack in facts.list_stacks().values()):
                planning.report(key, f"the {role} has a block, which gives no attention maps")

    def _check_layers(self, student: Facts, teacher: Facts, planning: Planning) -> None:
        both = {"student": _layers(student), "teacher": _layers(teacher)}
        for stack, pairs in self.layers.items():
            missing = [role for role, counts in both.items() if stack not in counts]
            if missing:
                hint = nearest(stack, both[missing[0]])
                planning.report(f"layers.{stack}", f"the {missing[0]} has no {stack}; {hint}")
                continue
            for pair in pairs.items():
                for (role, counts), layer in zip(both.items(), pair, strict=True):
                    if not 0 <= layer < counts[stack]:
                        last = counts[stack] - 1
                        message = f"{layer} is outside 0 … {last}, the {role}'s layers"
                        planning.report(f"layers.{stack}.{pair[0]}", message)
        if self._compares_layers and not any(self._layer_map(student, teacher).values()):
            planning.report("layers", "leaves no layer for hidden states or attention maps")

    def _layer_map(self, student: Facts, teacher: Facts) -> dict[str, dict[int, int]]:
        """Map the student's layers to the teacher's, in one order: projections are drawn in it."""
        counts, others = _layers(student), _layers(teacher)
        even = {s: matched_layers(counts[s], others[s]) for s in counts if s in others}
        return even | {str(s): dict(sorted(pairs.items())) for s, pairs in self.layers.items()}

    def _make_loss(
        self, checkpoint: Checkpoint, train: Examples, inputs: Inputs, context: Context
    ) -> tuple[nn.Module, Examples]:
        import torch

        from compressor.training.distillation import DistillationLoss

        teacher = inputs.checkpoint(TEACHER)
        _require_one_vocabulary(checkpoint, teacher, self.teacher)
        weights = self.losses.model_dump()
        if self.cache_logits:
            train = self._cache_logits(teacher, train, context)
            loss = DistillationLoss(checkpoint.model, None, weights, temperature=self.temperature)
            return loss, train
        layers = self._layer_map(checkpoint.derive_facts(), teacher.derive_facts())
        if self._compares_layers:
            context.metrics["layers"] = layers
        torch.manual_seed(context.seed)  # of the projections
        loss = DistillationLoss(
            checkpoint.model, teacher.model, weights, temperature=self.temperature, layers=layers
        )
        return loss, train

    def _cache_logits(self, teacher: Checkpoint, train: Examples, context: Context) -> Examples:
        """Give the rows the teacher's logits, so that nothing holds on to the teacher."""
        import time

        from compressor.training.loop import accelerator_for
        from compressor.training.teacher_cache import with_teacher_logits

        started = time.monotonic()
        rows = with_teacher_logits(
            train,
            teacher.model,
            teacher.pad_id,
            context.resume,
            accelerator=accelerator_for(self, None),
            progress=context.progress,
            flush_seconds=self.checkpoint_seconds,
        )
        context.metrics.update(
            cached_logits_bytes=rows.logits.numel() * rows.logits.itemsize,
            cached_logits_seconds=time.monotonic() - started,
        )
        return rows


def _layers(facts: Facts) -> dict[str, int]:
    return {name: stack.layers for name, stack in facts.list_stacks().items()}


def _vocabularies(config: Mapping[str, Any]) -> tuple[int, int]:
    """Read the sizes of what is read and of what is written; only Marian's can differ."""
    size = int(config["vocab_size"])
    return size, int(config.get("decoder_vocab_size") or size)


def _require_one_vocabulary(student: Checkpoint, teacher: Checkpoint, name: str) -> None:
    """Raise StageError where an id would mean another token to the teacher."""
    if student.tokenizer is None or teacher.tokenizer is None:
        role = "the student" if student.tokenizer is None else f"the teacher {name!r}"
        raise StageError(f"{role} has no tokenizer; set model.tokenizer")
    size, other_size = (_vocabularies(c.model.config.to_dict()) for c in (student, teacher))
    if size != other_size:
        raise StageError(
            f"the teacher {name!r} has a vocabulary of {other_size[-1]}, the student one of "
            f"{size[-1]}; trim both alike, or distil before trimming"
        )
    ids, other_ids = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if ids != other_ids:
        token = min(t for t in ids.keys() | other_ids.keys() if ids.get(t) != other_ids.get(t))
        raise StageError(
            f"the teacher {name!r} has another tokenizer: {token!r} is its token "
            f"{other_ids.get(token)}, the student's {ids.get(token)}"
        )
