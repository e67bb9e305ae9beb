"""What looks like a secret, and texts and values without it. One place, for all that is written.

A recipe's values are searched by their keys, and for what is a secret wherever it stands: a token
of the hub, the login in a URL, what this process has in an environment variable such as `HF_TOKEN`.
Free texts (errors, lines of a log) also for `token=…`, `password: …` and HTTP's own headers. A
secret without a telling name or form cannot be known as one.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any

REDACTED = "<redacted>"
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
_NAMES = frozenset(
    (
        *("secret", "secrets", "password", "passwords", "passwd", "passphrase", "credential"),
        *("credentials", "authorization", "apikey", "accesskey", "privatekey"),
    )
)
_KEYS = frozenset(("api", "access", "private", "signing", "encryption", "license"))
"""Before `_key`."""
_PIECES = frozenset(
    (
        *("bos", "eos", "pad", "unk", "sep", "cls", "mask", "image", "video", "audio", "start"),
        *("end", "special", "stop", "first", "last", "next", "per", "each", "unexpected"),
    )
)
"""Before `_token`: `pad_token` is the text of a tokenizer's piece."""
_FORMS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), REDACTED),
    (re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://)[^\s/@'\"]+@"), rf"\1{REDACTED}@"),
    # With a digit or a sign that words have not: "a basic fine-tuning" is no login.
    (
        re.compile(
            r"\b(Bearer|Basic)\s+(?=[A-Za-z._~/-]*[0-9+=])[A-Za-z0-9._~+/=-]{12,}", re.IGNORECASE
        ),
        rf"\1 {REDACTED}",
    ),
)
_ASSIGNED = re.compile(r"([\w.-]+)['\"]?\s*[=:]\s*")
_VALUE = re.compile(r"'[^']*'|\"[^\"]*\"|(?:(?:Bearer|Basic)\s+)?[^\s,;&'\"}\])]+")
_SHORTEST = 8
"""Characters of a variable's value that is looked for: a shorter one may stand anywhere."""


def is_secret(key: str) -> bool:
    """Whether a key, such as `hub.token`, names a secret by its last part."""
    words = [word.lower() for word in _WORD.findall(re.split(r"[.@/]", key)[-1])]
    before = words[-2] if len(words) > 1 else ""
    if not words or words[-1] == "token":
        return bool(words) and before not in _PIECES
    return not _NAMES.isdisjoint(words) or (words[-1] == "key" and before in _KEYS)


def redacted(value: Any, key: str = "") -> Any:
    """A value as it may be written to a file: what looks like a secret is replaced.

    Below a key that names a secret that is every text and number, however deep. A text such as
    `hub.token=x` is an override of the command's.
    """
    if isinstance(value, dict):
        inside = key if is_secret(key) else ""
        return {name: redacted(item, inside or str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item, key) for item in value]
    if is_secret(key) and value is not None and not isinstance(value, bool):
        return REDACTED
    if not isinstance(value, str):
        return value
    name, given, setting = value.partition("=")
    if given and re.fullmatch(r"[+~]*[\w.@/-]+", name):
        if is_secret(name.lstrip("+~")):
            return f"{name}={REDACTED}"
        return f"{name}={redacted_text(setting) if setting[:1] in '{[' else _forms(setting)}"
    return _forms(value)


def redacted_text(text: str) -> str:
    """A sentence or a log without what looks like a secret in it."""
    kept, done = [], 0
    for found in _ASSIGNED.finditer(text):
        begin = found.end()
        value = _VALUE.match(text, begin)
        if value is None or begin < done or _is_of_text(found, value[0]):
            continue
        if is_secret(found[1]):
            kept += [text[done:begin], REDACTED]
            done = value.end()
    return _forms("".join([*kept, text[done:]]))


def _is_of_text(found: re.Match[str], value: str) -> bool:
    """Whether `start token: 0` is of a sentence on tokens: too short for a secret, after a word."""
    after_a_word = re.search(r"[a-z] $", found.string[max(0, found.start() - 2) : found.start()])
    short = len(value.strip("'\"")) < _SHORTEST
    return bool(after_a_word) and short and found[0].rstrip().lower() == "token:"


def _forms(text: str) -> str:
    for secret in _secret_variables():
        text = text.replace(secret, REDACTED)
    for form, replacement in _FORMS:
        text = form.sub(replacement, text)
    return text


def _secret_variables() -> list[str]:
    """What the environment's variables with telling names hold, the longest first."""
    return _secrets_of(tuple(os.environ.items()))


@lru_cache(maxsize=2)
def _secrets_of(variables: tuple[tuple[str, str], ...]) -> list[str]:
    held = {
        value
        for name, value in variables
        if len(value) >= _SHORTEST and not value.startswith("/") and is_secret(name)
    }
    return sorted(held, key=len, reverse=True)
