"""Models that CTranslate2 runs: written by its own converters, decoded without torch.

https://opennmt.net/CTranslate2. Its int8 has one scale for each row of a weight, largest entry to
127, as `compressor.models.quantized_layers` has; activations get one scale for each token.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.backends.generation_config import BackendName, require_followed
from compressor.backends.outputs import GenerationOutput, at_limits, token_ids, valid_limits
from compressor.core import machine
from compressor.core.errors import StageError
from compressor.data.batching import evaluation_batches
from compressor.data.fast_tokenizer import Tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

    from compressor.models.checkpoint import Checkpoint

HEAD, GENERATION = "head.safetensors", "generation_config.json"
BATCH_TOKENS = 16_384
"""Positions in a batch, source and target: bounds its memory."""
WORKERS = 4
"""At most so many parts of a batch are computed at once, each with its share of the threads. A
layer is over in less time than two threads take to meet: 4 texts, 256 tokens in and 64 out, took
T5-small in int8 0.55 s with one thread, 0.66 with two, 0.37 as two parts with a thread each."""

_NO_LONGER_SAID: Mapping[str, Mapping[str, Any]] = {
    "bart": {"normalize_before": False, "normalize_embedding": True},
    "mbart": {"normalize_before": True, "normalize_embedding": True},
    "pegasus": {"normalize_before": True, "normalize_embedding": False},
    "marian": {"normalize_before": False, "normalize_embedding": False},
    "bert": {"position_embedding_type": "absolute"},
    "roberta": {"position_embedding_type": "absolute"},
}
"""What the converters read of a config, and configs of today's transformers no longer have."""

_ACTIVATIONS: Mapping[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "none": lambda x: x,
}


def write_model(checkpoint: Checkpoint, folder: Path, weights: str) -> None:
    """Write a float checkpoint into `folder`, as `ctranslate2.Translator` or `Encoder` loads it.

    A classifier's head, which CTranslate2 does not run, is beside it: `head.safetensors`. Raises
    StageError where the model has a setting that would be lost.
    """
    from ctranslate2.converters import TransformersConverter
    from transformers import BartConfig

    model, tokenizer = checkpoint.model, _padded_tokenizer(checkpoint)
    # The converters quantize tensors where they lie, and read a config that they can be told by.
    copied = copy.deepcopy(model)
    body = copied if checkpoint.head == "seq2seq_lm" else copied.base_model

    class Converter(TransformersConverter):  # type: ignore[misc]
        """Converts what is in memory: a checkpoint, and never a download."""

        def load_model(self, *_: Any, **__: Any) -> PreTrainedModel:
            return body

        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            return tokenizer

        def _load(self) -> Any:
            spec = super()._load()
            _complete_spec(spec, copied, checkpoint.head, tokenizer)
            return spec

    _fit_converters(copied.config)
    with tempfile.TemporaryDirectory() as config:
        # Marian's own converter begins with zeros for the pad's row, which training changes.
        written = BartConfig() if body.config.model_type == "marian" else body.config
        written.save_pretrained(config)
        try:
            Converter(config).convert(str(folder), quantization=weights, force=True)
        except (ValueError, KeyError, AttributeError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise StageError(f"CTranslate2 cannot take this model: {reason}") from error
    if checkpoint.head == "seq2seq_lm":
        _write_generation(model, folder)
    else:
        _write_head(model, folder)


def _padded_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer with a made-up token for each row of the embedding that has none."""
    tokenizer, size = copy.deepcopy(checkpoint.tokenizer), checkpoint.model.config.vocab_size
    ids = sorted(tokenizer.get_vocab().values())  # type: ignore[union-attr]
    if ids != list(range(len(ids))) or len(ids) > size:
        raise StageError(
            f"the tokenizer's {len(ids)} tokens are not the first of the model's {size} rows"
        )
    tokenizer.add_tokens([f"<unused_{i}>" for i in range(len(ids), size)])  # type: ignore[union-attr]
    return tokenizer


def _fit_converters(config: PretrainedConfig) -> None:
    """Change a copy's config into what CTranslate2's converters expect."""
    from compressor.models.checkpoint import entries_as_read

    for key, value in _NO_LONGER_SAID.get(config.model_type, {}).items():
        setattr(config, key, value)
    if "tie_word_embeddings" in (entries := entries_as_read(config)):
        config.tie_word_embeddings = entries["tie_word_embeddings"]


def _complete_spec(spec: Any, model: PreTrainedModel, head: str, tokenizer: Any) -> None:
    """Add what the converters leave out: sizes and numbers of heads, the first token written."""
    config = model.config
    if head == "seq2seq_lm" and config.model_type not in ("t5", "mt5"):
        # The converter takes the encoder's for both.
        vars(spec.decoder)["num_heads"] = np.int16(config.decoder_attention_heads)
    for name in ("bos_token", "eos_token", "unk_token"):
        if getattr(spec.config, name, "") is None:  # which CTranslate2 does not read
            setattr(spec.config, name, tokenizer.eos_token)
    if config.model_type in ("t5", "mt5"):
        # Else the width / heads is taken, which is another number where heads were sliced off.
        for layer in (*spec.encoder.layer, *spec.decoder.layer):
            for attention in (layer.self_attention, getattr(layer, "attention", None)):
                if attention is not None:
                    vars(attention)["head_dim"] = np.int32(config.d_kv)
    if config.model_type == "roberta":  # whose converter takes a pad of 0 for no pad
        table = model.roberta.embeddings.position_embeddings
        spec.encoder.position_encodings.encodings = table.weight[table.padding_idx + 1 :]
    if head == "seq2seq_lm":
        start = model.generation_config.decoder_start_token_id
        spec.config.decoder_start_token = tokenizer.convert_ids_to_tokens(start)


def _write_generation(model: PreTrainedModel, folder: Path) -> None:
    require_followed(model.generation_config.to_dict(), "ctranslate2", greedy=True)
    model.generation_config.save_pretrained(folder)


def _write_head(model: PreTrainedModel, folder: Path) -> None:
    """The layers between the first token's state and the logits: weight, bias, activation."""
    from safetensors.torch import save_file

    kind = model.config.model_type
    layers = {
        "bert": lambda: [(model.bert.pooler.dense, "tanh"), (model.classifier, "none")],
        "roberta": lambda: [
            (model.classifier.dense, "tanh"),
            (model.classifier.out_proj, "none"),
        ],
        "distilbert": lambda: [(model.pre_classifier, "relu"), (model.classifier, "none")],
    }[kind]()
    tensors = {}
    for index, (layer, _) in enumerate(layers):
        tensors[f"{index}.weight"] = layer.weight.detach().float().contiguous()
        tensors[f"{index}.bias"] = layer.bias.detach().float().contiguous()
    activations = json.dumps([activation for _, activation in layers])
    save_file(tensors, folder / HEAD, metadata={"activations": activations})


class Translator:
    """An encoder-decoder."""

    backend: BackendName = "ctranslate2"

    def __init__(self, folder: Path, threads: int | None) -> None:
        import ctranslate2

        self.tokenizer: Any = Tokens.load(folder)
        self.settings = json.loads((folder / GENERATION).read_text(encoding="utf-8"))
        self._model, self._workers = _open_model(ctranslate2.Translator, folder, threads)
        self.device = str(self._model.device)
        vocabulary = json.loads((folder / "shared_vocabulary.json").read_text(encoding="utf-8"))
        self._tokens: list[str] = vocabulary
        self._ids = {token: index for index, token in reversed(list(enumerate(vocabulary)))}

    def sweep(
        self,
        sources: Sequence[list[int]],
        *,
        max_lengths: Sequence[int],
        num_beams: int = 1,
        min_length: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> dict[int, GenerationOutput]:
        """Decode at each limit; see `compressor.backends.torch.generation.sweep`.

        Greedily it gives what `generate` gives, but for rounding. Beams end by other rules.
        """

        def rows(limit: int, *, forced_end: bool) -> tuple[list[list[int]], float]:
            started = time.perf_counter()
            found = self._decode(sources, limit, num_beams, min_length, progress)
            forced = token_ids(self.settings.get("forced_eos_token_id")) if forced_end else []
            if forced:
                found = [_force_end(row, limit, forced) for row in found]
            return found, time.perf_counter() - started

        return at_limits(
            rows, valid_limits(max_lengths), self.settings, self.backend, greedy=num_beams == 1
        )

    def logits(
        self, sources: Sequence[list[int]], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float64]:
        raise StageError("an encoder-decoder gives no labels")

    @property
    def _eos(self) -> list[int]:
        return token_ids(self.settings.get("eos_token_id"))

    def _decode(
        self,
        sources: Sequence[list[int]],
        limit: int,
        num_beams: int,
        min_length: int,
        progress: Callable[[int], None] | None,
    ) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in sources]
        settings = self._options(limit, num_beams, min_length) if limit > 1 else {}
        lengths = [len(source) + limit for source in sources]
        for batch in evaluation_batches(lengths, tokens=BATCH_TOKENS // num_beams):
            if limit > 1:
                texts = [[self._tokens[i] for i in sources[index]] for index in batch]
                start = token_ids(self.settings.get("forced_bos_token_id"))
                first = [[self._tokens[i] for i in start]] * len(texts) if start else None
                part = -(-len(texts) // self._workers)
                results = self._model.translate_batch(
                    texts, target_prefix=first, max_batch_size=part, **settings
                )
                for index, result in zip(batch, results, strict=True):
                    found[index] = [self._ids[token] for token in result.hypotheses[0]]
            if progress is not None:
                progress(len(batch))
        return found

    def _options(self, limit: int, num_beams: int, min_length: int) -> dict[str, Any]:
        """`translate_batch`'s settings that follow the generation config's."""
        own = self.settings
        least = max(0, min_length or own.get("min_length") or 0) - 1
        if not min_length and own.get("min_new_tokens") is not None:
            least = own["min_new_tokens"]
        never = [[token] for token in own.get("suppress_tokens") or ()]
        never += own.get("bad_words_ids") or ()
        return {
            "beam_size": num_beams,
            "max_decoding_length": limit - 1,
            "min_decoding_length": max(0, min(least, limit - 1)),
            "max_input_length": 0,  # by default what is beyond 1,024 tokens is cut off
            "end_token": self._eos,
            "return_end_token": True,
            "length_penalty": own.get("length_penalty", 1.0) if num_beams > 1 else 1.0,
            "repetition_penalty": own.get("repetition_penalty") or 1.0,
            "no_repeat_ngram_size": own.get("no_repeat_ngram_size") or 0,
            "suppress_sequences": [[self._tokens[i] for i in ids] for ids in never] or None,
        }


class Encoder:
    """A classifier: CTranslate2 runs its encoder, and the head is a few small products."""

    backend: BackendName = "ctranslate2"

    def __init__(self, folder: Path, threads: int | None) -> None:
        import ctranslate2
        from safetensors import safe_open

        self.tokenizer: Any = Tokens.load(folder)
        self._model, workers = _open_model(ctranslate2.Encoder, folder, threads)
        self._workers = ThreadPoolExecutor(workers) if workers > 1 else None
        self._parts = workers
        self.device = str(self._model.device)
        with safe_open(folder / HEAD, "numpy") as file:
            activations = json.loads(file.metadata()["activations"])
            self._head = [
                (file.get_tensor(f"{i}.weight"), file.get_tensor(f"{i}.bias"), _ACTIVATIONS[name])
                for i, name in enumerate(activations)
            ]

    def sweep(self, *_: Any, **__: Any) -> dict[int, GenerationOutput]:
        raise StageError("a classifier writes no summaries")

    def logits(
        self, sources: Sequence[list[int]], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float64]:
        """The logits [rows, labels]."""
        found = np.empty((len(sources), len(self._head[-1][1])), dtype=np.float64)
        for batch in evaluation_batches(list(map(len, sources)), tokens=BATCH_TOKENS):
            states = self._states([list(sources[index]) for index in batch])
            for weight, bias, activation in self._head:
                states = activation(states @ weight.T + bias)
            found[batch] = states
            if progress is not None:
                progress(len(batch))
        return found

    def _states(self, rows: list[list[int]]) -> NDArray[np.float32]:
        """The last state of each row's first token."""

        def first(part: list[list[int]]) -> NDArray[np.float32]:
            output = self._model.forward_batch(part)
            return np.array(output.last_hidden_state, dtype=np.float32)[:, 0]

        size = -(-len(rows) // self._parts)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        run = map if self._workers is None else self._workers.map
        return np.concatenate(list(run(first, parts)))


def load_model(
    folder: Path, about: Mapping[str, Any], *, threads: int | None = None
) -> Translator | Encoder:
    """The model that `write` wrote. Raises StageError where CTranslate2 cannot load it."""
    return (Translator if about["head"] == "seq2seq_lm" else Encoder)(folder, threads)


def _open_model(kind: Any, folder: Path, threads: int | None) -> tuple[Any, int]:
    """The loaded model, and how many parts of a batch it computes at once."""
    import ctranslate2

    device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    threads = threads or machine.count_threads()
    several = [n for n in range(1, WORKERS + 1) if threads % n == 0]
    workers = several[-1] if device == "cpu" else 1
    share = {"inter_threads": workers, "intra_threads": threads // workers}
    try:
        return kind(str(folder), device=device, **share), workers
    except (RuntimeError, ValueError) as error:
        raise StageError(f"CTranslate2 cannot load {folder}: {error}") from error


def _force_end(row: list[int], limit: int, forced: list[int]) -> list[int]:
    """A row that fills the limit ends with the forced token."""
    return [*row[:-1], min(forced)] if row and len(row) == limit - 1 else row
