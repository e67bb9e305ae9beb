"""The only training loop. It takes a module that gives a summed loss for a batch, and rows.

Without dropout the result depends on the number of processes or micro-batches by rounding alone,
since a step's loss is the mean over all real label tokens of its global batch; a killed run goes on
from its last checkpoint to the same bits; masked entries are zero after every step. For how weights
lie over processes see `parallel`; for what a checkpoint holds, `checkpoints`.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.core.errors import StageError
from compressor.core.progress import Bar, Progress
from compressor.data.batching import global_batches, take_share
from compressor.training import checkpoints
from compressor.training.checkpoints import History
from compressor.training.dropout import use_faster_dropout
from compressor.training.hyperparameters import Hyperparameters
from compressor.training.launch_config import Scheme
from compressor.training.losses import TrainingRows, summed_loss
from compressor.training.parallel import weights_for

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Options of glibc's mallopt(3)."""
OWN_CHECKPOINT_SHARE = 0.02
"""The largest share of the time that writing checkpoints may take."""

NO_LOSS = 1e-6
"""A mean loss up to this may have a gradient that float32 takes for 0, since all is learned."""
NO_LABELS = (
    "no row of the split {!r} has a token to predict: all targets are empty, and the tokenizer "
    "ends none of them"
)
CURES = "the usual cures: a lower learning_rate, more warmup_steps, precision: float32"


def accelerator_for(settings: Hyperparameters, trackers_folder: Path | None) -> Accelerator:
    """Make an Accelerator with the recipe's precision, on this process's device."""
    AcceleratorState._reset_state()  # an earlier stage of this process may have had another one
    return Accelerator(
        mixed_precision="bf16" if settings.dtype == "bfloat16" else "no",
        cpu=not torch.cuda.is_available(),
        log_with=list(settings.trackers) or None,
        project_dir=str(trackers_folder) if trackers_folder else None,
        # A fixed table has no gradient, and some weights have none for some rows.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step, where this is glibc.

    Batches of similar length differ in size from one to the next; by default every large tensor
    is mapped from the system and given back, and its pages are cleared again: 12 to 15 % of a
    float32 step on a CPU, measured on a T5 of 77 M parameters, for no more memory at the peak.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            mallopt(option, value)


def learning_rate(step: int, total: int, settings: Hyperparameters) -> float:
    """Linear warm-up from 0 to `learning_rate`, then linear decay to 0 after step `total`.

    The first step is 0, as in transformers' `get_linear_schedule_with_warmup`.
    """
    warmup = settings.count_warmup(total)
    if step < warmup:
        return settings.learning_rate * step / warmup
    return settings.learning_rate * (total - step) / max(1, total - warmup)


SummonFull = Callable[[Iterable[str]], AbstractContextManager[Any]]
"""Parameter names → a context in which they are unsharded, as `Weights.summon_full`."""

AfterStep = Callable[[int, int, SummonFull], None]
"""Called with (steps done, steps in all, `SummonFull`): see `Training.after_step`."""


def _digest_mask(mask: Tensor) -> int:
    """Return the first 63 bits of a mask's SHA-256."""
    packed = mask.contiguous().cpu().view(torch.uint8).numpy()
    return int.from_bytes(hashlib.sha256(packed.tobytes()).digest()[:8]) >> 1


@dataclass
class Training:
    """One training: `model` inside `loss`, from the first step or from a checkpoint, to the end."""

    loss: nn.Module
    """A module whose `forward(batch)` gives the loss summed over the batch's label tokens."""
    model: nn.Module
    """The part of `loss` that is trained and checkpointed. What else in `loss` asks for gradients
    is trained and checkpointed with it; the rest, such as a frozen teacher, is left alone."""
    train: TrainingRows
    validation: TrainingRows | None
    settings: Hyperparameters
    masks: dict[str, Tensor]
    """Parameter name → bool, True where the entry stays. Moved to the training's device."""
    pad_id: int
    seed: int
    resume: Path
    progress: Progress
    title: str = "train"
    trackers_folder: Path | None = None
    after_step: AfterStep | None = None
    """Called after each step, before masks are applied; it may change the masks, in the same way on
    every rank. Inside of `summon_full(names)` it can read the unsharded weights, which are the same
    on every rank; changes to them are lost."""
    forward_weights: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered while losses and gradients are computed, also for the validation loss: it may give
    the model other values meanwhile, and must give it back its own."""
    measure: nn.Module | None = None
    """What the validation loss is, summed as `loss` is; default: `loss`."""
    scheme: Scheme = field(default_factory=Scheme)
    """How the weights lie over several processes."""

    def run(self) -> History:
        """Train to the end. Raises StageError at the first loss or gradient that is not finite, and
        where nothing can be learned: of a split without labels, and at the first gradient that is 0
        everywhere, of a loss above 0.
        """
        self._prepare_training()
        for split, rows in (("train", self.train), ("validation", self.validation)):
            if rows is not None and not any(map(len, rows.targets)):
                raise StageError(NO_LABELS.format(split))
        total = self.total_steps
        if self.rank == 0 and (damage := checkpoints.set_damaged_aside(self.resume)):
            self.progress.say(f"  {damage}")
        self.accelerator.wait_for_everyone()
        history = checkpoints.restore_checkpoint(
            self.resume, self.weights, self.masks, self.accelerator, self.seed
        )
        self.weights.apply_masks(self.masks)  # to what is not trained, and in no checkpoint
        history.steps_per_epoch = self.steps_per_epoch
        history.note_processes(self.scheme.kind if self.world > 1 else "one process", self.world)
        if warning := self.settings.explain_warmup(total):
            self.progress.say(f"  {warning}")
        if history.step:
            self.progress.say(f"  goes on from step {history.step} of {total}")
            self.progress.emit("resumed", validation_losses=history.validation_losses)
        with self._choose_dropout(), self.progress.bar(self.title, total, history.step) as bar:
            while history.step < total:
                self._run_epoch(history, total, bar)
        self._assert_sound()
        self.weights.finish()
        for tracker in self.accelerator.trackers:  # not end_training(): see worker.main
            tracker.finish()
        self.model.eval()
        self.model.to("cpu")
        return history

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.train) / self.settings.batch_size)

    @property
    def total_steps(self) -> int:
        return self.settings.count_steps(len(self.train))

    def _prepare_training(self) -> None:
        settings = self.settings
        if sys.platform == "linux":
            keep_freed_memory()
        self.accelerator = accelerator_for(settings, self.trackers_folder)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        torch.manual_seed(self.seed + self.rank)
        if settings.gradient_checkpointing:
            assert isinstance(self.model, PreTrainedModel)
            self.model.gradient_checkpointing_enable()
        self.model.train()
        for name, mask in self.masks.items():
            self.masks[name] = mask.to(self.accelerator.device)
        measure = self.measure or self.loss
        self.weights = weights_for(
            self.scheme, self.accelerator, self.model, self.loss, measure, settings
        )
        self._saved_at = time.monotonic()
        self._save_seconds = 0.0
        if settings.trackers:
            self.accelerator.init_trackers(self.title)

    def _choose_dropout(self) -> AbstractContextManager[None]:
        """Use the faster dropout where it is: in float32, on a CPU.

        Recomputed activations must see the numbers of the first pass, which only torch's own
        dropout takes care of.
        """
        plain = self.accelerator.device.type == "cpu" and self.accelerator.mixed_precision == "no"
        drops = any(isinstance(m, nn.Dropout) and m.p > 0 for m in self.model.modules())
        if not plain or not drops or self.settings.gradient_checkpointing:
            return nullcontext()
        return use_faster_dropout(self.model)

    def _run_epoch(self, history: History, total: int, bar: Bar) -> None:
        """Train the rest of the epoch of `history.step`; then measure the validation loss."""
        settings = self.settings
        epoch, done = divmod(history.step, self.steps_per_epoch)
        batches = global_batches(
            self.train.lengths(),
            [len(target) for target in self.train.targets],
            batch_size=settings.batch_size,
            seed=self.seed,
            epoch=epoch,
        )
        save = False
        for batch in batches[done:]:
            started = time.monotonic()
            loss, save = self._run_step(batch, history, total)
            history.step += 1
            history.losses.append(loss)
            history.samples += len(batch)
            history.seconds += time.monotonic() - started
            pace = f"{history.samples / history.seconds:.1f}/s"
            bar.advance(
                epoch=f"{epoch + 1}/{settings.capped_epochs}", loss=f"{loss:.3f}", rows=pace
            )
            if settings.trackers:
                self.accelerator.log({"loss": loss}, step=history.step)
            if history.step == total:
                break
            if save and batch is not batches[-1]:
                self._save_checkpoint(history)
        if self.validation is not None:
            loss = self.validation_loss()
            if not math.isfinite(loss):  # no checkpoint: it would go on behind this epoch
                raise StageError(
                    f"the validation loss is {loss} after step {history.step}; {CURES}"
                )
            history.validation_losses.append(loss)
            self.progress.emit("epoch", epoch=epoch + 1, validation_loss=loss)
            if settings.trackers:
                self.accelerator.log({"validation_loss": loss}, step=history.step)
        if save and history.step < total:
            self._save_checkpoint(history)

    def _run_step(self, batch: list[int], history: History, total: int) -> tuple[float, bool]:
        """Make an optimizer step on a global batch: (mean loss, whether a checkpoint is due)."""
        rate = learning_rate(history.step, total, self.settings)
        tokens = sum(len(self.train.targets[row]) for row in batch)
        micro_batches = self._take_share(batch)
        summed = torch.zeros(2, device=self.accelerator.device)
        with self.forward_weights():
            for index, rows in enumerate(micro_batches):
                last = index == len(micro_batches) - 1
                with self.weights.micro_batch(last=last):
                    inputs = self.train.batch(rows, self.pad_id)
                    inputs = {name: tensor.to(summed.device) for name, tensor in inputs.items()}
                    loss = self.weights.training_loss(inputs)
                    # Gradients are averaged over ranks; the mean wanted is over tokens.
                    self.weights.run_backward(loss * (self.world / max(1, tokens)))
                summed[0] += loss.detach()
        wait = max(self.settings.checkpoint_seconds, self._save_seconds / OWN_CHECKPOINT_SHARE)
        if self.rank == 0 and time.monotonic() - self._saved_at >= wait:
            summed[1] = 1
        if self.world > 1:
            summed = self.accelerator.reduce(summed, "sum")
        mean, due = summed[0].item() / max(1, tokens), summed[1].item() > 0
        if not math.isfinite(mean):
            self._stop_early(history, f"the loss is {mean}", rate)
        norm = self.weights.make_step(rate, self.masks)
        if not math.isfinite(norm):
            self._stop_early(history, f"the gradient's norm is {norm}", rate)
        if norm == 0 and mean > NO_LOSS:  # T5's norms turn activations that overflow to zeros
            what = f"the loss is {mean:.3f} and its gradient is 0 everywhere"
            self._stop_early(history, what, rate)
        if self.after_step is not None:
            self.after_step(history.step + 1, total, self.weights.summon_full)
        self.weights.apply_masks(self.masks)
        return mean, due

    def _stop_early(self, history: History, what: str, rate: float) -> NoReturn:
        """End the training before a step that would spoil the weights."""
        self._save_checkpoint(history)
        raise StageError(
            f"{what} at step {history.step + 1}, learning rate {rate:g}; the weights before that "
            f"step are kept in {self.resume}; {CURES}"
        )

    def _take_share(self, batch: list[int]) -> list[list[int]]:
        micro = self.settings.micro_batch_size
        rows = math.ceil(len(batch) / self.world)
        count = 1 if micro is None else math.ceil(rows / micro)
        return take_share(batch, rank=self.rank, world_size=self.world, micro_batches=count)

    def _assert_sound(self) -> None:
        """Raise StageError where an entry is not finite, a pruned one is not zero, or masks differ.

        Processes whose masks differ would train different models, of which one would be saved.
        """
        names = list(self.weights.named)
        not_finite = self._sum_over_ranks(map(self.weights.not_finite, names))
        for name, wrong in zip(names, not_finite, strict=True):
            if wrong:
                raise StageError(
                    f"{name} is not finite after the last step; lower learning_rate, or raise "
                    "warmup_steps"
                )
        revived = self._sum_over_ranks(
            self.weights.count_revived(*item) for item in self.masks.items()
        )
        for name, count in zip(self.masks, revived, strict=True):
            if count:
                raise StageError(f"{count} pruned entries of {name} came alive while training")
        digests = torch.tensor([_digest_mask(mask) for mask in self.masks.values()])
        if self.world > 1 and digests.numel():
            gathered = self.accelerator.gather(digests.to(self.accelerator.device)[None])
            if not bool((gathered == gathered[0]).all()):
                raise StageError("the processes do not agree on what is pruned")

    def _sum_over_ranks(self, counts: Iterable[int]) -> list[int]:
        """Add up counts of every rank's part."""
        total = torch.tensor(list(counts), dtype=torch.int64, device=self.accelerator.device)
        if self.world > 1 and total.numel():
            parts = self.accelerator.gather(total[None])
            total = parts.sum(0) if self.weights.sharded else parts.amax(0)
        return list(total.tolist())

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Average the loss over every label token of the validation rows, each counted once."""
        assert self.validation is not None
        self.model.eval()
        with self.forward_weights():
            summed = summed_loss(
                self.weights.validation_loss,
                self.validation,
                self.pad_id,
                self.accelerator.device,
                rank=self.rank,
                world=self.world,
            )
        self.model.train()
        if self.world > 1:
            summed = self.accelerator.reduce(summed, "sum")
        return summed.item() / sum(len(target) for target in self.validation.targets)

    def _save_checkpoint(self, history: History) -> None:
        started = time.monotonic()
        masks = self.masks if self.after_step is not None else {}
        failure = checkpoints.save_checkpoint(
            self.resume, history, self.weights, masks, self.accelerator
        )
        if failure is not None:  # the training itself can end well all the same
            self.progress.say(
                f"  no checkpoint at step {history.step}, the training goes on: {failure}"
            )
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - started
