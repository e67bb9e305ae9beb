"""A fast tokenizer as `tokenizers` alone reads it: texts to ids and back, without transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.errors import StageError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
MARIANS = "source.spm"
"""A file of Marian's tokenizer as it is published, which has no fast twin."""


def is_marian(folder: Path) -> bool:
    """Whether a folder has Marian's tokenizer as it is published, and no fast one."""
    return (folder / MARIANS).is_file() and not (folder / FILE).is_file()


class Encoded:
    """What `Tokens` gives for some texts."""

    def __init__(self, input_ids: list[list[int]], encodings: Sequence[Encoding] = ()) -> None:
        self.input_ids, self.encodings = input_ids, encodings


class Tokens:
    """The part of transformers' fast tokenizers that `compressor.data.examples` uses.

    It reads what they saved, so that ids are the same; an export's check compares them.
    """

    is_fast = True

    def __init__(self, tokenizer: Tokenizer, settings: dict[str, object]) -> None:
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        self.truncation_side = str(settings.get("truncation_side", "right"))
        self.eos_token_id = self._id(settings.get("eos_token"))

    @classmethod
    def load(cls, folder: Path) -> Tokens:
        """The tokenizer that was saved in a model's directory. Raises StageError without one."""
        from tokenizers import Tokenizer

        if is_marian(folder):
            from compressor.backends.marian_tokens import MarianTokens

            return MarianTokens(folder)
        if not (folder / FILE).is_file():
            raise StageError(f"{folder} has no {FILE}; the tokenizer must be a fast one")
        settings = {}
        if (folder / SETTINGS).is_file():
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        try:
            tokenizer = Tokenizer.from_file(str(folder / FILE))
        except Exception as error:  # the library raises nothing narrower
            raise StageError(f"{folder / FILE} cannot be read: {error}") from error
        return cls(tokenizer, settings)

    def _id(self, token: object) -> int | None:
        """The id of a token as settings write it: its text, or a mapping that has the text."""
        text = token.get("content") if isinstance(token, dict) else token
        return None if text is None else self._tokenizer.token_to_id(str(text))

    def __call__(
        self,
        text: Sequence[str] | None = None,
        *,
        text_target: Sequence[str] | None = None,
        truncation: bool = False,
        max_length: int = 0,
        add_special_tokens: bool = True,
    ) -> Encoded:
        """Ids of each text, at most `max_length` of them where `truncation` is on."""
        if truncation:
            self._tokenizer.enable_truncation(max_length, direction=self.truncation_side)
        else:
            self._tokenizer.no_truncation()
        texts = list(text if text is not None else text_target or ())
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        return Encoded([encoding.ids for encoding in encodings], encodings)

    def batch_decode(
        self, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool = False
    ) -> list[str]:
        """The text of each row of ids."""
        return list(
            self._tokenizer.decode_batch(
                [list(row) for row in rows], skip_special_tokens=skip_special_tokens
            )
        )
