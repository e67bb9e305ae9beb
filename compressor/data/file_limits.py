"""What a data file is, by its first bytes and lines, before a library reads it. No rows here.

A file can be anybody's: how long a line, how many columns and how deep a row may be stands here.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from compressor.errors import StageError

LONGEST_LINE = 64_000_000
"""Characters of a line that planning reads; a text of 10 MB has room."""
MOST_COLUMNS = 10_000
"""With ten times as many, the reader takes minutes for one row."""
DEEPEST_ROW = 900
"""Brackets of a row below which nothing is too deep; Python's own reader takes a few more."""
PACKED = frozenset((".gz", ".zip", ".bz2", ".xz", ".zst", ".lz4", ".7z", ".rar", ".tar", ".tgz"))
_PACKED_BEGIN = (
    *(b"\x1f\x8b", b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08", b"BZh", b"\xfd7zXZ\x00"),
    *(b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"),
)
"""What `datasets` unpacks without being asked, whatever a file's name says."""
_PIECE = 2**16
"""Characters of a JSON array that are read to find its first item."""


def columns(path: Path) -> list[str] | None:
    """The column names of a file, from its first line or footer; None for an empty file.

    Raises ValueError, OSError, csv.Error or RecursionError where it is not what its ending says.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet

        parquet = pyarrow.parquet.ParquetFile(path)
        return list(parquet.schema_arrow.names) if parquet.metadata.num_rows else None
    with path.open(encoding="utf-8-sig", newline="") as stream:
        lines = _lines(stream)
        if path.suffix == ".csv":
            usual = csv.field_size_limit(LONGEST_LINE)
            try:
                reader = csv.reader(lines)
                header = next(reader, None)
                return header if next(reader, None) is not None else None
            finally:
                csv.field_size_limit(usual)
        begin = stream.read(_PIECE)
        if begin.lstrip().startswith("["):  # one array of all rows
            row = _first_of_array(begin, stream)
            if row is None:
                return None
        else:
            stream.seek(0)
            first = next((line for line in lines if line.strip()), None)
            if first is None:
                return None
            row = json.loads(first)
        return list(row) if isinstance(row, dict) else []


def _first_of_array(text: str, stream: TextIO) -> Any:
    """The first item of a JSON array that begins with `text`; None where it has none.

    No more is read than that takes. Raises ValueError where it is no JSON.
    """
    while True:
        rest = text.lstrip()[1:].lstrip()
        if rest.startswith("]"):
            return None
        try:
            return json.JSONDecoder().raw_decode(rest)[0]
        except json.JSONDecodeError:
            if len(text) > LONGEST_LINE:
                raise ValueError(f"a row has more than {LONGEST_LINE:,} characters") from None
            if not (more := stream.read(max(_PIECE, len(text)))):
                raise
            text += more


def _lines(stream: TextIO) -> Iterator[str]:
    """The lines of a file. Raises ValueError for one that is too long to be a line of a table."""
    while line := stream.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise ValueError(f"a line has more than {LONGEST_LINE:,} characters")
        yield line


def refuse_deep(path: Path) -> None:
    """Raise StageError for a row that is nested so deeply that Arrow's reader of JSON would end the
    process. Only rows with many brackets are looked into: the others cannot be.
    """
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline():
            number += 1
            if line.count(b"[") + line.count(b"{") < DEEPEST_ROW:
                continue
            try:
                json.loads(line)
            except RecursionError as error:
                where = f"line {number}: a value is nested too deeply"
                raise StageError(f"data: cannot read {path}: {where}") from error
            except ValueError:  # not JSON, which the reader says better; an array over many lines
                if _depth(line) > DEEPEST_ROW:
                    where = f"line {number}: a value is nested too deeply"
                    raise StageError(f"data: cannot read {path}: {where}") from None


def _depth(line: bytes) -> int:
    """How many brackets of a text are open at most, those within its strings included."""
    depth = deepest = 0
    for bracket in re.findall(rb"[\[\]{}]", line):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def is_packed(path: Path) -> bool:
    """Whether a file begins as compressed ones and archives do, or has a tar's mark."""
    with path.open("rb") as stream:
        begin = stream.read(262)
    return begin.startswith(_PACKED_BEGIN) or begin[257:262] == b"ustar"
