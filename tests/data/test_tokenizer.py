"""Promises of the trained tokenizer: same ids again, any text comes back. Not its quality."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from compressor.data.bills import make_bills
from compressor.data.tokenizers import train_tokenizer

ODD = (
    "", " ", "plain words", "  two  spaces , and a comma .\n\n\ttabs\r\nlines \n",
    "“curly” 'straight' \"quotes\" don't can't we 've",
    "emoji 👩‍🚀🇺🇳 and 漢字, עברית, e\u0301, \u00a0, \ufeff, \x00\x7f",
    "$4,500,000 <unknown> [MASK] a - b ... ( c )",
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = (row["text"] for row in make_bills(200, seed=0, split="train"))
    return train_tokenizer(texts, vocab_size=700)


def test_any_text_comes_back_also_from_a_saved_tokenizer(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Text never seen in training is encoded without <unk>, ended with eos, and decoded exactly;
    plain AutoTokenizer opens what was saved. Pad is 0, eos 1 and unk 2, as in T5.
    """
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    for text in (*ODD, *(row["text"] for row in make_bills(20, seed=1, split="test"))):
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == 1 and 2 not in ids
        assert ids == loaded(text)["input_ids"]
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
        assert text == loaded.decode(ids, skip_special_tokens=True)


def test_size_is_what_was_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    """Too little text gives fewer tokens; 259 is the least: 256 bytes and 3 special tokens."""
    assert len(tokenizer) == 700
    assert len(train_tokenizer(["one text"], vocab_size=700)) < 700
    assert len(train_tokenizer(["text"], vocab_size=259)) == 259
    with pytest.raises(ValueError, match="at least 259"):
        train_tokenizer(["text"], vocab_size=258)
