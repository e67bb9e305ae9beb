"""Where rows come from: generated bills, files, or a hub data set. No tokenization here.

Planning asks a source for the digest of a split and for what is wrong with it, without reading
more than it must; running asks it for the rows.
"""

from __future__ import annotations

import csv
import difflib
from abc import abstractmethod
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from compressor import hub
from compressor.data import bills, messages
from compressor.data.file_digest import file_sha256
from compressor.data.file_limits import MOST_COLUMNS, PACKED, columns, is_packed, refuse_deep
from compressor.data.rows import ROW, Rows, Task, require_labels, rows_of
from compressor.errors import StageError, Unreachable, nearest
from compressor.field_types import SETTINGS, Counted, Integer, Listed
from compressor.home import expanded
from compressor.schema_rules import Schema, rules, when, where

Split = Literal["train", "validation", "test"]
Reads = Literal["texts", "sources", "pairs"]
"""What a stage reads of a split: texts alone, sources as token ids, or targets as such too."""
Truncate = Literal["tokens", "sentences"]
Problem = Callable[[str, str], None]

MIN_LABELS = {"multi_label": 1, "single_label": 2}
"""One class to choose from is no choice."""
Label = Annotated[str, Field(json_schema_extra={"pattern": "^[^;]+$"})]
Share = Annotated[
    float,
    WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5}),
]
"""Of train's rows, so that enough are left to train on."""
_OPTIONS: dict[str, dict[str, Any]] = {"csv": {"keep_default_na": False, "na_values": [""]}}
"""Reader → what it is told: "NA" and "null" are texts like any others."""
_READERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def _labels(least: int) -> Schema:
    """What `labels` are where at least so many are wanted."""
    return {"minItems": least, "uniqueItems": True}


class SplitRows(BaseModel):
    """How many rows of each split are used, from its beginning; null is all of them."""

    model_config = SETTINGS

    train: Counted | None = Field(None)
    validation: Counted | None = Field(None)
    test: Counted | None = Field(None)


class DataBase(BaseModel):
    """What every source has: columns, prefix and the limits in tokens."""

    model_config = SETTINGS | ConfigDict(
        json_schema_extra=rules(
            *(
                when(where(task={"const": task}), where(labels=_labels(least)))
                for task, least in MIN_LABELS.items()
            ),
            when(
                {"not": where(task={"enum": list(MIN_LABELS)})},
                {"properties": {"labels": {"maxItems": 0}}},
            ),
        )
    )

    task: Task = Field(
        "summarization",
        description="What is learned of a text: its summary, which of several labels it has "
        "(multi_label), or which one (single_label).",
    )
    text: str = Field("text", description="Column of the text to be summarized or labelled.")
    summary: str = Field("summary", description="Column of the reference summary.")
    labels: Listed[Label] = Field(
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
    max_source_length: Integer = Field(
        512, ge=1, description="Tokens of a source; the rest is cut."
    )
    max_target_length: Integer = Field(
        128, ge=1, description="Tokens of a target; the rest is cut."
    )
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
        cut = {"truncate"} if self.truncate != "tokens" else set()
        limits = {
            "texts": set(),
            "sources": {"prefix", "max_source_length", *cut},
            "pairs": {"prefix", "max_source_length", "max_target_length", *cut},
        }
        rows = {"rows": getattr(self.rows, split), "content": self.content_key(split)}
        unread = set() if self.task == "summarization" else {"max_target_length"}
        return self.model_dump(include=limits[reads] - unread) | rows

    def pinned(self) -> Self:
        """The same source, with whatever may move held where it is now. Raises Unreachable."""
        return self

    @property
    def scores_validation(self) -> bool:
        """Whether the rows of the test split are those of validation."""
        return False

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
    seed: Integer = Field(0, description="Another seed is another set of bills.")

    def _count(self, split: Split) -> int:
        count: int = getattr(self.rows, split) or {"train": 4000}.get(split, 200)
        return count

    def content_key(self, split: Split) -> Any:
        made = {"bills": bills.VERSION, "seed": self.seed, "split": split, "n": self._count(split)}
        columns = self.columns()
        return made | ({} if columns == {"text": "text", "summary": "summary"} else columns)

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

    model_config = ConfigDict(
        json_schema_extra=rules(
            {"properties": {"labels": _labels(MIN_LABELS["multi_label"])}},
            when(
                where(task={"const": "single_label"}),
                {"properties": {"labels": _labels(MIN_LABELS["single_label"])}},
            ),
        )
    )

    source: Literal["messages"]
    task: Literal["multi_label", "single_label"] = Field(
        "multi_label", description="Several labels a message, none included, or exactly one."
    )
    labels: Listed[Label] = Field(messages.LABELS, description="Which of the six are learned.")
    seed: Integer = Field(0, description="Another seed is another set of messages.")

    def _count(self, split: Split) -> int:
        count: int = getattr(self.rows, split) or {"train": 4000}.get(split, 500)
        return count

    def content_key(self, split: Split) -> Any:
        made = {"messages": messages.VERSION, "seed": self.seed, "split": split}
        return made | {"n": self._count(split), "task": self.task, "labels": list(self.labels)}

    def check(self, split: Split, problem: Problem) -> None:
        """Nothing can be wrong with generated rows, but a column or a label that is not made."""
        _known_column(self.text, ["text"], "text", "messages have", problem)
        if self.label is not None:
            problem("label", "messages have no such column; set data.task and data.labels")
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
        require_labels(labels, self, split, "the generated messages")
        return Rows(texts, [], labels)


class Held(DataBase):
    """What sources share that can hold rows out of their train split."""

    holdout: Share | dict[Literal["validation", "test"], Share] | None = Field(
        None,
        description="Share of train's rows, shuffled, that is held out for each split without rows "
        "of its own, or for the splits that are named; what is neither is validation's rows.",
    )
    seed: Integer = Field(0, description="Of the shuffle before rows are held out.")

    @field_validator("holdout")
    @classmethod
    def _leaves_rows_to_train_on(cls, value: Any) -> Any:
        shares = value.values() if isinstance(value, dict) else [value]
        if any(share is not None and not 0 < share < 0.5 for share in shares):
            raise ValueError("expected a holdout above 0 and below 0.5")
        return value

    def _held(self, named: Collection[str]) -> dict[Split, float]:
        """Each split that is held out of train → its share, given the splits that are `named`."""
        splits: tuple[Literal["validation", "test"], ...] = ("validation", "test")
        if isinstance(self.holdout, dict):  # in one order, however it is written
            return {split: self.holdout[split] for split in splits if split in self.holdout}
        if self.holdout is None:
            return {}
        return dict.fromkeys((split for split in splits if split not in named), self.holdout)

    def _where(self, split: Split, named: Collection[str]) -> tuple[Split, Split]:
        """Whose rows a split has (its own or validation's), and of which split they are a part."""
        held = self._held(named)
        if split == "test" and split not in named and split not in held:
            split = "validation"
        return split, "train" if split in held else split

    def _check_split(
        self, split: Split, named: Collection[str], field: str, problem: Problem
    ) -> bool:
        """Report a split without rows, or with two places they come from; whether all is well."""
        both = sorted(self._held(named).keys() & set(named))
        if both:
            problem("holdout", f"{both[0]!r} is held out of train, and has its own in data.{field}")
        elif self._where(split, named)[1] not in named:
            hint = "" if split == "train" else "; or hold it out of train: data.holdout=0.1"
            problem(field, f"nothing for the split {split!r}, which a stage reads{hint}")
        else:
            return True
        return False

    @property
    @abstractmethod
    def _named(self) -> Collection[str]:
        """The splits that have rows of their own."""

    @property
    def scores_validation(self) -> bool:
        """Whether the rows of the test split are those of validation."""
        return self._where("test", self._named)[0] == "validation"

    def _part(self, table: Any, split: Split, named: Collection[str]) -> Any:
        """The rows of train, of which `table` has all, that a split gets; in the column `ROW` their
        places in it. Raises StageError where they are too few.
        """
        held, count = self._held(named), len(table)
        table = table.add_column(ROW, list(range(count)))
        if not held:
            return table
        sizes = {name: max(1, round(share * count)) for name, share in held.items()}
        if sum(sizes.values()) >= count:
            raise StageError(f"data.holdout: {count} rows are too few to hold any out and train")
        order, start = table.shuffle(seed=self.seed), 0
        for name, size in sizes.items():
            if name == split:
                return order.select(range(start, start + size))
            start += size
        return order.select(range(start, count))

    def _rows(self, table: Any, split: Split, whose: str) -> Rows:
        """The rows of a split, from the table that `_where` says they are in."""
        mine, source = self._where(split, self._named)
        if source == "train":
            table = self._part(table, mine, self._named)
        return rows_of(table, self, split, whose, getattr(self.rows, split))


class Files(Held):
    """CSV, JSON or Parquet files, told apart by their endings: one a split, or one of which others
    are held out.

    A JSON file is an array, or has a line for each row.
    Example: `data: {source: files, files: {train: train.jsonl, validation: dev.jsonl}}`.
    Relative paths start at the current folder. Without a `test` file, `validation` serves.
    """

    source: Literal["files"]
    files: dict[Split, str | None] = Field(
        description="A path for each split; null where there is no file, as of one held out."
    )

    @property
    def _named(self) -> Collection[str]:
        return [split for split, path in self.files.items() if path is not None]

    def _path(self, split: Split) -> Path | None:
        name = self.files.get(self._where(split, self._named)[1])
        return expanded(name) if name else None

    def content_key(self, split: Split) -> Any:
        path = self._path(split)
        if path is None or not path.is_file():
            return None  # `check` reports it
        held = self._held(self._named)
        split, whose = self._where(split, self._named)
        part = (
            {"held": held, "seed": self.seed, "split": split} if held and whose == "train" else {}
        )
        return {"sha256": file_sha256(path), **self.column_key(), **part}

    def check(self, split: Split, problem: Problem) -> None:
        if not self._check_split(split, self._named, "files", problem):
            return
        path, key = self._path(split), f"files.{self._where(split, self._named)[1]}"
        assert path is not None, "a split that has rows has a file"
        if path.exists() and not path.is_file():
            problem(key, f"{str(path)!r} is no regular file: neither a folder nor a pipe is read")
        elif not path.is_file():
            there = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
            hint = nearest(path.name, there) if there else f"{path.parent} is not a folder"
            problem(key, f"no file {str(path)!r}; {hint}")
        elif path.suffix not in _READERS:
            unpack = "; unpack it first" if path.suffix in PACKED else ""
            valid = ", ".join(_READERS)
            problem(key, f"cannot read {path.suffix or path.name!r}; one of {valid}{unpack}")
        elif is_packed(path):
            problem(key, f"cannot read {path}: it is a compressed file or an archive; unpack it")
        else:
            try:
                found = columns(path)
            except (ValueError, OSError, csv.Error) as error:  # Arrow's errors are ValueErrors
                problem(key, f"cannot read {path}: {str(error).splitlines()[0]}")
                return
            except RecursionError:
                problem(key, f"cannot read {path}: a value of its first row is nested too deeply")
                return
            if found is None:
                problem(key, f"{path} is empty")
                return
            if len(found) > MOST_COLUMNS:
                many = f"{path} has {len(found):,} columns, more than {MOST_COLUMNS:,}"
                problem(key, f"{many}; keep those that are read")
                return
            for field, column in self.columns().items():
                _known_column(column, found, field, f"{path} has", problem)

    def load(self, split: Split) -> Rows:
        from datasets import disable_progress_bars, load_dataset
        from datasets.exceptions import DatasetGenerationError

        disable_progress_bars()  # a file is read in no time, and the stage has a bar of its own
        path = self._path(split)
        assert path is not None, "checked when planned"
        if is_packed(path):  # `datasets` would unpack it, to whatever size, into its cache
            raise StageError(f"data: cannot read {path}: it is a compressed file or an archive")
        if _READERS[path.suffix] == "json":
            refuse_deep(path)
        try:
            kind = _READERS[path.suffix]
            table = load_dataset(
                kind, data_files=str(path), split="train", **_OPTIONS.get(kind, {})
            )
        except (DatasetGenerationError, ValueError, OSError, RecursionError) as error:
            reason = _first_line(error.__cause__ or error)
            raise StageError(f"data: cannot read {path}: {reason}") from error
        return self._rows(table, split, str(path))


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
    holdout: Share | dict[Literal["validation", "test"], Share] = Field(
        0.1,
        description="Share of train's rows, shuffled, that is held out for each split without rows "
        "of its own, or for the splits that are named; what is neither is validation's rows.",
    )

    @field_validator("files")
    @classmethod
    def _are_of_the_commit(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        for file in (value or {}).values():
            if "://" in file or file.startswith(("/", "~")) or ".." in file.split("/"):
                raise ValueError(
                    f"{file!r} is no file of the data set, whose commit is all that a key has of "
                    "it; for a file of your own take `source: files`"
                )
        return value

    def content_key(self, split: Split) -> Any:
        commit = hub.commit(self.dataset, self.revision, "dataset")
        fields = {"configuration", "splits", "holdout", "seed", "dataset"}
        fields |= {"files"} if self.files is not None else set()
        mine = self.model_dump(include=fields) | self.column_key()
        return mine | {"commit": commit, "split": self._where(split, self._named)[0]}

    @property
    def _named(self) -> Collection[str]:
        return self.splits.keys()

    def pinned(self) -> Self:
        commit = hub.commit(self.dataset, self.revision, "dataset")
        return self.model_copy(update={"revision": commit})

    def check(self, split: Split, problem: Problem) -> None:
        self._check_split(split, self._named, "splits", problem)
        try:
            hub.commit(self.dataset, self.revision, "dataset")
        except ValueError as error:
            problem("dataset", str(error))

    def load(self, split: Split) -> Rows:
        from datasets import enable_progress_bars
        from datasets.exceptions import DatasetsError

        enable_progress_bars()  # of downloads
        commit = hub.commit(self.dataset, self.revision, "dataset")
        what = f"data set {self.dataset!r}"
        try:
            with hub.unreachable(what):
                builder = self._prepared(commit)
            table = builder.as_dataset(split=self.splits[self._where(split, self._named)[1]])
        except OSError as error:  # what `unreachable` leaves: something is not there
            raise Unreachable(f"{what}: {_first_line(error)}") from error
        except (DatasetsError, ValueError) as error:
            reason = _first_line(error.__cause__ or error)
            raise StageError(f"data: {self.dataset!r}: {reason}") from error
        return self._rows(table, split, self.dataset)

    def _prepared(self, commit: str) -> Any:
        """The data set's builder, its files read into the cache. Each file that comes in is
        compared with what the hub names its content: the library takes any of the right length.
        """
        from datasets import load_dataset_builder

        builder = load_dataset_builder(
            self.dataset, self.configuration, data_files=self.files, revision=commit
        )
        if not Path(builder.cache_dir).is_dir():
            given = builder.config.data_files or {}
            for url in dict.fromkeys(str(url) for urls in given.values() for url in urls):
                here = f"hf://datasets/{self.dataset}@{commit}/"
                if url.startswith(here):
                    hub.file(self.dataset, url.removeprefix(here), commit, "dataset")
        builder.download_and_prepare()
        return builder


Data = Annotated[Bills | Messages | Files | Hub, Field(discriminator="source")]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _known_column(name: str, columns: list[str], field: str, whose: str, problem: Problem) -> None:
    if name not in columns:
        shown = ", ".join(columns[:20]) + (f" and {len(columns) - 20} more" * (len(columns) > 20))
        close = difflib.get_close_matches(name, columns[:1000], n=1) or columns[:20]
        problem(field, f"no column {name!r}: {whose} {shown:.1000}; {nearest(name, close):.1000}")
