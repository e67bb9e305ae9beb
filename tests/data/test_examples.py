"""Rows as token ids: limits, ends, and what a decoder reads."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from compressor.data.bills import bills
from compressor.data.examples import tokenize
from compressor.data.sources import Bills, Rows
from compressor.data.tokenizer import train_tokenizer
from compressor.errors import StageError

ROWS = Rows(["An act to fund parks and roads in the north.", "An act."], ["Funds parks.", "Acts."])
EOS = 1


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = (row["text"] for row in bills(100, seed=0, split="train"))
    return train_tokenizer(texts, vocab_size=400)


def plain(tokenizer: PreTrainedTokenizerFast, ends: str | None) -> PreTrainedTokenizerFast:
    """The same one without a template: like GPT-2's, it adds no special tokens."""
    import copy

    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.post_processor = None
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=ends)


def test_a_decoder_reads_source_and_target_each_ended_once(tokenizer) -> None:
    """The same ids from a tokenizer that ends texts itself and from one that does not."""
    data = Bills(source="bills", prefix="summarize: ", max_source_length=512)
    own = tokenize(ROWS, tokenizer, data, joined=True)
    other = tokenize(ROWS, plain(tokenizer, "</s>"), data, joined=True)
    assert own == other
    for text, ids in zip(ROWS.texts, own.sources, strict=True):
        assert tokenizer.decode(ids[:-1]) == f"summarize: {text}"
        assert ids.count(EOS) == 1 and ids[-1] == EOS
    for text, ids in zip(ROWS.summaries, own.targets, strict=True):
        assert tokenizer.decode(ids[:-1]) == text
        assert ids.count(EOS) == 1 and ids[-1] == EOS


def test_the_limits_count_the_end(tokenizer) -> None:
    """Cut sources and targets have exactly as many tokens as allowed, the last being eos."""
    data = Bills(source="bills", max_source_length=6, max_target_length=4)
    for kind in (tokenizer, plain(tokenizer, "</s>")):
        cut = tokenize(ROWS, kind, data, joined=True)
        assert [len(cut.sources[0]), len(cut.targets[0])] == [6, 4]
        assert cut.sources[0][-1] == cut.targets[0][-1] == EOS
    assert tokenize(ROWS, tokenizer, data).sources[0] == cut.sources[0]


def test_without_an_end_token_no_decoder_is_trained(tokenizer) -> None:
    """It could never stop."""
    with pytest.raises(StageError, match="no eos token"):
        tokenize(ROWS, plain(tokenizer, None), Bills(source="bills"), joined=True)
