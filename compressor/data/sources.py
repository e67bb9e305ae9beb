"""Sources of rows: generated bills or messages, files, or a hub data set.

Planning asks a source for the digest of a split and for what is wrong with it; running for rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator

from compressor.core.errors import StageError, Unreachable, first_line, nearest
from compressor.core.files import expand_home
from compressor.core.settings import Listed
from compressor.data import hub
from compressor.data.bills import Bills
from compressor.data.files import (
    FORMATS,
    Format,
    Table,
    data_sha256,
    find_format,
    find_saved_split,
    find_separator,
    is_packed,
    open_table,
    read_class_names,
    suggest_separator,
)
from compressor.data.messages import Messages
from compressor.data.rows import CollectedRows, RowReader, Rows, collect_rows, has_column
from compressor.data.source_base import (
    HELD_OUT,
    READER,
    HeldSplit,
    Reporter,
    Share,
    Split,
    SplitSource,
    check_column,
    keep_silent,
)

PLANNED_ROWS, PLANNED_CHARACTERS = 10_000, 4_000_000
"""How much of a file planning reads: some 0.1 s."""

_NO_ROWS = CollectedRows(Rows([]), {})


@dataclass(frozen=True)
class Sample:
    """The beginning of a file's rows, as a run will read them."""

    columns: Sequence[str]
    missing: Mapping[str, str]
    """The field that names a column which no row has → the column."""
    collected: CollectedRows | StageError = _NO_ROWS
    is_whole: bool = True
    """Whether these are all the rows that a run will read."""


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
    def own_splits(self) -> Collection[str]:
        return [split for split, path in self.files.items() if path is not None]

    def _find_path(self, split: Split) -> Path | None:
        split = self._locate_rows(split)[1]
        name = self.files.get(split)
        return find_saved_split(expand_home(name), split) if name else None

    def _format_key(self, path: Path) -> dict[str, Any]:
        """Describe the settings that decide how a file is read, as a JSON value."""
        kind, usual, chosen = find_format(path), Format(), self._format
        fields = {"csv": ("quote", "header", "encoding"), "json": ("encoding",)}.get(kind or "", ())
        settings = {name: getattr(chosen, name) for name in fields}
        settings = {name: v for name, v in settings.items() if v != getattr(usual, name)}
        if kind == "csv" and (separator := find_separator(path, chosen)) != ",":
            settings["separator"] = separator
        return settings

    def content_key(self, split: Split) -> Any:
        path = self._find_path(split)
        if path is None or find_format(path) is None or not path.exists():
            return None  # `check` reports it
        shares = self._list_shares()
        name, read_from = self._locate_rows(split)
        part = {"held": shares, "seed": self.seed, "split": name}
        try:
            content = {"sha256": data_sha256(path), "reader": READER, **self._format_key(path)}
        except StageError:
            return None  # as before
        return content | self.column_key() | (part if shares and read_from == "train" else {})

    def check(self, split: Split, report: Reporter, warn: Reporter = keep_silent) -> None:
        if not self._check_split(split, "files", report):
            return
        try:
            "".encode(self.encoding)
        except (LookupError, ValueError):
            report("encoding", f"no encoding {self.encoding!r}; utf-8, utf-16 or cp1252, say")
            return
        path, key = self._find_path(split), f"files.{self._locate_rows(split)[1]}"
        assert path is not None, "a split that has rows has a file"
        if message := _judge_path(path):
            report(key, message)
            return
        try:
            self._check_rows(path, split, key, report, warn)
        except StageError as error:
            match = re.fullmatch(r"data(?:\.([\w.]+))?: (.*)", str(error), re.DOTALL)
            assert match is not None, "what reads rows says which setting is meant"
            report(match[1] or key, match[2])

    def _check_rows(
        self, path: Path, split: Split, key: str, report: Reporter, warn: Reporter
    ) -> None:
        """Report what is wrong with a file's first rows. Raises StageError at a wrong row."""
        sample = self._take_sample(path, split)
        if sample.missing:
            self._report_missing(path, sample, report)
            return
        if isinstance(sample.collected, StageError):
            raise sample.collected
        # A row at the beginning may be of another split, or beyond this one's rows.
        uses_all = not self._list_shares() or getattr(self.rows, split) is None
        if sample.is_whole:
            if not len(sample.collected.rows):
                report(key, f"{path} is empty")
            elif note := self._choose(sample.collected, split, str(path)).note:
                warn("empty", note)
        elif self.empty == "error" and sample.collected.empty and uses_all:
            self._judge_empty(sample.collected.empty, str(path))

    def _report_missing(self, path: Path, sample: Sample, report: Reporter) -> None:
        columns, is_csv = list(sample.columns), find_format(path) == "csv"
        if is_csv and len(columns) == 1 and (hint := suggest_separator(columns[0])):
            field, column = next(iter(sample.missing.items()))
            report(field, f"no column {column!r}: {path} has one, {columns[0]!r:.200}{hint}")
            return
        hint = ""
        if is_csv and sample.missing == self.columns():
            hint = "; data.header=false numbers the columns of a file without names"

        def report_with_hint(key: str, message: str) -> None:
            report(key, f"{message}{hint}")

        for field, column in sample.missing.items():
            check_column(column, columns, field, f"{path} has", report_with_hint)

    def most_rows(self, split: Split) -> int | None:
        path = self._find_path(split)
        try:
            sample = None if path is None else self._take_sample(path, split)
            if sample is None or not sample.is_whole or isinstance(sample.collected, StageError):
                return super().most_rows(split)
            return len(self._choose(sample.collected, split, str(path)))
        except (OSError, StageError):  # which `check` reports
            return None

    def _take_sample(self, path: Path, split: Split) -> Sample:
        """Read the first rows of a file, once while it stays as it is. Raises StageError."""
        most = self._limit_rows(split)
        about = [data_sha256(path), self._format_key(path), self.column_key(), self.task, most]
        name = json.dumps([str(path), *about])
        if name not in _SAMPLES:
            if len(_SAMPLES) >= _MOST_SAMPLES:
                _SAMPLES.clear()
            _SAMPLES[name] = self._read_sample(path, most)
        return _SAMPLES[name]

    def _read_sample(self, path: Path, most: int | None) -> Sample:
        wanted = self.columns()
        table = open_table(path, self._format, list(wanted.values()))
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
            return Sample(columns, missing if columns else {}, is_whole=is_whole)
        try:
            collected = self._collect(Table(iter(rows), columns, table.class_names), path)
        except StageError as error:
            return Sample(columns, {}, error, is_whole)
        return Sample(columns, {}, collected, is_whole)

    def _collect(
        self, table: Table, path: Path, place: Callable[[], Path] | None = None
    ) -> CollectedRows:
        reader = RowReader(self, str(path), table.class_names)
        return collect_rows((reader.read(n, row) for n, row in enumerate(table.rows)), place)

    def load(self, split: Split) -> Rows:
        path = self._find_path(split)
        assert path is not None, "checked when planned"
        most, digest = self._limit_rows(split), data_sha256(path)
        table = open_table(path, self._format, list(self.columns().values()))
        some = replace(table, rows=islice(table.rows, most))
        content = [digest, self._format_key(path), most]
        collected = self._collect(some, path, lambda: self._locate_cache(content))
        if data_sha256(path) != digest:
            raise StageError(f"data: {path} has changed while it was read")
        rows = self._choose(collected, split, str(path))
        if rows.note and self._take_sample(path, split).is_whole:  # planning has told it
            rows = replace(rows, note="")
        return rows


_SAMPLES: dict[str, Sample] = {}

_MOST_SAMPLES = 16


def _judge_path(path: Path) -> str:
    """Say why a path is not read, before anything of it is; "" where it may be."""
    if path.is_dir() and (path / "dataset_dict.json").is_file():
        parts = ", ".join(sorted(part.parent.name for part in path.glob("*/state.json")))
        return f"{path} has the splits {parts}; name one of these folders"
    if path.is_dir() and find_format(path) is None:
        return f"{str(path)!r} is a folder, and not one of `save_to_disk`"
    if not path.exists():
        names = [other.name for other in path.parent.glob("*")]
        hint = nearest(path.name, names) if names else f"{path.parent} is not a folder"
        return f"no file {str(path)!r}; {hint}"
    if find_format(path) is None:
        unpack = "; unpack it first" if is_packed(path) else ""
        return f"cannot read {path.suffix or path.name!r}; one of {', '.join(FORMATS)}{unpack}"
    return ""


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
    holdout: Share | dict[HeldSplit, Share] = Field(0.1, description=HELD_OUT)

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

    def _resolve_commit(self) -> str:
        return hub.resolve_commit(self.dataset, self.revision, "dataset")

    def content_key(self, split: Split) -> Any:
        fields = {"configuration", "splits", "holdout", "seed", "dataset"}
        fields |= {"files"} if self.files is not None else set()
        settings = self.model_dump(include=fields) | self.column_key()
        name = self._locate_rows(split)[0]
        return settings | {"commit": self._resolve_commit(), "split": name, "reader": READER}

    @property
    def own_splits(self) -> Collection[str]:
        return self.splits.keys()

    def pin_revision(self) -> Self:
        return self.model_copy(update={"revision": self._resolve_commit()})

    def check(self, split: Split, report: Reporter, warn: Reporter = keep_silent) -> None:
        self._check_split(split, "splits", report)
        try:
            self._resolve_commit()
        except ValueError as error:
            report("dataset", str(error))

    def load(self, split: Split) -> Rows:
        from datasets import enable_progress_bars
        from datasets.exceptions import DatasetsError

        enable_progress_bars()  # of downloads
        commit, part = self._resolve_commit(), self.splits[self._locate_rows(split)[1]]
        what = f"data set {self.dataset!r}"
        try:
            with hub.explain_unreachable(what):
                builder = self._prepare_builder(commit)
            table = builder.as_dataset(split=part)
        except OSError as error:  # what `explain_unreachable` leaves: something is not there
            raise Unreachable(f"{what}: {first_line(error)}") from error
        except (DatasetsError, ValueError) as error:
            reason = first_line(error.__cause__ or error)
            raise StageError(f"data: {self.dataset!r}: {reason}") from error
        return self._choose(self._collect(table, split, [commit, part]), split, self.dataset)

    def _collect(self, table: Any, split: Split, content: list[str]) -> CollectedRows:
        """Collect the rows of a `datasets.Dataset`. Raises StageError at what is not expected."""
        names, most, heads = table.column_names, self._limit_rows(split), set()
        for field, name in self.columns().items():
            head = name if name in names else name.partition(".")[0]
            heads.add(head)
            if head not in names:
                message = f"{self.dataset} has no column {name!r}; {nearest(name, names)}"
                raise StageError(f"data.{field}: {message}")
        reader = RowReader(self, self.dataset, read_class_names(table.features.arrow_schema))
        batches = table.select_columns(sorted(heads)).with_format("arrow")
        rows = (row for batch in batches.iter(1_000) for row in batch.to_pylist())
        about = [self.dataset, self.configuration, self.files, *content, most]
        read = (reader.read(number, row) for number, row in enumerate(islice(rows, most)))
        return collect_rows(read, lambda: self._locate_cache(about))

    def _prepare_builder(self, commit: str) -> Any:
        """Make the data set's builder, its files in the cache as the hub names their content."""
        from datasets import load_dataset_builder
        from datasets.packaged_modules.csv.csv import Csv

        about: dict[str, Any] = {"data_files": self.files, "revision": commit}
        builder = load_dataset_builder(self.dataset, self.configuration, **about)
        if isinstance(builder, Csv):  # whose cells are texts, as those of files here
            about["converters"] = dict.fromkeys(self.columns().values(), str)
            builder = load_dataset_builder(self.dataset, self.configuration, **about)
        if not Path(builder.cache_dir).is_dir():
            here = f"hf://datasets/{self.dataset}@{commit}/"
            files = (builder.config.data_files or {}).values()
            for url in dict.fromkeys(str(url) for urls in files for url in urls):
                if url.startswith(here):
                    hub.fetch_file(self.dataset, url.removeprefix(here), commit, "dataset")
        builder.download_and_prepare()
        return builder


Data = Annotated[Bills | Messages | Files | Hub, Field(discriminator="source")]
