"""A fast tokenizer as `tokenizers` alone reads it: texts to ids and back, without transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.core.errors import StageError
from compressor.core.packages import suggest_install

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"

MARIANS = "source.spm"
"""A file of Marian's tokenizer as it is published, which has no fast twin."""


def is_marian(folder: Path) -> bool:
    """Tell whether a folder has Marian's tokenizer as it is published, and no fast one."""
    return (folder / MARIANS).is_file() and not (folder / FILE).is_file()


@dataclass(frozen=True)
class TokenizedTexts:
    """The result of `Tokens` gives for some texts."""

    input_ids: list[list[int]]
    encodings: Sequence[Encoding] = ()


class Tokens:
    """The part of transformers' fast tokenizers that `examples` uses, with the same ids."""

    is_fast = True

    def __init__(self, tokenizer: Tokenizer, settings: dict[str, object]) -> None:
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        self.truncation_side = str(settings.get("truncation_side", "right"))
        eos = settings.get("eos_token")
        self.eos_token_id = None if eos is None else tokenizer.token_to_id(_get_token_text(eos))

    @classmethod
    def load(cls, folder: Path) -> Tokens:
        """Load the tokenizer that was saved in a model's directory. Raises StageError."""
        from tokenizers import Tokenizer

        if is_marian(folder):
            return MarianTokens(folder)
        if not (folder / FILE).is_file():
            raise StageError(f"{folder} has no {FILE}; the tokenizer must be a fast one")
        settings = _read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
        try:
            tokenizer = Tokenizer.from_file(str(folder / FILE))
        except Exception as error:  # the library raises nothing narrower
            raise StageError(f"{folder / FILE} cannot be read: {error}") from error
        return cls(tokenizer, settings)

    def __call__(
        self,
        text: Sequence[str] | None = None,
        *,
        text_target: Sequence[str] | None = None,
        truncation: bool = False,
        max_length: int = 0,
        add_special_tokens: bool = True,
        verbose: Any = False,
    ) -> TokenizedTexts:
        """Tokenize each text into at most `max_length` ids, where `truncation` is on.

        `verbose` is transformers': it warns of long texts, and this one of none.
        """
        texts = list(text if text is not None else text_target or ())
        return self._encode(texts, max_length if truncation else None, special=add_special_tokens)

    def _encode(self, texts: list[str], limit: int | None, *, special: bool) -> TokenizedTexts:
        if limit is None:
            self._tokenizer.no_truncation()
        else:
            self._tokenizer.enable_truncation(limit, direction=self.truncation_side)
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=special)
        return TokenizedTexts([encoding.ids for encoding in encodings], encodings)

    def batch_decode(
        self, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool = False
    ) -> list[str]:
        """Decode each row of ids."""
        ids = [list(row) for row in rows]
        return list(self._tokenizer.decode_batch(ids, skip_special_tokens=skip_special_tokens))


_LANGUAGE = re.compile(r">>.*?<<", re.DOTALL)
"""The language to translate into, at the beginning of a text: one token, as it is written."""


class MarianTokens(Tokens):
    """Reads a source and writes a target, with the `sentencepiece` package alone."""

    is_fast = False  # it does not tell which characters a token stands for

    def __init__(self, folder: Path) -> None:
        """Raises StageError where the package, or a file, is not there."""
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            needs = f"the tokenizer in {folder} needs sentencepiece, which is not installed"
            raise StageError(f"{needs}: {suggest_install('sentencepiece')}") from error

        settings = _read_json(folder / SETTINGS)
        written, writer = "vocab.json", MARIANS  # transformers joins pieces by the source's rules
        if settings.get("separate_vocabs"):
            written, writer = "target_vocab.json", "target.spm"
        self._source = SentencePieceProcessor(model_file=str(folder / MARIANS))
        self._writer = SentencePieceProcessor(model_file=str(folder / writer))
        decoder = settings["added_tokens_decoder"]
        added = {int(i): _get_token_text(token) for i, token in decoder.items()}
        special = [token for name, token in settings.items() if name.endswith("_token")]
        special += settings.get("additional_special_tokens") or ()
        self._special = set(map(_get_token_text, special))
        self._ids = _read_json(folder / "vocab.json") | {text: i for i, text in added.items()}
        self._pieces = {i: piece for piece, i in _read_json(folder / written).items()} | added
        self._unknown = self._ids[_get_token_text(settings["unk_token"])]
        self.eos_token_id = self._ids[_get_token_text(settings["eos_token"])]
        self.truncation_side = str(settings.get("truncation_side", "right"))
        tokens = {*added.values(), *self._special}
        longest_first = sorted(map(re.escape, tokens), key=len, reverse=True)
        self._added = re.compile(f"({'|'.join(longest_first)})")

    def _encode(self, texts: list[str], limit: int | None, *, special: bool) -> TokenizedTexts:
        end = [self.eos_token_id] if special else []
        rows = []
        for text in texts:
            ids = [self._ids.get(piece, self._unknown) for piece in self._split(text)]
            room = len(ids) if limit is None else max(0, limit - len(end))
            ids = ids[:room] if self.truncation_side == "right" else ids[max(0, len(ids) - room) :]
            rows.append(ids + end)
        return TokenizedTexts(rows)

    def _split(self, text: str) -> list[str]:
        pieces: list[str] = []
        for place, part in enumerate(self._added.split(text)):
            if place % 2:
                pieces.append(part)
                continue
            language = _LANGUAGE.match(part)
            pieces += [language[0]] if language else []
            pieces += self._source.encode(part[language.end() if language else 0 :], out_type=str)
        return pieces

    def batch_decode(
        self, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool = False
    ) -> list[str]:
        """Decode each row of ids."""
        texts = []
        for row in rows:
            text, pieces = "", []
            for piece in (self._pieces[i] for i in row if i in self._pieces):
                if piece not in self._special:
                    pieces.append(piece)
                elif not skip_special_tokens:
                    text += f"{self._writer.decode_pieces(pieces)}{piece} "
                    pieces = []
            texts.append((text + self._writer.decode_pieces(pieces)).replace("▁", " ").strip())
        return texts


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise StageError(f"{path} cannot be read: {error}") from error


def _get_token_text(token: Any) -> str:
    """Read a token as settings write it: its text, or a mapping that has the text."""
    return str(token["content"] if isinstance(token, dict) else token)
