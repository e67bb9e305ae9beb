"""Where rows come from: generated bills, files, or a hub data set. No tokenization here.

Planning asks a source for the digest of a split and for what is wrong with it, without reading
more than it must; running asks it for the rows.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    field_validator,
)

from compressor.core.errors import StageError, Unreachable, nearest
from compressor.core.files import expand_home
from compressor.core.settings import Integer, Listed
from compressor.data import hub
from compressor.data.bills import Bills
from compressor.data.files import (
    FORMATS,
    MOST_COLUMNS,
    PACKED,
    Format,
    Table,
    class_names,
    data_sha256,
    find_format,
    find_separator,
    open_table,
    saved_split,
    suggest_separator,
)
from compressor.data.messages import Messages
from compressor.data.rows import (
    Collected,
    RowReader,
    Rows,
    collect_rows,
    has_column,
    require_labels,
)
from compressor.data.source_base import DataBase, Problem, Share, Split, _keep_silent, _known_column

READER = 2
"""Raise it when rows of the same bytes come out otherwise."""

PLANNED_ROWS, PLANNED_CHARACTERS = 10_000, 4_000_000
"""How much of a file planning reads: some 0.1 s."""


@dataclass(frozen=True)
class Sample:
    """The beginning of a file's rows, as a run will read them."""

    columns: Sequence[str]
    missing: Mapping[str, str]
    """The field that names a column which no row has → the column."""
    collected: Collected | StageError
    is_whole: bool
    """Whether these are all the rows that a run will read."""


class SplitSource(DataBase):
    """What sources of other people's rows share: they can be empty, or held out of train."""

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

    def column_key(self) -> dict[str, Any]:
        more = {"label_separator": self.label_separator} if self.label_separator else {}
        drop = {"empty": self.empty} if self.empty == "drop" else {}
        return super().column_key() | more | drop

    def _list_held_out(self, named: Collection[str]) -> dict[Split, float]:
        """Each split that is held out of train → its share, given the splits that are `named`."""
        splits: tuple[Literal["validation", "test"], ...] = ("validation", "test")
        if isinstance(self.holdout, dict):  # in one order, however it is written
            return {split: self.holdout[split] for split in splits if split in self.holdout}
        if self.holdout is None:
            return {}
        return dict.fromkeys((split for split in splits if split not in named), self.holdout)

    def _where(self, split: Split, named: Collection[str]) -> tuple[Split, Split]:
        """Whose rows a split has (its own or validation's), and of which split they are a part."""
        held = self._list_held_out(named)
        if split == "test" and split not in named and split not in held:
            split = "validation"
        return split, "train" if split in held else split

    def _check_split(
        self, split: Split, named: Collection[str], field: str, problem: Problem
    ) -> bool:
        """Report a split without rows, or with two places they come from; whether all is well."""
        both = sorted(self._list_held_out(named).keys() & set(named))
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

    def _part(self, places: Sequence[int], split: Split) -> Sequence[int]:
        """Which of train's rows, of which `places` are all, a split gets. Raises StageError where
        they are too few.
        """
        import numpy as np

        held, count = self._list_held_out(self._named), len(places)
        if not held:
            return places
        sizes = {name: max(1, round(share * count)) for name, share in held.items()}
        if sum(sizes.values()) >= count:
            raise StageError(f"data.holdout: {count} rows are too few to hold any out and train")
        order, start = np.random.default_rng(self.seed).permutation(count).tolist(), 0
        for name, size in sizes.items():
            if name == split:
                return [places[place] for place in order[start : start + size]]
            start += size
        return [places[place] for place in order[start:]]

    def _most_rows(self, split: Split) -> int | None:
        """How many rows of a table have to be read for a split; None where it is all of them."""
        all_count = self.empty == "drop" or self._list_held_out(self._named)
        return None if all_count else getattr(self.rows, split)

    def _reads_all(self, split: Split) -> bool:
        """Whether a row at a table's beginning is used, in whichever split."""
        return not self._list_held_out(self._named) or getattr(self.rows, split) is None

    def _choose(self, collected: Collected, split: Split, whose: str) -> Rows:
        """The rows of a split, from those of the table that `_where` says they are in."""
        mine, source = self._where(split, self._named)
        empty = collected.empty
        places: Sequence[int] = range(len(collected.rows))
        if self.empty == "drop" and empty:
            places = [place for place in places if place not in empty]
        if source == "train" and places:
            places = self._part(places, mine)
        places = places[: getattr(self.rows, split)]
        if not places:
            raise StageError(f"data: the split {split!r} of {whose} has no rows")
        if self.empty != "drop" and empty:
            chosen = set(places)
            empty = {row: column for row, column in empty.items() if row in chosen}
        rows = collected.rows
        if len(places) < len(rows) or places != range(len(rows)):
            rows = rows.take(places)
        require_labels(rows.labels, self, split, whose)
        return rows if not empty else replace(rows, note=self._judge_empty(empty, whose))

    def _judge_empty(self, empty: Mapping[int, str], whose: str) -> str:
        """What a person is told of empty rows. Raises StageError where they are an error."""
        row, column = next(iter(empty.items()))
        count = f"{len(empty):,} rows have" if len(empty) > 1 else "1 row has"
        what = f"{whose}: {count} no text or no summary (row {row}, column {column!r}"
        if self.task != "summarization":
            what = f"{whose}: {count} no text (row {row}, column {column!r}"
        what += ", is the first)" if len(empty) > 1 else ")"
        if self.empty == "error":
            ways = "data.empty=drop leaves such rows out, data.empty=keep uses them"
            raise StageError(f"data.empty: {what}; {ways}")
        done = "left out" if self.empty == "drop" else "kept"
        return f"{what}, {done} as data.empty={self.empty} says"

    def _place_of_rows(self, content: Any) -> Path:
        """Where rows that are too many for memory are kept, by what decides them."""
        from datasets import config

        about = {"reader": READER, "content": content, "columns": self.column_key()}
        text = json.dumps(about | {"task": self.task}, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()
        return Path(config.HF_DATASETS_CACHE) / "compressor-rows" / f"{name}.arrow"


class Files(SplitSource):
    """CSV, TSV, JSON, Parquet or Arrow files, told apart by their endings, or folders that
    `datasets` saved: one a split, or one of which others are held out.

    A JSON file is an array, or has a line for each row. The cells of CSV are texts as they stand:
    `01`, `True`, `NA`.
    Example: `data: {source: files, files: {train: train.jsonl, validation: dev.jsonl}}`.
    Relative paths start at the current folder. Without a `test` file, `validation` serves.
    """

    source: Literal["files"]
    files: dict[Split, str | None] = Field(
        description="A path for each split; null where there is no file, as of one held out."
    )
    separator: str | None = Field(
        None,
        description="What stands between cells, such as `;` or `tab`; default: a tab in .tsv, else "
        "a comma.",
        json_schema_extra={"pattern": r"^([^\"'\r\n]|tab|\\t)$"},
    )
    quote: Literal['"', "'"] | None = Field(
        '"',
        description="What stands around a cell with separators or line ends in it; null: nothing "
        "does, and quotation marks are text.",
    )
    header: bool | Listed[str] = Field(
        True,
        description="Whether a CSV's first line names the columns; false: they are called by "
        "number, from 0. A list names the columns of a file that does not.",
    )
    encoding: str = Field("utf-8", description="Of CSV and JSON, such as cp1252.")

    @field_validator("separator")
    @classmethod
    def _is_one_character(cls, value: str | None) -> str | None:
        value = {"\\t": "\t", "tab": "\t"}.get(value or "", value)
        if value is not None and (len(value) != 1 or value in "\"'\r\n"):
            raise ValueError("a separator is one character, such as `;` or `tab`")
        return value

    @property
    def _format(self) -> Format:
        return Format(self.separator, self.quote, self.header, self.encoding)

    @property
    def _named(self) -> Collection[str]:
        return [split for split, path in self.files.items() if path is not None]

    def _path(self, split: Split) -> Path | None:
        split = self._where(split, self._named)[1]
        name = self.files.get(split)
        return saved_split(expand_home(name), split) if name else None

    def _reading(self, path: Path) -> dict[str, Any]:
        """What of the settings decides how this file is read, as a JSON value."""
        kind = find_format(path)
        usual, given = Format(), self._format
        fields = {"csv": ("quote", "header", "encoding"), "json": ("encoding",)}.get(kind or "", ())
        changed = {name: getattr(given, name) for name in fields}
        changed = {name: v for name, v in changed.items() if v != getattr(usual, name)}
        if kind == "csv" and (separator := find_separator(path, given)) != ",":
            changed["separator"] = separator
        return changed

    def content_key(self, split: Split) -> Any:
        path = self._path(split)
        if path is None or find_format(path) is None or not path.exists():
            return None  # `check` reports it
        held = self._list_held_out(self._named)
        split, whose = self._where(split, self._named)
        part = (
            {"held": held, "seed": self.seed, "split": split} if held and whose == "train" else {}
        )
        try:
            sha256 = data_sha256(path)
        except StageError:
            return None  # as before
        content = {"sha256": sha256, "reader": READER, **self._reading(path)}
        return {**content, **self.column_key(), **part}

    def check(self, split: Split, problem: Problem, warn: Problem = _keep_silent) -> None:
        if not self._check_split(split, self._named, "files", problem):
            return
        try:
            "".encode(self.encoding)
        except (LookupError, ValueError):
            problem("encoding", f"no encoding {self.encoding!r}; utf-8, utf-16 or cp1252, say")
            return
        path, key = self._path(split), f"files.{self._where(split, self._named)[1]}"
        assert path is not None, "a split that has rows has a file"
        if path.is_dir() and (path / "dataset_dict.json").is_file():
            parts = ", ".join(sorted(part.parent.name for part in path.glob("*/state.json")))
            problem(key, f"{path} has the splits {parts}; name one of these folders")
        elif path.is_dir() and find_format(path) is None:
            problem(key, f"{str(path)!r} is a folder, and not one of `save_to_disk`")
        elif not path.exists():
            there = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
            hint = nearest(path.name, there) if there else f"{path.parent} is not a folder"
            problem(key, f"no file {str(path)!r}; {hint}")
        elif find_format(path) is None:
            unpack = "; unpack it first" if path.suffix.lower() in PACKED else ""
            valid = ", ".join(FORMATS)
            problem(key, f"cannot read {path.suffix or path.name!r}; one of {valid}{unpack}")
        else:
            try:
                self._check_rows(path, split, key, problem, warn)
            except StageError as error:
                match = re.fullmatch(r"data(?:\.([\w.]+))?: (.*)", str(error), re.DOTALL)
                assert match is not None, "what reads rows says which setting is meant"
                problem(match[1] or key, match[2])

    def _check_rows(
        self, path: Path, split: Split, key: str, problem: Problem, warn: Problem
    ) -> None:
        """Report what is wrong with a file's first rows. Raises StageError at a wrong row."""
        sample = self._sample(path, split)
        if len(sample.columns) > MOST_COLUMNS:
            many = f"{path} has {len(sample.columns):,} columns, more than {MOST_COLUMNS:,}"
            problem(key, f"{many}; keep those that are read")
            return
        if sample.missing:
            self._report_missing(path, sample, problem)
            return
        if isinstance(sample.collected, StageError):
            raise sample.collected
        if sample.is_whole:
            if not len(sample.collected.rows):
                problem(key, f"{path} is empty")
            elif note := self._choose(sample.collected, split, str(path)).note:
                warn("empty", note)
        elif self.empty == "error" and sample.collected.empty and self._reads_all(split):
            self._judge_empty(sample.collected.empty, str(path))

    def _report_missing(self, path: Path, sample: Sample, problem: Problem) -> None:
        columns = list(sample.columns)
        one = len(columns) == 1 and find_format(path) == "csv"
        if one and (hint := suggest_separator(columns[0])):
            field, column = next(iter(sample.missing.items()))
            problem(field, f"no column {column!r}: {path} has one, {columns[0]!r:.200}{hint}")
            return
        headless = find_format(path) == "csv" and sample.missing == self.columns()
        hint = "; data.header=false numbers the columns of a file without names" if headless else ""
        for field, column in sample.missing.items():
            _known_column(
                column,
                columns,
                field,
                f"{path} has",
                lambda key, message: problem(key, f"{message}{hint}"),
            )

    def _sample(self, path: Path, split: Split) -> Sample:
        """The first rows of a file, read once while it stays as it is. Raises StageError."""
        most = self._most_rows(split)
        about = [data_sha256(path), self._reading(path), self.column_key(), self.task, most]
        name = json.dumps([str(path), *about])
        if name not in _SAMPLES:
            if len(_SAMPLES) >= _MOST_SAMPLES:
                _SAMPLES.clear()
            _SAMPLES[name] = self._read_sample(path, most)
        return _SAMPLES[name]

    def _read_sample(self, path: Path, most: int | None) -> Sample:
        wanted = self.columns()
        table = open_table(path, self._format, list(wanted.values()))
        if len(table.columns) > MOST_COLUMNS:
            return Sample(table.columns, {}, Collected(Rows([]), {}), is_whole=True)
        rows, characters = list[Mapping[str, Any]](), 0
        for row in islice(table.rows, min(PLANNED_ROWS, most or PLANNED_ROWS)):
            rows.append(row)
            characters += sum(len(str(value)) for value in row.values())
            if characters > PLANNED_CHARACTERS:
                break
        is_whole = len(rows) == most or next(table.rows, None) is None
        columns = list(dict.fromkeys([*table.columns, *(name for row in rows for name in row)]))
        missing = {
            field: column
            for field, column in wanted.items()
            if column not in columns and not any(has_column(row, column) for row in rows)
        }
        if missing or not rows:
            return Sample(columns, missing if columns else {}, Collected(Rows([]), {}), is_whole)
        try:
            collected = self._collect(Table(iter(rows), columns, table.class_names), path)
        except StageError as error:
            return Sample(columns, {}, error, is_whole)
        return Sample(columns, {}, collected, is_whole)

    def _collect(
        self, table: Table, path: Path, place: Callable[[], Path] | None = None
    ) -> Collected:
        reader = RowReader(self, str(path), table.class_names)
        return collect_rows((reader.read(n, row) for n, row in enumerate(table.rows)), place)

    def load(self, split: Split) -> Rows:
        path = self._path(split)
        assert path is not None, "checked when planned"
        most = self._most_rows(split)
        read = data_sha256(path)
        table = open_table(path, self._format, list(self.columns().values()))
        some = Table(islice(table.rows, most), table.columns, table.class_names)
        content = [read, self._reading(path), most]
        collected = self._collect(some, path, lambda: self._place_of_rows(content))
        if data_sha256(path) != read:
            raise StageError(f"data: {path} has changed while it was read")
        rows = self._choose(collected, split, str(path))
        if rows.note and self._sample(path, split).is_whole:  # planning has told it
            rows = replace(rows, note="")
        return rows


_SAMPLES: dict[str, Sample] = {}

_MOST_SAMPLES = 16


class Hub(SplitSource):
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
        commit = hub.resolve_commit(self.dataset, self.revision, "dataset")
        fields = {"configuration", "splits", "holdout", "seed", "dataset"}
        fields |= {"files"} if self.files is not None else set()
        mine = self.model_dump(include=fields) | self.column_key()
        split = self._where(split, self._named)[0]
        return mine | {"commit": commit, "split": split, "reader": READER}

    @property
    def _named(self) -> Collection[str]:
        return self.splits.keys()

    def pin_revision(self) -> Self:
        commit = hub.resolve_commit(self.dataset, self.revision, "dataset")
        return self.model_copy(update={"revision": commit})

    def check(self, split: Split, problem: Problem, warn: Problem = _keep_silent) -> None:
        self._check_split(split, self._named, "splits", problem)
        try:
            hub.resolve_commit(self.dataset, self.revision, "dataset")
        except ValueError as error:
            problem("dataset", str(error))

    def load(self, split: Split) -> Rows:
        from datasets import enable_progress_bars
        from datasets.exceptions import DatasetsError

        enable_progress_bars()  # of downloads
        commit = hub.resolve_commit(self.dataset, self.revision, "dataset")
        what = f"data set {self.dataset!r}"
        try:
            with hub.explain_unreachable(what):
                builder = self._prepared(commit)
            part = self.splits[self._where(split, self._named)[1]]
            table = builder.as_dataset(split=part)
        except OSError as error:  # what `unreachable` leaves: something is not there
            raise Unreachable(f"{what}: {_first_line(error)}") from error
        except (DatasetsError, ValueError) as error:
            reason = _first_line(error.__cause__ or error)
            raise StageError(f"data: {self.dataset!r}: {reason}") from error
        return self._choose(self._collect(table, split, [commit, part]), split, self.dataset)

    def _collect(self, table: Any, split: Split, content: list[str]) -> Collected:
        """The rows of a `datasets.Dataset`. Raises StageError at what is not expected."""
        wanted, most = self.columns(), self._most_rows(split)
        heads = {name: name if name in table.column_names else name.partition(".")[0]
                 for name in wanted.values()}  # fmt: skip
        for field, name in wanted.items():
            if heads[name] not in table.column_names:
                hint = nearest(name, table.column_names)
                message = f"{self.dataset} has no column {name!r}; {hint}"
                raise StageError(f"data.{field}: {message}")
        reader = RowReader(self, self.dataset, class_names(table.features.arrow_schema))
        batches = table.select_columns(sorted(set(heads.values()))).with_format("arrow")
        rows = (row for batch in batches.iter(1_000) for row in batch.to_pylist())
        about = [self.dataset, self.configuration, self.files, *content, most]
        read = (reader.read(number, row) for number, row in enumerate(islice(rows, most)))
        return collect_rows(read, lambda: self._place_of_rows(about))

    def _prepared(self, commit: str) -> Any:
        """The data set's builder, its files read into the cache. Each file that comes in is
        compared with what the hub names its content: the library takes any of the right length.
        """
        from datasets import load_dataset_builder
        from datasets.packaged_modules.csv.csv import Csv

        about: dict[str, Any] = {"data_files": self.files, "revision": commit}
        builder = load_dataset_builder(self.dataset, self.configuration, **about)
        if isinstance(builder, Csv):  # whose cells are texts, as those of files here
            about["converters"] = dict.fromkeys(self.columns().values(), str)
            builder = load_dataset_builder(self.dataset, self.configuration, **about)
        if not Path(builder.cache_dir).is_dir():
            given = builder.config.data_files or {}
            for url in dict.fromkeys(str(url) for urls in given.values() for url in urls):
                here = f"hf://datasets/{self.dataset}@{commit}/"
                if url.startswith(here):
                    hub.fetch_file(self.dataset, url.removeprefix(here), commit, "dataset")
        builder.download_and_prepare()
        return builder


Data = Annotated[Bills | Messages | Files | Hub, Field(discriminator="source")]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
