"""Tell which of several processes this is, and gather what each of them computed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long a process waits for the others, whose shares may take longer. One that ends is noticed
by the launcher at once, which then ends all."""


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that run the same stage."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls) -> Ranks:
        """Read what a launcher has told this process."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def join(self) -> None:
        """Start the process group, where there is none yet, and take this process's device."""
        if self.world > 1:
            import torch
            from accelerate import PartialState

            PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)

    def iterate_batches(self, batches: Sequence[list[int]]) -> Iterator[tuple[list[int], int]]:
        """Yield each batch of this process, and how many rows all compute meanwhile."""
        for start in range(0, len(batches), self.world):
            turn = batches[start : start + self.world]
            if self.rank < len(turn):
                yield turn[self.rank], sum(map(len, turn))

    def gather(self, mine: dict[int, T]) -> dict[int, T]:
        """Gather what every process computed, by row. Each row must be one process's."""
        if self.world == 1:
            return mine
        from accelerate.utils import gather_object

        self.join()
        return dict(sorted(gather_object(list(mine.items()))))


ALONE = Ranks()
