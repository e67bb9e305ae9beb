"""Checkpoints of a training: what happened so far, and every whole tensor that is trained.

Rank 0 writes, every rank reads, and neither depends on how many there are or on how the weights lie
over them: a checkpoint of two processes goes on in one.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from compressor.core.failures import explain_error
from compressor.core.files import hash_file, sync_to_disk
from compressor.training.parallel import Weights

TENSORS, HISTORY, DIGESTS = "tensors", "history.json", "sha256.json"
CURVE_POINTS = 200
"""The most points of a loss curve in a run's records, however long the training."""


@dataclass
class History:
    """The course of a training so far; saved with every checkpoint."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    """The loss of each optimizer step: mean over the label tokens of its global batch."""
    validation_losses: list[float] = field(default_factory=list)
    samples: int = 0
    seconds: float = 0.0
    resumed: int = 0
    scheme: str = ""
    """How the weights lay over the processes, and how many these were."""
    processes: int = 0
    changes: list[dict[str, Any]] = field(default_factory=list)
    """Where it went on in another number of processes, or under another scheme."""
    steps_per_epoch: int = 0

    def note_processes(self, scheme: str, processes: int) -> None:
        """Note what it runs in from here on."""
        if self.processes and (self.scheme, self.processes) != (scheme, processes):
            change = {
                "at_step": self.step,
                "processes": [self.processes, processes],
                "scheme": [self.scheme, scheme],
            }
            self.changes.append(change)
        self.scheme, self.processes = scheme, processes

    def summarize(self) -> dict[str, Any]:
        """Summarize a training for tables and charts; each step's loss is in `losses.csv`.

        `train_losses` and `validation_curve` are [step, loss] pairs. They follow from what every
        checkpoint holds, so a training that was killed and goes on leaves the same ones.
        """
        tail = self.losses[-max(1, len(self.losses) // 20) :]
        changes = {"changes_of_processes": self.changes} if self.changes else {}
        return {
            "train_loss": math.fsum(tail) / len(tail) if tail else None,
            "validation_loss": self.validation_losses[-1] if self.validation_losses else None,
            "validation_losses": self.validation_losses,
            "train_losses": downsample_losses(self.losses),
            "validation_curve": [
                [min(epoch * self.steps_per_epoch, self.step), loss]
                for epoch, loss in enumerate(self.validation_losses, 1)
            ],
            "steps": self.step,
            "samples_per_second": self.samples / self.seconds if self.seconds else None,
            "resumed": self.resumed,
        } | changes

    def write_losses(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(("step", "loss"))
            writer.writerows(enumerate(self.losses, 1))


def downsample_losses(losses: Sequence[float], most: int = CURVE_POINTS) -> list[tuple[int, float]]:
    """Make at most `most` pairs of a step, from 1, and the mean loss of the steps up to it.

    Pairs stand for equally many steps, the last perhaps for fewer; of few steps each is a pair.
    """
    width = max(1, -(-len(losses) // most))
    parts = [losses[start : start + width] for start in range(0, len(losses), width)]
    return [
        (min((number + 1) * width, len(losses)), math.fsum(part) / len(part))
        for number, part in enumerate(parts)
    ]


def last_checkpoint(resume: Path) -> Path | None:
    """Find the folder of the last whole checkpoint."""
    return max(resume.glob("step-*"), key=lambda path: int(path.name[5:]), default=None)


def save_checkpoint(
    resume: Path,
    history: History,
    weights: Weights,
    masks: Mapping[str, Tensor],
    accelerator: Accelerator,
) -> str | None:
    """Write a checkpoint, whole or not at all, and remove the older ones.

    `masks`: those that the training itself makes. Returns the reason, on the first rank, where the
    file system did not take it: then the older one stays.
    """
    final = resume / f"step-{history.step}"
    if final.exists():  # only after a restore, and then with what it says
        accelerator.wait_for_everyone()
        return None
    device = accelerator.device
    drawn = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    generators = accelerator.gather(drawn.to(device)[None])  # what dropout draws from, on each rank
    tensors: dict[str, Tensor] = {}
    for name in weights.trained:  # gathered one by one: the first rank alone has all at once
        parts = {f"model.{name}": weights.gather(name)}
        parts |= {f"optimizer.{name}.{key}": t for key, t in weights.gather_state(name).items()}
        if accelerator.is_main_process:
            tensors |= {key: tensor.cpu().contiguous() for key, tensor in parts.items()}
    failure: str | None = None
    if accelerator.is_main_process:
        tensors["generators"] = generators.cpu()
        tensors |= {f"mask.{name}": mask.cpu().contiguous() for name, mask in masks.items()}
        failure = _write_checkpoint(resume, final, tensors, history)
    accelerator.wait_for_everyone()
    return failure


def _write_checkpoint(
    resume: Path, final: Path, tensors: dict[str, Tensor], history: History
) -> str | None:
    """Write a checkpoint in place of the older ones, or say why that cannot be."""
    partial = resume / ".partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(tensors, partial / TENSORS)
        (partial / HISTORY).write_text(json.dumps(asdict(history)), encoding="utf-8")
        digests = {name: hash_file(partial / name) for name in (TENSORS, HISTORY)}
        (partial / DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
        for path in partial.iterdir():
            sync_to_disk(path)
        older = list(resume.glob("step-*"))
        partial.rename(final)
        sync_to_disk(resume)
        for path in older:
            shutil.rmtree(path, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)  # half a one would keep a full disk full
        return explain_error(error, partial) or f"{partial}: {error}"
    return None


def _find_damage(checkpoint: Path) -> str | None:
    """Tell what is wrong with a checkpoint's files; None where they are what was written."""
    try:
        digests = json.loads((checkpoint / DIGESTS).read_text(encoding="utf-8"))
        for name in (TENSORS, HISTORY):
            if hash_file(checkpoint / name) != digests[name]:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def set_damaged_aside(resume: Path) -> str | None:
    """Put a last checkpoint whose files are not what was written out of the way, and say so.

    Call it on one rank, before any restores.
    """
    shutil.rmtree(resume / ".partial", ignore_errors=True)
    last = last_checkpoint(resume)
    damage = last and _find_damage(last)
    if not last or damage is None:
        return None
    aside = resume / f"damaged-{last.name}"
    shutil.rmtree(aside, ignore_errors=True)
    last.rename(aside)
    return f"the checkpoint at {last.name[5:]} steps is damaged ({damage}); see {aside}"


def restore_checkpoint(
    resume: Path, weights: Weights, masks: dict[str, Tensor], accelerator: Accelerator, seed: int
) -> History:
    """Load the last checkpoint into weights, masks and generators, if there is one."""
    last = last_checkpoint(resume)
    accelerator.wait_for_everyone()  # nobody may write before everyone has looked
    if last is None:
        return History()
    history = History(**json.loads((last / HISTORY).read_text(encoding="utf-8")))
    history.resumed += 1
    with safe_open(last / TENSORS, "pt") as tensors:
        names = set(tensors.keys())
        for name in weights.trained:
            prefix = f"optimizer.{name}."
            keys = {n.removeprefix(prefix) for n in names if n.startswith(prefix)}
            state = {key: tensors.get_tensor(prefix + key) for key in keys if "." not in key}
            weights.load_parameter(name, tensors.get_tensor(f"model.{name}"), state)
        for name in filter(lambda name: name.startswith("mask."), names):
            mask = tensors.get_tensor(name).to(accelerator.device)
            masks[name.removeprefix("mask.")] = mask
        generators = tensors.get_tensor("generators")
    rank = accelerator.process_index
    if len(generators) == accelerator.num_processes:
        # A copy: torch reads a generator's state from where the whole tensor begins.
        state, device = generators[rank].clone(), accelerator.device
        if device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
    else:  # another number of processes than before: the same data, other dropout
        torch.manual_seed(seed + rank + 7919 * history.step)
    return history
