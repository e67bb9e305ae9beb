"""Find the tokenizer of a loaded model: its source's own, another one, or one to train."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from compressor.core.errors import StageError
from compressor.core.files import expand_home
from compressor.core.packages import versions
from compressor.core.settings import SETTINGS, Integer
from compressor.data import hub
from compressor.data.source_base import Reporter
from compressor.data.sources import Data
from compressor.models.facts import Facts
from compressor.models.model_files import (
    TOKENIZER_FILES,
    count_tokens,
    digest_tokenizer,
    local_folder,
    missing_packages,
)
from compressor.models.source_checks import check_packages, check_vocabulary, explain_missing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from compressor.data.rows import Rows


class TrainTokenizer(BaseModel):
    """Train a byte-level tokenizer, which reads any text.

    Example: `tokenizer: {vocab_size: 1500}`
    """

    model_config = SETTINGS

    vocab_size: Integer = Field(ge=300, description="Number of tokens, special ones included.")
    data: Data | None = Field(None, description="Rows to train on; default: the recipe's data.")


def identify_tokenizer(tokenizer: str | TrainTokenizer | None) -> dict[str, Any]:
    """Identify a tokenizer that is not the source's own by what decides it."""
    if isinstance(tokenizer, str):
        path = expand_home(tokenizer)
        if path.is_dir():
            return {"tokenizer": digest_tokenizer(path)}
        return {"tokenizer": hub.resolve_commit(tokenizer, "main", "model")}
    if tokenizer is None:
        return {}
    parts: dict[str, Any] = versions(("tokenizers",))  # another release may train another one
    if tokenizer.data is not None:
        parts["tokenizer"] = tokenizer.data.key("train", "texts")
    return parts


def check_tokenizer(
    tokenizer: str | TrainTokenizer | None,
    source: str | None,
    model: Facts,
    data: Data,
    report: Reporter,
) -> bool:
    """Report a tokenizer that cannot be read, or has no rows; tell whether it is a slow one."""
    if isinstance(tokenizer, TrainTokenizer):
        if data.messages is not None:
            message = "one that is trained has no chat template, which data.messages needs"
            report("tokenizer", message)
        check_vocabulary(model, tokenizer.vocab_size, "tokenizer.vocab_size", report)
        return False
    name, key = tokenizer or source, "tokenizer" if tokenizer else "source"
    if name is None:
        return False
    folder = local_folder(name)
    tokens = 0 if folder is None else count_tokens(folder / "tokenizer.json")
    check_vocabulary(model, tokens, key, report)
    published = model.model_type == "marian" and key == "source"
    is_slow = check_packages(folder, key, report, is_marian=published)
    if is_slow and data.truncate == "sentences":
        message = "Marian's tokenizer does not tell where in a text a token ends; set 'tokens'"
        report("data.truncate", message)
    return is_slow


def open_tokenizer(
    tokenizer: str | TrainTokenizer | None,
    source: str | None,
    revision: str,
    read_rows: Callable[[], Rows],
) -> PreTrainedTokenizerBase | None:
    """Train or load it; `read_rows` gives the recipe's. `revision` is that of the source."""
    from compressor.data.tokenizers import train_tokenizer
    from compressor.models.loading import has_tokenizer, load_tokenizer

    if isinstance(tokenizer, TrainTokenizer):
        rows = read_rows() if tokenizer.data is None else tokenizer.data.load("train")
        texts = [*rows.texts, *rows.summaries]
        return train_tokenizer(texts, vocab_size=tokenizer.vocab_size)
    place = tokenizer or source
    if place is None:
        return None
    directory = expand_home(place)
    if directory.is_dir():
        return load_tokenizer(directory) if has_tokenizer(directory) else None
    commit = hub.resolve_commit(place, "main" if tokenizer else revision, "model")
    folder = hub.fetch_files(place, commit, ["*.json", *TOKENIZER_FILES])  # as a whole
    if missing := missing_packages(folder):
        raise StageError(f"the tokenizer of {place} needs {explain_missing(missing)}")
    return load_tokenizer(place, revision=commit)
