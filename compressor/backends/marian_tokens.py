"""Marian's tokenizer as it is published: two SentencePiece models and a vocabulary of their pieces.

Ids and texts are those of transformers' MarianTokenizer, which has no fast twin: a piece that the
vocabulary lacks is unknown, which the models of `tokenizers` cannot say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compressor.backends.tokens import MARIANS, SETTINGS, Encoded, Tokens
from compressor.errors import StageError
from compressor.extras import installing

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
            raise StageError(f"{needs}: {installing('sentencepiece')}") from error

        settings = _read(folder / SETTINGS)
        written, writer = "vocab.json", MARIANS  # transformers joins pieces by the source's rules
        if settings.get("separate_vocabs"):
            written, writer = "target_vocab.json", "target.spm"
        self._source = SentencePieceProcessor(model_file=str(folder / MARIANS))
        self._writer = SentencePieceProcessor(model_file=str(folder / writer))
        added = {int(i): _text(each) for i, each in settings["added_tokens_decoder"].items()}
        special = {_text(each) for name, each in settings.items() if name.endswith("_token")}
        special |= set(map(_text, settings.get("additional_special_tokens") or ()))
        self._special = special
        self._ids = _read(folder / "vocab.json") | {text: i for i, text in added.items()}
        self._pieces = {i: piece for piece, i in _read(folder / written).items()} | added
        self._unknown = self._ids[_text(settings["unk_token"])]
        self.eos_token_id = self._ids[_text(settings["eos_token"])]
        self.truncation_side = str(settings.get("truncation_side", "right"))
        longest_first = sorted(map(re.escape, {*added.values(), *special}), key=len, reverse=True)
        self._added = re.compile(f"({'|'.join(longest_first)})")

    def __call__(
        self,
        text: Sequence[str] | None = None,
        *,
        text_target: Sequence[str] | None = None,
        truncation: bool = False,
        max_length: int = 0,
        add_special_tokens: bool = True,
    ) -> Encoded:
        """Ids of each source text, at most `max_length` of them where `truncation` is on."""
        assert text_target is None, "nothing is trained with an exported model"
        end = [self.eos_token_id] if add_special_tokens else []
        room = max(0, max_length - len(end))
        rows = []
        for each in text or ():
            ids = [self._ids.get(piece, self._unknown) for piece in self._split(each)]
            if truncation and len(ids) > room:
                ids = ids[:room] if self.truncation_side == "right" else ids[len(ids) - room :]
            rows.append(ids + end)
        return Encoded(rows)

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
        """The text of each row of ids."""
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


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise StageError(f"{path} cannot be read: {error}") from error


def _text(token: Any) -> str:
    """A token as settings write it: its text, or a mapping that has the text."""
    return str(token["content"] if isinstance(token, dict) else token)
