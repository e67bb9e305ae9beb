"""A model with its tokenizer and masks, on disk and in memory. What stages hand to each other.

Weights are safetensors, never pickle. `masks.safetensors` holds, for each pruned parameter, True
where an entry stays. A quantized model has integer weights and their scales in the same file, or
all of its tensors in a type of two bytes; `checkpoint.json` says which.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from compressor.core.errors import StageError
from compressor.core.numbers import require_finite
from compressor.data.examples import (
    Examples,
    tokenize_labelled,
    tokenize_rows,
    tokenize_tagged,
    tokenize_texts,
)
from compressor.models import loading
from compressor.models.architectures.t5 import T5_TYPES, scales_outputs
from compressor.models.block import has_blocks
from compressor.models.block_config import BLOCKS_FILE
from compressor.models.breakdown import TensorCounts, sum_by_location
from compressor.models.facts import Facts
from compressor.models.facts import derive_facts as facts_of
from compressor.models.masks import apply_mask
from compressor.models.quantization import Quantization
from compressor.models.quantized_layers import LAYERS, count_entries

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from compressor.data.rows import Rows
    from compressor.data.source_base import DataBase

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()  # what it warns of (ties, unused keys) is checked here


@dataclass
class Checkpoint:
    """A model, what it needs to read text, and which of its weights are pruned."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    head: loading.Head
    masks: dict[str, Tensor] = field(default_factory=dict)
    """Parameter name → bool, True where the entry stays. Tied parameters have one mask."""
    quantization: Quantization | None = None
    """What a `quantize` stage has made of the model; None for a float32 one."""

    def save(self, folder: Path) -> None:
        """Write everything into `folder`. A tensor that is tied is written once."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.quantization is None:
            save_pretrained(self.model, folder)
        else:
            save_state(self.model, folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        if self.masks:
            save_file(
                {k: m.contiguous().cpu() for k, m in self.masks.items()}, folder / loading.MASKS
            )
        quantization = self.quantization and self.quantization.model_dump()
        about = {"head": self.head, "quantization": quantization}
        (folder / loading.CHECKPOINT_JSON).write_text(
            json.dumps(about, indent=2) + "\n", encoding="utf-8"
        )

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read what `save` wrote, in the types it was in. On the CPU, in evaluation mode."""
        about = json.loads((folder / loading.CHECKPOINT_JSON).read_text(encoding="utf-8"))
        head: loading.Head = about["head"]
        quantization = loading.read_quantization(about)
        if quantization is None:
            model = loading.load_pretrained(folder, head)
        else:
            model = loading.load_quantized(folder, head, quantization)
        masks = load_file(folder / loading.MASKS) if (folder / loading.MASKS).is_file() else {}
        tokenizer = loading.load_tokenizer(folder) if loading.has_tokenizer(folder) else None
        return cls(model.eval(), tokenizer, head, masks, quantization)

    def derive_facts(self) -> Facts:
        """Derive what planning would know of this model, without its masks."""
        untied = loading.has_untied_head(self.model)
        return facts_of(self.model.config.to_dict(), head=self.head, untied_head=untied)

    def tokenize_rows(self, rows: Rows, data: DataBase) -> Examples:
        """Tokenize rows, in the layout of this model's head. Raises StageError."""
        tokenizer = self.require_tokenizer()
        if self.head == "sequence_classification":
            return tokenize_labelled(rows, tokenizer, data)
        if self.head == "token_classification":
            return tokenize_tagged(rows, tokenizer, data)
        if data.is_text_alone:
            return tokenize_texts(rows, tokenizer, data)
        return tokenize_rows(rows, tokenizer, data, joined=self.head == "causal_lm")

    def require_tokenizer(self) -> PreTrainedTokenizerBase:
        """Give its tokenizer. Raises StageError where it has none."""
        if self.tokenizer is None:
            raise StageError("the model has no tokenizer; set model.tokenizer")
        return self.tokenizer

    @property
    def weights(self) -> str:
        """The type that the weights are stored in."""
        return self.quantization.weights if self.quantization else "float32"

    @property
    def pad_id(self) -> int:
        """The id that fills a batch: eos where there is no pad; what is masked may be anything.

        Raises StageError where there is neither a pad nor an eos.
        """
        tokenizer = self.require_tokenizer()
        pad: int | None = tokenizer.pad_token_id
        if pad is None or self.head == "causal_lm":
            pad = tokenizer.eos_token_id
        if pad is None:
            raise StageError(
                "the tokenizer has no pad and no eos token, one of which fills batches"
            )
        return pad

    def get_parameter(self, name: str) -> nn.Parameter:
        """Find the parameter called `name`, whichever of its tied names that is."""
        parameter: nn.Parameter = self.model.get_parameter(name)
        return parameter

    def apply_masks(self) -> None:
        """Set every masked entry to zero."""
        with torch.no_grad():
            for name, mask in self.masks.items():
                apply_mask(self.get_parameter(name), mask.to(self.model.device))

    def require_finite(self, cure: str = "a setting of this stage is too extreme") -> None:
        """Raise StageError that names a weight which is NaN or infinite; `cure`: what to do then.

        A buffer that stands for no weight may be: Marian's bias has -inf for what is never written.
        """
        buffers = _plain_buffers(self.model)
        weights = loading.drop_tied_duplicates(self.model.state_dict())
        require_finite({n: w for n, w in weights.items() if n not in buffers}, "", cure)

    def measure_sizes(self, folder: Path) -> dict[str, Any]:
        """Measure what tables show of a saved model: counts of tensors, bytes of files.

        `groups` has them by group and layer, as `breakdown.sum_by_location` gives them.
        """
        state, buffers = self.model.state_dict(), _plain_buffers(self.model)
        counts, tensor_bytes = list[TensorCounts](), 0
        for name, tensor in loading.drop_tied_duplicates(state).items():
            if name in buffers:
                continue
            tensor_bytes += tensor.nbytes
            if name.endswith("_scale"):
                continue
            scale = state.get(f"{name}_scale")
            whole = tensor.numel(), int(torch.count_nonzero(tensor))
            counts.append(
                TensorCounts(name, *(whole if scale is None else count_entries(tensor, scale)))
            )
        parameters = sum(count.weights for count in counts)
        nonzero = sum(count.nonzero for count in counts)
        return {
            "parameters": parameters,
            "nonzero": nonzero,
            "nonzero_ratio": nonzero / parameters,
            "masked": sum(int((~mask).count_nonzero()) for mask in self.masks.values()),
            "bytes": loading.find_weights_file(folder).stat().st_size,
            "tensor_bytes": tensor_bytes,
            "groups": sum_by_location(self.derive_facts(), counts),
        }


def _plain_buffers(model: nn.Module) -> set[str]:
    """Name the buffers that stand for no parameter, as BART's `final_logits_bias` does not."""
    return {
        f"{path}.{name}".removeprefix(".")
        for path, module in model.named_modules()
        if not isinstance(module, LAYERS)
        for name, _ in module.named_buffers(recurse=False)
    }


def save_pretrained(model: PreTrainedModel, folder: Path) -> None:
    """`save_pretrained` into one safetensors file, which `from_pretrained` gives back as it was.

    A model with blocks is written so that only `load_pretrained` reads it.
    """
    if has_blocks(model):
        save_state(model, folder)
        return
    model.save_pretrained(folder, max_shard_size="1000GB")
    _complete_config(model, folder)


def save_state(model: PreTrainedModel, folder: Path) -> None:
    """Write the configs, and every distinct tensor under the first of its names."""
    save_config(model, folder)
    tensors = loading.drop_tied_duplicates(model.state_dict())
    state = {name: tensor.contiguous() for name, tensor in tensors.items()}
    name = BLOCKS_FILE if has_blocks(model) else loading.WEIGHTS
    save_file(state, folder / name, metadata={"format": "pt"})


def save_config(model: PreTrainedModel, folder: Path) -> None:
    """Write the config, and the generation config where there is one."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    _complete_config(model, folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def entries_as_read(config: PretrainedConfig) -> dict[str, Any]:
    """List what a `config.json` needs for transformers 4 and 5 to read the same model in it.

    By `tie_word_embeddings` both understand of a T5 whether decoder outputs are scaled, whatever
    transformers 5 has in memory; whether the head is tied, 5 finds from the tensors in the file.
    5 never scales an mT5's. 4 knows nothing of `rope_parameters`, and would take its own defaults.
    """
    entries: dict[str, Any] = {}
    if config.model_type in T5_TYPES:
        entries["tie_word_embeddings"] = scales_outputs(config.model_type, vars(config))
    rope = getattr(config, "rope_parameters", None) or {}
    if "rope_theta" in rope:
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        entries["rope_theta"] = rope["rope_theta"]
        entries["rope_scaling"] = scaling if rope.get("rope_type", "default") != "default" else None
    return entries


def _complete_config(model: PreTrainedModel, folder: Path) -> None:
    """Add `entries_as_read` to the config that is written there."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | entries_as_read(model.config)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def fit_transformers_4(model: PreTrainedModel) -> bool:
    """Change a model, and nothing that it computes, so that transformers 4 reads it as 5 does.

    There a T5's head is tied if, and only if, outputs are scaled; and Pegasus and Marian look up
    the words of encoder and decoder in one table. False: that cannot be, since two differ.
    """
    config = model.config
    if config.model_type in T5_TYPES:
        scaled = scales_outputs(config.model_type, vars(config))
        untied = loading.has_untied_head(model)
        if untied and scaled:
            model.lm_head.weight.data *= config.d_model**-0.5
            config.scale_decoder_outputs = False
        elif not untied and not scaled:
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    if config.model_type == "marian" and not config.share_encoder_decoder_embeddings:
        return bool(config.decoder_vocab_size == config.vocab_size)
    if config.model_type in ("pegasus", "marian") and loading.has_untied_head(model):
        tables = [stack.embed_tokens.weight for stack in (model.model.encoder, model.model.decoder)]
        if not torch.equal(*tables):
            return False
        model.model.shared.weight.data.copy_(tables[0])
    return True


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """`save_pretrained`, with the names that transformers 4 knows and 5 takes for its own."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if "extra_special_tokens" in config:
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
