"""Build models from configs, and load published and saved ones exactly. Nothing is unpickled."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
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
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from transformers.models.auto import modeling_auto

from compressor.core.errors import StageError, first_line
from compressor.models.block import put_blocks
from compressor.models.block_config import BLOCKS_FILE
from compressor.models.facts import FRESH_HEADS, HALF, Facts, load_architecture
from compressor.models.model_files import HEAD
from compressor.models.quantization import Quantization
from compressor.models.quantized_layers import Int8Embedding, put_quantized, set_activations
from compressor.models.source_checks import find_adapter
from compressor.models.structure import Stack

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

Head = Literal["seq2seq_lm", "causal_lm", "sequence_classification", "token_classification", "none"]

WEIGHTS, MASKS, CHECKPOINT_JSON = "model.safetensors", "masks.safetensors", "checkpoint.json"
"""The files of a saved `Checkpoint`; `checkpoint.json` has its head and its quantization."""

AUTO_CLASSES = {
    "seq2seq_lm": AutoModelForSeq2SeqLM,
    "causal_lm": AutoModelForCausalLM,
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "none": AutoModel,
}
"""Head → the transformers class that loads a model with it."""

CLASS_NAMES: dict[Head, Mapping[str, str]] = {
    "seq2seq_lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "causal_lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "sequence_classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token_classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "none": modeling_auto.MODEL_MAPPING_NAMES,
}
"""Head → model type → the class that `AUTO_CLASSES` picks, as a config's `architectures` has it."""


def drop_tied_duplicates(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep each tied tensor of a state dict once, under the first of its names."""
    unique: dict[Any, tuple[str, Tensor]] = {}
    for name, tensor in state.items():
        identity = (tensor.data_ptr(), tensor.numel()) if tensor.numel() else name
        unique.setdefault(identity, (name, tensor))
    return dict(unique.values())


def build_model(
    config: PretrainedConfig, head: Head, *, untied_head: bool = False
) -> PreTrainedModel:
    """Build a float32 model with random weights and the blocks that the config names.

    `untied_head`: `lm_head` is not the embedding's tensor. transformers 5 ties T5's whatever the
    config says; of other models it follows the config.
    """
    model: PreTrainedModel = AUTO_CLASSES[head].from_config(config, dtype=torch.float32)
    for stack in list_stacks(config, head).values():
        put_blocks(model, config.hidden_size, stack)
    if untied_head and has_untied_head(model) is False:
        untie_head(model)
    return model


def build_fresh(values: Mapping[str, Any], head: Head) -> PreTrainedModel:
    """Build a model with random weights from a config's values, `model_type` among them."""
    values = dict(values)
    if head == "seq2seq_lm":
        values.setdefault("decoder_start_token_id", values.get("pad_token_id", 0))
    config = AutoConfig.for_model(**values)
    config._attn_implementation = None  # as in `load_config`
    if getattr(config, "forced_eos_token_id", None) and "forced_eos_token_id" not in values:
        # BART's default is the eos of its own tokenizer.
        config.forced_eos_token_id = config.eos_token_id
    return build_model(config, head, untied_head=values.get("tie_word_embeddings") is False)


def list_stacks(config: PretrainedConfig, head: Head) -> dict[str, Stack]:
    """List the stacks of a real model's config."""
    module, values = load_architecture(config.model_type), {**config.to_dict(), "head": head}
    stacks: dict[str, Stack] = module.stacks(values)
    return stacks


def untie_head(model: PreTrainedModel) -> None:
    """Give `lm_head` a random weight of its own."""
    weight = torch.empty_like(model.lm_head.weight)
    nn.init.normal_(weight, std=model.config.hidden_size**-0.5)
    model.lm_head.weight = nn.Parameter(weight)


def has_untied_head(model: PreTrainedModel) -> bool | None:
    """Tell whether a language model's head is a tensor of its own; None for other models."""
    head = model.get_output_embeddings()
    if head is None:
        return None
    # All tables, since Marian's decoder may have one that is not the model's input embedding.
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding | Int8Embedding))
    return all(head.weight is not table.weight for table in tables)


def require_planned_head(model: PreTrainedModel, planned: Facts, folder: Path) -> None:
    """Raise StageError where a `.bin`, which no plan reads, contradicts its config's head."""
    if (HEAD in planned.shapes) != bool(has_untied_head(model)):
        verb = "equals" if HEAD in planned.shapes else "differs from"
        raise StageError(
            f"the head in {folder} {verb} its embedding, and its config says otherwise: all counts "
            "of the plan would be wrong. A plan does not read a .bin; save the model again with "
            "transformers, as safetensors"
        )


def find_weights_file(folder: Path) -> Path:
    """Find the safetensors file of a checkpoint, which a model with blocks calls otherwise."""
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

    Only tensors are read: from safetensors if there are any, else from a `.bin` with
    `weights_only`. Raises StageError if the model cannot be loaded.

    config: values that replace those of the folder's config; if they change the number of labels,
        a classifier's head is initialized anew.
    generation: replaces the folder's generation config.
    dtype: of the loaded weights; "auto" is the file's.
    """
    if (problem := find_adapter(folder)) is not None:  # planning has seen local folders alone
        raise StageError(problem)
    if (folder / BLOCKS_FILE).is_file():
        model = _load_with_blocks(folder, head, config or {}, dtype)
        if generation is not None:
            model.generation_config = generation
        return model
    try:
        # A model with code needs its own config class; any other config is made safe first.
        options = (
            dict(config or {}) if trust_remote_code else {"config": load_config(folder, config)}
        )
        if generation is not None:
            options["generation_config"] = generation
        model, info = AUTO_CLASSES[head].from_pretrained(
            folder,
            dtype=dtype,
            output_loading_info=True,
            use_safetensors=any(folder.glob("*.safetensors")),
            weights_only=True,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=bool(config),
            **options,
        )
    except (SafetensorError, UnpicklingError, OSError, ValueError, RuntimeError) as error:
        raise StageError(f"cannot load the model in {folder}: {first_line(error)}") from error
    allowed = FRESH_HEADS if config else ()  # whoever sets values may want a new head on a body
    for kind in ("missing", "mismatched"):
        keys = info.get(f"{kind}_keys") or ()
        names = [key if isinstance(key, str) else key[0] for key in keys]
        _refuse_tensors(folder, kind, names, allowed)
    loaded: PreTrainedModel = model
    return loaded


def _refuse_tensors(
    folder: Path, kind: str, names: Iterable[str], allowed: tuple[str, ...]
) -> None:
    """Raise StageError if a name of these `kind` tensors begins with none of the `allowed`.

    `kind`: "missing", "mismatched" or "unexpected".
    """
    wrong = sorted(name for name in names if not name.startswith(allowed))
    if wrong:
        raise StageError(f"{folder}: {len(wrong)} {kind} tensors, such as {wrong[0]}")


def load_config(folder: Path, values: Mapping[str, Any] | None = None) -> PretrainedConfig:
    """Load the config of a model directory, with `values` in place of its own. Runs no code of it.

    The attention implementation is reset, since the file could name a repository of the hub, whose
    code transformers would fetch and run (as in CVE-2026-4372).
    """
    config: PretrainedConfig = AutoConfig.from_pretrained(
        folder, trust_remote_code=False, **(values or {})
    )
    config._attn_implementation = None  # transformers chooses; also resets nested configs
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
        raise StageError(f"cannot load the model in {folder}: {first_line(error)}") from error
    for head, classes in CLASS_NAMES.items():
        if classes.get(config.model_type) in (config.architectures or ()):
            return head
    message = f"its config's `architectures` is {config.architectures}"
    raise StageError(f"cannot tell what kind of model is in {folder}: {message}")


def _load_with_blocks(
    folder: Path, head: Head, config: Mapping[str, Any], dtype: torch.dtype | Literal["auto"]
) -> PreTrainedModel:
    """Load a model with blocks, also a body for a model with a head, and the other way round."""
    try:
        model = build_model(load_config(folder, config), head)
        state = load_file(folder / BLOCKS_FILE)
        load_generation_config(model, folder)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise StageError(f"cannot load the model in {folder}: {first_line(error)}") from error
    expected, base = drop_tied_duplicates(model.state_dict()), f"{model.base_model_prefix}."
    # Only under a head do the names of a body's parameters begin with its prefix, as `bert.`.
    has_prefix = [any(name.startswith(base) for name in names) for names in (expected, state)]
    if has_prefix == [True, False]:
        state = {base + name: tensor for name, tensor in state.items()}
    elif has_prefix == [False, True]:
        state = {name.removeprefix(base): tensor for name, tensor in state.items()}
    fitting = {n for n in expected.keys() & state.keys() if expected[n].shape == state[n].shape}
    allowed = FRESH_HEADS if config else ()
    _refuse_tensors(folder, "missing", expected.keys() - state.keys(), allowed)
    _refuse_tensors(folder, "mismatched", expected.keys() & state.keys() - fitting, allowed)
    unused = (*FRESH_HEADS, "pooler", f"{base}pooler")
    _refuse_tensors(folder, "unexpected", state.keys() - expected.keys(), unused)
    load_exactly(model, expected | {name: state[name] for name in fitting})
    file_dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    return model.to(file_dtype if dtype == "auto" else dtype).eval()


def load_exactly(
    model: PreTrainedModel,
    state: Mapping[str, Tensor],
    change: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor,
) -> None:
    """Copy `state` into the model, each tensor as `change` (name, tensor) gives it.

    Raises StageError if it lacks one of the distinct tensors.
    """
    for name, tensor in drop_tied_duplicates(model.state_dict()).items():
        if name not in state:
            raise StageError(f"the weights lack {name}")
        tensor.copy_(change(name, state[name]))


def load_generation_config(model: PreTrainedModel, folder: Path) -> None:
    """Set a model's generation config to the one in its folder, if there is one."""
    from transformers import GenerationConfig

    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a model directory has a tokenizer's files."""
    names = ("tokenizer.json", "vocab.txt", "vocab.json")
    return any((folder / name).is_file() for name in names) or any(folder.glob("*.model"))


def load_tokenizer(source: str | Path, **options: Any) -> Tokenizer:
    """Load a fast tokenizer from a folder or the hub; `options` as `from_pretrained` takes them.

    Raises StageError if there is none, or it would run code.
    """
    try:
        with warnings.catch_warnings():
            # Marian's recommends a package that it asks nothing of.
            warnings.filterwarnings("ignore", ".*sacremoses", UserWarning)
            # With `trust_remote_code` unset, transformers asks on standard input if code may run.
            tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
                source, trust_remote_code=False, **options
            )
    except ValueError as error:
        raise StageError(f"cannot load the tokenizer of {source}: {first_line(error)}") from error
    # It is saved with the tokenizer, so HF_HUB_OFFLINE would change the artifact's bytes.
    tokenizer.init_kwargs.pop("local_files_only", None)
    return tokenizer


def cast_weights(model: PreTrainedModel, weights: str) -> int:
    """Cast all tensors that a model saves to `weights`, such as "bfloat16"; return their number.

    Buffers that it does not save stay as they are: a rotary embedding's angles need float32. Raises
    StageError if an entry is too large for the type.
    """
    tensors = drop_tied_duplicates(model.state_dict(keep_vars=True))
    for name, tensor in tensors.items():
        tensor.data = tensor.data.to(getattr(torch, weights))
        if not bool(torch.isfinite(tensor).all()):
            instead = "bfloat16" if weights == "float16" else "float32 or int8"
            raise StageError(f"{name} has an entry that {weights} cannot hold; take {instead}")
    return len(tensors)


def read_quantization(about: Mapping[str, Any]) -> Quantization | None:
    """Read the quantization from the values of a `checkpoint.json`; None for a float model."""
    if activations := about.get("int8_activations"):  # an old checkpoint, when all were int8
        return Quantization(weights="int8", activations=activations)
    values = about.get("quantization")
    return values and Quantization.model_validate(values)


def load_quantized(folder: Path, head: Head, quantization: Quantization) -> PreTrainedModel:
    """Load a quantized model from a checkpoint's folder."""
    state = load_file(find_weights_file(folder))
    config = load_config(folder)
    # A tied head is saved under the embedding's name alone.
    model = build_model(config, head, untied_head="lm_head.weight" in state)
    if quantization.weights in HALF:
        cast_weights(model, quantization.weights)
    scales = {name.removesuffix("_scale"): name for name in state if name.endswith("_scale")}
    put_quantized(model, {name: (state[name], state[scale]) for name, scale in scales.items()})
    set_activations(model, quantization)
    load_exactly(model, state)
    load_generation_config(model, folder)
    return model
