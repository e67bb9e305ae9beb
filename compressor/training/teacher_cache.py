"""A teacher's logits of all training rows, computed once and kept in a file. No loss is made here.

The file has a line of V numbers for each label token, row after row, in the teacher's own type. It
is mapped, not read: what a step needs comes from the disk, or from memory that is free anyway.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from compressor.core.errors import StageError
from compressor.core.progress import Progress
from compressor.data.batching import evaluation_batches
from compressor.data.examples import Examples
from compressor.training.distillation import TEACHER_LOGITS
from compressor.training.losses import LabelLoss

LOGITS, DONE = "teacher_logits", "teacher_logits.done"
"""The numbers, and a byte for each row that is 1 when its numbers are on the disk."""
TOKENS = 4_096
"""Padded source tokens computed at once: bounds memory. With four times as many the demo's 4,000
rows took no less of a CPU's time (24 s), and 4 s more of the system's, for new pages."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ExamplesWithLogits(Examples):
    """Examples whose batches bring the teacher's logits of their label tokens."""

    logits: Tensor
    """[label tokens of all rows, V], row after row."""
    places: list[tuple[int, int]]
    """Where a row's tokens begin and end in it."""

    def batch(self, rows: list[int], pad_id: int) -> dict[str, Tensor]:
        """Make a batch of some rows, with logits in the order of `LabelLoss.compute_logits`."""
        parts = [self.logits[slice(*self.places[row])] for row in rows]
        logits = torch.cat([self.logits[:0], *parts])  # of no rows too
        return {**super().batch(rows, pad_id), TEACHER_LOGITS: logits}


def with_teacher_logits(
    examples: Examples,
    teacher: nn.Module,
    pad_id: int,
    folder: Path,
    *,
    accelerator: Accelerator,
    progress: Progress,
    flush_seconds: float,
) -> ExamplesWithLogits:
    """Add to `examples` what `teacher` gives for them, from `folder` as far as it is there.

    Every process computes a share, and all map the whole. Which rows are computed together does
    not depend on the number of processes or on what was there, so neither do the bits. After a kill
    at most the last `flush_seconds` are lost. Raises StageError, before anything is computed, where
    the disk has no room.
    """
    loss = LabelLoss(teacher.to(accelerator.device).eval())
    places = list(pairwise(accumulate((len(target) for target in examples.targets), initial=0)))
    with torch.no_grad():
        none = {n: t.to(accelerator.device) for n, t in examples.batch([], pad_id).items()}
        sample, _ = loss.compute_logits(none)
    file = File(folder, (places[-1][1], sample.shape[1]), sample.dtype)
    file.require_room()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        file.create_file(len(examples))
    accelerator.wait_for_everyone()
    done = (folder / DONE).read_bytes()
    batches = evaluation_batches(examples.lengths(), tokens=TOKENS)
    left = [rows for rows in batches if not all(done[row] for row in rows)]
    accelerator.wait_for_everyone()  # nobody may write before everyone has looked
    mine = left[accelerator.process_index :: accelerator.num_processes]
    with _Writer(file, places, flush_seconds) as writer, progress.bar("teacher", len(mine)) as bar:
        for rows in mine:
            batch = examples.batch(rows, pad_id).items()
            with torch.no_grad():
                logits, _ = loss.compute_logits({n: t.to(accelerator.device) for n, t in batch})
            writer.write_rows(rows, logits.cpu())
            bar.advance()
    accelerator.wait_for_everyone()
    given = {field.name: getattr(examples, field.name) for field in fields(Examples)}
    return ExamplesWithLogits(**given, logits=file.map_numbers(), places=places)


@dataclass(frozen=True)
class File:
    """The numbers of `shape` on the disk, and which rows of them are there."""

    folder: Path
    shape: tuple[int, int]
    dtype: torch.dtype

    @property
    def line_bytes(self) -> int:
        return self.shape[1] * self.dtype.itemsize

    @property
    def size(self) -> int:
        return self.shape[0] * self.line_bytes

    def require_room(self) -> None:
        """Raise StageError where what is still to be written is more than the disk has free."""
        path = self.folder / LOGITS
        there = path.stat().st_blocks * 512 if path.is_file() else 0
        disk = next(place for place in (self.folder, *self.folder.parents) if place.exists())
        free = shutil.disk_usage(disk).free
        if self.size - there > free:
            raise StageError(
                f"cache_logits: the teacher's logits take {self.size / 1e9:.1f} GB ("
                f"{self.shape[0]} label tokens of {self.line_bytes / 1e3:.1f} kB), and the disk of "
                f"{self.folder} has {free / 1e9:.1f} GB free; set cache_logits: false, or take "
                "fewer rows"
            )

    def create_file(self, rows: int) -> None:
        """Make an empty file of the whole size, where there is none yet."""
        path, done = self.folder / LOGITS, self.folder / DONE
        sizes = [place.stat().st_size for place in (path, done) if place.is_file()]
        if sizes != [self.size, rows]:
            self.folder.mkdir(parents=True, exist_ok=True)
            done.unlink(missing_ok=True)
            with path.open("wb") as stream:
                stream.truncate(self.size)
            done.write_bytes(bytes(rows))

    def map_numbers(self) -> Tensor:
        """Map the numbers, which nobody may change."""
        # A mapping that is not shared counts as memory that is taken, and may be refused.
        path, count = str(self.folder / LOGITS), self.shape[0] * self.shape[1]
        return torch.from_file(path, shared=True, size=count, dtype=self.dtype).view(self.shape)


class _Writer:
    """Writes the numbers of rows, and tells which are there once they are on the disk."""

    def __init__(self, file: File, places: list[tuple[int, int]], flush_seconds: float) -> None:
        self.line_bytes, self.places, self.flush_seconds = file.line_bytes, places, flush_seconds
        self._logits, self._done = ((file.folder / name).open("r+b") for name in (LOGITS, DONE))
        self._written: list[int] = []
        self._flushed_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._logits, self._done:
            if kind is None:
                self.flush_all()

    def write_rows(self, rows: list[int], logits: Tensor) -> None:
        """Write the numbers of some rows, one after the other in `logits`."""
        places = [self.places[row] for row in rows]
        sizes = [end - start for start, end in places]
        parts = torch.split(logits.contiguous().view(torch.uint8), sizes)
        for (start, _), part in zip(places, parts, strict=True):
            self._logits.seek(start * self.line_bytes)
            self._logits.write(part.numpy().data)
        self._written += rows
        if time.monotonic() - self._flushed_at >= self.flush_seconds:
            self.flush_all()

    def flush_all(self) -> None:
        """Bring everything to the disk: the numbers first, then what tells that they are there."""
        self._logits.flush()
        os.fsync(self._logits.fileno())
        for row in self._written:
            self._done.seek(row)
            self._done.write(b"\1")
        self._done.flush()
        os.fsync(self._done.fileno())
        self._written.clear()
        self._flushed_at = time.monotonic()
