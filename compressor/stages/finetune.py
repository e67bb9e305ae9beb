"""`finetune`: train on the recipe's rows. The loop itself is in `compressor.training`."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.architectures import Facts
from compressor.data.sources import Split
from compressor.hyperparameters import Hyperparameters
from compressor.stage import Context, Inputs, Planning, Stage

if TYPE_CHECKING:
    from compressor.checkpoint import Checkpoint

_TRACKER_MODULES = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "comet_ml": "comet_ml",
    "aim": "aim",
    "clearml": "clearml",
    "dvclive": "dvclive",
    "trackio": "trackio",
}


class Finetune(Hyperparameters, Stage):
    """Fine-tune the model on the training split; what is pruned stays pruned.

    An encoder-decoder learns the summary from the text. A decoder (head `causal_lm`) reads the
    text, ended with eos, and learns the summary after it: at most `data.max_source_length` +
    `data.max_target_length` tokens, of which only the summary's count in the loss.

    AdamW with linear warm-up and decay. The loss of a step is the mean over the real label tokens
    of its global batch, whatever the number of processes. `losses.csv` has every step's.

    Example: `finetune: {epochs: 20, learning_rate: 3.0e-4, batch_size: 16}`
    """

    version: ClassVar[int] = 1
    section: ClassVar[str | None] = "training"
    splits: ClassVar[tuple[Split, ...]] = ("train", "validation")
    distributed: ClassVar[bool] = True
    random: ClassVar[bool] = True

    def parameters(self) -> dict[str, Any]:
        return self.key_parts()

    def preview(self, planning: Planning) -> Facts | None:
        facts = planning.facts
        if facts is not None and facts.int8:
            planning.problem("", "cannot train an int8 model; put `quantize` after the training")
        if facts is not None and facts.config["head"] not in ("seq2seq_lm", "causal_lm"):
            planning.problem("", f"trains language models, not {facts.config['head']!r}")
        if facts is not None and facts.positions is not None:
            self._check_lengths(facts.positions, facts.config["head"], planning)
        for index, name in enumerate(self.trackers):
            if name not in _TRACKER_MODULES:
                from compressor.errors import nearest

                planning.problem(
                    f"trackers.{index}", f"no tracker {name!r}; {nearest(name, _TRACKER_MODULES)}"
                )
            elif importlib.util.find_spec(_TRACKER_MODULES[name]) is None:
                planning.problem(
                    f"trackers.{index}", f"{name!r} is not installed: pip install {name}"
                )
        return facts

    def _check_lengths(self, positions: int, head: str, planning: Planning) -> None:
        limits = (planning.data.max_source_length, planning.data.max_target_length)
        longest, how = (sum(limits), " + ") if head == "causal_lm" else (max(limits), " and ")
        if longest > positions:
            planning.problem(
                "",
                f"the model has {positions} positions, and rows of up to {longest} tokens; lower "
                f"{how.join(('data.max_source_length', 'data.max_target_length'))}",
            )

    def run(self, inputs: Inputs, context: Context) -> Checkpoint:
        """Train to the end, from a checkpoint of a killed run where there is one."""
        from compressor.data.examples import tokenize
        from compressor.errors import StageError
        from compressor.losses import LabelLoss
        from compressor.training import Training

        checkpoint = inputs.checkpoint()
        if checkpoint.tokenizer is None:
            raise StageError("the model has no tokenizer; set model.tokenizer")
        tokenizer, causal = checkpoint.tokenizer, checkpoint.head == "causal_lm"
        train, validation = (
            tokenize(context.rows(split), tokenizer, context.data, joined=causal)
            for split in ("train", "validation")
        )
        folder = context.run_folder / "trackers" if context.run_folder and self.trackers else None
        training = Training(
            loss=LabelLoss(checkpoint.model),
            model=checkpoint.model,
            train=train,
            validation=validation,
            settings=self,
            masks=checkpoint.masks,
            # Decoders often come without a pad; what is masked may be anything.
            pad_id=tokenizer.eos_token_id if causal else tokenizer.pad_token_id,
            layout="joined" if causal else "pairs",
            seed=context.seed,
            resume=context.resume,
            progress=context.progress,
            trackers_folder=folder,
        )
        history = training.run()
        history.write_losses(context.folder / "losses.csv")
        context.metrics.update(history.metrics())
        return checkpoint
