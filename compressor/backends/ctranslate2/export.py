"""Write models for CTranslate2 with its own converters.

Its int8 has one scale for each row of a weight, largest entry to 127, as
`compressor.models.quantized_layers` has; activations get one scale for each token.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.backends.base import WRITERS
from compressor.backends.ctranslate2.runtime import HEAD
from compressor.backends.generation_config import require_followed
from compressor.core.errors import StageError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from compressor.models.checkpoint import Checkpoint

_NO_LONGER_SAID: Mapping[str, Mapping[str, Any]] = {
    "bart": {"normalize_before": False, "normalize_embedding": True},
    "mbart": {"normalize_before": True, "normalize_embedding": True},
    "pegasus": {"normalize_before": True, "normalize_embedding": False},
    "marian": {"normalize_before": False, "normalize_embedding": False},
    "bert": {"position_embedding_type": "absolute"},
    "roberta": {"position_embedding_type": "absolute"},
}
"""What the converters read of a config, and configs of today's transformers no longer have."""


def write_model(checkpoint: Checkpoint, folder: Path, weights: str) -> None:
    """Write a float checkpoint into `folder`, for one of CTranslate2's three kinds of models.

    A classifier's head, which CTranslate2 does not run, is beside it: `head.safetensors`. Raises
    StageError where the model has a setting that would be lost.
    """
    from ctranslate2.converters import TransformersConverter
    from transformers import BartConfig

    model, tokenizer = checkpoint.model, _pad_tokenizer(checkpoint)
    # The converters quantize tensors where they lie, and read a config that they can be told by.
    copied = copy.deepcopy(model)
    body = copied if checkpoint.head in WRITERS else copied.base_model

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
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise StageError(f"CTranslate2 cannot take this model: {reason}") from error
    if checkpoint.head in WRITERS:
        require_followed(model.generation_config.to_dict(), "ctranslate2", greedy=True)
        model.generation_config.save_pretrained(folder)
    else:
        _write_head(model, folder)


def _pad_tokenizer(checkpoint: Checkpoint) -> Any:
    """Give the tokenizer, with a made-up token for each row of the embedding that has none."""
    tokenizer, size = checkpoint.tokenizer, checkpoint.model.config.vocab_size
    ids = sorted(tokenizer.get_vocab().values())  # type: ignore[union-attr]
    if ids != list(range(len(ids))) or len(ids) > size:
        raise StageError(
            f"the tokenizer's {len(ids)} tokens are not the first of the model's {size} rows"
        )
    if unused := [f"<unused_{i}>" for i in range(len(ids), size)]:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_tokens(unused)  # type: ignore[union-attr]
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
    if config.model_type == "gpt2":
        spec.config.layer_norm_epsilon = config.layer_norm_epsilon
    size = getattr(config, "d_kv", None) or getattr(config, "head_dim", None)
    if size is not None:
        # Else the width / heads is taken, which is another number where heads were sliced off.
        _set_head_size(spec, np.int32(size))
    if config.model_type == "roberta":  # whose converter takes a pad of 0 for no pad
        table = model.roberta.embeddings.position_embeddings
        spec.encoder.position_encodings.encodings = table.weight[table.padding_idx + 1 :]
    if head == "seq2seq_lm":
        start = model.generation_config.decoder_start_token_id
        spec.config.decoder_start_token = tokenizer.convert_ids_to_tokens(start)


def _set_head_size(spec: Any, size: np.int32) -> None:
    stacks = (getattr(spec, name, None) for name in ("encoder", "decoder"))
    for layer in (layer for stack in stacks if stack is not None for layer in stack.layer):
        for attention in (layer.self_attention, getattr(layer, "attention", None)):
            if attention is not None:
                vars(attention)["head_dim"] = size


def _write_head(model: PreTrainedModel, folder: Path) -> None:
    """Write the layers between the first token's state and the logits: weight, bias, activation."""
    from safetensors.torch import save_file

    kind = model.config.model_type
    layers = {
        "bert": lambda: [(model.bert.pooler.dense, "tanh"), (model.classifier, "none")],
        "roberta": lambda: [(model.classifier.dense, "tanh"), (model.classifier.out_proj, "none")],
        "distilbert": lambda: [(model.pre_classifier, "relu"), (model.classifier, "none")],
    }[kind]()
    tensors = {}
    for index, (layer, _) in enumerate(layers):
        tensors[f"{index}.weight"] = layer.weight.detach().float().contiguous()
        tensors[f"{index}.bias"] = layer.bias.detach().float().contiguous()
    activations = json.dumps([activation for _, activation in layers])
    save_file(tensors, folder / HEAD, metadata={"activations": activations})
