"""Check a model's source, architecture and tokenizer before it is loaded. No torch here."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from compressor.core.errors import nearest
from compressor.core.packages import suggest_install
from compressor.core.redaction import is_secret
from compressor.data.fast_tokenizer import MARIANS
from compressor.models.facts import Facts, load_architecture
from compressor.models.model_files import missing_packages

Reporter = Callable[[str, str], None]
"""Reports a message at a key below the stage."""

_MISSPELT = 0.85
"""As alike as `n_layers` and `num_layers`; no key of a known config is so like one it is not."""

_RUNTIME_KEYS = {"attn_implementation", "_attn_implementation", "experts_implementation"}
"""Keys of a config that say how a model is run, and could name code of the hub."""


def check_origins(
    config: Mapping[str, Any], folder: Path | None, report: Reporter, *, runs_code: bool
) -> None:
    """Report weights or code of a source from a place that the key does not cover."""
    if folder is not None and (problem := find_adapter(folder)) is not None:
        report("source", problem)
    if "transformers_weights" in config:
        message = "its config's transformers_weights names a file of its own; call that file "
        report("source", f"{message}model.safetensors, and leave the key out")
    code = config.get("auto_map") if runs_code else None
    names = [str(name) for name in (code.values() if isinstance(code, dict) else ())]
    if elsewhere := next((name for name in names if "--" in name), None):
        message = f"the config takes code from another repository, {elsewhere!r}; copy it into "
        report("trust_remote_code", f"{message}the model's folder")


def find_adapter(folder: Path) -> str | None:
    """Say what to do where a folder has an adapter that transformers would put into the model."""
    if not (folder / "adapter_config.json").is_file():
        return None
    message = f"{str(folder)!r} has a PEFT adapter beside the model, which is not loaded; "
    return f"{message}merge it (`merge_and_unload`) and save that"


def check_secrets(config: Mapping[str, Any], report: Reporter) -> None:
    """Report secrets in a recipe's config."""
    for key in _find_secrets(config):
        message = "looks like a secret, and every saved model has its config beside it"
        report(f"config.{key}", message)


def _find_secrets(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the key paths of a config that name a secret."""
    for key, value in config.items():
        if is_secret(str(key)):
            yield f"{prefix}{key}"
        elif isinstance(value, Mapping):
            yield from _find_secrets(value, f"{prefix}{key}.")


def check_fresh_config(config: Iterable[str], known: Iterable[str], report: Reporter) -> None:
    """Report keys of a fresh model's config that are misspelt, or not for a recipe to set.

    Only a key that is almost a known one, which transformers would pass over. A config has others,
    such as its task's, that decide nothing here.
    """
    keys, known = set(config), set(known)
    for key in sorted(keys & _RUNTIME_KEYS):
        report(f"config.{key}", "is for what runs the model to choose; leave it out")
    for key in sorted(keys - known):
        if close := difflib.get_close_matches(key, known, n=1, cutoff=_MISSPELT):
            report(f"config.{key}", f"no such key; did you mean {close[0]!r}?")


def find_architecture(
    config: Mapping[str, Any], head: str, locate: Callable[[str], str], report: Reporter
) -> ModuleType | None:
    """Find a config's architecture; report one that is not known, or has no such head.

    `locate` gives the recipe's key for one of the config.
    """
    model_type = str(config.get("model_type"))
    try:
        module = load_architecture(model_type)
    except KeyError as error:
        report(locate("model_type"), str(error.args[0]))
        return None
    if head in module.HEADS:
        return module
    report("head", f"{model_type} has no head {head!r}; {nearest(head, module.HEADS)}")
    return None


def check_packages(folder: Path | None, key: str, report: Reporter, *, is_marian: bool) -> bool:
    """Report packages that a tokenizer needs; tell whether it is a slow one, Marian's.

    The files of one on the hub (None) are not known: `is_marian` says what it is taken for.
    """
    if folder is None:
        missing = [] if not is_marian or find_spec("sentencepiece") else ["sentencepiece"]
    else:
        is_marian, missing = (folder / MARIANS).is_file(), missing_packages(folder)
    if missing:
        report(key, f"its tokenizer needs {explain_missing(missing)}")
    return is_marian


def explain_missing(packages: list[str]) -> str:
    """Say how missing packages of a tokenizer are installed."""
    return f"{' and '.join(packages)}, not installed: {suggest_install('sentencepiece')}"


def check_vocabulary(model: Facts, tokens: int, key: str, report: Reporter) -> None:
    """Report more tokens than the embedding has rows, where both are known without a hub."""
    rows = model.config.get("vocab_size")
    if isinstance(rows, int) and tokens > rows:
        report(
            key,
            f"the tokenizer has {tokens:,} tokens, the model's embedding only {rows:,} rows; "
            "set config.vocab_size to at least as many, or take the model's own tokenizer",
        )
