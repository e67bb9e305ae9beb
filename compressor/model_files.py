"""A model's folder: which of its files are read, and what tensors lie in them. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compressor.architectures.block import FILE as WITH_BLOCKS
from compressor.backends.tokens import MARIANS
from compressor.data.file_digest import file_sha256

CONFIGS = ("config.json", "generation_config.json")
TOKENIZER_FILES = (
    *("*token*", "*vocab*", "merges.txt", "dict.txt", "tekken*.json"),
    *("*.model", "*.spm", "*.bpe", "*.codes", "*.tiktoken"),
    *("chat_template.jinja", "emoji.json", "normalizer.json", "byte_maps.json", "word_*.json"),
)
"""Names of what transformers' tokenizers are read from. A chat template decides no score, but is
written with the model into every artifact and export."""
_MODULES = {"protobuf": "google.protobuf"}
"""Package → the module that it brings, where it has another name."""
_TEMPLATES = "additional_chat_templates"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_CHUNK = 1 << 22


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its type, its shape, and where its bytes are."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def equals(self, other: StoredTensor) -> bool:
        """Whether both hold the same, byte for byte."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        if (self.file, self.begin) == (other.file, other.begin):
            return True
        stamps = tuple(
            (a.st_size, a.st_mtime_ns, a.st_ctime_ns) for a in (self.file.stat(), other.file.stat())
        )
        return _hold_the_same(self, other, stamps)


@lru_cache(64)
def _hold_the_same(one: StoredTensor, other: StoredTensor, stamps: tuple[Any, ...]) -> bool:
    """Compare bytes, once while both files stay as they are: sweeps plan each of their points."""
    with one.file.open("rb") as mine, other.file.open("rb") as theirs:
        mine.seek(one.begin)
        theirs.seek(other.begin)
        for start in range(one.begin, one.end, _CHUNK):
            size = min(_CHUNK, one.end - start)
            if mine.read(size) != theirs.read(size):
                return False
    return True


def weight_files(folder: Path) -> list[Path]:
    """The file that `from_pretrained` takes the weights from, or an index and what it names."""
    for name in (WITH_BLOCKS, *(f"{n}{end}" for n in _WEIGHTS for end in ("", ".index.json"))):
        path = folder / name
        if path.is_file() and name.endswith(".index.json"):
            return [path, *(folder / shard for shard in sorted(set(read_index(path).values())))]
        if path.is_file():
            return [path]
    return []


def read_index(path: Path) -> dict[str, str]:
    """Tensor → file, as an index of shards says; nothing where the run will say what is wrong."""
    try:
        named = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in named.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Name → tensor of all that `from_pretrained` takes from safetensors, as their headers say.

    Nothing of a `.bin`: what is in it only unpickling could tell.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        if path.suffix == ".safetensors" and path.is_file():
            tensors |= _of_safetensors(path)
    return tensors


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file (8 bytes of length, then JSON), and how long both are.

    An empty one of what is no such file: the run will say what is wrong with it.
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > 100_000_000:
            return {}, 0
        try:
            return dict(json.loads(stream.read(length))), 8 + length
        except (TypeError, ValueError, RecursionError):
            return {}, 8 + length


def _of_safetensors(path: Path) -> dict[str, StoredTensor]:
    header, start = read_header(path)
    tensors = {}
    for name, entry in header.items():
        try:
            begin, end = (start + offset for offset in entry["data_offsets"])
            tensors[name] = StoredTensor(path, entry["dtype"], tuple(entry["shape"]), begin, end)
        except (KeyError, TypeError, ValueError):  # its metadata, or a damaged entry
            continue
    return tensors


def digest_model(folder: Path, *, with_code: bool) -> dict[str, str]:
    """SHA-256 of each file that decides what `load` makes of a folder, and of no other.

    `with_code`: the folder's own code runs, which may read any file in it.
    """
    if with_code:
        paths = [path for path in folder.rglob("*") if not _is_hidden(path.relative_to(folder))]
    else:
        configs = [folder / name for name in CONFIGS]
        paths = [*configs, *weight_files(folder), *_tokenizer_files(folder)]
    return _digest(folder, paths)


def digest_tokenizer(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that decides which tokenizer a folder gives: its config is one."""
    return _digest(folder, [folder / "config.json", *_tokenizer_files(folder)])


def _tokenizer_files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if any(fnmatchcase(path.name, pattern) for pattern in TOKENIZER_FILES):
            yield path
    yield from (folder / _TEMPLATES).glob("*.jinja")


def missing_packages(folder: Path) -> list[str]:
    """Name the packages that reading a folder's tokenizer needs and that are not installed."""
    needed: tuple[str, ...] = ()
    if (folder / MARIANS).is_file():
        needed = ("sentencepiece",)
    elif any(folder.glob("*.model")) and not (folder / "tokenizer.json").is_file():
        needed = ("sentencepiece", "protobuf")  # transformers converts it to a fast one
    return [name for name in needed if not _is_installed(_MODULES.get(name, name))]


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _digest(folder: Path, paths: list[Path]) -> dict[str, str]:
    files = sorted({path for path in paths if path.is_file()})
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
