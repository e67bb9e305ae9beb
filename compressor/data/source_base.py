"""The base class of sources of rows: their columns, key, checks and rows."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema, model_validator

from compressor.core.errors import nearest
from compressor.core.settings import SETTINGS, Counted, Listed, to_int
from compressor.data.rows import Rows, Task

Split = Literal["train", "validation", "test"]

Reads = Literal["texts", "sources", "pairs"]
"""What a stage reads of a split: texts alone, sources as token ids, or targets as such too."""

Truncate = Literal["tokens", "sentences"]

Problem = Callable[[str, str], None]

MIN_LABELS = {"multi_label": 1, "single_label": 2}
"""One class to choose from is no choice."""

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
        description="What is learned of a text: its summary, which of several labels it has "
        "(multi_label), or which one (single_label).",
    )
    text: ColumnName = Field(
        "text",
        description="Column of the text to be summarized or labelled; a list of sentences is "
        "joined. `answers.text` is a field of the column `answers`, here and below.",
    )
    summary: ColumnName = Field(
        "summary",
        description="Column of the reference summary, or of a list of several: the best one "
        "scores, the first one trains.",
    )
    labels: Listed[Label] = Field(
        (),
        description="The labels' names. multi_label: a column of 0 and 1 for each, unless `label` "
        "is set; single_label: what stands in the column `label`.",
    )
    label: ColumnName | None = Field(
        None,
        description="single_label: column of a row's one label, by name or number from 0; default: "
        "`label`. multi_label: column of a list of a row's labels, instead of a column for each.",
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
        if self.task == "summarization" and self.labels:
            raise ValueError("`labels` are for the tasks multi_label and single_label; set `task`")
        if self.task != "summarization" and len(set(self.labels)) != len(self.labels):
            raise ValueError("`labels` names a label twice")
        if self.task != "summarization" and len(self.labels) < MIN_LABELS[self.task]:
            raise ValueError(f"{self.task} wants `labels`, at least {MIN_LABELS[self.task]}")
        if any(not name or ";" in name for name in self.labels):
            raise ValueError("a label's name is not empty, and has no semicolon")
        return self

    def columns(self) -> dict[str, str]:
        """Map each field that names a column which is read to the column."""
        if self.task == "summarization":
            return {"text": self.text, "summary": self.summary}
        if self.task == "single_label" or self.label is not None:
            return {"text": self.text, "label": self.label or "label"}
        return {"text": self.text} | {f"labels.{i}": name for i, name in enumerate(self.labels)}

    def column_key(self) -> dict[str, Any]:
        """Describe what of a row is read, as a JSON value."""
        if self.task == "summarization":
            return {"text": self.text, "summary": self.summary}
        return self.columns() | {"task": self.task, "labels": list(self.labels)}

    def key(self, split: Split, reads: Reads) -> dict[str, Any]:
        """Describe what decides what a stage reads, beside the tokenizer. Raises Unreachable."""
        fields = set() if reads == "texts" else {"prefix", "max_source_length"}
        if reads == "pairs" and self.task == "summarization":
            fields.add("max_target_length")
        if reads != "texts" and self.truncate != "tokens":
            fields.add("truncate")
        rows = {"rows": getattr(self.rows, split), "content": self.content_key(split)}
        return self.model_dump(include=fields) | rows

    def pin_revision(self) -> Self:
        """Give the source with whatever may move held where it is now. Raises Unreachable."""
        return self

    @property
    def scores_validation(self) -> bool:
        """Whether the rows of the test split are those of validation."""
        return False

    @abstractmethod
    def content_key(self, split: Split) -> Any:
        """Give a JSON value that differs where the split's rows differ."""

    @abstractmethod
    def check(self, split: Split, problem: Problem, warn: Problem = keep_silent) -> None:
        """Report what is wrong with a split, at the key (below `data`) that names it."""

    @abstractmethod
    def load(self, split: Split) -> Rows:
        """Read the rows of a split that `rows` allows. Raises StageError on an empty split."""


def check_column(name: str, columns: list[str], field: str, has: str, problem: Problem) -> None:
    """Report a column that is not there. `has`: subject and verb, such as `bills have`."""
    if name not in columns:
        shown = ", ".join(columns[:20]) + (f" and {len(columns) - 20} more" * (len(columns) > 20))
        close = difflib.get_close_matches(name, columns[:1000], n=1) or columns[:20]
        problem(field, f"no column {name!r}: {has} {shown:.1000}; {nearest(name, close):.1000}")
