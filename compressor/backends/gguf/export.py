"""Write a model as one GGUF file, which llama.cpp runs: its settings and tensors.

https://github.com/ggml-org/llama.cpp. Tensor names, layouts and settings are those that llama.cpp's
`convert_hf_to_gguf.py` writes, by the name maps of the package `gguf`. The tokenizer is in the file
too: see `vocabulary`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.backends.base import WRITERS
from compressor.backends.generation_config import require_followed
from compressor.core.errors import StageError
from compressor.models.architectures.t5 import scales_outputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

    from compressor.models.checkpoint import Checkpoint

    Floats = NDArray[np.float32]

FILE = "model.gguf"
_ARCHITECTURES = {
    "t5": "T5", "mt5": "T5", "gpt2": "GPT2", "llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3",
}  # fmt: skip
_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
_FILE_TYPES = {
    "F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0",
    "Q4_0": "MOSTLY_Q4_0",
}  # fmt: skip
BLOCK = 32
"""Entries of a row that share one float16 scale, in Q8_0 and Q4_0."""
_FLOAT32 = ("_norm.weight", "position_embd.weight", "attn_rel_b.weight")
"""How names end of what stays float32 beside vectors: llama.cpp adds them to activations."""

_FOLLOWED: Mapping[str, Mapping[str, Any]] = {
    "t5": {"relative_attention_max_distance": 128},
    "gpt2": {
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
    },
    "llama": {"hidden_act": "silu"},
    "qwen2": {"hidden_act": "silu"},
    "qwen3": {"hidden_act": "silu", "attention_bias": False},
}
"""What llama.cpp has built in, and a config may say otherwise."""


def write_model(
    checkpoint: Checkpoint,
    folder: Path,
    weights: str,
    scales: Mapping[str, Floats] | None = None,
) -> None:
    """Write a float checkpoint into `folder`: `model.gguf`, and what `generate` is to follow.

    weights: float32, float16, bfloat16, or int8, which is GGML's Q8_0: blocks of 32 entries of a
        row with one float16 scale, by nearest rounding. A matrix whose rows cannot be cut into
        blocks of 32 is float16 then, as in llama.cpp's own files. int4 is Q4_0: blocks of 32
        entries in [-8, 7] with one float16 scale; matrices without `scales` are as with int8.
    scales: of int4, name → [rows, groups], each for a multiple of 32 entries of a row, whose values
        in the checkpoint are integers times these: they are written as they are.

    Raises StageError where llama.cpp would not compute what the model does.
    """
    import gguf

    from compressor.backends.gguf.vocabulary import add_vocabulary

    config = checkpoint.model.config
    if names := list_unsupported(config.to_dict()):
        raise StageError(f"llama.cpp does not follow this model's {', '.join(names)}")
    folder.mkdir(parents=True, exist_ok=True)
    if checkpoint.head in WRITERS:  # a GGUF file has no settings of a search
        require_followed(checkpoint.model.generation_config.to_dict(), "llamacpp", greedy=True)
        checkpoint.model.generation_config.save_pretrained(folder)
    architecture = gguf.MODEL_ARCH[_ARCHITECTURES[config.model_type]]
    writer = gguf.GGUFWriter(folder / FILE, gguf.MODEL_ARCH_NAMES[architecture])
    try:
        _add_settings(writer, config, weights)
        add_vocabulary(writer, checkpoint.tokenizer, config.vocab_size)
        kind = "Q8_0" if weights == "int4" else _TYPES[weights]
        _add_tensors(writer, checkpoint.model, architecture, kind, scales or {})
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def list_unsupported(
    config: Mapping[str, Any], ropes: Collection[str] = ("default", "linear", "llama3")
) -> list[str]:
    """List the settings of a config with which llama.cpp computes something else, or nothing.

    `ropes`: the kinds of positions that a Llama may have.
    """
    kind = config["model_type"]
    expected = _FOLLOWED["t5" if kind == "mt5" else kind]
    names = [name for name, value in expected.items() if config.get(name, value) != value]
    if kind in ("t5", "mt5"):
        if config["feed_forward_proj"] not in ("relu", "gated-gelu", "gated-gelu_new"):
            names.append("feed_forward_proj")
        layers = config["num_layers"]
        if (config.get("num_decoder_layers") or layers) > layers:  # it runs beyond its list
            names.append("decoder, which has more layers than the encoder")
    if _has_sliding_window(config):
        names.append("sliding window")
    if get_rope_type(config) not in (ropes if kind == "llama" else ("default",)):
        names.append(f"rope_type {get_rope_type(config)!r}")
    if _get_rope(config).get("partial_rotary_factor", 1) != 1:
        names.append("partial_rotary_factor")
    return names


def get_rope_type(config: Mapping[str, Any]) -> str:
    """Get what a config calls the rotations of its positions."""
    rope = _get_rope(config)
    return str(rope.get("rope_type", rope.get("type", "default")))


def _get_rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _has_sliding_window(config: Mapping[str, Any]) -> bool:
    if config.get("layer_types"):
        return "sliding_attention" in config["layer_types"]
    first = config.get("max_window_layers")
    first = 28 if first is None else first  # as in transformers
    return bool(config.get("use_sliding_window")) and first < config["num_hidden_layers"]


def _add_settings(writer: Any, config: PretrainedConfig, weights: str) -> None:
    import gguf

    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[_TYPES[weights]]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type in ("t5", "mt5"):
        _add_t5(writer, config)
    elif config.model_type == "gpt2":
        writer.add_context_length(config.n_positions)
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        _add_llama(writer, config)


def _add_t5(writer: Any, config: PretrainedConfig) -> None:
    # Nothing bounds a T5's lengths; of the two llama.cpp takes the first for its default context.
    writer.add_context_length(getattr(config, "n_positions", None) or 512)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_decoder_block_count(config.num_decoder_layers)
    writer.add_key_length(config.d_kv)
    writer.add_value_length(config.d_kv)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_relative_attn_buckets_count(config.relative_attention_num_buckets)
    writer.add_decoder_start_token_id(config.decoder_start_token_id)


def _add_llama(writer: Any, config: PretrainedConfig) -> None:
    size = _head_size(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _head_size(config: PretrainedConfig) -> int:
    size = getattr(config, "head_dim", None)
    return int(size or config.hidden_size // config.num_attention_heads)


def _add_tensors(
    writer: Any,
    model: PreTrainedModel,
    architecture: Any,
    kind: str,
    scales: Mapping[str, Floats],
) -> None:
    import gguf

    from compressor.models.loading import drop_tied_duplicates

    layers = max(
        model.config.num_hidden_layers, getattr(model.config, "num_decoder_layers", None) or 0
    )
    names = gguf.get_tensor_name_map(architecture, layers)
    for name, tensor in drop_tied_duplicates(model.state_dict()).items():
        called = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if called is None:
            raise StageError(f"llama.cpp has no place for {name}")
        values = _lay_out(name, tensor.detach().float().cpu().numpy(), model.config)
        if name in scales:
            packed = _pack_int4(called, values, _lay_out(name, scales[name], model.config))
            writer.add_tensor(called, packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
        else:
            _add_tensor(writer, called, values, kind)
    if (factors := _compute_rope_factors(model)) is not None:
        _add_tensor(writer, "rope_freqs.weight", factors, "F32")


def _add_tensor(writer: Any, name: str, values: Floats, kind: str) -> None:
    import gguf
    import numpy as np

    if values.ndim < 2 or name.endswith(_FLOAT32):
        kind = "F32"
    elif kind == "Q8_0" and values.shape[-1] % BLOCK:
        kind = "F16"
    if kind == "F16" and np.abs(values).max() > np.finfo(np.float16).max:
        raise StageError(f"{name} has an entry that is too large for float16")
    number = gguf.GGMLQuantizationType[kind]
    data = gguf.quants.quantize(np.ascontiguousarray(values), number)
    writer.add_tensor(name, data, raw_dtype=number)


def _pack_int4(name: str, values: Floats, scales: Floats) -> NDArray[np.uint8]:
    """Pack values that are integers in [-8, 7] times `scales`, [rows, groups], as Q4_0.

    A block is a float16 scale and 16 bytes: entry i, plus 8, in the low half of byte i, and entry
    i + 16 in the high half.
    """
    import numpy as np

    if np.abs(scales).max() > np.finfo(np.float16).max:
        raise StageError(f"{name} has a scale that is too large for float16")
    scales = np.repeat(scales, values.shape[1] // BLOCK // scales.shape[1], axis=1)
    entries = np.rint(values.reshape(*scales.shape, BLOCK) / scales[..., None]) + 8
    halves = entries.astype(np.uint8).reshape(*scales.shape, 2, BLOCK // 2)
    packed = halves[..., 0, :] | halves[..., 1, :] << 4
    stored = scales.astype(np.float16)[..., None].view(np.uint8)
    return np.concatenate((stored, packed), axis=-1).reshape(len(values), -1)


def _lay_out(name: str, values: Floats, config: PretrainedConfig) -> Floats:
    """Lay a tensor out as llama.cpp wants it."""
    import numpy as np

    if config.model_type == "gpt2" and values.ndim == 2 and ".c_" in name:
        return values.T  # Conv1D has (in, out)
    if config.model_type == "llama" and (".q_proj." in name or ".k_proj." in name):
        # Of each head the two halves that a rotation pairs, to pairs side by side.
        heads = config.num_attention_heads if ".q_" in name else config.num_key_value_heads
        halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    is_last = config.model_type == "t5" and name == "decoder.final_layer_norm.weight"
    if is_last and scales_outputs(config.model_type, vars(config)):
        # What a tied head's input is multiplied with, which llama.cpp leaves out: its own files
        # give logits that are sqrt(d_model) times as large.
        return values * np.float32(config.d_model**-0.5)
    return values


def _compute_rope_factors(model: PreTrainedModel) -> Floats | None:
    """Compute what a Llama's scaled rotary frequencies are divided by, one factor a pair."""
    import numpy as np

    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") == "default":
        return None
    size = _head_size(config)
    plain = rope["rope_theta"] ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    scaled = model.model.rotary_emb.inv_freq.double().cpu().numpy()
    factors: Floats = (plain / scaled).astype(np.float32)
    return factors
