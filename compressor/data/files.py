"""Read rows of files as people have them: CSV, JSON, Parquet, Arrow; anybody's, so with limits."""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from compressor.core.errors import StageError, first_line
from compressor.core.files import hash_file

LONGEST_LINE = 64_000_000
"""Characters of a line, or of a row; a text of 10 MB has room."""

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}

_PACKED_BEGIN = (
    *(b"\x1f\x8b", b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08", b"BZh", b"\xfd7zXZ\x00"),
    *(b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"),
)

_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
"""What `datasets` leaves in a folder of `save_to_disk`: of one split, and of several."""

_PIECE = 2**16
"""Characters of a JSON array that are read at a time."""

_BATCH = 1_000


@dataclass(frozen=True)
class Format:
    """The settings by which text is read; None is what the ending and first bytes of a file say."""

    separator: str | None = None
    quote: str | None = '"'
    header: bool | tuple[str, ...] = True
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Table:
    """A file's rows: mappings of column → value, read as they are asked for."""

    rows: Iterator[Mapping[str, Any]]
    columns: Sequence[str] = ()
    """Known before any row is read; of JSON none are."""
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Column → the names that its numbers stand for, where the file says so."""


def find_format(path: Path) -> str | None:
    """Name a path's format by its ending, in any case of letters; None for what is not read."""
    if path.is_dir():
        return "saved" if (path / _SAVED).is_file() else None
    return FORMATS.get(path.suffix.lower())


def find_saved_split(path: Path, split: str) -> Path:
    """Give a path or, of a folder with several splits of `datasets`, the one of this name."""
    several = (path / _SAVED_SPLITS).is_file() and (path / split / _SAVED).is_file()
    return path / split if several else path


def data_sha256(path: Path) -> str:
    """Digest a file or, of a folder of `datasets`, its files' digests in their order."""
    if not path.is_dir():
        return file_sha256(path)
    digests = [file_sha256(part) for part in _saved_parts(path)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _saved_parts(path: Path) -> list[Path]:
    """List the files of a folder that `datasets` saved. Raises StageError where one is missing."""
    try:
        state = json.loads((path / _SAVED).read_text(encoding="utf-8"))
        parts = [path / Path(part["filename"]).name for part in state["_data_files"]]
    except (ValueError, KeyError, TypeError, OSError) as error:
        damage = f"{_SAVED} is not what `datasets` writes; save the data set once more"
        raise StageError(f"data: cannot read {path}: {damage}") from error
    if not parts:
        raise StageError(f"data: {path} is empty")
    if missing := next((part.name for part in parts if not part.is_file()), None):
        raise StageError(f"data: cannot read {path}: its file {missing} is not there")
    return parts


def is_packed(path: Path) -> bool:
    """Tell whether a file begins as compressed ones and archives do, or has a tar's mark."""
    if path.is_dir():
        return False
    with path.open("rb") as stream:
        begin = stream.read(262)
    return begin.startswith(_PACKED_BEGIN) or begin[257:262] == b"ustar"


def find_separator(path: Path, form: Format) -> str:
    """Give what stands between the cells of a file."""
    return form.separator or ("\t" if path.suffix.lower() == ".tsv" else ",")


def suggest_separator(header: str) -> str:
    """Suggest a separator for a header that is one cell; "" where it has none."""
    sign = next((sign for sign in ";\t|," if sign in header), "").replace("\t", "tab")
    return f"; \"data.separator='{sign}'\" divides its columns" if sign else ""


def open_table(path: Path, form: Format, columns: Sequence[str]) -> Table:
    """Open a file to read `columns` of it. Raises StageError, also while rows are read."""
    try:
        if is_packed(path):
            raise ValueError("it is a compressed file or an archive; unpack it")
        kind = find_format(path)
        if kind == "json":
            table = Table(_json_rows(path, form))
        elif kind == "csv":
            table = _csv_table(path, form)
        elif kind == "parquet":
            table = _parquet_table(path, columns)
        else:
            table = _arrow_table(_saved_parts(path) if kind == "saved" else [path], columns)
    except (ValueError, OSError, KeyError, csv.Error) as error:
        raise _explain_error(path, form, error) from error
    return replace(table, rows=_explain_errors(table.rows, path, form))


def _explain_errors(rows: Iterator[Any], path: Path, form: Format) -> Iterator[Any]:
    try:
        yield from rows
    except (ValueError, OSError, csv.Error) as error:  # Arrow's errors are ValueErrors
        raise _explain_error(path, form, error) from error


def _explain_error(path: Path, form: Format, error: Exception) -> StageError:
    reason = first_line(error)
    if isinstance(error, UnicodeDecodeError):
        with path.open("rb") as stream:
            other = "utf-16" if stream.read(2) in (b"\xff\xfe", b"\xfe\xff") else "cp1252"
        cure = f"name its encoding, such as data.encoding={other}"
        reason = f"its text is not {form.encoding}; {cure}"
    return StageError(f"data: cannot read {path}: {reason}")


def _open_text(path: Path, form: Format) -> TextIO:
    name = codecs.lookup(form.encoding).name
    return path.open(encoding="utf-8-sig" if name == "utf-8" else name, newline="")


def _read_lines(stream: TextIO) -> Iterator[str]:
    """Yield the lines of a file. Raises ValueError for one that is too long for a table."""
    while line := stream.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise ValueError(f"a line has more than {LONGEST_LINE:,} characters")
        yield line


def _csv_table(path: Path, form: Format) -> Table:
    records = _csv_records(path, form)
    first = next(records, (0, []))
    if form.header is True:
        names = _number_repeated(first[1])
    else:
        names = list(form.header or map(str, range(len(first[1]))))
        records = chain([first] if first[1] else [], records)
    return Table(_csv_rows(names, records), names)


def _csv_records(path: Path, form: Format) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each record that is not blank, with the number of its last line."""
    separator = find_separator(path, form)
    with _open_text(path, form) as stream:
        csv.field_size_limit(LONGEST_LINE)
        reader = csv.reader(
            _read_lines(stream),
            delimiter=separator,
            quotechar=form.quote,
            quoting=csv.QUOTE_NONE if form.quote is None else csv.QUOTE_MINIMAL,
            strict=True,
        )
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            hint = "; data.quote=null takes quotation marks as text" if form.quote else ""
            stream.seek(0)
            header = stream.readline(LONGEST_LINE)
            if reader.line_num == 1 or separator not in header:
                hint = suggest_separator(header.replace(separator, "")) or hint
            raise ValueError(f"line {reader.line_num}: {error}{hint}") from error


def _csv_rows(
    names: Sequence[str], records: Iterator[tuple[int, list[str]]]
) -> Iterator[Mapping[str, str]]:
    for line, cells in records:
        if len(cells) > len(names) and any(cells[len(names) :]):
            many = f"line {line} has more cells ({len(cells)}) than columns ({len(names)})"
            hint = suggest_separator(names[0]) if len(names) == 1 else ""
            raise ValueError(many + (hint or "; a cell with a separator in it is put in quotes"))
        yield dict(zip(names, cells, strict=False))


def _number_repeated(names: Sequence[str]) -> list[str]:
    """Number names that stand twice: the second `text` is `text.1`."""
    counts = Counter[str]()
    distinct = []
    for name in names:
        distinct.append(f"{name}.{counts[name]}" if counts[name] else name)
        counts[name] += 1
    return distinct


def _json_rows(path: Path, form: Format) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a file that is an array, or has a line for each."""
    with _open_text(path, form) as stream:
        is_array = _skip_space("", stream).startswith("[")
        stream.seek(0)
        values = _array_values(stream) if is_array else _line_values(stream)
        for place, value in values:
            if not isinstance(value, dict):
                raise ValueError(f"{place}: {value!r:.40} is no object with columns")
            yield value


def _line_values(stream: TextIO) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_read_lines(stream), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error


def _array_values(stream: TextIO) -> Iterator[tuple[str, Any]]:
    """Yield the items of a JSON array, without the whole of it in memory."""
    text = _skip_space(_skip_space("", stream)[1:], stream)
    number = 0
    while not (number == 0 and text.startswith("]")):
        value, text = _decode_value(text, stream, f"row {number}")
        yield f"row {number}", value
        text = _skip_space(text, stream)
        if text.startswith("]"):
            break
        if not text.startswith(","):
            raise ValueError(f"after row {number}: expected ',' or ']', got {text[:20]!r}")
        text = _skip_space(text[1:], stream)
        number += 1
    if rest := _skip_space(text[1:], stream):
        raise ValueError(f"after the array: {rest[:20]!r}; a file is one array, or a row a line")


def _decode_value(text: str, stream: TextIO, place: str) -> tuple[Any, str]:
    """Decode a value, reading on until it is whole; give what comes after it, too."""
    while True:
        try:
            value, end = json.JSONDecoder().raw_decode(text)
            return value, text[end:]
        except json.JSONDecodeError as error:
            if len(text) > LONGEST_LINE:
                raise ValueError(f"a row has more than {LONGEST_LINE:,} characters") from None
            if not (more := stream.read(max(_PIECE, len(text)))):
                raise ValueError(f"{place}: {error.msg}") from error
            text += more


def _skip_space(text: str, stream: TextIO) -> str:
    """Give what comes after white space, reading on where needed; "" at the end."""
    text = text.lstrip()
    while not text and (text := stream.read(_PIECE)):
        text = text.lstrip()
    return text


def _parquet_table(path: Path, columns: Sequence[str]) -> Table:
    import pyarrow.parquet

    parquet = pyarrow.parquet.ParquetFile(path)
    schema = parquet.schema_arrow
    wanted = _select_columns(schema.names, columns)
    batches = parquet.iter_batches(batch_size=_BATCH, columns=wanted)
    return Table(_batch_rows(batches), schema.names, read_class_names(schema))


def _arrow_table(paths: Sequence[Path], columns: Sequence[str]) -> Table:
    import pyarrow as pa

    def open_arrow(path: Path) -> Any:
        source = pa.memory_map(str(path))
        try:
            return pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            return pa.ipc.open_file(source)

    def batches() -> Iterator[Any]:
        for path in paths:
            reader = open_arrow(path)
            count = getattr(reader, "num_record_batches", None)
            parts = reader if count is None else map(reader.get_batch, range(count))
            for batch in parts:
                selected = batch.select(_select_columns(batch.schema.names, columns))
                for start in range(0, len(selected), _BATCH):
                    yield selected.slice(start, _BATCH)

    schema = open_arrow(paths[0]).schema
    return Table(_batch_rows(batches()), schema.names, read_class_names(schema))


def _select_columns(names: Sequence[str], columns: Sequence[str]) -> list[str]:
    """List those of a table's columns that are read; of `answers.text` it is `answers`."""
    heads = {column if column in names else column.partition(".")[0] for column in columns}
    return [name for name in names if name in heads]


def _batch_rows(batches: Iterator[Any]) -> Iterator[Mapping[str, Any]]:
    for batch in batches:
        yield from batch.to_pylist()


def read_class_names(schema: Any) -> dict[str, Sequence[str]]:
    """Map columns, by dotted names, to what `datasets` says that their numbers stand for."""
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return dict(_class_names("", about.get("info", {}).get("features", {})))


def _class_names(path: str, feature: Any) -> Iterator[tuple[str, Sequence[str]]]:
    while isinstance(feature, list) or (isinstance(feature, dict) and "feature" in feature):
        feature = feature[0] if isinstance(feature, list) else feature["feature"]
    if not isinstance(feature, dict):
        return
    if feature.get("_type") == "ClassLabel":
        yield path, feature["names"]
    elif not isinstance(feature.get("_type"), str):
        for name, part in feature.items():
            yield from _class_names(f"{path}.{name}".lstrip("."), part)


_SETTLED_SECONDS = 2.0
"""A file that was changed a moment ago may change again within one tick of its file system's clock:
its times do not tell yet."""


def file_sha256(path: Path) -> str:
    """Compute a file's SHA-256, once while its inode, size and times stay the same.

    Of 5 GB it takes some 5 to 15 s, and planning asks for each stage that reads the file.
    """
    about, place = path.stat(), path.resolve()
    changed = max(about.st_mtime, about.st_ctime)
    if time.time() - changed < _SETTLED_SECONDS:  # or in the future, of a clock that jumped
        return hash_file(place)
    known = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    return _remember_digest(place, known)


@lru_cache(256)
def _remember_digest(place: Path, _: tuple[int, ...]) -> str:
    return hash_file(place)
