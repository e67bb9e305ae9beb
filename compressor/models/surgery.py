"""Remove layers and units from a model, replace layers, and undo quantization."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compressor.models.block import Block, put_block
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import (
    build_model,
    drop_tied_duplicates,
    has_untied_head,
    list_stacks,
    load_exactly,
)
from compressor.models.quantized_layers import dequantize_weight
from compressor.models.structure import Units, renumber_parameter

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def _rebuild(
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    state: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    change: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor,
) -> Checkpoint:
    """Build the model of another config, with these tensors, each changed as it is copied."""
    source = checkpoint.model
    model = build_model(config, checkpoint.head, untied_head=bool(has_untied_head(source)))
    load_exactly(model, state, change)
    if source.can_generate():
        model.generation_config = copy.deepcopy(source.generation_config)
    return Checkpoint(model.eval(), checkpoint.tokenizer, checkpoint.head, dict(masks))


def keep_layers(checkpoint: Checkpoint, kept: Mapping[str, list[int]]) -> Checkpoint:
    """Make a checkpoint with, of each named stack, only the listed layers, renumbered.

    The model is built anew from the smaller config, so that `layer_idx`, caches and the position
    bias of T5's first block are right by construction.
    """
    model = checkpoint.model
    stacks, config = list_stacks(model.config, checkpoint.head), copy.deepcopy(model.config)
    for stack, layers in kept.items():
        for key, value in stacks[stack].config_after(model.config.to_dict(), layers).items():
            setattr(config, key, value)

    def rename_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pairs = [(renumber_parameter(stacks, kept, name), t) for name, t in tensors.items()]
        return {name: tensor for name, tensor in pairs if name is not None}

    state, masks = rename_tensors(model.state_dict()), rename_tensors(checkpoint.masks)
    smaller = _rebuild(checkpoint, config, state, masks)
    _keep_attention_scale(smaller.model, kept)
    return smaller


def _keep_attention_scale(model: PreTrainedModel, kept: Mapping[str, list[int]]) -> None:
    """Have the layers of a GPT-2 that divides attention scores by a layer's number + 1 give, under
    their new numbers, the scores that they gave: the factor goes into their queries.
    """
    if not getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        return
    for new, old in enumerate(kept.get("decoder", ())):
        projection = model.base_model.h[new].attn.c_attn
        for tensor in (projection.weight.data, projection.bias.data):
            tensor[..., : model.config.n_embd] *= (new + 1) / (old + 1)


def replace_layers(checkpoint: Checkpoint, layers: Sequence[int], block: Block) -> Checkpoint:
    """Make a checkpoint with `block` itself in the place of consecutive layers of the encoder."""
    count = list_stacks(checkpoint.model.config, checkpoint.head)["encoder"].layers
    shorter = keep_layers(checkpoint, {"encoder": [i for i in range(count) if i not in layers[1:]]})
    stack = list_stacks(shorter.model.config, shorter.head)["encoder"]
    put_block(shorter.model, stack, layers[0], block.eval())
    for key, value in stack.with_block(layers[0], block.sizes).items():
        setattr(shorter.model.config, key, value)
    place = f"{stack.prefix}.{layers[0]}."
    shorter.masks = {n: mask for n, mask in shorter.masks.items() if not n.startswith(place)}
    return shorter


def keep_units(
    checkpoint: Checkpoint,
    kept: Iterable[tuple[Units, Sequence[int]]],
    settings: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Make a checkpoint with, of each of the given units, only the listed ones, in that order.

    Every width that the config has one number for must be given for all units it counts. Masks
    are cut as their tensors are. `settings` are other values of the config that change with it.
    """
    config, changes = copy.deepcopy(checkpoint.model.config), list(kept)
    for units, indices in changes:
        for key, value in units.settings_of(len(indices)).items():
            setattr(config, key, value)
        if units.config_key == "vocab_size" and hasattr(config, "decoder_vocab_size"):
            config.decoder_vocab_size = len(indices)  # of the one vocabulary
    for key, value in (settings or {}).items():
        setattr(config, key, value)

    def cut(name: str, tensor: Tensor) -> Tensor:
        for units, indices in changes:
            if name in units.tensors:
                tensor = take_units(tensor, units.tensors[name], units.count, indices)
        return tensor

    masks = {name: cut(name, mask) for name, mask in checkpoint.masks.items()}
    state = drop_tied_duplicates(checkpoint.model.state_dict())
    return _rebuild(checkpoint, config, state, masks, cut)


def dequantize_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """Make a float32 checkpoint with the values that a quantized one's weights stand for.

    Gives one that is not quantized as it is.
    """
    if checkpoint.quantization is None:
        return checkpoint
    state = drop_tied_duplicates(checkpoint.model.state_dict())

    def dequantize(name: str, tensor: Tensor) -> Tensor:
        scale = state.get(f"{name}_scale")
        return tensor if scale is None else dequantize_weight(tensor, scale)

    return _rebuild(checkpoint, checkpoint.model.config, state, {}, dequantize)


def list_int4_scales(checkpoint: Checkpoint) -> dict[str, Any]:
    """Map each int4 weight to the scales of its groups: float32 arrays, [rows, groups]."""
    return {
        name.removesuffix("_scale"): scale.float().cpu().numpy()
        for name, scale in checkpoint.model.state_dict().items()
        if name.endswith("_scale") and scale.dtype == torch.bfloat16
    }


def take_units(tensor: Tensor, axis: int, count: int, kept: Sequence[int]) -> Tensor:
    """Take the `kept` of the `count` equal blocks along `axis`, in that order.

    A (512, 64) query weight of 8 heads, kept [2, 5], gives (128, 64). Raises ValueError where
    `count` does not divide the axis.
    """
    length = tensor.shape[axis]
    if length % count:
        raise ValueError(f"axis {axis} of length {length} does not have {count} equal blocks")
    starts = torch.tensor(list(kept), device=tensor.device)[:, None] * (length // count)
    places = starts + torch.arange(length // count, device=tensor.device)
    return tensor.index_select(axis, places.flatten())


def unit_sums(entries: Iterable[tuple[Tensor, int]], count: int) -> Tensor:
    """Sum over all entries that each unit owns: (tensor, axis) pairs → float64 of shape (count,).

    With squared weights as entries, this is the square of a unit's L2 norm; with any other
    non-negative score of single entries, the unit's share of it.
    """
    total = torch.zeros(count, dtype=torch.float64)
    for tensor, axis in entries:
        blocks = tensor.detach().cpu().double().movedim(axis, 0).reshape(count, -1)
        total += blocks.sum(1)
    return total


def select_strongest(scores: Tensor, width: int) -> list[int]:
    """Select the `width` indices of the highest scores, rising; of equal ones the first."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return sorted(order[:width].tolist())
