"""LongT5 over long inputs, a run of rows at a time; the numbers are transformers' own, to rounding.

For 16,384 tokens, transformers' encoder holds the scores of all blocks at once, a copy of the
global keys for each block, and a position bias as large as the scores. Here a run of a few blocks
goes through a whole layer, and the backward pass computes it again: what is kept of a layer is its
input. Short inputs without gradient checkpointing, and all other models, take transformers' way.
How runs are computed and added up is in `compressor.models.longt5`.

Not covered: hidden states and attention maps of each layer (distillation asks the model for them).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

LONG = 2**22
"""Attention scores of a layer above which an input is long: 900 tokens for long-t5-base, 2,200 for
4 heads. Runs take as much CPU time there as transformers' way, 0.4 times as much for 16,384."""

LONG_WITH_GRADIENTS = 4
"""So many times as many where the backward pass has to compute again: 2,700 and 5,800 tokens. Up
to 2,048, runs took 1.3 to 1.6 times the CPU time of a step; for 16,384 they took half."""

SCORES = {"cpu": 2**22, "cuda": 2**25}
"""Attention scores computed at once, at least those of a block. 16 MiB in float32: on a CPU four
times as many take as long, and 490 MiB more at the peak (a layer of long-t5-base's width, 8,192
tokens). A GPU wants fewer and larger kernels; what is best there was not measured."""

_MASKED = -1e10
"""What transformers adds to the score of a position that may not be seen."""


def is_long(config: Any, batch: torch.Size) -> bool:
    """Whether a batch [B, L] of input is one that `encode` and `decode` cut into runs."""
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


def _wants_runs(stack: Any, batch: torch.Size) -> bool:
    """Long inputs do; with gradient checkpointing, which takes as long, all do.

    Not where the stack's layers are sharded: then only calling a layer brings its weights.
    """
    checkpointed = stack.training and getattr(stack, "gradient_checkpointing", False)
    wanted = is_long(stack.config, batch) or (checkpointed and stack.config.model_type == "longt5")
    if not wanted:  # of whatever architecture
        return False
    return not (hasattr(stack.block[0], "unshard") or hasattr(next(stack.parameters()), "ds_id"))


def encode_in_chunks(encoder: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The encoder's last hidden states [B, L, D] of ids and mask [B, L]."""
    if not _wants_runs(encoder, input_ids.shape):
        states: Tensor = encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        return states
    hidden: Tensor = encoder.dropout(encoder.embed_tokens(input_ids))
    view, biases = _View.of(encoder, attention_mask), _compute_biases(encoder, attention_mask)
    for block in encoder.block:
        hidden = in_runs(_EncoderLayer(block, view), hidden, hidden, biases)
    last: Tensor = encoder.dropout(encoder.final_layer_norm(hidden))
    return last


def decode_in_chunks(
    decoder: Any, input_ids: Tensor, encoded: Tensor, attention_mask: Tensor
) -> Tensor:
    """The decoder's last hidden states [B, T, D], without a cache, of ids [B, T].

    `attention_mask` [B, L] is that of the encoded input [B, L, D].
    """
    if not _wants_runs(decoder, attention_mask.shape):
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
    """One layer of the decoder, [B, T, D] to [B, T, D]; `bias` has the causal mask in it."""
    own, cross, feed_forward = block.layer
    hidden = own(hidden, position_bias=bias)[0]
    done: Tensor = feed_forward(in_runs(_CrossAttention(cross, padding), encoded, hidden))
    return done


def _split_heads(states: Tensor, attention: Any) -> Tensor:
    """[…, H · K] as […, H, K]."""
    return states.reshape(*states.shape[:-1], attention.n_heads, attention.key_value_proj_dim)


def _split_blocks(states: Tensor, block: int, *, beside: int = 0) -> Tensor:
    """[B, L, …] as [B, N, block, …], filled up with zeros; `beside` more blocks at each end."""
    fill, ends = -states.shape[1] % block, beside * block
    padded = functional.pad(states, (*(0, 0) * (states.ndim - 2), ends, fill + ends))
    return padded.reshape(len(padded), -1, block, *padded.shape[2:])


def _join_neighbours(blocks: Tensor) -> Tensor:
    """[B, n + 2, block, …] as [B, n, 3 · block, …]: each block with the two beside it."""
    count = blocks.shape[1] - 2
    return torch.cat([blocks[:, place : place + count] for place in range(3)], dim=2)


def _self_attention(block: Any) -> Any:
    layer = block.layer[0]
    return getattr(layer, "TransientGlobalSelfAttention", None) or layer.LocalSelfAttention


def _compute_biases(encoder: Any, attention_mask: Tensor) -> tuple[Tensor, ...]:
    """The position biases, which the first layer has and all layers use.

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
    """Blocks of a run."""
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
        """[B, n, 1, block, 3 · block] for n blocks: 0, or `_MASKED` for what is not seen."""
        mask = self.mask[:, first : first + count + 2]
        place = torch.arange(3 * self.block, device=mask.device)
        distance = place - place[self.block : 2 * self.block, None]
        allowed = mask[:, 1:-1, :, None] & _join_neighbours(mask)[:, :, None]
        allowed = allowed & (distance.abs() < self.block)
        return torch.where(allowed, 0.0, _MASKED)[:, :, None]

    def global_bias(self, biases: Tensor, first: int, count: int) -> Tensor:
        """[B, n, H, block, G] for n blocks: position biases, and `_MASKED` for what is not seen."""
        assert self.global_ids is not None and self.global_real is not None
        rows, globals_ = self.global_real.shape
        tokens = slice(first * self.block, (first + count) * self.block)
        # The tokens of a global block share a row of biases.
        ids, place = torch.unique(self.global_ids[:, tokens], return_inverse=True)
        distance = torch.arange(globals_, device=ids.device) - ids[:, None]
        bias = biases[:, distance + globals_ - 1].index_select(1, place.flatten())
        bias = bias.reshape(len(bias), rows, count, self.block, globals_).permute(1, 2, 0, 3, 4)
        own = self.mask[:, first + 1 : first + count + 1, :, None].int()
        allowed = own == self.global_real[:, None, None]
        return bias + torch.where(allowed, 0.0, _MASKED)[:, :, None]


@dataclass(frozen=True)
class _EncoderLayer:
    """A layer of the encoder, for the tokens of some blocks: `compressor.models.longt5.Work`."""

    layer: Any
    view: _View

    def list_modules(self) -> Iterator[nn.Module]:
        yield self.layer

    def prepare_shared(self, whole: Tensor) -> tuple[Tensor, ...]:
        """Keys and values of all tokens [B, N + 2, block, H, K], and of sums [B, G, H, K]."""
        attention, view = _self_attention(self.layer), self.view
        normed = self.layer.layer[0].layer_norm(whole)
        projections = (attention.k, attention.v)
        found = [_split_heads(project(normed), attention) for project in projections]
        found = [_split_blocks(states, view.block, beside=1) for states in found]
        if view.global_ids is not None and view.global_real is not None:
            rows, count = view.global_real.shape
            ids = view.global_ids[:, : whole.shape[1]] + 1  # 0 is of padding, and left out
            sums = normed.new_zeros(rows, count + 1, normed.shape[2])
            sums = sums.scatter_add(1, ids[..., None].expand_as(normed), normed)[:, 1:]
            sums = attention.global_input_layer_norm(sums)
            found += [_split_heads(project(sums), attention) for project in projections]
        return tuple(found)

    def split_rows(self, rows: Tensor) -> list[slice]:
        size = self.view.at_once * self.view.block
        return [slice(start, start + size) for start in range(0, rows.shape[1], size)]

    def cut_prepared(self, prepared: tuple[Tensor, ...], run: slice) -> tuple[Tensor, ...]:
        """The blocks of a run and the two beside them; the sums whole."""
        first = run.start // self.view.block
        blocks = slice(first, first + self.view.at_once + 2)
        return tuple(states[:, blocks] for states in prepared[:2]) + prepared[2:]

    def compute_chunk(
        self, rows: Tensor, parts: tuple[Tensor, ...], shared: tuple[Tensor, ...], run: slice
    ) -> Tensor:
        view, layer, attention = self.view, self.layer.layer[0], _self_attention(self.layer)
        first, near = run.start // view.block, 3 * view.block
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
class _CrossAttention:
    """Cross-attention, for some tokens of the decoder: `compressor.models.longt5.Work`."""

    layer: Any
    padding: Tensor
    """[B, 1, 1, L]: 0, or the lowest number for what is padding."""

    def list_modules(self) -> Iterator[nn.Module]:
        yield self.layer

    def prepare_shared(self, whole: Tensor) -> tuple[Tensor, ...]:
        """Keys and values [B, L, H, K]."""
        attention = self.layer.EncDecAttention
        return tuple(
            _split_heads(project(whole), attention) for project in (attention.k, attention.v)
        )

    def split_rows(self, rows: Tensor) -> list[slice]:
        heads = self.layer.EncDecAttention.n_heads
        size = max(1, _scores_at_once(rows.device) // (heads * self.padding.numel()))
        return [slice(start, start + size) for start in range(0, rows.shape[1], size)]

    def cut_prepared(self, prepared: tuple[Tensor, ...], run: slice) -> tuple[Tensor, ...]:
        return prepared

    def compute_chunk(
        self, rows: Tensor, parts: tuple[Tensor, ...], shared: tuple[Tensor, ...], run: slice
    ) -> Tensor:
        attention, (keys, values) = self.layer.EncDecAttention, parts
        queries = _split_heads(attention.q(self.layer.layer_norm(rows)), attention)
        scores = torch.einsum("bqhd,bkhd->bhqk", queries, keys) * attention.scaling
        weights = functional.softmax(scores + self.padding, dim=-1)
        weights = functional.dropout(weights, p=attention.dropout, training=attention.training)
        seen = torch.einsum("bhqk,bkhd->bqhd", weights.type_as(values), values).flatten(2)
        hidden: Tensor = rows + self.layer.dropout(attention.o(seen))
        return hidden


class Work(Protocol):
    """What is done to runs of rows, each of which also reads something made of a whole input."""

    def list_modules(self) -> Iterator[nn.Module]:
        """The modules whose parameters are used."""

    def prepare_shared(self, whole: Tensor) -> tuple[Tensor, ...]:
        """What runs read: the keys and values of all tokens, say."""

    def split_rows(self, rows: Tensor) -> list[slice]:
        """How rows [B, R, D] are cut along R."""

    def cut_prepared(self, prepared: tuple[Tensor, ...], run: slice) -> tuple[Tensor, ...]:
        """Views of what a run reads of the prepared tensors, or of others shaped like them."""

    def compute_chunk(
        self, rows: Tensor, parts: tuple[Tensor, ...], shared: tuple[Tensor, ...], run: slice
    ) -> Tensor:
        """The result [B, r, D], of the rows' dtype, for a run's rows [B, r, D]."""


def in_runs(work: Work, whole: Tensor, rows: Tensor, shared: tuple[Tensor, ...] = ()) -> Tensor:
    """`work` done to all of `rows` [B, R, D]. With gradients too, only the arguments are kept.

    Gradients are those for `whole`, `rows`, `shared` (floating point) and the parameters. Dropout
    draws the same numbers when it is computed again. There are no gradients of gradients.
    """
    apply: Any = _InRuns.apply  # torch does not type it
    result: Tensor = apply(work, len(shared), whole, rows, *shared, *_list_parameters(work))
    return result


def _list_parameters(work: Work) -> list[nn.Parameter]:
    return [p for module in work.list_modules() for p in module.parameters() if p.requires_grad]


class _InRuns(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, work: Work, shared: int, whole: Tensor, rows: Tensor, *others: Tensor
    ) -> Tensor:
        ctx.save_for_backward(whole, rows, *others[:shared])
        ctx.work, ctx.surroundings = work, _Surroundings(rows.device)
        prepared, result = work.prepare_shared(whole), torch.empty_like(rows)
        for run in work.split_rows(rows):
            parts = work.cut_prepared(prepared, run)
            result[:, run] = work.compute_chunk(rows[:, run], parts, others[:shared], run)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        whole, rows, *shared = ctx.saved_tensors
        with ctx.surroundings.again():
            found = _compute_gradients(ctx.work, whole, rows, shared, gradient)
        return (None, None, *found)


def _compute_gradients(
    work: Work, whole: Tensor, rows: Tensor, shared: Sequence[Tensor], gradient: Tensor
) -> list[Tensor]:
    """Gradients for whole, rows, shared and parameters, of a result's `gradient` [B, R, D]."""
    parameters = _list_parameters(work)
    source = whole.detach().requires_grad_()
    with torch.enable_grad():
        made = work.prepare_shared(source)
    prepared = tuple(tensor.detach() for tensor in made)
    leaves = tuple(tensor.detach().requires_grad_() for tensor in shared)
    sums = tuple(map(torch.zeros_like, prepared))
    totals = [torch.zeros_like(tensor) for tensor in (*leaves, *parameters)]
    of_rows = torch.empty_like(rows)
    for run in work.split_rows(rows):
        own = rows[:, run].detach().requires_grad_()
        parts = tuple(part.detach().requires_grad_() for part in work.cut_prepared(prepared, run))
        with torch.enable_grad():
            result = work.compute_chunk(own, parts, leaves, run)
        inputs = (own, *parts, *leaves, *parameters)
        first, *found = torch.autograd.grad(result, inputs, gradient[:, run], allow_unused=True)
        of_rows[:, run] = first
        _add_gradients([*work.cut_prepared(sums, run), *totals], found)
        del result, found  # before the next run makes its own
    of_whole, *found = torch.autograd.grad(made, (source, *parameters), sums, allow_unused=True)
    _add_gradients(totals[len(leaves) :], found)
    return [of_whole, of_rows, *totals]


def _add_gradients(totals: Sequence[Tensor], found: Sequence[Tensor | None]) -> None:
    for total, tensor in zip(totals, found, strict=True):
        if tensor is not None:
            total.add_(tensor)


class _Surroundings:
    """What results depend on beside arguments, as it was when this was made: the generator that
    dropout draws from, autocast, and modes such as `compressor.training.dropout.FasterDropout`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._random = _random_state(device)
        self._autocast = torch.autocast(
            device.type,
            dtype=torch.get_autocast_dtype(device.type),
            enabled=torch.is_autocast_enabled(device.type),
        )
        # A backward pass begins without any. torch has no public way to ask for them.
        self._modes: list[Any] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, it is so again; the generator goes on afterwards from where it was before."""
        now = _random_state(self._device)
        _set_random_state(self._device, self._random)
        try:
            with self._autocast, ExitStack() as modes:
                for mode in self._modes:
                    modes.enter_context(mode)
                yield
        finally:
            _set_random_state(self._device, now)


def _random_state(device: torch.device) -> Tensor:
    """The state of the generator that dropout on a device draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
