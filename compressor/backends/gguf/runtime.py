"""Run models with llama.cpp, by the C interface of llama-cpp-python. No torch, no transformers.

A GGUF file is read as any program of llama.cpp reads it, its tokenizer included. Keys and values
are kept in float32 here, where those programs take float16 unless told otherwise.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.backends.base import Model
from compressor.backends.beam_search import search_tokens
from compressor.backends.generation_config import FILE as GENERATION
from compressor.backends.generation_config import BackendName, load_settings
from compressor.backends.generation_settings import Settings, find_start
from compressor.backends.gguf.export import FILE
from compressor.backends.outputs import Report, Search, ignore
from compressor.core import machine
from compressor.core.errors import StageError
from compressor.data.fast_tokenizer import TokenizedTexts, Tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FLOAT32, _NO_FLASH_ATTENTION, _ERROR = 0, 0, 4


@cache
def _collect_errors() -> tuple[deque[str], Any]:
    """Collect what llama.cpp says of errors from now on; also the callback, which must be kept.

    llama-cpp-python's own log takes its warnings for errors, and its errors for details.
    """
    import llama_cpp

    errors: deque[str] = deque(maxlen=8)

    def note(level: int, text: bytes, _: object) -> None:
        if level == _ERROR:
            errors.append(text.decode(errors="replace").strip())

    callback = llama_cpp.llama_log_callback(note)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    return errors, callback


class File:
    """A GGUF file that llama.cpp has opened; closed when nothing looks at it any more."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self._errors, _ = _collect_errors()
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if not self.model:
            raise StageError(f"llama.cpp cannot load {path}: {self.explain_error()}")
        weakref.finalize(self, llama_cpp.llama_model_free, self.model)

    def explain_error(self) -> str:
        """Repeat what llama.cpp said last of an error."""
        return self._errors[-1] if self._errors else "it does not say why"


class Vocabulary(Tokens):
    """The tokenizer of a GGUF file."""

    is_fast = False  # it does not tell which characters a token stands for

    def __init__(self, file: File) -> None:
        import llama_cpp

        self.truncation_side = "right"
        self._file = file  # has what the next points to
        self._lib, self._vocab = llama_cpp, llama_cpp.llama_model_get_vocab(file.model)
        self.size: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.eos_token_id = llama_cpp.llama_vocab_eos(self._vocab)
        bos = llama_cpp.llama_vocab_bos(self._vocab)
        self._first = [bos] * llama_cpp.llama_vocab_get_add_bos(self._vocab)
        self._last = [self.eos_token_id] * llama_cpp.llama_vocab_get_add_eos(self._vocab)

    def _encode(self, texts: list[str], limit: int | None, *, special: bool) -> TokenizedTexts:
        first, last = (self._first, self._last) if special else ([], [])
        room = None if limit is None else max(0, limit - len(first) - len(last))
        return TokenizedTexts([[*first, *self._encode_text(t)[:room], *last] for t in texts])

    def _encode_text(self, text: str) -> list[int]:
        data = text.encode()
        room = len(data) + 8  # a token is seldom less than a byte: some characters are spelt out
        while True:
            ids = (self._lib.llama_token * room)()
            count = self._lib.llama_tokenize(self._vocab, data, len(data), ids, room, False, True)
            if count >= 0:
                return list(ids[:count])
            if -count <= room:
                raise StageError(f"llama.cpp cannot read a text of {len(data)} bytes")
            room = -count

    def batch_decode(
        self, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool = False
    ) -> list[str]:
        """Decode rows of ids to texts."""
        lead = self._lib.llama_vocab_type(self._vocab) == self._lib.LLAMA_VOCAB_TYPE_UGM
        texts = [
            b"".join(self._read_token(i, special=not skip_special_tokens) for i in row)
            for row in rows
        ]
        decoded = [text.decode(errors="replace") for text in texts]
        return [text.removeprefix(" ") for text in decoded] if lead else decoded

    def _read_token(self, token: int, *, special: bool) -> bytes:
        room = 256
        while True:
            text = ctypes.create_string_buffer(room)
            size = self._lib.llama_token_to_piece(self._vocab, token, text, room, 0, special)
            if size >= 0:
                return text.raw[:size]
            room = -size


class LlamaCppModel(Model):
    """A model of a GGUF file, on the CPU. Decodes one row after another."""

    backend: BackendName = "llamacpp"

    def __init__(self, folder: Path, threads: int | None) -> None:
        import llama_cpp

        self._lib = llama_cpp
        self._threads = threads or machine.count_threads()
        self._file = File(folder / FILE)
        self._model = self._file.model
        self._decodes = bool(llama_cpp.llama_model_has_encoder(self._model))
        self.tokenizer = Vocabulary(self._file)
        self.generation_config = load_settings(folder / GENERATION) if self._decodes else {}

    def _decode_rows(
        self, sources: Sequence[list[int]], search: Search, progress: Report
    ) -> list[list[int]]:
        if not self._decodes:
            return super()._decode_rows(sources, search, progress)
        settings = Settings.of(self.generation_config, search)
        start = np.array([[find_start(self.generation_config)]])
        beams, rows = search.num_beams, []
        with self._open_context(sources, search.max_length, beams) as context:
            for source in sources:
                row = Row(self._lib, context, beams, self.tokenizer.size)
                row.encode(source)
                rows += search_tokens(row, start, beams, settings)
                progress(1)
        return rows

    def logits(
        self, sources: Sequence[list[int]], *, progress: Report = ignore
    ) -> NDArray[np.float64]:
        """Compute the logits [rows, tokens] of the token after each row."""
        if self._decodes:
            return super().logits(sources)
        logits = np.empty((len(sources), self.tokenizer.size), dtype=np.float64)
        with self._open_context(sources, 0, 1) as context:
            for index, source in enumerate(sources):
                logits[index] = Row(self._lib, context, 1, self.tokenizer.size).read(source)
                progress(1)
        return logits

    @contextmanager
    def _open_context(self, sources: Sequence[list[int]], limit: int, beams: int) -> Iterator[Any]:
        """Take room for the longest source and `limit` tokens of each beam, twice for a reorder."""
        settings = self._lib.llama_context_default_params()
        longest = max(map(len, sources), default=1)
        settings.n_ctx = max(longest, limit * beams * 2)
        settings.n_batch = settings.n_ubatch = max(longest, beams)
        settings.n_seq_max = 2 * beams
        settings.kv_unified = True
        settings.n_threads = settings.n_threads_batch = self._threads
        settings.type_k = settings.type_v = _FLOAT32
        settings.flash_attn_type = _NO_FLASH_ATTENTION
        context = self._lib.llama_init_from_model(self._model, settings)
        if not context:
            raise StageError(
                f"llama.cpp cannot read {longest} tokens: {self._file.explain_error()}"
            )
        try:
            yield context
        finally:
            self._lib.llama_free(context)


class Row:
    """A `beam_search.Decoder`: a row in the middle of being read or written, by one or more beams.

    Each beam is a sequence. A reorder copies them to the other half of the sequences.
    """

    def __init__(self, lib: Any, context: Any, beams: int, vocabulary: int) -> None:
        self._lib, self._context, self._size = lib, context, vocabulary
        self._memory = lib.llama_get_memory(context)
        self._beams, self._start, self._length = beams, 0, 0
        lib.llama_memory_clear(self._memory, True)

    def encode(self, source: Sequence[int]) -> None:
        """Have the encoder read a source, for all beams."""
        everyone = list(range(2 * self._beams))
        self._run_batch(
            self._lib.llama_encode, [(t, i, everyone) for i, t in enumerate(source)], every=True
        )

    def read(self, source: Sequence[int]) -> NDArray[np.float32]:
        """Compute the logits [V] after all tokens of a source, by a model without an encoder."""
        self._run_batch(self._lib.llama_decode, [(t, i, [0]) for i, t in enumerate(source)])
        return self._read_logits(len(source) - 1)

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Compute the logits [beams, V] after a token of each beam."""
        places = [(int(t), self._length, [self._start + i]) for i, t in enumerate(tokens)]
        self._run_batch(self._lib.llama_decode, places, every=True)
        self._length += 1
        return np.stack([self._read_logits(index) for index in range(len(tokens))])

    def reorder(self, rows: NDArray[np.int64]) -> None:
        """Go on at each place from the beam named there."""
        other = self._beams - self._start
        for place, row in enumerate(rows):
            self._lib.llama_memory_seq_cp(
                self._memory, self._start + int(row), other + place, -1, -1
            )
        for beam in range(self._start, self._start + self._beams):
            self._lib.llama_memory_seq_rm(self._memory, beam, -1, -1)
        self._start = other

    keep = reorder

    def _read_logits(self, index: int) -> NDArray[np.float32]:
        pointer = self._lib.llama_get_logits_ith(self._context, index)
        logits: NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(self._size,)).copy()
        return logits

    def _run_batch(
        self, function: Any, places: list[tuple[int, int, list[int]]], *, every: bool = False
    ) -> None:
        """Have llama.cpp read tokens, each at a position of some sequences."""
        batch = self._lib.llama_batch_init(len(places), 0, 2 * self._beams)
        try:
            batch.n_tokens = len(places)
            for index, (token, position, sequences) in enumerate(places):
                batch.token[index], batch.pos[index] = token, position
                batch.n_seq_id[index] = len(sequences)
                for place, sequence in enumerate(sequences):
                    batch.seq_id[index][place] = sequence
                batch.logits[index] = every or index == len(places) - 1
            if function(self._context, batch) != 0:
                raise StageError(f"llama.cpp cannot read {len(places)} tokens")
        finally:
            self._lib.llama_batch_free(batch)
