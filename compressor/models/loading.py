"""Build models from configs, and load published and saved ones exactly. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError  # raised by weights_only loading; nothing is unpickled
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.models.auto import modeling_auto

from compressor.core.errors import StageError
from compressor.models.block import put_blocks
from compressor.models.block_config import BLOCKS_FILE
from compressor.models.facts import HALF, load_architecture
from compressor.models.quantization import Quantization
from compressor.models.quantized_layers import Int8Embedding, put_quantized, set_activations
from compressor.models.structure import Stack

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

Head = Literal["seq2seq_lm", "causal_lm", "sequence_classification", "none"]

WEIGHTS, MASKS, CHECKPOINT_JSON = "model.safetensors", "masks.safetensors", "checkpoint.json"

AUTO_CLASSES = {
    "seq2seq_lm": AutoModelForSeq2SeqLM,
    "causal_lm": AutoModelForCausalLM,
    "sequence_classification": AutoModelForSequenceClassification,
    "none": AutoModel,
}

CLASS_NAMES: dict[Head, Mapping[str, str]] = {
    "seq2seq_lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "causal_lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "sequence_classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "none": modeling_auto.MODEL_MAPPING_NAMES,
}
"""Head → model type → the class that `AUTO_CLASSES` takes."""

FRESH_HEADS = ("classifier", "pre_classifier", "score", "bert.pooler")
"""How the names begin of what a classifier has and a pretrained body may lack."""


def drop_tied_duplicates(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a state dict with each tied tensor once, under the first of its names."""
    first: dict[Any, tuple[str, Tensor]] = {}
    for name, tensor in state.items():
        identity = (tensor.data_ptr(), tensor.numel()) if tensor.numel() else name
        first.setdefault(identity, (name, tensor))
    return dict(first.values())


def build_model(
    config: PretrainedConfig, head: Head, *, untied_head: bool = False
) -> PreTrainedModel:
    """Build a float32 model with fresh weights and the blocks that the config names.

    `untied_head`: its head is a tensor of its own. transformers 5 ties T5's whatever the config
    says; other models' it unties by itself.
    """
    model: PreTrainedModel = AUTO_CLASSES[head].from_config(config, dtype=torch.float32)
    for stack in list_stacks(config, head).values():
        put_blocks(model, config.hidden_size, stack)
    if untied_head and has_untied_head(model) is False:
        untie_head(model)
    return model


def build_fresh(values: Mapping[str, Any], head: Head) -> PreTrainedModel:
    """Build a model with fresh weights from a config's values, `model_type` among them."""
    values = dict(values)
    if head == "seq2seq_lm":
        values.setdefault("decoder_start_token_id", values.get("pad_token_id", 0))
    config = AutoConfig.for_model(**values)
    config._attn_implementation = None  # as in `load_config`
    if getattr(config, "forced_eos_token_id", None) and "forced_eos_token_id" not in values:
        config.forced_eos_token_id = config.eos_token_id  # BART's is its own tokenizer's
    return build_model(config, head, untied_head=values.get("tie_word_embeddings") is False)


def list_stacks(config: PretrainedConfig, head: Head) -> dict[str, Stack]:
    """List the stacks of a real model's config."""
    module, values = load_architecture(config.model_type), {**config.to_dict(), "head": head}
    stacks: dict[str, Stack] = module.stacks(values)
    return stacks


def untie_head(model: PreTrainedModel) -> None:
    """Give `lm_head` a fresh weight of its own."""
    fresh = torch.empty_like(model.lm_head.weight)
    nn.init.normal_(fresh, std=model.config.hidden_size**-0.5)
    model.lm_head.weight = nn.Parameter(fresh)


def has_untied_head(model: PreTrainedModel) -> bool | None:
    """Tell whether a language model's head is a tensor of its own; None for other models."""
    head = model.get_output_embeddings()
    if head is None:
        return None
    # All tables, since Marian's decoder may have one that is not the model's input embedding.
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding | Int8Embedding))
    return all(head.weight is not table.weight for table in tables)


def find_weights_file(folder: Path) -> Path:
    """Find the file of a model directory that has its weights."""
    return folder / (BLOCKS_FILE if (folder / BLOCKS_FILE).is_file() else WEIGHTS)


def load_pretrained(
    folder: Path,
    head: Head,
    *,
    trust_remote_code: bool = False,
    config: Mapping[str, Any] | None = None,
    generation: GenerationConfig | None = None,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> PreTrainedModel:
    """Load a model as `from_pretrained` does, but refuse tensors that do not fit the config.

    In float32, or in `dtype`; "auto" is that of the file. Only tensors are read: safetensors where
    there are any, else a `.bin` with `weights_only`.
    `config` has values that come instead of the folder's; for another number of labels in it, a
    classifier's head is drawn anew. `generation` comes instead of the folder's.
    """
    if (folder / BLOCKS_FILE).is_file():
        model = _load_with_blocks(folder, head, config or {}, dtype)
        if generation is not None:
            model.generation_config = generation
        return model
    try:
        other = dict(config or {}) if trust_remote_code else {"config": load_config(folder, config)}
        if generation is not None:
            other["generation_config"] = generation
        model, info = AUTO_CLASSES[head].from_pretrained(
            folder,
            dtype=dtype,
            output_loading_info=True,
            use_safetensors=any(folder.glob("*.safetensors")),
            weights_only=True,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=bool(config),
            **other,
        )
    except (SafetensorError, UnpicklingError, OSError, ValueError, RuntimeError) as error:
        raise StageError(f"cannot load the model in {folder}: {_first_line(error)}") from error
    fresh = FRESH_HEADS if config else ()  # such a head on a pretrained body is what one wants
    for kind in ("missing", "mismatched"):
        keys = info.get(f"{kind}_keys") or ()
        names = [key if isinstance(key, str) else key[0] for key in keys]
        _require_none(folder, kind, names, fresh)
    loaded: PreTrainedModel = model
    return loaded


def _require_none(folder: Path, kind: str, names: Iterable[str], fresh: tuple[str, ...]) -> None:
    """Raise StageError about tensors of which none may be but those that begin like `fresh`."""
    wrong = sorted(name for name in names if not name.startswith(fresh))
    if wrong:
        raise StageError(f"{folder}: {len(wrong)} {kind} tensors, such as {wrong[0]}")


def load_config(folder: Path, values: Mapping[str, Any] | None = None) -> PretrainedConfig:
    """Load the config of a model directory, with `values` instead of its own. Runs no code of it.

    What computes attention is not for the file to say: it could name a repository of the hub, whose
    code transformers would fetch and run (as in CVE-2026-4372).
    """
    config: PretrainedConfig = AutoConfig.from_pretrained(
        folder, trust_remote_code=False, **(values or {})
    )
    config._attn_implementation = None  # transformers then chooses; also for configs in this one
    if getattr(config, "chunk_size_feed_forward", 0):
        config.chunk_size_feed_forward = 0  # saves memory, and fails on lengths it does not divide
    return config


def find_head(folder: Path) -> Head:
    """Find the head that a model directory's config names. Raises StageError."""
    if not (folder / "config.json").is_file():
        raise StageError(f"no model in {folder}: expected a config.json")
    try:
        config = load_config(folder)
    except (OSError, ValueError) as error:
        raise StageError(f"cannot load the model in {folder}: {_first_line(error)}") from error
    for head, classes in CLASS_NAMES.items():
        if classes.get(config.model_type) in (config.architectures or ()):
            return head
    message = f"its config's `architectures` is {config.architectures}"
    raise StageError(f"cannot tell what kind of model is in {folder}: {message}")


def _load_with_blocks(
    folder: Path, head: Head, config: Mapping[str, Any], dtype: torch.dtype | Literal["auto"]
) -> PreTrainedModel:
    """Load a model with blocks, also from under another head."""
    try:
        model = build_model(load_config(folder, config), head)
        state = load_file(folder / BLOCKS_FILE)
        load_generation_config(model, folder)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise StageError(f"cannot load the model in {folder}: {_first_line(error)}") from error
    needed, base = drop_tied_duplicates(model.state_dict()), f"{model.base_model_prefix}."
    below = [any(name.startswith(base) for name in names) for names in (needed, state)]
    if below == [True, False]:  # a body without a head has no prefix
        state = {base + name: tensor for name, tensor in state.items()}
    elif below == [False, True]:
        state = {name.removeprefix(base): tensor for name, tensor in state.items()}
    fits = {n for n in needed.keys() & state.keys() if needed[n].shape == state[n].shape}
    fresh = FRESH_HEADS if config else ()
    _require_none(folder, "missing", needed.keys() - state.keys(), fresh)
    _require_none(folder, "mismatched", needed.keys() & state.keys() - fits, fresh)
    unused = (*FRESH_HEADS, "pooler", f"{base}pooler")
    _require_none(folder, "unexpected", state.keys() - needed.keys(), unused)
    load_exactly(model, needed | {name: state[name] for name in fits})
    of_file = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    return model.to(of_file if dtype == "auto" else dtype).eval()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def load_exactly(model: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
    """Copy a state dict with each tied tensor once; every distinct tensor must be in it."""
    for name, tensor in drop_tied_duplicates(model.state_dict()).items():
        if name not in state:
            raise StageError(f"the weights lack {name}")
        tensor.copy_(state[name])


def load_generation_config(model: PreTrainedModel, folder: Path) -> None:
    """Give a model the generation config of its folder, where there is one."""
    from transformers import GenerationConfig

    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a model directory has a tokenizer's files."""
    names = ("tokenizer.json", "vocab.txt", "vocab.json")
    return any((folder / name).is_file() for name in names) or any(folder.glob("*.model"))


def load_tokenizer(source: str | Path, **where: Any) -> Tokenizer:
    """Load a fast tokenizer from a folder or, with `revision`, from the hub."""
    try:
        # Without a word on it, transformers asks on the standard input whether code may run.
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, **where
        )
    except ValueError as error:
        raise StageError(f"cannot load the tokenizer of {source}: {_first_line(error)}") from error
    # Whether HF_HUB_OFFLINE was set would be saved with it: the same artifact in other bytes.
    tokenizer.init_kwargs.pop("local_files_only", None)
    return tokenizer


def cast_weights(model: PreTrainedModel, weights: str) -> int:
    """Turn all that a model saves into the named floating-point type; count the tensors.

    What it does not save stays as it is: a rotary embedding's angles need float32. Raises
    StageError where an entry is too large for the type.
    """
    tensors = drop_tied_duplicates(model.state_dict(keep_vars=True))
    for name, tensor in tensors.items():
        tensor.data = tensor.data.to(getattr(torch, weights))
        if not bool(torch.isfinite(tensor).all()):
            instead = "bfloat16" if weights == "float16" else "float32 or int8"
            raise StageError(f"{name} has an entry that {weights} cannot hold; take {instead}")
    return len(tensors)


def read_quantization(about: Mapping[str, Any]) -> Quantization | None:
    """Read it from a `checkpoint.json`; before there was more than int8, it said so otherwise."""
    if activations := about.get("int8_activations"):
        return Quantization(weights="int8", activations=activations)
    values = about.get("quantization")
    return values and Quantization.model_validate(values)


def load_quantized(folder: Path, head: Head, quantization: Quantization) -> PreTrainedModel:
    """Load a quantized model that a checkpoint has saved."""
    state = load_file(find_weights_file(folder))
    # Only a head that is a tensor of its own is in the file under its own name.
    config = load_config(folder)
    model = build_model(config, head, untied_head="lm_head.weight" in state)
    if quantization.weights in HALF:
        cast_weights(model, quantization.weights)
    scales = {name.removesuffix("_scale"): name for name in state if name.endswith("_scale")}
    put_quantized(model, {name: (state[name], state[scale]) for name, scale in scales.items()})
    set_activations(model, quantization)
    load_exactly(model, state)
    load_generation_config(model, folder)
    return model
