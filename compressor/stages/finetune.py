"""`finetune`: train on the recipe's rows. The loop is in `training.loop`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from compressor.compression.pruning import (
    Amounts,
    Grouping,
    Importance,
    Pruner,
    count_unmasked,
    default_groups,
    flatten_amounts,
)
from compressor.core.packages import versions
from compressor.core.settings import Integer
from compressor.data.rows import Rows
from compressor.data.source_base import Reads, Split
from compressor.models.facts import Facts
from compressor.models.quantization import QuantizationAware
from compressor.stages.base import (
    Artifact,
    Context,
    Inputs,
    Planning,
    Stage,
    load_calibration_rows,
)
from compressor.stages.prune import Target
from compressor.training.hyperparameters import Hyperparameters
from compressor.training.launch_config import read_processes
from compressor.training.lora import Lora

if TYPE_CHECKING:
    from torch import nn

    from compressor.data.examples import Examples
    from compressor.models.checkpoint import Checkpoint
    from compressor.training.adapters import Adapters
    from compressor.training.loop import AfterStep, SummonFull, Training

TARGETS = "targets"
"""The role, in `Inputs.artifacts`, of the stage whose texts are learned."""


class GradualPruning(Grouping):
    """Prune gradually while training: cubic, most of it early (arXiv 1710.01878).

    At a progress p between `start` and `end`, a group has lost `1 - (1 - p)³` of the entries that
    its amount, or the target, takes in the end. The final count is exact.

    Example: `prune: {amounts: {encoder: {feed_forward: 0.5}}, end: 0.7}`
    """

    amounts: Amounts | None = Field(
        None, min_length=1, description="Group → share of what is left, in [0, 1]."
    )
    target: Target | None = Field(
        None, description="Instead of amounts: how small to get, by one amount for all groups."
    )
    importance: Importance = Field(
        "magnitude",
        description="As of `prune`; taylor, wanda and sparsegpt look at the rows each time.",
    )
    start: float = Field(0.0, ge=0, lt=1, description="Share of the steps before pruning begins.")
    end: float = Field(0.7, gt=0, le=1, description="Share of the steps after which it is done.")
    times: Integer = Field(20, ge=1, description="Number of prunings, evenly spaced.")

    @model_validator(mode="after")
    def _check_span_and_importance(self) -> GradualPruning:
        if self.end <= self.start:
            raise ValueError("expected start < end")
        if (self.amounts is None) == (self.target is None):
            raise ValueError("set amounts or target")
        return self

    def key_parts(self) -> dict[str, Any]:
        """Dump what decides the result; a key from before there were targets stays."""
        fields = self.model_dump(mode="json")
        return {key: value for key, value in fields.items() if key != "target" or value}

    def preview(self, facts: Facts, report: Callable[[str, str], None]) -> Facts:
        """Derive the facts after pruning, counted exactly; report unknown and overlapping groups.

        `report` takes a key below `prune` and a message.
        """
        self.check_groups(facts, report)
        if self.target is not None:
            paths = [(path, "target") for path in default_groups(self, facts)]
            chosen = dict(self.choose_groups(paths, facts, report))
            names = frozenset[str]().union(*chosen.values())
            return self.target.prune_facts(facts, names, report)
        amounts = flatten_amounts(self.amounts or {})
        paths = [(path, f"amounts.{path}") for path in amounts]
        for path, names in self.choose_groups(paths, facts, report):
            count, exact = facts.count_to_prune(names, amounts[path], of_all=False)
            facts = facts.prune(names, count, exact=exact)
        return facts

    def make_callback(
        self, checkpoint: Checkpoint, seed: int, examples: Examples | None = None
    ) -> AfterStep:
        """Make the callback that prunes after training steps. It adds to the checkpoint's masks.

        `checkpoint` is the model before its first step: amounts are shares of what it has left.
        `examples`: rows that an importance looks at.
        """
        pruner = Pruner(checkpoint, self, seed=seed, examples=examples)
        facts, masks = checkpoint.derive_facts(), checkpoint.masks
        groups = self.all_groups(facts)
        amounts = flatten_amounts(self.amounts or {})
        paths = list(amounts) or default_groups(self, facts)
        initial = {path: count_unmasked(checkpoint, groups[path])[0] for path in paths}
        sizes = {n: checkpoint.get_parameter(n).numel() for path in paths for n in groups[path]}
        if self.target is None:
            final = {path: round(amounts[path] * initial[path]) for path in paths}
        else:
            final = self.target.split_evenly(checkpoint, {path: groups[path] for path in paths})

        def after_step(step: int, total_steps: int, summon_full: SummonFull) -> None:
            span = total_steps * (self.end - self.start)
            progress = (step - total_steps * self.start) / span if step < total_steps else 1.0
            # The last of the `times` prunings that is due, as a share of them.
            progress = math.floor(min(1.0, progress) * self.times + 1e-9) / self.times
            if progress <= 0:
                return
            for path, count in final.items():
                to_lose = round(count * (1 - (1 - progress) ** 3))
                remaining = sum(
                    int(masks[name].count_nonzero()) if name in masks else sizes[name]
                    for name in groups[path]
                )
                more = to_lose - (initial[path] - remaining)
                if more > 0:
                    trains = checkpoint.model.training
                    checkpoint.model.eval()  # rows are looked at without dropout
                    with summon_full(groups[path]):  # so that every process chooses the same
                        pruner.prune_group(groups[path], more)
                    checkpoint.model.train(trains)

        return after_step


class Finetune(Hyperparameters, Stage):
    """Fine-tune the model on the training split; pruned weights stay pruned.

    An encoder-decoder learns the target from the text. A decoder (head `causal_lm`) reads the
    text, ended with eos, and learns the target after it: at most `data.max_source_length` +
    `data.max_target_length` tokens, of which only the target's count in the loss. With the task
    language_modeling it learns all of a text or, without an eos between, its completion. A
    classifier (head `sequence_classification`) learns the labels: by binary cross-entropy over each
    label of each row if the data's task is multi_label, by cross-entropy if it is single_label. One
    with the head `token_classification` learns each word's tag at its first token, by
    cross-entropy; words beyond `data.max_source_length` are not learned.

    AdamW with linear warm-up and decay, as in Hugging Face's Trainer: the first step of a warm-up
    has the rate 0, and biases and normalizations have no weight decay. Pruned entries do not count
    in the norm that `clip_norm` limits. The loss of a step is the mean over the real label tokens
    of its global batch, whatever the number of processes; `losses.csv` has every step's. With
    `epochs: 0` the model stays as it is, and no row is read.

    `quantization_aware` computes training and validation losses with the values that `quantize`
    would give the weights at that step (int8, or int4 in groups). Gradients pass straight through
    the rounding to the float weights, which the stage keeps. Put `quantize` with the same
    settings after it, and take a small learning rate. Activations are not rounded.

    `lora` trains adapters of the layers' weights in place of the weights, and merges them at the
    end: for models whose full training does not fit. It takes a larger learning rate, such as 1e-3.

    `dropout: false` trains without the config's dropout: a short recovery need not be held back.

    No layer is dropped, whatever `encoder_layerdrop` and `decoder_layerdrop` (BART and its kin) say
    in the config, since several processes could not drop the same; the run says so.

    Example: `finetune: {epochs: 20, learning_rate: 3.0e-4, batch_size: 16}`
    Example: `finetune: {epochs: 4, prune: {amounts: {lm_head: 0.5}, end: 0.7}}`
    Example: `finetune: {epochs: 1, quantization_aware: {weights: int4, group_size: 64}}`
    Example: `finetune: {epochs: 2, learning_rate: 1.0e-3, lora: {rank: 16}}`
    """

    version: ClassVar[int] = 2
    section: ClassVar[str | None] = "training"
    measures: ClassVar[tuple[str, ...]] = ("train_loss", "validation_loss", "samples_per_second")
    is_distributed: ClassVar[bool] = True

    dropout: bool = Field(True, description="Train with the dropout that the model's config has.")
    prune: GradualPruning | None = Field(None, description="Prune gradually while training.")
    quantization_aware: QuantizationAware | None = Field(
        None, description="Train with weights as `quantize` will store them: int8, int4, or more."
    )
    lora: Lora | None = Field(
        None, description="Train adapters, and merge them into the weights at the end; needs peft."
    )
    targets: str | None = Field(
        None,
        description="Name of the earlier `pseudo_label` stage whose texts are learned; the "
        "validation loss is still of the references.",
    )

    def is_random(self) -> bool:
        return True

    def reads(self) -> Mapping[Split, Reads]:
        return {"train": "pairs", "validation": "pairs"} if self.capped_epochs else {}

    def artifacts(self) -> Mapping[str, Artifact]:
        if self.targets is None:
            return {}
        return {TARGETS: Artifact(self.targets, "pseudo_label")}

    def parameters(self) -> dict[str, Any]:
        gradual = {"prune": self.prune.key_parts()} if self.prune else {}
        aware = self.quantization_aware
        rounding = {"quantization_aware": aware.key_parts()} if aware else {}
        adapters = {"lora": self.lora.model_dump(mode="json")} if self.lora else {}
        still = {} if self.dropout else {"dropout": False}
        return self.key_parts() | gradual | rounding | adapters | still

    def identity(self, planning: Planning) -> Mapping[str, Any]:
        """Name the release of what computes adapters."""
        return versions(["peft"]) if self.lora else {}

    def count_trained(self, facts: Facts) -> int | None:
        return self.lora.count_trained(facts) if self.lora else None

    def preview(self, planning: Planning) -> Facts | None:
        facts = planning.facts
        planning.require_float("train")
        planning.check_rows(trains=True)
        self.check_trackers(planning.report)
        self.check_decay(planning.report)
        rows = planning.data.most_rows("train") if self.capped_epochs else None
        if rows is not None and (warning := self.explain_warmup(self.count_steps(rows))):
            planning.warn("warmup_steps", warning)
        self._check_rounding(planning)
        self._check_lora(planning)
        if facts is None:
            return None
        facts = replace(facts, untrained=facts.untrained and self.capped_epochs == 0)
        if self.quantization_aware is not None:
            facts = replace(facts, rounded_for=self.quantization_aware.weights)
        if self.prune is None:
            return facts
        if self.capped_epochs == 0:
            planning.report("prune", "there are no steps to prune in: epochs is 0")
            return facts
        self._check_calibration(planning)
        return self.prune.preview(
            facts, lambda path, message: planning.report(f"prune.{path}", message)
        )

    def _check_calibration(self, planning: Planning) -> None:
        """Report an importance that looks at rows where no process has the model as it is."""
        if self.prune is None or not self.prune.needs_calibration:
            return
        cure = "take magnitude or random"
        if self.lora is not None:
            planning.report("prune.importance", f"looks at weights without adapters; {cure}")
        with suppress(ValueError):  # which planning reports
            if read_processes(planning.launch).world_size > 1:
                planning.report("prune.importance", f"is for one process while training; {cure}")

    def _check_rounding(self, planning: Planning) -> None:
        aware = self.quantization_aware
        if aware is None:
            return
        if self.capped_epochs == 0:
            planning.report("quantization_aware", "there are no steps: epochs is 0")

        def report(path: str, message: str) -> None:
            planning.report(f"quantization_aware.{path}", message)

        if aware.weights == "int8" and "group_size" in aware.model_fields_set:
            report("group_size", "has no meaning with int8 weights")
        elif planning.facts is not None:
            aware.check_groups(aware.weights, planning.facts, report)

    def _check_lora(self, planning: Planning) -> None:
        """Report adapters that cannot be trained here, or have nothing to adapt."""
        lora = self.lora
        if lora is None:
            return
        if self.capped_epochs == 0:
            planning.report("lora", "there are no steps: epochs is 0")
        if (missing := lora.explain_missing()) is not None:
            planning.report("lora", missing)
        with suppress(ValueError):  # which planning reports
            processes = read_processes(planning.launch)
            if processes.scheme.kind == "fsdp2" and processes.world_size > 1:
                message = f"cannot train adapters in shards, as {planning.launch.config_file!r} has"
                planning.report("lora", f"{message} them; take launch.config_file=ddp")
        if self.quantization_aware and lora.dropout:
            planning.report("lora.dropout", "does not go with quantization_aware; take 0")
        if planning.facts is not None:
            lora.check(planning.facts, lambda path, text: planning.report(f"lora.{path}", text))

    def run(self, inputs: Inputs, context: Context) -> Checkpoint:
        """Train to the end, from the checkpoint of a killed run if there is one."""
        from compressor.training.dropout import disable_dropout, disable_layer_drop
        from compressor.training.losses import LabelLoss

        checkpoint = inputs.checkpoint()
        if not self.capped_epochs:
            return checkpoint
        if disable_layer_drop(checkpoint.model):
            context.progress.say("  trains without the config's layer drop: no layer is skipped")
        if not self.dropout:
            disable_dropout(checkpoint.model)
        train, validation = (
            checkpoint.tokenize_rows(rows, context.data)
            for rows in (self._read_training_rows(inputs, context), context.rows("validation"))
        )
        adapters = self._attach_adapters(checkpoint, context)
        loss, train = self._make_loss(checkpoint, train, inputs, context)
        run_training(
            self,
            context,
            loss=loss,
            measure=LabelLoss(checkpoint.model),
            model=checkpoint.model,
            train=train,
            validation=validation,
            masks=checkpoint.masks,
            pad_id=checkpoint.pad_id,
            after_step=self._make_after_step(checkpoint, adapters, context),
            forward_weights=self._make_weight_rounding(checkpoint, adapters),
            scheme=context.scheme,
        )
        if adapters is not None:
            adapters.merge()
        return checkpoint

    def _attach_adapters(self, checkpoint: Checkpoint, context: Context) -> Adapters | None:
        """Put adapters into the model if they are asked for; say how much of it is trained."""
        if self.lora is None:
            return None
        from compressor.training.adapters import attach_adapters

        facts = checkpoint.derive_facts()
        trained = self.lora.count_trained(facts)
        context.metrics["trained_parameters"] = trained
        context.progress.say(
            f"  trains {trained / 1e6:.2f} M of {facts.parameters / 1e6:.2f} M parameters"
        )
        return attach_adapters(checkpoint, self.lora, context.seed)

    def _make_after_step(
        self, checkpoint: Checkpoint, adapters: Adapters | None, context: Context
    ) -> AfterStep | None:
        """Make what prunes after steps, if any: by the weights as they would be merged."""
        if self.prune is None:
            return None
        examples = load_calibration_rows(self.prune, checkpoint, context)
        prune = self.prune.make_callback(checkpoint, context.seed, examples)
        if adapters is None:
            return prune
        return lambda step, total, _: prune(step, total, adapters.show_merged)

    def _make_weight_rounding(
        self, checkpoint: Checkpoint, adapters: Adapters | None
    ) -> Callable[[], AbstractContextManager[None]]:
        """Make the context in which losses are computed: with rounded weights, if aware of them."""
        from compressor.models.quantized_layers import round_weights

        aware = self.quantization_aware
        if aware is None:
            return nullcontext
        kinds = aware.choose_kinds(aware.weights, checkpoint.derive_facts())
        if adapters is not None:
            return partial(adapters.round_weights, kinds, aware.group_size)
        return partial(round_weights, checkpoint.model, kinds, aware.group_size)

    def _read_training_rows(self, inputs: Inputs, context: Context) -> Rows:
        """Read the training rows, with the generated texts of `targets` if it is set."""
        from compressor.data.examples import PSEUDO_LABELS, read_pseudo_labels, replace_summaries

        rows = context.rows("train")
        if self.targets is None:
            return rows
        return replace_summaries(
            rows, read_pseudo_labels(inputs.artifacts[TARGETS] / PSEUDO_LABELS)
        )

    def _make_loss(
        self, checkpoint: Checkpoint, train: Examples, inputs: Inputs, context: Context
    ) -> tuple[nn.Module, Examples]:
        """Make the module that sums the loss, with the model inside, and choose its rows."""
        from compressor.training.losses import LabelLoss

        return LabelLoss(checkpoint.model), train


def run_training(settings: Hyperparameters, context: Context, **parts: Any) -> Training:
    """Train, from the checkpoint of a killed run if there is one; record losses and metrics.

    `parts` are the fields of `Training` that the context does not have: model, loss, rows, …
    """
    from compressor.training.loop import Training

    folder = context.run_folder if settings.trackers else None
    training = Training(
        settings=settings,
        seed=context.seed,
        resume=context.resume,
        progress=context.progress,
        trackers_folder=folder and folder / "trackers",
        **parts,
    )
    history = training.run()
    if context.ranks.is_first:
        history.write_losses(context.folder / "losses.csv")
    context.metrics.update(history.summarize())
    return training
