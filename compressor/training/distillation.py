"""The loss of a student, of labels and of a teacher's logits, hidden states and attention maps.

No training here. Every part is a sum over label tokens, as `LabelLoss` is, so that the training
loop's division by the label tokens of the global batch gives a mean that does not depend on how
that batch was cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.data.batching import IGNORED
from compressor.training.dropout import disable_layer_drop
from compressor.training.losses import CAUSAL_TYPES, LabelLoss, decoder_inputs

LayerMap = Mapping[str, Mapping[int, int]]
"""Stack (encoder, decoder) → student's layer → teacher's."""
LEAST_SQUARE = 1e-9
"""The least mean square of a position's states that others are compared with: of padding 0."""
TEACHER_LOGITS = "teacher_logits"
"""In a batch, what the teacher gives for it, where that is known: [N, V], as `LabelLoss.logits`."""


class DistillationLoss(nn.Module):
    """A weighted sum of five parts, each summed over the N label tokens of a batch, in float32.

    - labels: the cross-entropy with the labels, as `LabelLoss` has it.
    - logits: `T² · KL(teacher ‖ student)` at temperature T (Hinton et al., arXiv 1503.02531); of a
      multi-label classifier that of each label's two probabilities.
    - hidden: the squared difference of the two models' hidden states after each pair of layers of
      the map, averaged over width and pairs (TinyBERT, arXiv 1909.10351). After the last layer of
      a stack it is what the stack gives, behind its final norm.
    - features: the same as a share of the teacher's states: each position's squared difference
      over its squared norm (as SquareHead, arXiv 2310.06927, has it of all positions together).
    - attention: the squared difference of attention probabilities, averaged over a query's real
      keys, heads, and pairs of layers; a decoder's attention to the encoder is a pair of its own.
      Where the numbers of heads differ, the heads' average is compared. A student in training is
      seen after its own dropout.

    In a decoder a position counts once if it predicts a label. In an encoder, or in a classifier,
    it counts as its row's labels divided by the row's real tokens: so every row weighs what it
    weighs in the other parts, whatever batch it is in. Padding counts nowhere.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        weights: Mapping[str, float],
        *,
        temperature: float = 1.0,
        layers: LayerMap | None = None,
    ) -> None:
        """`weights`: part → its weight, at least one above 0. `layers`: for hidden and attention.

        The teacher is frozen; its dropout never acts. With None, every batch must bring what it
        gives, under TEACHER_LOGITS, and neither hidden nor attention can have a weight. Where
        widths differ, hidden states of the student pass a linear layer for each stack, which is
        trained with the student; it is drawn from torch's global generator.
        """
        super().__init__()
        self.student = LabelLoss(student)
        self.teacher = None if teacher is None else LabelLoss(teacher)
        if self.teacher is not None:
            self.teacher.requires_grad_(requires_grad=False).eval()
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.temperature = temperature
        self.layers = {stack: dict(pairs) for stack, pairs in (layers or {}).items() if pairs}
        self.projections = nn.ModuleDict()
        self.only_stack = "decoder" if student.config.model_type in CAUSAL_TYPES else "encoder"  # type: ignore[union-attr, operator]
        compares_states = not {"hidden", "features"}.isdisjoint(self.weights)
        if not compares_states and "attention" not in self.weights:
            return
        if teacher is None:
            raise ValueError("hidden states and attention maps need the teacher itself")
        disable_layer_drop(student)  # or a skipped layer's place would be the next one's
        if "attention" in self.weights:  # only this way of computing it gives the probabilities
            for model in (student, teacher):
                model.set_attn_implementation("eager")  # type: ignore[operator]
        mine, theirs = (int(model.config.hidden_size) for model in (student, teacher))  # type: ignore[union-attr, arg-type]
        projected = self.layers if compares_states and mine != theirs else ()
        for stack in projected:
            self.projections[stack] = nn.Linear(mine, theirs, bias=False)

    def train(self, mode: bool = True) -> DistillationLoss:  # noqa: FBT001, FBT002  # as torch's
        """Train or evaluate the student; the teacher stays as it is."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Sum the loss of a batch: a float32 scalar."""
        parts = self.compute_parts(batch)
        return torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()

    def compute_parts(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute each part that has a weight, before it is weighted: float32 scalars."""
        # Apart: a batch with what a model does not know takes the slower way through it.
        batch = dict(batch)
        known = batch.pop(TEACHER_LOGITS, None)
        student, labels = self._run_model(self.student, batch)
        parts = {}
        if "labels" in self.weights:
            parts["labels"] = self.student.of_logits(student.logits, labels)
        if self.weights.keys() == {"labels"}:
            return parts
        teacher = self._run_teacher(batch) if known is None else _ModelOutput(known)
        if "logits" in self.weights:
            diverge = binary_divergence if self.student.multi_label else compute_divergence
            parts["logits"] = diverge(student.logits, teacher.logits, self.temperature)
        weights = self._position_weights(batch)
        for name in ("hidden", "features"):
            if name in self.weights:
                relative = name == "features"
                parts[name] = self._compare_hidden(student, teacher, weights, relative=relative)
        if "attention" in self.weights:
            parts["attention"] = self._compare_attention(student, teacher, weights, batch)
        return parts

    def _run_teacher(self, batch: dict[str, Tensor]) -> _ModelOutput:
        """Run the teacher in the precision its weights are in: outside of autocast."""
        assert self.teacher is not None, "without a teacher, batches bring its logits"
        device = batch["labels"].device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            return self._run_model(self.teacher, batch)[0]

    def _run_model(self, loss: LabelLoss, batch: dict[str, Tensor]) -> tuple[_ModelOutput, Tensor]:
        """Run a model on a batch; also give the labels [N] that its logits [N, V] predict."""
        flags = {"hidden", "features", "attention"} & self.weights.keys()
        if not flags:  # the head need not run on padding then
            logits, labels = loss.compute_logits(batch)
            return _ModelOutput(logits), labels
        model: Any = loss.model
        encoder_decoder = model.config.is_encoder_decoder
        given = {name: tensor for name, tensor in batch.items() if name != "labels"}
        if encoder_decoder:
            given["decoder_input_ids"] = decoder_inputs(model, batch["labels"])
        out = model(
            **given,
            output_hidden_states=bool(flags - {"attention"}),
            output_attentions="attention" in flags,
            use_cache=False,
        )
        prefixes = {stack: f"{stack}_" for stack in ("encoder", "decoder", "cross")}
        if not encoder_decoder:  # one stack, whose outputs transformers gives without its name
            prefixes = {self.only_stack: ""}
        hidden, maps = (
            {stack: out[key] for stack, name in prefixes.items() if out.get(key := f"{name}{kind}")}
            for kind in ("hidden_states", "attentions")
        )
        logits, labels = loss.keep_labelled(out.logits, batch["labels"])
        return _ModelOutput(logits, hidden, maps), labels

    def _position_weights(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weigh how often each position [B, T] of a stack counts: float32, N in all."""
        labels = (self.student.select_labels(batch["labels"]) != IGNORED).float()
        real = batch["attention_mask"].float()
        if labels.dim() == 1:  # a class for each row
            labels = labels[:, None]
        share = labels.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
        if self.student.classifies:
            return {self.only_stack: real * share}
        if labels.shape[1] < batch["labels"].shape[1]:  # the last position predicts nothing
            labels = functional.pad(labels, (0, 1))
        return {"decoder": labels, "encoder": real * share}

    def _compare_hidden(
        self,
        student: _ModelOutput,
        teacher: _ModelOutput,
        weights: dict[str, Tensor],
        *,
        relative: bool,
    ) -> Tensor:
        sums = []
        for stack, pairs in self.layers.items():
            for mine, theirs in pairs.items():
                states = student.hidden[stack][mine + 1]  # the first is the embeddings
                if stack in self.projections:
                    states = self.projections[stack](states)
                goal = teacher.hidden[stack][theirs + 1].float()
                difference = ((states.float() - goal) ** 2).mean(-1)
                if relative:
                    difference = difference / (goal**2).mean(-1).clamp(min=LEAST_SQUARE)
                sums.append((difference * weights[stack]).sum())
        return torch.stack(sums).mean()

    def _compare_attention(
        self,
        student: _ModelOutput,
        teacher: _ModelOutput,
        weights: dict[str, Tensor],
        batch: dict[str, Tensor],
    ) -> Tensor:
        source = batch["attention_mask"].float()
        target = weights["decoder"] if "cross" in student.attention else source
        keys = {"encoder": source, "decoder": target, "cross": source}
        sums = []
        for stack, pairs in self.layers.items():
            kinds = ("decoder", "cross") if stack == "decoder" else (stack,)
            for kind in (kind for kind in kinds if kind in student.attention):
                for mine, theirs in pairs.items():
                    maps = student.attention[kind][mine], teacher.attention[kind][theirs]
                    difference = attention_difference(*maps, keys[kind])
                    sums.append((difference * weights[stack]).sum())
        return torch.stack(sums).mean()


@dataclass(frozen=True)
class _ModelOutput:
    """The output of a model: logits [N, V]; per stack hidden states [B, T, D], embeddings first,
    and per kind of attention a layer's probabilities [B, H, T, K].
    """

    logits: Tensor
    hidden: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    attention: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)


def compute_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T² · Σ KL(softmax(teacher / T) ‖ softmax(student / T))` over rows of logits [N, V].

    In float32. T² keeps the size of its gradients when T changes (arXiv 1503.02531, section 2).
    """
    target = functional.log_softmax(teacher.float() / temperature, dim=-1)
    guess = functional.log_softmax(student.float() / temperature, dim=-1)
    summed = functional.kl_div(guess, target, reduction="sum", log_target=True)
    return summed * temperature**2


def binary_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T² · Σ KL` of the Bernoulli distributions `sigmoid(logits / T)`, over logits [N].

    In float32; the teacher's first, as in `divergence`.
    """
    mine, theirs = student.float() / temperature, teacher.float() / temperature
    given = torch.sigmoid(theirs)
    yes = given * (functional.logsigmoid(theirs) - functional.logsigmoid(mine))
    no = (1 - given) * (functional.logsigmoid(-theirs) - functional.logsigmoid(-mine))
    return (yes + no).sum() * temperature**2


def attention_difference(student: Tensor, teacher: Tensor, keys: Tensor) -> Tensor:
    """Mean squared difference over heads and real keys for each query: float32 [B, T].

    Probabilities are [B, H, T, K], with any two numbers of heads; `keys` [B, K] is 1 where a key
    is real. A row without real keys gives 0.
    """
    student, teacher = student.float(), teacher.float()
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    squared = ((student - teacher) ** 2).mean(1) * keys[:, None]
    return squared.sum(-1) / keys.sum(-1, keepdim=True).clamp(min=1)
