"""Promises of the trained tokenizer: same ids again, any text comes back. Not its quality."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from compressor.data.bills import make_bills
from compressor.data.tokenizers import train_tokenizer

ODD = (
    "",
    " ",
    "plain words",
    "  two  spaces , and a comma .\n\n\ttabs\r\nlines \n",
    "“curly” 'straight' \"quotes\" don't can't we 've",
    "emoji 👩‍🚀🇺🇳 and 漢字, עברית, e\u0301, \u00a0, \ufeff, \x00\x7f",
    "$4,500,000 <unknown> [MASK] a - b ... ( c )",
)
TRAINED = """
import hashlib
from compressor.data.bills import make_bills
from compressor.data.tokenizers import train_tokenizer
texts = [row["text"] for row in make_bills(200, seed=0, split="train")]
made = train_tokenizer(texts, vocab_size=700).backend_tokenizer.to_str()
print(hashlib.sha256(made.encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = (row["text"] for row in make_bills(200, seed=0, split="train"))
    return train_tokenizer(texts, vocab_size=700)


@pytest.mark.parametrize("text", ODD)
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    """Text never seen in training is encoded without <unk> and decoded exactly."""
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert text == tokenizer.decode(ids, skip_special_tokens=True)


def test_special_ids_are_those_of_t5(tokenizer: PreTrainedTokenizerFast) -> None:
    """Pad 0, eos 1, unk 2, and every encoding ends with eos."""
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer("")["input_ids"] == [1]
    assert tokenizer("some words")["input_ids"][-1] == 1


def test_size_is_what_was_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    """Enough text fills the vocabulary; too little gives fewer tokens, never more."""
    assert len(tokenizer) == 700
    assert len(train_tokenizer(["one text"], vocab_size=700)) < 700


def test_a_vocabulary_too_small_for_the_bytes_is_refused() -> None:
    """259 is the least: 256 bytes and 3 special tokens."""
    assert len(train_tokenizer(["text"], vocab_size=259)) == 259
    with pytest.raises(ValueError, match="at least 259"):
        train_tokenizer(["text"], vocab_size=258)


def test_saved_and_loaded_it_encodes_the_same(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """A checkpoint's tokenizer opens with plain AutoTokenizer and gives identical ids and text."""
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*ODD, *(row["text"] for row in make_bills(20, seed=1, split="test"))):
        ids = tokenizer(text)["input_ids"]
        assert ids == loaded(text)["input_ids"]
        assert text == loaded.decode(ids, skip_special_tokens=True)


def test_training_again_in_another_process_gives_the_same_tokenizer() -> None:
    """Neither threads nor the hash seed show in the result: its digest can be part of a key."""
    made = set()
    for parallel, hash_seed in (("true", "1"), ("false", "2")):
        env = os.environ | {"TOKENIZERS_PARALLELISM": parallel, "PYTHONHASHSEED": hash_seed}
        env["PYTHONPATH"] = os.pathsep.join(sys.path)
        command = [sys.executable, "-c", TRAINED]
        made.add(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
    assert len(made) == 1
