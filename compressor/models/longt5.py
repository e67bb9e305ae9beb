"""Compute LongT5 over long inputs in chunks; the numbers are transformers' own, to rounding.

For 16,384 tokens, transformers' encoder holds the scores of all blocks at once, a copy of the
global keys for each block, and a position bias as large as the scores. Here a chunk of a few blocks
goes through a whole layer, and the backward pass computes it again: what is kept of a layer is its
input. Short inputs without gradient checkpointing, and all other models, take transformers' way.

Not covered: hidden states and attention maps of each layer (distillation asks the model for them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from compressor.models.recompute import ChunkedLayer, chunked_with_recompute

LONG = 2**22
"""Attention scores of a layer above which an input is long: 900 tokens for long-t5-base, 2,200 for
4 heads. Chunks take as much CPU time there as transformers' way, 0.4 times as much for 16,384."""

LONG_WITH_GRADIENTS = 4
"""So many times as many where the backward pass has to compute again: 2,700 and 5,800 tokens. Up
to 2,048, chunks took 1.3 to 1.6 times the CPU time of a step; for 16,384 they took half."""

SCORES = {"cpu": 2**22, "cuda": 2**25}
"""Attention scores computed at once, at least those of a block. 16 MiB in float32: on a CPU four
times as many take as long, and 490 MiB more at the peak (a layer of long-t5-base's width, 8,192
tokens). A GPU wants fewer and larger kernels; what is best there was not measured."""

_MASKED = -1e10
"""What transformers adds to the score of a position that may not be seen."""


def is_long(config: Any, batch: torch.Size) -> bool:
    """Tell whether a batch [B, L] of input is so long that it is cut into chunks."""
    if config.model_type != "longt5":
        return False
    blocks = -(-batch[1] // (int(config.local_radius) + 1))
    limit = LONG * (LONG_WITH_GRADIENTS if torch.is_grad_enabled() else 1)
    return blocks * _scores_of_a_block(config, batch) > limit


def _scores_of_a_block(config: Any, batch: torch.Size) -> int:
    (rows, tokens), block = batch, int(config.local_radius) + 1
    seen = 3 * block
    if config.encoder_attention_type == "transient-global":
        seen += tokens // int(config.global_block_size)
    return rows * int(config.num_heads) * block * seen


def _scores_at_once(device: torch.device) -> int:
    return SCORES["cpu" if device.type == "cpu" else "cuda"]


def _wants_chunks(stack: Any, batch: torch.Size) -> bool:
    """Tell whether to cut a batch [B, L]; with gradient checkpointing, which takes as long, always.

    Not where the stack's layers are sharded: then only calling a layer brings its weights.
    """
    checkpointed = stack.training and getattr(stack, "gradient_checkpointing", False)
    wanted = is_long(stack.config, batch) or (checkpointed and stack.config.model_type == "longt5")
    if not wanted:  # of whatever architecture
        return False
    return not (hasattr(stack.block[0], "unshard") or hasattr(next(stack.parameters()), "ds_id"))


def encode_in_chunks(encoder: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Compute the encoder's last hidden states [B, L, D] of ids and mask [B, L]."""
    if not _wants_chunks(encoder, input_ids.shape):
        states: Tensor = encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        return states
    hidden: Tensor = encoder.dropout(encoder.embed_tokens(input_ids))
    view, biases = _View.of(encoder, attention_mask), _compute_biases(encoder, attention_mask)
    for block in encoder.block:
        hidden = chunked_with_recompute(_EncoderLayer(block, view), hidden, hidden, biases)
    last: Tensor = encoder.dropout(encoder.final_layer_norm(hidden))
    return last


def decode_in_chunks(
    decoder: Any, input_ids: Tensor, encoded: Tensor, attention_mask: Tensor
) -> Tensor:
    """Compute the decoder's last hidden states [B, T, D], without a cache, of ids [B, T].

    `attention_mask` [B, L] is that of the encoded input [B, L, D].
    """
    if not _wants_chunks(decoder, attention_mask.shape):
        states: Tensor = decoder(
            input_ids=input_ids,
            encoder_hidden_states=encoded,
            encoder_attention_mask=attention_mask,
            use_cache=False,  # else every layer copies its keys and values for nobody
        )[0]
        return states
    hidden: Tensor = decoder.dropout(decoder.embed_tokens(input_ids))
    length, lowest = input_ids.shape[1], torch.finfo(hidden.dtype).min
    later = torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu(1)
    bias = decoder.block[0].layer[0].SelfAttention.compute_bias(length, length)
    bias = bias + torch.zeros_like(bias).masked_fill(later, lowest)
    padding = (attention_mask[:, None, None] == 0).to(hidden.dtype) * lowest
    for block in decoder.block:
        inputs = (block, hidden, bias, encoded, padding)
        if decoder.gradient_checkpointing and decoder.training:
            hidden = checkpoint(_decoder_layer, *inputs, use_reentrant=False)
        else:
            hidden = _decoder_layer(*inputs)
    last: Tensor = decoder.dropout(decoder.final_layer_norm(hidden))
    return last


def _decoder_layer(
    block: Any, hidden: Tensor, bias: Tensor, encoded: Tensor, padding: Tensor
) -> Tensor:
    """Compute a layer of the decoder, [B, T, D] to [B, T, D]; `bias` has the causal mask in it."""
    attention, cross, feed_forward = block.layer
    hidden = attention(hidden, position_bias=bias)[0]
    hidden = chunked_with_recompute(_CrossAttention(cross, padding), encoded, hidden)
    result: Tensor = feed_forward(hidden)
    return result


def _split_heads(states: Tensor, attention: Any) -> Tensor:
    """Reshape […, H · K] to […, H, K]."""
    return states.reshape(*states.shape[:-1], attention.n_heads, attention.key_value_proj_dim)


def _split_blocks(states: Tensor, block: int, *, beside: int = 0) -> Tensor:
    """Reshape [B, L, …] to [B, N, block, …], zeros at the end; `beside` more blocks at each end."""
    fill, ends = -states.shape[1] % block, beside * block
    padded = functional.pad(states, (*(0, 0) * (states.ndim - 2), ends, fill + ends))
    return padded.reshape(len(padded), -1, block, *padded.shape[2:])


def _join_neighbours(blocks: Tensor) -> Tensor:
    """Join each block with the two beside it: [B, n + 2, block, …] to [B, n, 3 · block, …]."""
    count = blocks.shape[1] - 2
    return torch.cat([blocks[:, place : place + count] for place in range(3)], dim=2)


def _self_attention(block: Any) -> Any:
    layer = block.layer[0]
    return getattr(layer, "TransientGlobalSelfAttention", None) or layer.LocalSelfAttention


def _compute_biases(encoder: Any, attention_mask: Tensor) -> tuple[Tensor, ...]:
    """Compute the position biases, which the first layer has and all layers use.

    [H, block, 3 · block], added to the scores of a block and its two neighbours; and, in
    transient-global attention, [H, 2 · G]: for global block g, seen from b, at g - b + G - 1.
    """
    config, attention = encoder.config, _self_attention(encoder.block[0])
    near = attention.compute_bias(config.local_radius + 1)[0, 0]
    if config.encoder_attention_type != "transient-global":
        return (near,)
    count = attention_mask.shape[1] // config.global_block_size
    buckets = attention._relative_position_bucket(
        torch.arange(1 - count, count + 1, device=near.device),
        bidirectional=True,
        num_buckets=config.relative_attention_num_buckets,
        max_distance=config.relative_attention_max_distance,
    )
    return near, attention.global_relative_attention_bias(buckets).T


@dataclass(frozen=True)
class _View:
    """Who may see whom: the same in all layers of an encoder.

    The input is cut into N blocks of `local_radius + 1` tokens, the last one filled up. A token
    sees as many tokens on each side and, in transient-global attention, the sums of G global
    blocks of `global_block_size` tokens each.
    """

    block: int
    at_once: int
    """Blocks of a chunk."""
    mask: Tensor
    """[B, N + 2, block], bool: which tokens are no padding; a block of padding at each end."""
    global_ids: Tensor | None = None
    """[B, N · block]: the global block that each token belongs to; -1 for padding."""
    global_real: Tensor | None = None
    """[B, G]: 1 where a global block has tokens, else 0."""

    @classmethod
    def of(cls, encoder: Any, attention_mask: Tensor) -> _View:
        config, block = encoder.config, encoder.config.local_radius + 1
        of_block = _scores_of_a_block(config, attention_mask.shape)
        at_once = max(1, _scores_at_once(attention_mask.device) // of_block)
        mask = _split_blocks(attention_mask != 0, block, beside=1)
        if config.encoder_attention_type != "transient-global":
            return cls(block, at_once, mask)
        from transformers.models.longt5.modeling_longt5 import _make_global_fixed_block_ids

        ids, real = _make_global_fixed_block_ids(attention_mask, config.global_block_size)
        return cls(block, at_once, mask, _split_blocks(ids.long(), block).flatten(1), real)

    def local_mask(self, first: int, count: int) -> Tensor:
        """Mask n blocks, [B, n, 1, block, 3 · block]: 0, or `_MASKED` for what is not seen."""
        mask = self.mask[:, first : first + count + 2]
        place = torch.arange(3 * self.block, device=mask.device)
        distance = place - place[self.block : 2 * self.block, None]
        allowed = mask[:, 1:-1, :, None] & _join_neighbours(mask)[:, :, None]
        allowed = allowed & (distance.abs() < self.block)
        return torch.where(allowed, 0.0, _MASKED)[:, :, None]

    def global_bias(self, biases: Tensor, first: int, count: int) -> Tensor:
        """Compute position biases, and `_MASKED` for what is not seen, [B, n, H, block, G]."""
        assert self.global_ids is not None and self.global_real is not None
        rows, globals_ = self.global_real.shape
        tokens = slice(first * self.block, (first + count) * self.block)
        # The tokens of a global block share a row of biases.
        ids, place = torch.unique(self.global_ids[:, tokens], return_inverse=True)
        distance = torch.arange(globals_, device=ids.device) - ids[:, None]
        bias = biases[:, distance + globals_ - 1].index_select(1, place.flatten())
        bias = bias.reshape(len(bias), rows, count, self.block, globals_).permute(1, 2, 0, 3, 4)
        real = self.mask[:, first + 1 : first + count + 1, :, None].int()
        allowed = real == self.global_real[:, None, None]
        return bias + torch.where(allowed, 0.0, _MASKED)[:, :, None]


@dataclass(frozen=True)
class _EncoderLayer(ChunkedLayer):
    """A layer of the encoder, for the tokens of some blocks."""

    view: _View

    def prepare_shared(self, whole: Tensor) -> tuple[Tensor, ...]:
        """Give keys and values of all tokens [B, N + 2, block, H, K], and of sums [B, G, H, K]."""
        attention, view = _self_attention(self.layer), self.view
        normed = self.layer.layer[0].layer_norm(whole)
        projections = (attention.k, attention.v)
        shared = [_split_heads(project(normed), attention) for project in projections]
        shared = [_split_blocks(states, view.block, beside=1) for states in shared]
        if view.global_ids is not None and view.global_real is not None:
            rows, count = view.global_real.shape
            ids = view.global_ids[:, : whole.shape[1]] + 1  # 0 is of padding, and left out
            sums = normed.new_zeros(rows, count + 1, normed.shape[2])
            sums = sums.scatter_add(1, ids[..., None].expand_as(normed), normed)[:, 1:]
            sums = attention.global_input_layer_norm(sums)
            shared += [_split_heads(project(sums), attention) for project in projections]
        return tuple(shared)

    def chunk_size(self, rows: Tensor) -> int:
        return self.view.at_once * self.view.block

    def cut_prepared(self, prepared: tuple[Tensor, ...], chunk: slice) -> tuple[Tensor, ...]:
        """Give the blocks of a chunk and the two beside them; the sums whole."""
        first = chunk.start // self.view.block
        blocks = slice(first, first + self.view.at_once + 2)
        return tuple(states[:, blocks] for states in prepared[:2]) + prepared[2:]

    def compute_chunk(
        self, rows: Tensor, parts: tuple[Tensor, ...], shared: tuple[Tensor, ...], chunk: slice
    ) -> Tensor:
        view, layer, attention = self.view, self.layer.layer[0], _self_attention(self.layer)
        first, near = chunk.start // view.block, 3 * view.block
        queries = _split_heads(attention.q(layer.layer_norm(rows)), attention)
        queries = _split_blocks(queries, view.block)  # [B, n, block, H, K]
        keys, values, *sums = parts
        scores = torch.einsum("bnqhd,bnkhd->bnhqk", queries, _join_neighbours(keys))
        scores += (shared[0] + view.local_mask(first, queries.shape[1])).type_as(scores)
        if sums:
            far = torch.einsum("bnqhd,bghd->bnhqg", queries, sums[0])
            far += view.global_bias(shared[1], first, queries.shape[1]).type_as(far)
            scores = torch.cat([scores, far], dim=-1)
        weights = functional.softmax(scores.float(), dim=-1).type_as(scores)
        weights = functional.dropout(weights, p=attention.dropout, training=attention.training)
        seen = torch.einsum("bnhqk,bnkhd->bnqhd", weights[..., :near], _join_neighbours(values))
        if sums:
            seen = seen + torch.einsum("bnhqg,bghd->bnqhd", weights[..., near:], sums[1])
        seen = seen.flatten(3).flatten(1, 2)[:, : rows.shape[1]]
        hidden: Tensor = self.layer.layer[-1](rows + layer.dropout(attention.o(seen)))
        return hidden


@dataclass(frozen=True)
class _CrossAttention(ChunkedLayer):
    """Cross-attention, for some tokens of the decoder."""

    padding: Tensor
    """[B, 1, 1, L]: 0, or the lowest number for what is padding."""

    def prepare_shared(self, whole: Tensor) -> tuple[Tensor, ...]:
        """Give keys and values [B, L, H, K]."""
        attention = self.layer.EncDecAttention
        return tuple(
            _split_heads(project(whole), attention) for project in (attention.k, attention.v)
        )

    def chunk_size(self, rows: Tensor) -> int:
        heads = int(self.layer.EncDecAttention.n_heads)
        return max(1, _scores_at_once(rows.device) // (heads * self.padding.numel()))

    def compute_chunk(
        self, rows: Tensor, parts: tuple[Tensor, ...], shared: tuple[Tensor, ...], chunk: slice
    ) -> Tensor:
        attention, (keys, values) = self.layer.EncDecAttention, parts
        queries = _split_heads(attention.q(self.layer.layer_norm(rows)), attention)
        scores = torch.einsum("bqhd,bkhd->bhqk", queries, keys) * attention.scaling
        weights = functional.softmax(scores + self.padding, dim=-1)
        weights = functional.dropout(weights, p=attention.dropout, training=attention.training)
        seen = torch.einsum("bhqk,bkhd->bqhd", weights.type_as(values), values).flatten(2)
        hidden: Tensor = rows + self.layer.dropout(attention.o(seen))
        return hidden
