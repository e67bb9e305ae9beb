"""The base class of sources of other people's rows: held-out splits, and empty rows."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from compressor.core.errors import StageError
from compressor.core.settings import Integer
from compressor.data.rows import Collected, Rows, require_labels
from compressor.data.source_base import DataBase, Problem, Share, Split

READER = 2
"""Raise it when rows of the same bytes come out otherwise."""

HELD_OUT = (
    "Share of train's rows, shuffled, that is held out for each split without rows of its own, or "
    "for the splits that are named; what is neither is validation's rows."
)

HeldSplit = Literal["validation", "test"]


class SplitSource(DataBase):
    """A source whose splits can be held out of train, and whose rows can be empty."""

    empty: Literal["error", "drop", "keep"] = Field(
        "error",
        description="What is done about rows whose text or summary is missing, empty or white "
        "space: an error, or they are left out, or used as they are.",
    )
    label_separator: str | None = Field(
        None,
        min_length=1,
        description="multi_label with `label`: what stands between the labels of a cell, such as "
        "`,` of `3,10`; default: a row has a list.",
    )
    holdout: Share | dict[HeldSplit, Share] | None = Field(None, description=HELD_OUT)
    seed: Integer = Field(0, description="Of the shuffle before rows are held out.")

    @field_validator("holdout")
    @classmethod
    def _leaves_rows_to_train_on(cls, value: Any) -> Any:
        shares = value.values() if isinstance(value, dict) else [value]
        if any(share is not None and not 0 < share < 0.5 for share in shares):
            raise ValueError("expected a holdout above 0 and below 0.5")
        return value

    @property
    @abstractmethod
    def own_splits(self) -> Collection[str]:
        """The splits that have rows of their own."""

    @property
    def scores_validation(self) -> bool:
        return self._locate_rows("test")[0] == "validation"

    def column_key(self) -> dict[str, Any]:
        more = {"label_separator": self.label_separator} if self.label_separator else {}
        drop = {"empty": self.empty} if self.empty == "drop" else {}
        return super().column_key() | more | drop

    def _list_shares(self) -> dict[Split, float]:
        """Map each split that is held out of train to its share, in one order."""
        splits: tuple[HeldSplit, ...] = ("validation", "test")
        if isinstance(self.holdout, dict):
            return {split: self.holdout[split] for split in splits if split in self.holdout}
        share = self.holdout
        return {s: share for s in splits if share is not None and s not in self.own_splits}

    def _locate_rows(self, split: Split) -> tuple[Split, Split]:
        """Give the split whose rows serve (test's may be validation's), and where they are read."""
        shares = self._list_shares()
        if split == "test" and split not in self.own_splits and split not in shares:
            split = "validation"
        return split, "train" if split in shares else split

    def _check_split(self, split: Split, field: str, problem: Problem) -> bool:
        """Report a split without rows, or with two places they come from; tell if all is well."""
        both = sorted(self._list_shares().keys() & set(self.own_splits))
        if both:
            problem("holdout", f"{both[0]!r} is held out of train, and has its own in data.{field}")
        elif self._locate_rows(split)[1] not in self.own_splits:
            hint = "" if split == "train" else "; or hold it out of train: data.holdout=0.1"
            problem(field, f"nothing for the split {split!r}, which a stage reads{hint}")
        else:
            return True
        return False

    def _divide(self, places: Sequence[int], split: Split) -> Sequence[int]:
        """Choose a split's rows among `places` of train's. Raises StageError for too few rows."""
        import numpy as np

        shares, count = self._list_shares(), len(places)
        if not shares:
            return places
        sizes = {name: max(1, round(share * count)) for name, share in shares.items()}
        if sum(sizes.values()) >= count:
            raise StageError(f"data.holdout: {count} rows are too few to hold any out and train")
        order, start = np.random.default_rng(self.seed).permutation(count).tolist(), 0
        for name, size in sizes.items():
            if name == split:
                return [places[place] for place in order[start : start + size]]
            start += size
        return [places[place] for place in order[start:]]

    def _limit_rows(self, split: Split) -> int | None:
        """Count the rows of a table that have to be read for a split; None for all of them."""
        needs_all = self.empty == "drop" or self._list_shares()
        return None if needs_all else getattr(self.rows, split)

    def _choose(self, collected: Collected, split: Split, origin: str) -> Rows:
        """Choose a split's rows among those of the table that they are in."""
        name, read_from = self._locate_rows(split)
        empty, rows = collected.empty, collected.rows
        places: Sequence[int] = range(len(rows))
        if self.empty == "drop" and empty:
            places = [place for place in places if place not in empty]
        if read_from == "train" and places:
            places = self._divide(places, name)
        places = places[: getattr(self.rows, split)]
        if not places:
            raise StageError(f"data: the split {split!r} of {origin} has no rows")
        if self.empty != "drop" and empty:
            chosen = set(places)
            empty = {row: column for row, column in empty.items() if row in chosen}
        if len(places) < len(rows) or places != range(len(rows)):
            rows = rows.take(places)
        require_labels(rows.labels, self, split, origin)
        return rows if not empty else replace(rows, note=self._judge_empty(empty, origin))

    def _judge_empty(self, empty: Mapping[int, str], origin: str) -> str:
        """Say what is done about empty rows. Raises StageError where they are an error."""
        row, column = next(iter(empty.items()))
        count = f"{len(empty):,} rows have" if len(empty) > 1 else "1 row has"
        parts = "no text or no summary" if self.task == "summarization" else "no text"
        first = ", is the first" if len(empty) > 1 else ""
        what = f"{origin}: {count} {parts} (row {row}, column {column!r}{first})"
        if self.empty == "error":
            ways = "data.empty=drop leaves such rows out, data.empty=keep uses them"
            raise StageError(f"data.empty: {what}; {ways}")
        done = "left out" if self.empty == "drop" else "kept"
        return f"{what}, {done} as data.empty={self.empty} says"

    def _locate_cache(self, content: Any) -> Path:
        """Give the file for rows that are too many for memory, named by what decides them."""
        from datasets import config

        about = {"reader": READER, "content": content, "columns": self.column_key()}
        text = json.dumps(about | {"task": self.task}, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()
        return Path(config.HF_DATASETS_CACHE) / "compressor-rows" / f"{name}.arrow"
