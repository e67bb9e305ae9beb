"""Decoding by torch for evaluation, many limits from one decode; text is not here.

Whatever decides the next token (encoder, logits processors, start and end tokens) is `generate`'s
own. Only its greedy loop is replaced, by one that stops computing rows which have ended; while no
row has ended, the two loops are equally fast. Sampling is not offered: it has no one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation import LogitsProcessor, LogitsProcessorList, logits_process
from transformers.modeling_outputs import BaseModelOutput

from compressor.backends.beam_search import up_to_end
from compressor.backends.generation_config import SETTINGS, counts_prompt
from compressor.backends.outputs import NOT_FINITE, Report, Search, list_ids
from compressor.core.errors import StageError
from compressor.core.ranks import Ranks
from compressor.data.batching import evaluation_batches
from compressor.models.longt5 import encode_in_chunks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, StoppingCriteriaList

BATCH_TOKENS = 16_384
"""Positions in a batch, source and target: a cache of 0.4 GB in T5-small, 1.6 GB in BART-large."""

_ENCODE_TOKENS = 1_024
"""Source positions encoded at once on a CPU, where more does not help and activations of tens of MB
cost page faults: 64 abstracts by T5-small took 7.7 s in pieces of 1,024, 17 s in one of 16,384."""

_DROP_SHARE = 0.125
"""Ended rows leave a batch once they are this share of it. Leaving copies the cache. 96 rows of 53
tokens on average, at most 127, took 0.98 s so; 1.06 s with 0.01, 1.08 with 0.5, 1.87 with never."""

_ROWWISE = {
    logits_process.ExponentialDecayLengthPenalty,
    logits_process.ForcedBOSTokenLogitsProcessor,
    logits_process.ForcedEOSTokenLogitsProcessor,
    logits_process.InfNanRemoveLogitsProcessor,
    logits_process.LogitNormalization,
    logits_process.MinLengthLogitsProcessor,
    logits_process.MinNewTokensLengthLogitsProcessor,
    logits_process.NoBadWordsLogitsProcessor,
    logits_process.NoRepeatNGramLogitsProcessor,
    logits_process.RepetitionPenaltyLogitsProcessor,
    logits_process.SequenceBiasLogitsProcessor,
    logits_process.SuppressTokensAtBeginLogitsProcessor,
    logits_process.SuppressTokensLogitsProcessor,
}
"""These look at a row's own tokens and hold nothing per row, so rows may leave under them. Others
(the two that look at the source, classifier-free guidance) index rows by their first place."""


def decode_rows(
    model: PreTrainedModel,
    sources: Sequence[Sequence[int]],
    search: Search,
    progress: Report,
    ranks: Ranks,
) -> list[list[int]]:
    """Decode under one limit what `model.generate(do_sample=False, …)` gives, token for token.

    Rows are up to their end token, in the order of `sources`. Of several `ranks` each decodes some
    of the batches, and has all rows at the end. Rows of like length share a batch; another batch
    changes float32 logits by about 1e-6, which can turn a tie between two tokens.
    """
    rows: dict[int, list[int]] = {}
    training = model.training
    model.eval()
    try:
        lengths = [len(source) + search.max_length for source in sources]
        batches = evaluation_batches(
            lengths,
            tokens=BATCH_TOKENS // search.num_beams,
            equal=not model.config.is_encoder_decoder
            and counts_prompt(model.generation_config.to_dict()),
        )
        for batch, done in ranks.iterate_batches(batches):
            # Of a start token alone, `generate` refuses to give nothing.
            if search.max_length > 1 or not model.config.is_encoder_decoder:
                generated = _generate_batch(model, [sources[index] for index in batch], search)
                rows |= dict(zip(batch, generated, strict=True))
            progress(done)
    finally:
        model.train(training)
    rows = ranks.gather(rows)
    return [rows.get(index, []) for index in range(len(sources))]


_WITHOUT = [name for name, use in SETTINGS.items() if use in ("no effect", "greedy")]
"""Settings that are left out of a decode, since they cost time or memory, or end in an error."""


class _RefuseNaN(LogitsProcessor):  # type: ignore[misc]  # the base class is untyped
    """Ends a beam search that has NaN for log-probabilities: it would go on, with any token."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores. Raises StageError where one is NaN."""
        if bool(scores.amax().isnan()):
            raise StageError(NOT_FINITE)
        return scores


@torch.inference_mode()
def _generate_batch(
    model: PreTrainedModel, sources: list[Sequence[int]], search: Search
) -> list[list[int]]:
    """Decode a batch, its longest row first, each up to its end token; by our loop where greedy."""
    writes_anew = model.config.is_encoder_decoder
    length, new = ("max_length", "min_length"), ("max_new_tokens", "min_new_tokens")
    (most, least), unset = (length, new[1]) if writes_anew else (new, length[1])
    settings: dict[str, Any] = {most: search.max_length, "num_beams": search.num_beams}
    if search.min_length:
        settings |= {least: search.min_length, unset: None}
    if not search.forced_end:
        settings["forced_eos_token_id"] = None
    if search.num_beams == 1:
        settings["custom_generate"] = _search_greedily
    else:
        settings["logits_processor"] = LogitsProcessorList([_RefuseNaN()])
    ids, mask = _pad_rows(model, sources, side="right" if writes_anew else "left")
    # Only a dynamic cache lets rows leave.
    cache: Any = DynamicCache()
    if writes_anew:
        # What looks at the source (`encoder_…` settings) must not see another row's length.
        last = ids.gather(1, (mask.sum(1, keepdim=True) - 1).clamp(min=0))
        ids = torch.where(mask == 1, ids, last)
        settings["encoder_outputs"] = _encode_rows(model, sources)
        # Made here, since `generate` makes it with as many layers as the encoder has, too few where
        # a T5's decoder is the deeper of the two.
        cache = EncoderDecoderCache(cache, DynamicCache())
    without = [name for name in _WITHOUT if hasattr(model.generation_config, name)]
    output: list[list[int]] | Tensor = model.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        num_return_sequences=1,
        past_key_values=cache,
        **dict.fromkeys(without) | {"use_cache": True},  # which training often has off
        **settings,
    )
    begin = 1 if writes_anew else ids.shape[1]
    tokens = output if isinstance(output, list) else output[:, begin:].tolist()
    eos = list_ids(model.generation_config.eos_token_id)
    return [up_to_end(row, eos) for row in tokens]


def _pad_rows(
    model: PreTrainedModel,
    sources: Sequence[Sequence[int]],
    side: Literal["left", "right"] = "right",
) -> tuple[Tensor, Tensor]:
    """Make ids and mask, both rows x longest row, on the model's device.

    Rows that are all empty, of a tokenizer that ends none, have one masked pad, as in training.
    """
    rows = [torch.tensor(source, dtype=torch.int64) for source in sources]
    if not any(sources):
        rows[0] = rows[0].new_full((1,), model.config.pad_token_id or 0)
    pad_id = max(0, model.config.pad_token_id or 0)  # Llama's may be -1
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side=side)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    mask = mask.flip(1) if side == "left" else mask
    return ids.to(model.device), mask.to(model.device)


def _encode_rows(model: PreTrainedModel, sources: list[Sequence[int]]) -> BaseModelOutput:
    """Compute encoder states [rows, longest, width] of rows of which the longest come first."""
    longest = max(1, len(sources[0]))
    tokens = _ENCODE_TOKENS if model.device.type == "cpu" else longest * len(sources)
    states = []
    for piece in evaluation_batches(list(map(len, sources)), tokens=tokens):
        ids, mask = _pad_rows(model, [sources[index] for index in piece])
        missing = longest - ids.shape[1]  # masked like all padding
        states.append(pad(encode_in_chunks(model.get_encoder(), ids, mask), (0, 0, 0, missing)))
    return BaseModelOutput(last_hidden_state=torch.cat(states))


def _search_greedily(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: Any,
    **model_kwargs: Any,
) -> list[list[int]]:
    """Search greedily over a batch that ended rows leave; what follows an end token is undefined.

    Called by `generate`. Its `encoder_outputs`, `attention_mask` and `past_key_values` must come in
    `model_kwargs`: `generate` would take one named here from the caller, past the encoder.
    """
    begin, new = input_ids.shape[1], input_ids
    ids_name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    rows_may_leave = all(type(processor) in _ROWWISE for processor in logits_processor)
    rows: list[list[int]] = [[] for _ in input_ids]
    live = list(range(len(rows)))
    ended = torch.zeros(len(rows), dtype=torch.bool, device=input_ids.device)
    while live:
        output = model(**{ids_name: new}, return_dict=True, **model_kwargs)
        scores = logits_processor(input_ids, output.logits[:, -1].float())
        best = scores.argmax(-1, keepdim=True)  # NaN is the largest there is
        strange = ~(scores.gather(1, best)[:, 0] < torch.inf) & ~ended
        input_ids, new = torch.cat([input_ids, best], dim=1), best
        if not model.config.is_encoder_decoder:
            _move_on(model_kwargs)
        ended |= stopping_criteria(input_ids, None)
        count, wrong = torch.stack([ended.sum(), strange.sum()]).tolist()
        if wrong:
            raise StageError(NOT_FINITE)
        if count < len(live) and not (rows_may_leave and count >= _DROP_SHARE * len(live)):
            continue
        for place in ended.nonzero().flatten().tolist():
            rows[live[place]] = input_ids[place, begin:].tolist()
        stay = (~ended).nonzero().flatten()
        live = [live[place] for place in stay.tolist()]
        if live:
            input_ids, new, ended = input_ids[stay], new[stay], ended[stay]
            _keep_rows(model_kwargs, stay)
    return rows


def _move_on(inputs: dict[str, Any]) -> None:
    """Move the inputs of a decoder to the token after those that it has read."""
    inputs["position_ids"] = inputs["position_ids"][:, -1:] + 1
    mask = inputs["attention_mask"]
    if mask is not None:  # none where no row has pads
        inputs["attention_mask"] = pad(mask, (0, 1), value=1)


def _keep_rows(inputs: dict[str, Any], rows: Tensor) -> None:
    """Keep some rows of the inputs of a step, and of its cache."""
    inputs["past_key_values"].batch_select_indices(rows)
    if "encoder_outputs" in inputs:
        states = inputs["encoder_outputs"].last_hidden_state
        inputs["encoder_outputs"].last_hidden_state = states[rows]
    for name in ("attention_mask", "position_ids"):
        if inputs.get(name) is not None:
            inputs[name] = inputs[name][rows]
