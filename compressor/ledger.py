"""How large an artifact really is: what is claimed, what is on the disk, what compresses away."""

from __future__ import annotations

import zlib
from pathlib import Path

WEIGHT_FILES = (".safetensors", ".bin", ".onnx", ".data", ".gguf")
CHUNK = 1 << 22
"""Bytes read at once."""
LEVEL = 1
"""zlib's fastest: a model of 3 billion parameters takes minutes. `gzip -6` is 1 to 3 % smaller."""


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of a model's directory: all files, those with weights, and these after gzip."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix in WEIGHT_FILES]
    return {
        "disk_bytes": sum(path.stat().st_size for path in files),
        "bytes": sum(path.stat().st_size for path in weights),
        "gzip_bytes": sum(map(_compressed, weights)),
    }


def _compressed(path: Path) -> int:
    """The size of a file after gzip, without writing it."""
    stream, total = zlib.compressobj(LEVEL, wbits=31), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total += len(stream.compress(chunk))
    return total + len(stream.flush())
