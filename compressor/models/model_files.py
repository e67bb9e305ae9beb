"""Read a model's folder: its config, tokenizer files and headers of tensors. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from compressor.core.errors import nearest
from compressor.core.files import MANIFEST, expand_home
from compressor.data.fast_tokenizer import MARIANS
from compressor.data.files import file_sha256
from compressor.models.block_config import BLOCKS_FILE

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

PACKED = "packed.safetensors"
"""What `export: {format: packed}` writes."""

HEAD = "lm_head.weight"

_EMBEDDINGS = ("shared.weight", "embed_tokens.weight", "wte.weight")
"""How the names of tables end that a language model's head may be tied to."""

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
        """Tell whether both hold the same, byte for byte."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        if (self.file, self.begin) == (other.file, other.begin):
            return True
        stats = self.file.stat(), other.file.stat()
        stamps = tuple((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)
        return _compare_bytes(self, other, stamps)


@lru_cache(64)
def _compare_bytes(one: StoredTensor, other: StoredTensor, stamps: tuple[Any, ...]) -> bool:
    """Compare bytes, once while both files stay as they are: sweeps plan each of their points."""
    with one.file.open("rb") as mine, other.file.open("rb") as theirs:
        mine.seek(one.begin)
        theirs.seek(other.begin)
        for start in range(one.begin, one.end, _CHUNK):
            size = min(_CHUNK, one.end - start)
            if mine.read(size) != theirs.read(size):
                return False
    return True


def local_folder(source: str) -> Path | None:
    """Give the local folder that a name means, whether it exists or not; None for a hub's name."""
    path = expand_home(source)
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1
    return path if looks_local or path.is_dir() else None


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config of a local folder. Raises ValueError where `load` cannot take that folder."""
    path = folder / "config.json"
    if (folder / MANIFEST).is_file():
        raise ValueError(
            f"{str(folder)!r} is an artifact of a run, whose masks or quantized weights plain "
            "transformers would lose; take a folder that `export` wrote, or put the stages that "
            "made it into this recipe (they are cached)"
        )
    if (folder / PACKED).is_file():
        raise ValueError(
            f"{str(folder)!r} is a packed export, which `compressor.load_model` reads; export with "
            "`format: huggingface` to load it here"
        )
    if not path.is_file():
        above = folder.parent
        siblings = [p.name for p in above.iterdir() if p.is_dir()] if above.is_dir() else []
        what = "no config.json in" if folder.is_dir() else "no directory"
        hint = f"; {nearest(folder.name, siblings)}" if siblings else ""
        raise ValueError(f"{what} {str(folder)!r}{hint}")
    _check_weights(folder)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or too deep
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no model's config: it holds no object")
    return config


def _check_weights(folder: Path) -> None:
    for file in weight_files(folder):
        if not file.is_file():
            raise ValueError(f"no file {str(file)!r}, which the index names")
        if file.suffix == ".safetensors" and (sizes := _find_truncation(file)):
            raise ValueError(f"{str(file)!r} is cut off: {sizes}; copy it again")


def weight_files(folder: Path) -> list[Path]:
    """List the file that `from_pretrained` takes the weights from, or an index and its files."""
    for name in (BLOCKS_FILE, *(f"{n}{end}" for n in _WEIGHTS for end in ("", ".index.json"))):
        path = folder / name
        if path.is_file() and name.endswith(".index.json"):
            return [path, *(folder / shard for shard in sorted(set(read_index(path).values())))]
        if path.is_file():
            return [path]
    return []


def read_index(path: Path) -> dict[str, str]:
    """Map tensors to files as an index says; nothing where the run will say what is wrong."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Map names to all tensors that `from_pretrained` takes, as safetensors' headers say.

    Nothing of a `.bin`: what is in it only unpickling could tell.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        if path.suffix == ".safetensors" and path.is_file():
            tensors |= _of_safetensors(path)
    return tensors


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Read the header of a safetensors file (8 bytes of length, then JSON); measure both.

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


def _find_truncation(path: Path) -> str:
    """Say how much of a safetensors file is there, where its header names more; "" if all is."""
    header, begin = read_header(path)
    offsets = [entry.get("data_offsets") for entry in header.values() if isinstance(entry, dict)]
    ends = [pair[1] for pair in offsets if isinstance(pair, list) and len(pair) == 2]
    ends = [end for end in ends if isinstance(end, int)]  # the run says what else is wrong
    size, whole = path.stat().st_size, begin + max(ends, default=0)
    return f"{size:,} of {whole:,} bytes" if size < whole else ""


def has_own_head(
    folder: Path, config: Mapping[str, Any], head: str, module: ModuleType
) -> bool | None:
    """Tell whether a model's head is a tensor of its own; None: as its config says.

    As `from_pretrained` does it: what a config ties stays apart where the files have both with
    other values. T5's configs always tie. Raises ValueError for tables that differ from each other.
    """
    tensors, defaults = stored_tensors(folder), module.DEFAULTS[config["model_type"]]
    full = {**defaults, **{k: v for k, v in config.items() if v is not None}, "head": head}
    table = module.ties(full).get(HEAD)
    if not tensors:  # not here yet, or a `.bin`
        return has_own_unread_head(config)
    if table is None or ("tie_word_embeddings" in defaults and not full["tie_word_embeddings"]):
        return None
    tables = [name for name in tensors if name.endswith(_EMBEDDINGS)]
    if not full.get("share_encoder_decoder_embeddings", True):  # Marian's two vocabularies
        tables = [name for name in tables if name == table]
    for name in tables[1:]:
        if not tensors[name].equals(tensors[tables[0]]):
            message = f"{name} has other values than {tables[0]} in {str(folder)!r}"
            raise ValueError(f"{message}; only one table for both is offered")
    return HEAD in tensors and any(not tensors[HEAD].equals(tensors[n]) for n in tables[:1])


def has_own_unread_head(config: Mapping[str, Any]) -> bool | None:
    """Tell the same of files that were not read. LongT5's have none, whatever their configs say."""
    return False if config["model_type"] == "longt5" else None


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


def count_tokens(path: Path) -> int:
    """Count the ids of a `tokenizer.json`, from 0 on; 0 where there is none to read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        vocabulary, added = document["model"]["vocab"], document["added_tokens"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        return 1 + max([*ids, *(token["id"] for token in added)], default=-1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 0  # the run says what is wrong with it


def read_pad_id(folder: Path) -> int | None:
    """Read the id of a tokenizer's pad, where its files have it."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        pad = settings["pad_token"]
        text = pad["content"] if isinstance(pad, dict) else pad
        ids = {token["content"]: int(token["id"]) for token in document["added_tokens"]}
        return ids.get(text)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


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
