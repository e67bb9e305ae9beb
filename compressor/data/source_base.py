"""The base classes of sources of rows: columns, keys, held-out splits and empty rows."""

from __future__ import annotations

import difflib
import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from compressor.core.errors import StageError, nearest
from compressor.core.settings import SETTINGS, Counted, Integer, Listed, to_int
from compressor.data.rows import LABEL_TASKS, CollectedRows, Rows, Task, require_labels

Split = Literal["train", "validation", "test"]

Reads = Literal["texts", "sources", "pairs"]
"""What a stage reads of a split: texts alone, sources as token ids, or targets as such too."""

Truncate = Literal["tokens", "sentences"]

Reporter = Callable[[str, str], None]

ColumnName = Annotated[
    str,
    BeforeValidator(
        lambda value: str(to_int(value)) if type(to_int(value)) is int and value >= 0 else value
    ),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0}]}),
]
"""A column, by name; of a file without a header by number from 0."""

Label = Annotated[str, Field(json_schema_extra={"pattern": "^[^;]+$"})]

Share = Annotated[
    float, WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5})
]
"""Of train's rows, so that enough are left to train on."""


READER = 2
"""Raise it when rows of the same bytes come out otherwise."""

HELD_OUT = (
    "Share of train's rows, shuffled, that is held out for each split without rows of its own, or "
    "for the splits that are named; what is neither is validation's rows."
)

HeldSplit = Literal["validation", "test"]


def keep_silent(path: str, message: str) -> None:
    """Report nothing."""


class SplitRows(BaseModel):
    """How many rows of each split are used, from its beginning; null is all of them."""

    model_config = SETTINGS

    train: Counted | None = Field(None)
    validation: Counted | None = Field(None)
    test: Counted | None = Field(None)


class DataBase(BaseModel):
    """A source of rows: columns, prefix and the limits in tokens."""

    model_config = SETTINGS

    task: Task = Field(
        "summarization",
        description="What is learned of a text: to write another one from it, such as a summary or "
        "a translation (text2text, also called summarization), how it goes on (language_modeling), "
        "which of several labels it has (multi_label), which one (single_label), or which tag each "
        "of its words has (token_classification).",
    )
    text: ColumnName = Field(
        "text",
        description="Column of the text that is read; a list of sentences is joined. "
        "token_classification: of a list of words, or a text that is split at white space. "
        "`answers.text` is a field of the column `answers`, here and below.",
    )
    summary: ColumnName = Field(
        "summary",
        description="text2text: column of the text to be written, or of a list of several "
        "references: the best one scores, the first one trains.",
    )
    completion: ColumnName | None = Field(
        None,
        description="language_modeling: column of what follows the text, which alone is learned; "
        "default: all of the text is learned, and one that is too long is several.",
    )
    messages: ColumnName | None = Field(
        None,
        description="language_modeling: column of a list of messages ({role, content}), instead of "
        "`text`. The tokenizer's chat template writes them; the last, an assistant's, is learned.",
    )
    labels: Listed[Label] = Field(
        (),
        description="The labels' names. multi_label: a column of 0 and 1 for each, unless `label` "
        "is set; single_label: what stands in the column `label`; token_classification: the tags, "
        "such as O, B-PER and I-PER.",
    )
    label: ColumnName | None = Field(
        None,
        description="single_label: column of a row's one label, by name or number from 0; default: "
        "`label`. multi_label: column of a list of a row's labels, instead of a column for each. "
        "token_classification: column of a list of tags, one for each word, or of a text of them.",
    )
    prefix: str = Field("", description="Put before each text; T5 wants `summarize: `.")
    max_source_length: Counted = Field(512, description="Tokens of a source; the rest is cut.")
    max_target_length: Counted = Field(128, description="Tokens of a target; the rest is cut.")
    truncate: Truncate = Field(
        "tokens",
        description="Where a text that is too long is cut: after the last token that fits, or the "
        "last (English) sentence; a first sentence that is too long is cut by tokens.",
    )
    rows: SplitRows = Field(default_factory=SplitRows)

    @model_validator(mode="after")
    def _labels_go_with_the_task(self) -> Self:
        if not self.has_labels and self.labels:
            tasks = " and ".join((", ".join([*LABEL_TASKS][:-1]), [*LABEL_TASKS][-1]))
            raise ValueError(f"`labels` are for the tasks {tasks}; set `task`")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("`labels` names a label twice")
        if len(self.labels) < LABEL_TASKS.get(self.task, 0):
            raise ValueError(f"{self.task} wants `labels`, at least {LABEL_TASKS[self.task]}")
        if self.completion is not None and self.task != "language_modeling":
            raise ValueError("`completion` is for the task language_modeling; set `task`")
        if self.messages is not None and (self.task != "language_modeling" or self.completion):
            raise ValueError("`messages` are for the task language_modeling, without `completion`")
        if self.messages is not None and (self.prefix or self.truncate != "tokens"):
            raise ValueError("`messages` have no `prefix` and are not cut; say it in a message")
        if any(not name or ";" in name for name in self.labels):
            raise ValueError("a label's name is not empty, and has no semicolon")
        if self.task == "token_classification":
            if any(name != "".join(name.split()) for name in self.labels):
                raise ValueError("a tag's name has no white space")
            if self.truncate != "tokens":
                raise ValueError("`truncate: sentences` is not for words with tags; set 'tokens'")
        return self

    @property
    def has_labels(self) -> bool:
        """Whether the rows have labels."""
        return self.task in LABEL_TASKS

    @property
    def is_text_alone(self) -> bool:
        """Whether a decoder learns all of a text, and nothing is written from it."""
        return self.task == "language_modeling" and self.target is None

    @property
    def target(self) -> str | None:
        """The column of the text to be written; None where there is none."""
        if self.task == "language_modeling":
            return self.messages or self.completion
        return None if self.has_labels else self.summary

    def columns(self) -> dict[str, str]:
        """Map each field that names a column which is read to the column."""
        if self.messages is not None:
            return {"messages": self.messages}
        if self.task == "language_modeling":
            return {"text": self.text} | ({"completion": self.target} if self.target else {})
        if not self.has_labels:
            return {"text": self.text, "summary": self.summary}
        if self.task != "multi_label" or self.label is not None:
            return {"text": self.text, "label": self.label or "label"}
        return {"text": self.text} | {f"labels.{i}": name for i, name in enumerate(self.labels)}

    def column_key(self) -> dict[str, Any]:
        """Describe what of a row is read, as a JSON value."""
        if self.task in ("text2text", "summarization"):
            return self.columns()
        labels = {"labels": list(self.labels)} if self.has_labels else {}
        return self.columns() | {"task": self.task} | labels

    def key(self, split: Split, reads: Reads) -> dict[str, Any]:
        """Describe what decides what a stage reads, beside the tokenizer. Raises Unreachable."""
        fields = set() if reads == "texts" else {"prefix", "max_source_length"}
        if reads == "pairs" and self.target is not None:
            fields.add("max_target_length")
        if reads != "texts" and self.truncate != "tokens":
            fields.add("truncate")
        rows = {"rows": getattr(self.rows, split), "content": self.content_key(split)}
        return self.model_dump(include=fields) | rows

    def pin_revision(self) -> Self:
        """Give the source with whatever may move held where it is now. Raises Unreachable."""
        return self

    def most_rows(self, split: Split) -> int | None:
        """Count the most rows that a split can have, as far as planning knows."""
        rows: int | None = getattr(self.rows, split)
        return rows

    @property
    def scores_validation(self) -> bool:
        """Whether the rows of the test split are those of validation."""
        return False

    @abstractmethod
    def content_key(self, split: Split) -> Any:
        """Give a JSON value that differs where the split's rows differ."""

    @abstractmethod
    def check(self, split: Split, report: Reporter, warn: Reporter = keep_silent) -> None:
        """Report what is wrong with a split, at the key (below `data`) that names it."""

    @abstractmethod
    def load(self, split: Split) -> Rows:
        """Read the rows of a split that `rows` allows. Raises StageError on an empty split."""


def check_column(name: str, columns: list[str], field: str, has: str, report: Reporter) -> None:
    """Report a column that is not there. `has`: subject and verb, such as `bills have`."""
    if name not in columns:
        shown = ", ".join(columns[:20]) + (f" and {len(columns) - 20} more" * (len(columns) > 20))
        close = difflib.get_close_matches(name, columns[:1000], n=1) or columns[:20]
        report(field, f"no column {name!r}: {has} {shown:.1000}; {nearest(name, close):.1000}")


class SplitSource(DataBase):
    """A source whose splits can be held out of train, and whose rows can be empty."""

    empty: Literal["error", "drop", "keep"] = Field(
        "error",
        description="What is done about rows whose text or target is missing, empty or white "
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

    def _check_split(self, split: Split, field: str, report: Reporter) -> bool:
        """Report a split without rows, or with two places they come from; tell if all is well."""
        both = sorted(self._list_shares().keys() & set(self.own_splits))
        if both:
            report("holdout", f"{both[0]!r} is held out of train, and has its own in data.{field}")
        elif self._locate_rows(split)[1] not in self.own_splits:
            hint = "" if split == "train" else "; or hold it out of train: data.holdout=0.1"
            report(field, f"nothing for the split {split!r}, which a stage reads{hint}")
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

    def _choose(self, collected: CollectedRows, split: Split, origin: str) -> Rows:
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
        parts = " or ".join(f"no {field}" for field in self.columns() if "label" not in field)
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
