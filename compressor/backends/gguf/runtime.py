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
from compressor.backends.beam_search import Tokens, search_tokens
from compressor.backends.generation_config import FILE as GENERATION
from compressor.backends.generation_config import BackendName, counts_prompt, load_settings
from compressor.backends.generation_settings import Settings, find_start, log_softmax
from compressor.backends.gguf.export import FILE
from compressor.backends.outputs import NOT_FINITE, Report, Search, ignore
from compressor.core import machine
from compressor.core.errors import StageError
from compressor.data.batching import evaluation_batches
from compressor.data.fast_tokenizer import TokenizedTexts
from compressor.data.fast_tokenizer import Tokens as Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FLOAT32, _NO_FLASH_ATTENTION, _ERROR = 0, 0, 4
_BATCH_TOKENS = 1_024
"""Positions of prompts and of what follows them in a batch: each token looks over all of them."""
_BATCH_PLACES = 64
"""Rows of a batch, each beam counted: a place takes two of llama.cpp's 256 sequences."""
_READ_TOKENS = 256
"""Tokens of a row that a decoder reads at once: each may have the logits of all the vocabulary."""


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


class Vocabulary(Tokenizer):
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
    """A model of a GGUF file, on the CPU. An encoder reads one row after another, and its decoder
    writes it; without one, prompts share a batch.
    """

    backend: BackendName = "llamacpp"

    def __init__(self, folder: Path, threads: int | None) -> None:
        import llama_cpp

        self._lib = llama_cpp
        self._threads = threads or machine.count_threads()
        self._file = File(folder / FILE)
        self._model = self._file.model
        self.continues = not llama_cpp.llama_model_has_encoder(self._model)
        self.tokenizer = Vocabulary(self._file)
        settings = folder / GENERATION
        self.generation_config = load_settings(settings) if settings.is_file() else {}

    def _decode_rows(
        self, sources: Sequence[list[int]], search: Search, progress: Report
    ) -> list[list[int]]:
        config, beams = self.generation_config, search.num_beams
        if not config:  # as what was exported before decoders wrote here
            raise StageError(f"no {GENERATION} is beside {FILE}; export the model once more")
        rows: list[list[int]] = [[] for _ in sources]
        lengths = [len(source) + search.max_length for source in sources]
        batches = [[row] for row in range(len(sources))]
        if self.continues:
            tokens, most = _BATCH_TOKENS // beams, max(1, _BATCH_PLACES // beams)
            alike = evaluation_batches(lengths, tokens=tokens, equal=counts_prompt(config))
            batches = [some[at : at + most] for some in alike for at in range(0, len(some), most)]
        places = beams * max(map(len, batches), default=1)
        cells = max((beams * sum(lengths[row] for row in batch) for batch in batches), default=1)
        with self._open_context(max(lengths, default=1), cells, places) as context:
            for batch in batches:
                decoder = Batch(self._lib, context, beams * len(batch), self.tokenizer.size)
                prompts = self._begin([sources[row] for row in batch], decoder, beams)
                before = prompts.shape[1] if self.continues else None
                settings = Settings.of(config, search, prompt=before)
                written = search_tokens(decoder, prompts, beams, settings)
                for row, new in zip(batch, written, strict=True):
                    rows[row] = new
                progress(len(batch))
        return rows

    def _begin(self, sources: list[list[int]], decoder: Batch, beams: int) -> Tokens:
        """Have sources read; return what the rows begin with, each at the end of its line."""
        if not self.continues:
            decoder.encode(sources[0])
            return np.array([[find_start(self.generation_config)]])
        decoder.read_prompts(sources, beams)
        prompts = np.zeros((len(sources), max(map(len, sources))), dtype=np.int64)
        for row, source in zip(prompts, sources, strict=True):
            row[len(row) - len(source) :] = source
        return prompts

    def sum_losses(
        self,
        sources: Sequence[list[int]],
        targets: Sequence[list[int]],
        *,
        progress: Report = ignore,
    ) -> list[float]:
        if not self.continues:
            return super().sum_losses(sources, targets)
        whole = [[*source, *target] for source, target in zip(sources, targets, strict=True)]
        longest, losses = max(map(len, whole), default=1), []
        with self._open_context(longest, longest) as context:
            for row, target in zip(whole, targets, strict=True):
                reader = Batch(self._lib, context, 1, self.tokenizer.size)
                pieces, loss, told = reader.read(row[:-1], [0], len(target)), 0.0, 0
                for piece in pieces:
                    named = target[told : told + len(piece)]
                    scores = log_softmax(piece)[np.arange(len(piece)), named]
                    loss -= float(scores.sum(dtype=np.float64))
                    told += len(piece)
                losses.append(loss)
                progress(1)
        if not np.isfinite(losses).all():
            raise StageError(NOT_FINITE)
        return losses

    def logits(
        self, sources: Sequence[list[int]], *, progress: Report = ignore
    ) -> NDArray[np.float64]:
        """Compute the logits [rows, tokens] of the token after each row."""
        if not self.continues:
            return super().logits(sources)
        logits = np.empty((len(sources), self.tokenizer.size), dtype=np.float64)
        longest = max(map(len, sources), default=1)
        with self._open_context(longest, longest) as context:
            for index, source in enumerate(sources):
                (logits[index],) = Batch(self._lib, context, 1, self.tokenizer.size).read_prompts(
                    [source], 1
                )
                progress(1)
        return logits

    @contextmanager
    def _open_context(self, longest: int, cells: int, places: int = 1) -> Iterator[Any]:
        """Take room for `cells` tokens of rows of at most `longest`, in so many places, twice for a
        reorder. Raises StageError for more tokens than a table of positions has.
        """
        rotates = self._lib.llama_model_rope_type(self._model) != self._lib.LLAMA_ROPE_TYPE_NONE
        most = self._lib.llama_model_n_ctx_train(self._model)
        if self.continues and not rotates and longest > most:
            raise StageError(
                f"{longest:,} tokens of a prompt and after it are more than the {most:,} positions "
                "of the model; lower max_length or data.max_source_length"
            )
        settings = self._lib.llama_context_default_params()
        settings.n_ctx = cells
        read = min(longest, _READ_TOKENS) if self.continues else longest
        settings.n_seq_max = 2 * places
        settings.n_batch = settings.n_ubatch = max(read, settings.n_seq_max)  # fewer is an abort
        settings.kv_unified = True
        settings.n_threads = settings.n_threads_batch = self._threads
        settings.type_k = settings.type_v = _FLOAT32
        settings.flash_attn_type = _NO_FLASH_ATTENTION
        context = self._lib.llama_init_from_model(self._model, settings)
        if not context:
            raise StageError(f"llama.cpp cannot read {cells} tokens: {self._file.explain_error()}")
        try:
            yield context
        finally:
            self._lib.llama_free(context)


class Batch:
    """A `beam_search.Decoder`: rows in the middle of being read or written, by one or more beams.

    Each beam of a row is a sequence. A reorder copies them to the other half of the sequences.
    """

    def __init__(self, lib: Any, context: Any, places: int, vocabulary: int) -> None:
        self._lib, self._context, self._size = lib, context, vocabulary
        self._memory = lib.llama_get_memory(context)
        self._places, self._start = places, 0
        self._lengths = [0] * places
        self._next: NDArray[np.float32] | None = None
        """The logits after prompts, which the first step gives."""
        lib.llama_memory_clear(self._memory, True)

    def encode(self, source: Sequence[int]) -> None:
        """Have the encoder read a source, for all places."""
        everyone = list(range(2 * self._places))
        self._run_batch(self._lib.llama_encode, [(t, i, everyone) for i, t in enumerate(source)])

    def read_prompts(self, prompts: Sequence[list[int]], beams: int) -> NDArray[np.float32]:
        """Read prompts, each for `beams` places; give the logits [rows, V] after them."""
        last = []
        for row, prompt in enumerate(prompts):
            sequences = [*range(row * beams, (row + 1) * beams)]
            last += [piece[-1] for piece in self.read(prompt, sequences, 1)]
        self._lengths = [len(prompt) for prompt in prompts for _ in range(beams)]
        logits = np.stack(last)
        self._next = np.repeat(logits, beams, axis=0)
        return logits

    def read(
        self, tokens: Sequence[int], sequences: list[int], kept: int
    ) -> Iterator[NDArray[np.float32]]:
        """Read a row; give the logits [N, V] after its last `kept` tokens, piece by piece."""
        first = len(tokens) - kept
        for start in range(0, len(tokens) or 1, _READ_TOKENS):
            piece = [(t, start + i, sequences) for i, t in enumerate(tokens[start:][:_READ_TOKENS])]
            begin = max(0, first - start)
            self._run_batch(self._lib.llama_decode, piece, begin)
            if begin < len(piece):
                yield np.stack([self._read_logits(index) for index in range(begin, len(piece))])

    def step(self, tokens: Tokens) -> NDArray[np.float32]:
        """Compute the logits [places, V] after a token of each place."""
        if self._next is not None:
            logits, self._next = self._next, None
            return logits
        rows = enumerate(zip(tokens, self._lengths, strict=True), self._start)
        self._run_batch(self._lib.llama_decode, [(int(t), at, [place]) for place, (t, at) in rows])
        self._lengths = [length + 1 for length in self._lengths]
        return np.stack([self._read_logits(index) for index in range(len(tokens))])

    def reorder(self, rows: Tokens) -> None:
        """Go on at each place from the one named there."""
        other = self._places - self._start
        for place, row in enumerate(rows):
            self._lib.llama_memory_seq_cp(
                self._memory, self._start + int(row), other + place, -1, -1
            )
        for place in range(self._start, self._start + len(self._lengths)):
            self._lib.llama_memory_seq_rm(self._memory, place, -1, -1)
        self._lengths = [self._lengths[row] for row in rows]
        self._start = other

    keep = reorder

    def _read_logits(self, index: int) -> NDArray[np.float32]:
        pointer = self._lib.llama_get_logits_ith(self._context, index)
        logits: NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(self._size,)).copy()
        return logits

    def _run_batch(
        self, function: Any, places: list[tuple[int, int, list[int]]], first: int = 0
    ) -> None:
        """Have llama.cpp read tokens, each at a position of some sequences; it computes the logits
        after those from the `first` on.
        """
        batch = self._lib.llama_batch_init(len(places), 0, 2 * self._places)
        try:
            batch.n_tokens = len(places)
            for index, (token, position, sequences) in enumerate(places):
                batch.token[index], batch.pos[index] = token, position
                batch.n_seq_id[index] = len(sequences)
                for place, sequence in enumerate(sequences):
                    batch.seq_id[index][place] = sequence
                batch.logits[index] = index >= first
            if function(self._context, batch) != 0:
                raise StageError(f"llama.cpp cannot read {len(places)} tokens")
        finally:
            self._lib.llama_batch_free(batch)
