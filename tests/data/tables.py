"""Tables in files, and what planning and reading say of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.data.rows import Rows
from compressor.data.sources import Files


def source(path: Path, **settings: Any) -> Files:
    return Files.model_validate({"source": "files", "files": {"train": str(path)}, **settings})


def plan(data: Files, split: Any = "train") -> tuple[list[str], list[str]]:
    """List the problems and the warnings of planning."""
    said: tuple[list[str], list[str]] = ([], [])
    problem, warn = (lambda key, text, to=to: to.append(f"{key}: {text}") for to in said)
    data.check(split, problem, warn)
    return said


def load(path: Path, **settings: Any) -> Rows:
    data = source(path, **settings)
    assert plan(data)[0] == []
    return data.load("train")


def refusal(path: Path, **settings: Any) -> str:
    (problem,) = plan(source(path, **settings))[0]
    return problem


def pairs(rows: Rows) -> list[tuple[str, str]]:
    return list(zip(rows.texts, rows.summaries, strict=True))


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_columns(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    rows = zip(*columns.values(), strict=True)
    return write_rows(path, [dict(zip(columns, row, strict=True)) for row in rows])
