"""Settings of every stage that trains. No training here, and no torch."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, Strict, field_serializer, field_validator

from compressor.core.errors import nearest
from compressor.core.machine import list_gpus
from compressor.core.settings import SETTINGS, Counted, Integer, Listed, Natural, to_int

Precision = Literal["auto", "float32", "bfloat16", "fp32", "bf16"]
Decay = Annotated[float, Field(ge=0, lt=1)]

_TRACKERS = ("tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "trackio")
"""Accelerate's names of them, which are those of their modules."""


class Hyperparameters(BaseModel):
    """Settings of the training loop; a recipe's `training:` group gives their defaults.

    Example: `training: {learning_rate: 2.0e-4, batch_size: 8, warmup_steps: 100}`
    """

    model_config = SETTINGS

    epochs: Integer = Field(1, ge=0, description="Passes over the training split.")
    max_epochs: Natural | None = Field(
        None, description="A cap on `epochs`, for quick runs of long recipes."
    )
    max_steps: Counted | None = Field(None, description="A cap on optimizer steps.")
    batch_size: Integer = Field(
        8, ge=1, description="Rows of one optimizer step, over all processes together."
    )
    micro_batch_size: Counted | None = Field(
        None, description="Rows that one process computes at once; null is all of its share."
    )
    learning_rate: float = Field(
        5e-5, gt=0, description="At the end of the warm-up; then linear to 0."
    )
    warmup_steps: float = Field(
        0,
        ge=0,
        description="Optimizer steps of linear warm-up, or below 1 their share of all steps, "
        "rounded down; the first one's rate is 0.",
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled, as in AdamW (1711.05101).")
    decay_biases_and_norms: bool = Field(
        False,
        description="Decay biases and normalization weights too, which Hugging Face's Trainer "
        "does not.",
    )
    betas: Annotated[tuple[Decay, Decay], Strict(strict=False)] = Field(
        (0.9, 0.999), description="AdamW's decay of its averages."
    )
    clip_norm: float | None = Field(1.0, gt=0, description="Largest norm of a step's gradient.")
    precision: Precision = Field(
        "auto",
        description="auto: bfloat16 autocast on a GPU, float32 elsewhere. float16 is not offered: "
        "it gives T5 NaN.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass, to save memory."
    )
    checkpoint_seconds: float = Field(
        20.0, ge=0, description="Time between two checkpoints, from which a killed run goes on."
    )
    trackers: Listed[str] = Field(
        (), description="Accelerate's trackers: tensorboard, wandb, mlflow, …"
    )

    @field_validator("warmup_steps")
    @classmethod
    def _is_a_share(cls, value: float) -> float:
        if value >= 1 and not value.is_integer():
            raise ValueError(f"expected a number of steps, or a share below 1, got {value}")
        return value

    @field_serializer("warmup_steps")
    def _write_steps(self, value: float) -> Any:
        return to_int(value)  # in keys too

    @property
    def capped_epochs(self) -> int:
        """Epochs after the cap."""
        return self.epochs if self.max_epochs is None else min(self.epochs, self.max_epochs)

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]:
        """The type that `precision` means on this machine."""
        if self.precision != "auto":
            return "float32" if self.precision in ("float32", "fp32") else "bfloat16"
        return "bfloat16" if list_gpus() and all(gpu.bfloat16 for gpu in list_gpus()) else "float32"

    def count_steps(self, rows: int) -> int:
        """Count the optimizer steps of a training on so many rows."""
        steps = math.ceil(rows / self.batch_size) * self.capped_epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def count_warmup(self, steps: int) -> int:
        """Count the steps of warm-up among all `steps`."""
        return int(self.warmup_steps if self.warmup_steps >= 1 else self.warmup_steps * steps)

    def explain_warmup(self, steps: int) -> str:
        """Say that the warm-up takes all `steps`; "" where it does not."""
        warmup = self.count_warmup(steps)
        if not 0 < steps <= warmup:
            return ""
        return (
            f"{warmup} steps of warm-up are no fewer than the training's {steps}: the learning "
            f"rate stays below {self.learning_rate:g}; take a share of the steps, such as 0.06"
        )

    def check_trackers(self, report: Callable[[str, str], None]) -> None:
        """Report a tracker that Accelerate does not know, or that is not installed."""
        for index, name in enumerate(self.trackers):
            key = f"trackers.{index}"
            if name not in _TRACKERS:
                report(key, f"no tracker {name!r}; {nearest(name, _TRACKERS)}")
            elif importlib.util.find_spec(name) is None:
                report(key, f"{name!r} is not installed: pip install {name}")

    def check_decay(self, report: Callable[[str, str], None]) -> None:
        """Report a decay that would blow the weights up: AdamW takes rate x decay of each away."""
        share = self.learning_rate * self.weight_decay
        if share >= 1 and self.weight_decay > 1:  # else the rate alone makes it diverge
            message = f"each step would take {share:g} of every weight away (learning_rate x "
            report("weight_decay", message + "weight_decay); expected less than 1")

    def key_parts(self) -> dict[str, Any]:
        """List what decides the weights, as it is after caps and defaults."""
        left_out = {"checkpoint_seconds", "trackers", "epochs", "max_epochs"}
        parts = self.model_dump(mode="json", include=set(Hyperparameters.model_fields) - left_out)
        return parts | {"passes": self.capped_epochs, "precision": self.dtype}
