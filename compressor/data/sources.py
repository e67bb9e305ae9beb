"""Where rows come from: generated bills, files, or a hub data set. No tokenization here.

Planning asks a source for the digest of a split and for what is wrong with it, without reading
more than it must; running asks it for the rows.
"""

from __future__ import annotations

import csv
import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from compressor import hub
from compressor.data import bills, messages
from compressor.data.rows import Rows, Task, rows_of
from compressor.errors import StageError, Unreachable, nearest

Split = Literal["train", "validation", "test"]
Reads = Literal["texts", "sources", "pairs"]
"""What a stage reads of a split: texts alone, sources as token ids, or targets as such too."""
Problem = Callable[[str, str], None]

MIN_LABELS = {"multi_label": 1, "single_label": 2}
"""One class to choose from is no choice."""
_READERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


class SplitRows(BaseModel):
    """How many rows of each split are used, from its beginning; null is all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: int | None = Field(None, ge=1)
    validation: int | None = Field(None, ge=1)
    test: int | None = Field(None, ge=1)


class DataBase(BaseModel):
    """What every source has: columns, prefix and the limits in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task = Field(
        "summarization",
        description="What is learned of a text: its summary, which of several labels it has "
        "(multi_label), or which one (single_label).",
    )
    text: str = Field("text", description="Column of the text to be summarized or labelled.")
    summary: str = Field("summary", description="Column of the reference summary.")
    labels: tuple[str, ...] = Field(
        (),
        description="The labels' names. multi_label: a column of 0 and 1 for each, unless `label` "
        "is set; single_label: what stands in the column `label`.",
    )
    label: str | None = Field(
        None,
        description="single_label: column of a row's one label, by name or number from 0; default: "
        "`label`. multi_label: column of a list of a row's labels, instead of a column for each.",
    )
    prefix: str = Field("", description="Put before each text; T5 wants `summarize: `.")
    max_source_length: int = Field(512, ge=1, description="Tokens of a source; the rest is cut.")
    max_target_length: int = Field(128, ge=1, description="Tokens of a target; the rest is cut.")
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
        """The field that names each column which is read → the column."""
        if self.task == "summarization":
            return {"text": self.text, "summary": self.summary}
        if self.task == "single_label" or self.label is not None:
            return {"text": self.text, "label": self.label or "label"}
        return {"text": self.text} | {f"labels.{i}": name for i, name in enumerate(self.labels)}

    def column_key(self) -> dict[str, Any]:
        """What of a row is read, as a JSON value."""
        if self.task == "summarization":
            return {"text": self.text, "summary": self.summary}
        return self.columns() | {"task": self.task, "labels": list(self.labels)}

    def key(self, split: Split, reads: Reads) -> dict[str, Any]:
        """What decides what is read of a split, beside the tokenizer. Raises Unreachable."""
        limits = {
            "texts": set(),
            "sources": {"prefix", "max_source_length"},
            "pairs": {"prefix", "max_source_length", "max_target_length"},
        }
        rows = {"rows": getattr(self.rows, split), "content": self.content_key(split)}
        return self.model_dump(include=limits[reads]) | rows

    def pinned(self) -> Self:
        """The same source, with whatever may move held where it is now. Raises Unreachable."""
        return self

    @abstractmethod
    def content_key(self, split: Split) -> Any:
        """A JSON value that differs where the split's rows differ."""

    @abstractmethod
    def check(self, split: Split, problem: Problem) -> None:
        """Report what is wrong with a split, at the key (below `data`) that names it."""

    @abstractmethod
    def load(self, split: Split) -> Rows:
        """All rows of a split that `rows` allows. Raises StageError on an empty split."""


class Bills(DataBase):
    """Synthetic bills with summaries, generated: the same on every machine, no network.

    Example: `data: {source: bills, rows: {train: 4000}, seed: 1}`
    """

    source: Literal["bills"]
    seed: int = Field(0, description="Another seed is another set of bills.")

    def _count(self, split: Split) -> int:
        count: int = getattr(self.rows, split) or {"train": 4000}.get(split, 200)
        return count

    def content_key(self, split: Split) -> Any:
        return {"bills": bills.VERSION, "seed": self.seed, "split": split, "n": self._count(split)}

    def check(self, split: Split, problem: Problem) -> None:
        """Nothing can be wrong with generated rows, but a column that is not made."""
        if self.task != "summarization":
            problem("task", f"bills have summaries, and no labels for {self.task}; set data")
            return
        for field, column in self.columns().items():
            _known_column(column, ["text", "summary"], field, "bills have", problem)

    def load(self, split: Split) -> Rows:
        made = list(bills.bills(self._count(split), seed=self.seed, split=split))
        return Rows([row[self.text] for row in made], [row[self.summary] for row in made])


class Messages(DataBase):
    """Synthetic messages to a shop with labels, generated: the same on every machine, no network.

    Each message has up to three of six labels (`multi_label`), or exactly one (`single_label`).
    Example: `data: {source: messages, task: multi_label, rows: {train: 4000}}`
    """

    source: Literal["messages"]
    task: Literal["multi_label", "single_label"] = Field(
        "multi_label", description="Several labels a message, none included, or exactly one."
    )
    labels: tuple[str, ...] = Field(messages.LABELS, description="Which of the six are learned.")
    seed: int = Field(0, description="Another seed is another set of messages.")

    def _count(self, split: Split) -> int:
        count: int = getattr(self.rows, split) or {"train": 4000}.get(split, 500)
        return count

    def content_key(self, split: Split) -> Any:
        made = {"messages": messages.VERSION, "seed": self.seed, "split": split}
        return made | {"n": self._count(split), "task": self.task, "labels": list(self.labels)}

    def check(self, split: Split, problem: Problem) -> None:
        """Nothing can be wrong with generated rows, but a column or a label that is not made."""
        _known_column(self.text, ["text"], "text", "messages have", problem)
        for index, name in enumerate(self.labels):
            _known_column(name, list(messages.LABELS), f"labels.{index}", "messages have", problem)
        if self.task == "single_label" and set(self.labels) != set(messages.LABELS):
            problem("labels", "single_label wants all six: each message has one of them")

    def load(self, split: Split) -> Rows:
        single = self.task == "single_label"
        made = messages.messages(self._count(split), seed=self.seed, split=split, single=single)
        texts, labels = [], []
        for text, given in made:
            texts.append(text)
            chosen = [int(name in given) for name in self.labels]
            labels.append([chosen.index(1)] if single else chosen)
        return Rows(texts, [], labels)


class Held(DataBase):
    """What sources share that can hold rows out of their train split."""

    holdout: float | dict[Literal["validation", "test"], float] | None = Field(
        None,
        description="Share of train's rows, shuffled, that is held out for each split without rows "
        "of its own, or for the splits that are named; what is neither is validation's rows.",
    )
    seed: int = Field(0, description="Of the shuffle before rows are held out.")

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> Self:
        shares = self.holdout.values() if isinstance(self.holdout, dict) else [self.holdout]
        if any(share is not None and not 0 < share < 0.5 for share in shares):
            raise ValueError("expected a holdout above 0 and below 0.5")
        return self

    def _held(self, named: Collection[str]) -> dict[str, float]:
        """Each split that is held out of train → its share, given the splits that are `named`."""
        if isinstance(self.holdout, dict):
            return {str(split): share for split, share in self.holdout.items()}
        left = [split for split in ("validation", "test") if split not in named]
        return {} if self.holdout is None else dict.fromkeys(left, self.holdout)

    def _part(self, table: Any, split: Split, held: Mapping[str, float]) -> Any:
        """The rows of train, of which `table` has all, that a split gets."""
        order, start = table.shuffle(seed=self.seed), 0
        for name, share in held.items():
            size = max(1, round(share * len(table)))
            if name == split:
                return order.select(range(start, start + size))
            start += size
        return order.select(range(start, len(order))) if held else table


class Files(Held):
    """CSV, JSON or Parquet files, told apart by their endings: one a split, or one of which others
    are held out.

    A JSON file is an array, or has a line for each row.
    Example: `data: {source: files, files: {train: train.jsonl, validation: dev.jsonl}}`.
    Relative paths start at the current folder. Without a `test` file, `validation` serves.
    """

    source: Literal["files"]
    files: dict[Split, str] = Field(description="A path for each split.")

    def _where(self, split: Split) -> tuple[Split, Split]:
        """Whose rows a split has (its own or validation's), and in whose file they are."""
        held = self._held(self.files)
        if split == "test" and split not in self.files and split not in held:
            split = "validation"
        return split, "train" if split in held else split

    def _path(self, split: Split) -> Path | None:
        name = self.files.get(self._where(split)[1])
        return Path(name).expanduser() if name else None

    def content_key(self, split: Split) -> Any:
        path = self._path(split)
        if path is None or not path.is_file():
            return None  # `check` reports it
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        held = self._held(self.files)
        split, whose = self._where(split)
        part = (
            {"held": held, "seed": self.seed, "split": split} if held and whose == "train" else {}
        )
        return {"sha256": digest, **self.column_key(), **part}

    def check(self, split: Split, problem: Problem) -> None:
        path = self._path(split)
        if path is None:
            hint = "" if split == "train" else "; or hold it out of train: data.holdout=0.1"
            problem("files", f"no file for the split {split!r}, which a stage reads{hint}")
            return
        key = f"files.{self._where(split)[1]}"
        if not path.is_file():
            there = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
            hint = nearest(path.name, there) if there else f"{path.parent} is not a folder"
            problem(key, f"no file {str(path)!r}; {hint}")
        elif path.suffix not in _READERS:
            problem(key, f"cannot read {path.suffix or path.name!r}; one of {', '.join(_READERS)}")
        else:
            try:
                columns = _columns(path)
            except (ValueError, OSError, csv.Error) as error:  # Arrow's errors are ValueErrors
                problem(key, f"cannot read {path}: {str(error).splitlines()[0]}")
                return
            if columns is None:
                problem(key, f"{path} is empty")
                return
            for field, column in self.columns().items():
                _known_column(column, columns, field, f"{path} has", problem)

    def load(self, split: Split) -> Rows:
        from datasets import disable_progress_bars, load_dataset
        from datasets.exceptions import DatasetGenerationError

        disable_progress_bars()  # a file is read in no time, and the stage has a bar of its own
        path = self._path(split)
        assert path is not None, "checked when planned"
        try:
            table = load_dataset(_READERS[path.suffix], data_files=str(path), split="train")
        except (DatasetGenerationError, ValueError, OSError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise StageError(f"data: cannot read {path}: {reason}") from error
        split, whose = self._where(split)
        if whose == "train":
            table = self._part(table, split, self._held(self.files))
        return rows_of(table, self, split, str(path), getattr(self.rows, split))


class Hub(Held):
    """A data set of the Hugging Face hub, at a commit that the plan finds and the store records.

    Example: `data: {source: hub, dataset: billsum, splits: {train: ca_test}, holdout: 0.1}`.
    A split that `splits` does not name is held out of `train`.
    """

    source: Literal["hub"]
    dataset: str = Field(description="Its name on the hub.")
    configuration: str | None = Field(None, description="The data set's configuration, if it has.")
    revision: str = Field("main", description="Branch, tag or commit; a commit is a full pin.")
    splits: dict[Split, str] = Field(description="The hub's split for each of ours.")
    files: dict[str, str] | None = Field(
        None, description="The hub's splits made of its files: split → file; default: as it says."
    )
    holdout: float | dict[Literal["validation", "test"], float] = Field(
        0.1,
        description="Share of train's rows, shuffled, that is held out for each split without rows "
        "of its own, or for the splits that are named; what is neither is validation's rows.",
    )

    def content_key(self, split: Split) -> Any:
        commit = hub.commit(self.dataset, self.revision, "dataset")
        fields = {"configuration", "splits", "files", "holdout", "seed", "dataset"}
        mine = self.model_dump(include=fields) | {"commit": commit, "split": split}
        return mine | self.column_key()

    def pinned(self) -> Self:
        commit = hub.commit(self.dataset, self.revision, "dataset")
        return self.model_copy(update={"revision": commit})

    def check(self, split: Split, problem: Problem) -> None:
        if "train" not in self.splits and split not in self.splits:
            problem("splits", f"neither {split!r} nor 'train', from which it could be held out")
        try:
            hub.commit(self.dataset, self.revision, "dataset")
        except ValueError as error:
            problem("dataset", str(error))

    def load(self, split: Split) -> Rows:
        from datasets import enable_progress_bars, load_dataset

        enable_progress_bars()  # of downloads
        commit = hub.commit(self.dataset, self.revision, "dataset")
        held = self._held(self.splits)
        if split == "test" and split not in self.splits and split not in held:
            split = "validation"
        named = None if split in held else self.splits.get(split)
        try:
            table = load_dataset(
                self.dataset,
                self.configuration,
                data_files=self.files,
                split=named or self.splits["train"],
                revision=commit,
            )
        except (ConnectionError, FileNotFoundError) as error:
            raise Unreachable(f"data set {self.dataset!r}: {error}") from error
        except ValueError as error:
            raise StageError(f"data: {self.dataset!r}: {str(error).splitlines()[0]}") from error
        if named is None or split == "train":
            table = self._part(table, split, held)
        return rows_of(table, self, split, self.dataset, getattr(self.rows, split))


Data = Annotated[Bills | Messages | Files | Hub, Field(discriminator="source")]


def _columns(path: Path) -> list[str] | None:
    """The column names of a file, from its first line or footer; None for an empty file."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        parquet = pyarrow.parquet.ParquetFile(path)
        return list(parquet.schema_arrow.names) if parquet.metadata.num_rows else None
    with path.open(encoding="utf-8-sig", newline="") as stream:
        if path.suffix == ".csv":
            reader = csv.reader(stream)
            header = next(reader, None)
            return header if next(reader, None) is not None else None
        first = next((line for line in stream if line.strip()), None)
        if first is None:
            return None
        if first.lstrip().startswith("["):  # one array of all rows
            rows = json.loads(first + stream.read())
            if not rows:
                return None
            row = rows[0]
        else:
            row = json.loads(first)
        return list(row) if isinstance(row, dict) else []


def _known_column(name: str, columns: list[str], field: str, whose: str, problem: Problem) -> None:
    if name not in columns:
        problem(
            field, f"no column {name!r}: {whose} {', '.join(columns)}; {nearest(name, columns)}"
        )
