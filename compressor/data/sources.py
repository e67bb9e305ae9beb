"""Where rows come from: generated bills, files, or a hub data set. No tokenization here.

Planning asks a source for the digest of a split and for what is wrong with it, without reading
more than it must; running asks it for the rows.
"""

from __future__ import annotations

import csv
import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from compressor import hub
from compressor.data import bills
from compressor.errors import StageError, Unreachable, nearest

Split = Literal["train", "validation", "test"]
Reads = Literal["texts", "sources", "pairs"]
"""What a stage reads of a split: texts alone, sources as token ids, or targets as such too."""
Truncate = Literal["tokens", "sentences"]
Problem = Callable[[str, str], None]

_READERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Rows:
    """The rows of one split, in their order: source texts (without prefix) and summaries."""

    texts: list[str]
    summaries: list[str]

    def __len__(self) -> int:
        return len(self.texts)


class SplitRows(BaseModel):
    """How many rows of each split are used, from its beginning; null is all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: int | None = Field(None, ge=1)
    validation: int | None = Field(None, ge=1)
    test: int | None = Field(None, ge=1)


class DataBase(BaseModel):
    """What every source has: columns, prefix and the limits in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field("text", description="Column of the text to be summarized.")
    summary: str = Field("summary", description="Column of the reference summary.")
    prefix: str = Field("", description="Put before each text; T5 wants `summarize: `.")
    max_source_length: int = Field(512, ge=1, description="Tokens of a source; the rest is cut.")
    max_target_length: int = Field(128, ge=1, description="Tokens of a target; the rest is cut.")
    truncate: Truncate = Field(
        "tokens",
        description="Where a text that is too long is cut: after the last token that fits, or the "
        "last (English) sentence; a first sentence that is too long is cut by tokens.",
    )
    rows: SplitRows = Field(default_factory=SplitRows)

    def key(self, split: Split, reads: Reads) -> dict[str, Any]:
        """What decides what is read of a split, beside the tokenizer. Raises Unreachable."""
        cut = {"truncate"} if self.truncate != "tokens" else set()
        limits = {
            "texts": set(),
            "sources": {"prefix", "max_source_length", *cut},
            "pairs": {"prefix", "max_source_length", "max_target_length", *cut},
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
        for field in ("text", "summary"):
            _known_column(getattr(self, field), ["text", "summary"], field, "bills have", problem)

    def load(self, split: Split) -> Rows:
        made = list(bills.bills(self._count(split), seed=self.seed, split=split))
        return Rows([row[self.text] for row in made], [row[self.summary] for row in made])


class Files(DataBase):
    """CSV, JSON or Parquet files, one for each split, told apart by their endings.

    A JSON file is an array, or has a line for each row.
    Example: `data: {source: files, files: {train: train.jsonl, validation: dev.jsonl}}`.
    Relative paths start at the current folder. Without a `test` file, `validation` serves.
    """

    source: Literal["files"]
    files: dict[Split, str] = Field(description="A path for each split.")

    def _path(self, split: Split) -> Path | None:
        name = self.files.get(split) or (self.files.get("validation") if split == "test" else None)
        return Path(name).expanduser() if name else None

    def content_key(self, split: Split) -> Any:
        path = self._path(split)
        if path is None or not path.is_file():
            return None  # `check` reports it
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"sha256": digest, "text": self.text, "summary": self.summary}

    def check(self, split: Split, problem: Problem) -> None:
        path = self._path(split)
        if path is None:
            problem("files", f"no file for the split {split!r}, which a stage reads")
            return
        key = f"files.{split if split in self.files else 'validation'}"
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
            for field in ("text", "summary"):
                _known_column(getattr(self, field), columns, field, f"{path} has", problem)

    def load(self, split: Split) -> Rows:
        from datasets import load_dataset
        from datasets.exceptions import DatasetGenerationError

        path = self._path(split)
        assert path is not None, "checked when planned"
        try:
            table = load_dataset(_READERS[path.suffix], data_files=str(path), split="train")
        except (DatasetGenerationError, ValueError, OSError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise StageError(f"data: cannot read {path}: {reason}") from error
        return _rows(table, self, split, str(path))


class Hub(DataBase):
    """A data set of the Hugging Face hub, at a commit that the plan finds and the store records.

    Example: `data: {source: hub, dataset: billsum, splits: {train: ca_test}, holdout: 0.1}`.
    A split that `splits` does not name is held out of `train`: `holdout` of its rows, shuffled.
    """

    source: Literal["hub"]
    dataset: str = Field(description="Its name on the hub.")
    configuration: str | None = Field(None, description="The data set's configuration, if it has.")
    revision: str = Field("main", description="Branch, tag or commit; a commit is a full pin.")
    splits: dict[Split, str] = Field(description="The hub's split for each of ours.")
    holdout: float = Field(0.1, gt=0, lt=0.5, description="Share of train held out for a split.")
    seed: int = Field(0, description="Of the shuffle before rows are held out.")

    def content_key(self, split: Split) -> Any:
        commit = hub.commit(self.dataset, self.revision, "dataset")
        fields = {"configuration", "splits", "holdout", "seed", "text", "summary", "dataset"}
        return self.model_dump(include=fields) | {"commit": commit, "split": split}

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
        from datasets import load_dataset

        commit = hub.commit(self.dataset, self.revision, "dataset")
        named = self.splits.get(split)
        try:
            table = load_dataset(
                self.dataset,
                self.configuration,
                split=named or self.splits["train"],
                revision=commit,
            )
        except (ConnectionError, FileNotFoundError) as error:
            raise Unreachable(f"data set {self.dataset!r}: {error}") from error
        except ValueError as error:
            raise StageError(f"data: {self.dataset!r}: {str(error).splitlines()[0]}") from error
        held = [s for s in ("validation", "test") if s not in self.splits]
        if held and (split == "train" or split in held):
            order = table.shuffle(seed=self.seed)
            size = max(1, round(self.holdout * len(table)))
            start = held.index(split) * size if split in held else len(held) * size
            stop = start + size if split in held else len(order)
            table = order.select(range(start, stop))
        return _rows(table, self, split, self.dataset)


Data = Annotated[Bills | Files | Hub, Field(discriminator="source")]


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


def _rows(table: Any, data: DataBase, split: Split, whose: str) -> Rows:
    """Rows of a `datasets.Dataset`; every value must be text."""
    for field in ("text", "summary"):
        name = getattr(data, field)
        if name not in table.column_names:
            hint = nearest(name, table.column_names)
            raise StageError(f"data.{field}: {whose} has no column {name!r}; {hint}")
    limit = getattr(data.rows, split)
    if limit is not None:
        table = table.select(range(min(limit, len(table))))
    if len(table) == 0:
        raise StageError(f"data: the split {split!r} of {whose} has no rows")
    columns = [list(_texts(table[name], name, whose)) for name in (data.text, data.summary)]
    return Rows(*columns)


def _texts(values: Any, column: str, whose: str) -> Iterator[str]:
    for index, value in enumerate(values):
        if not isinstance(value, str):
            what = "nothing" if value is None else f"{type(value).__name__} {value!r:.40}"
            raise StageError(f"data: {whose}, row {index}, column {column!r}: {what}, not text")
        yield value
