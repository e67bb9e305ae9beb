"""Redact secrets from everything that is written or printed.

Known by the name of a key, also within a text (`token=…`), by their form (a token of the hub, the
login in a URL), or as what an environment variable such as `HF_TOKEN` holds.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

REDACTED = "<redacted>"
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
_NAMES = frozenset((
    "secret", "secrets", "password", "passwords", "passwd", "passphrase", "credential",
    "credentials", "authorization", "apikey", "accesskey", "privatekey",
))  # fmt: skip
_KEYS = frozenset(("api", "access", "private", "signing", "encryption", "license"))
"""Before `_key`."""
_PIECES = frozenset((
    "bos", "eos", "pad", "unk", "sep", "cls", "mask", "image", "video", "audio", "start", "end",
    "special", "stop", "first", "last", "next", "per", "each", "unexpected",
))  # fmt: skip
"""Before `_token`: `pad_token` is the text of a tokenizer's piece."""
_FORMS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), REDACTED),
    (re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://)[^\s/@'\"]+@"), rf"\1{REDACTED}@"),
    # With a digit or a sign that words have not: "a basic fine-tuning" is no login.
    (re.compile(r"(?i)\b(Bearer|Basic)\s+(?=[A-Z._~/-]*[0-9+=])[A-Z0-9._~+/=-]{12,}"),
     rf"\1 {REDACTED}"),
)  # fmt: skip
_ASSIGNED = re.compile(r"(?<![\w.-])([\w.-]+)['\"]?\s*[=:]\s*")
_VALUE = re.compile(r"'[^']*'|\"[^\"]*\"|(?:(?:Bearer|Basic)\s+)?[^\s,;&'\"}\])]+")
_SHORTEST = 8
"""Characters of a variable's value that is looked for: a shorter one may stand anywhere."""


@lru_cache(maxsize=4096)
def is_secret(key: str) -> bool:
    """Tell whether a key, such as `hub.token`, names a secret by its last part."""
    words = [word.lower() for word in _WORD.findall(re.split(r"[.@/]", key)[-1])]
    before = words[-2] if len(words) > 1 else ""
    if not words or words[-1] == "token":
        return bool(words) and before not in _PIECES
    return not _NAMES.isdisjoint(words) or (words[-1] == "key" and before in _KEYS)


def redact(value: Any, key: str = "", *, numbers: bool = True) -> Any:
    """Replace what looks like a secret in a value of a recipe or of a record.

    Below a key that names a secret that is every text and, with `numbers`, every number.
    """
    return _redact(value, key, numbers, _list_secret_variables())


def _redact(value: Any, key: str, numbers: bool, variables: list[str]) -> Any:  # noqa: FBT001
    if isinstance(value, Mapping):
        inside = key if is_secret(key) else ""
        return {k: _redact(v, inside or str(k), numbers, variables) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(item, key, numbers, variables) for item in value]
    is_number = numbers and isinstance(value, int | float) and not isinstance(value, bool)
    if (isinstance(value, str) or is_number) and is_secret(key):
        return REDACTED
    return _redact_override(value, variables) if isinstance(value, str) else value


def _redact_override(text: str, variables: list[str]) -> str:
    """Redact a text that may be `key=value`."""
    name, mark, setting = text.partition("=")
    if mark and re.fullmatch(r"[+~]*[\w.@/-]+", name):
        if is_secret(name.lstrip("+~")):
            return f"{name}={REDACTED}"
        is_nested = setting.startswith(("{", "["))
        return f"{name}={redact_text(setting) if is_nested else _redact_forms(setting, variables)}"
    return _redact_forms(text, variables)


def public_command(*arguments: str) -> str:
    """Write a `compressor run` command for a record or a person, without secrets."""
    return shlex.join(["compressor", "run", *redact(arguments)])


def redact_text(text: str) -> str:
    """Replace what looks like a secret in a sentence or a log."""
    kept, done = [], 0
    for assigned in _ASSIGNED.finditer(text):
        begin = assigned.end()
        value = _VALUE.match(text, begin)
        if value is None or begin < done or _is_of_text(assigned, value[0]):
            continue
        if is_secret(assigned[1]):
            kept += [text[done:begin], REDACTED]
            done = value.end()
    return _redact_forms("".join([*kept, text[done:]]), _list_secret_variables())


def _is_of_text(assigned: re.Match[str], value: str) -> bool:
    """Tell whether `start token: 0` is of a sentence on tokens: too short, after a word."""
    before = assigned.string[max(0, assigned.start() - 2) : assigned.start()]
    short = len(value.strip("'\"")) < _SHORTEST
    after_a_word = re.search(r"[a-z] $", before) is not None
    return after_a_word and short and assigned[0].rstrip().lower() == "token:"


def _redact_forms(text: str, variables: list[str]) -> str:
    for secret in variables:
        text = text.replace(secret, REDACTED)
    for form, replacement in _FORMS:
        text = form.sub(replacement, text)
    return text


def _list_secret_variables() -> list[str]:
    """List what the environment's variables with telling names hold, the longest first."""
    values = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and not value.startswith("/") and is_secret(name)
    }
    return sorted(values, key=len, reverse=True)
