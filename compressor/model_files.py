"""A model's folder: which of its files are read. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from compressor.architectures.block import FILE as WITH_BLOCKS
from compressor.data.file_digest import file_sha256

CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")
TOKENIZER_FILES = (
    *("*token*", "*vocab*", "merges.txt", "dict.txt", "tekken*.json"),
    *("*.model", "*.spm", "*.bpe", "*.codes", "*.tiktoken"),
    *("chat_template.jinja", "emoji.json", "normalizer.json", "byte_maps.json", "word_*.json"),
)
"""Names of what transformers' tokenizers are read from. A chat template decides no score, but is
written with the model into every artifact and export."""
_TEMPLATES = "additional_chat_templates"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


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


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _digest(folder: Path, paths: list[Path]) -> dict[str, str]:
    files = sorted({path for path in paths if path.is_file()})
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
