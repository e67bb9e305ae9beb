"""Rows as token ids: limits, ends, and what a decoder reads."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from compressor.core.errors import StageError
from compressor.data.bills import Bills, make_bills
from compressor.data.examples import tokenize_rows
from compressor.data.sources import Rows
from compressor.data.tokenizers import train_tokenizer
from compressor.data.truncation import LONG, encode_texts
from tests.conftest import SHARED

ROWS = Rows(["An act to fund parks and roads in the north.", "An act."], ["Funds parks.", "Acts."])
EOS = 1


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = (row["text"] for row in make_bills(100, seed=0, split="train"))
    return train_tokenizer(texts, vocab_size=400)


@pytest.fixture(scope="module")
def bare(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return plain(tokenizer, "</s>")


def plain(tokenizer: PreTrainedTokenizerFast, ends: str | None) -> PreTrainedTokenizerFast:
    """The same one without a template: like GPT-2's, it adds no special tokens."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.post_processor = None
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=ends)


def test_a_decoder_reads_source_and_target_each_ended_once(tokenizer, bare) -> None:
    """The same ids from a tokenizer that ends texts itself and from one that does not; with no end
    to put, it could never stop.
    """
    data = Bills(source="bills", prefix="summarize: ", max_source_length=512)
    rows = tokenize_rows(ROWS, tokenizer, data, joined=True)
    assert rows == tokenize_rows(ROWS, bare, data, joined=True)
    texts = [*(f"summarize: {text}" for text in ROWS.texts), *ROWS.summaries]
    for text, ids in zip(texts, [*rows.sources, *rows.targets], strict=True):
        assert tokenizer.decode(ids[:-1]) == text
        assert ids.count(EOS) == 1 and ids[-1] == EOS
    with pytest.raises(StageError, match="no eos token"):
        tokenize_rows(ROWS, plain(tokenizer, None), data, joined=True)


def test_the_limits_count_the_end(tokenizer, bare) -> None:
    """Cut sources and targets have exactly as many tokens as allowed, the last being eos."""
    data = Bills(source="bills", max_source_length=6, max_target_length=4)
    for kind in (tokenizer, bare):
        cut = tokenize_rows(ROWS, kind, data, joined=True)
        assert [len(cut.sources[0]), len(cut.targets[0])] == [6, 4]
        assert cut.sources[0][-1] == cut.targets[0][-1] == EOS
    assert tokenize_rows(ROWS, tokenizer, data).sources[0] == cut.sources[0]


WORDS = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three", "four", "five", "mr", "roe", ".",
)  # fmt: skip
ONE, TWO, THREE, FOUR, FIVE, MR, ROE, STOP = range(4, 12)
CLS, SEP = 2, 3


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer as BERT's, whose tokens are words."""
    ids = {word: index for index, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")


@pytest.fixture(scope="module")
def t5() -> PreTrainedTokenizerFast:
    if not (SHARED / "assets/t5-tokenizer").is_dir():
        pytest.skip("needs T5's own tokenizer")
    return AutoTokenizer.from_pretrained(SHARED / "assets/t5-tokenizer")


def limited(source: int, target: int = 64, prefix: str = "") -> Bills:
    limits = {"max_source_length": source, "max_target_length": target}
    return Bills(source="bills", prefix=prefix, truncate="sentences", **limits)


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("One two. Three four. Five", 9, [ONE, TWO, STOP, THREE, FOUR, STOP, FIVE]),
        ("One two. Three four. Five", 8, [ONE, TWO, STOP, THREE, FOUR, STOP]),
        ("One two. Three four. Five", 7, [ONE, TWO, STOP]),
        ("One two. Three four. Five", 5, [ONE, TWO, STOP]),
        ("One two. Three four. Five", 4, [ONE, TWO]),
        ("one two three four five", 6, [ONE, TWO, THREE, FOUR]),
        ("Mr. Roe. Five five.", 7, [MR, STOP, ROE, STOP]),
        ("Mr. Roe. Five five.", 5, [MR, STOP, ROE]),
        ("one\ntwo three", 4, [ONE]),
        (" One two.   ", 5, [ONE, TWO, STOP]),
        ("", 2, []),
    ],
)
def test_a_text_is_cut_after_the_last_sentence_that_fits(words, text, limit, expected) -> None:
    """Ids by hand: a whole text, exact ends, one that is too long, abbreviations, lines, none."""
    framed = [CLS, *expected, SEP]
    rows = Rows([text], [text])
    assert tokenize_rows(rows, words, limited(limit, 99)).sources == [framed]
    assert tokenize_rows(rows, words, limited(99, limit)).targets == [framed]


SENTENCES = [
    "The roads of the U.S. are old.",
    "Parks (\N{GRINNING FACE}) cost $1.5 million \N{GRINNING FACE}!", "is it so?", "It is",
]  # fmt: skip
TEXT = "{}  {} {}\n\n {}".format(*SENTENCES)


@pytest.mark.parametrize(
    ("name", "joined"),
    [
        ("tokenizer", False), ("tokenizer", True), ("t5", False), ("t5", True), ("words", False),
        ("bare", True),
    ],
)  # fmt: skip
def test_at_every_limit_it_is_the_longest_row_of_sentences(request, name, joined: bool) -> None:
    """What trying all of them from the longest gives, prefix and end counted, side by side."""
    used = request.getfixturevalue(name)
    begins, end = ([CLS], SEP) if name == "words" else ([], EOS)

    def whole(text: str) -> list[int]:
        return [*begins, *used(text, add_special_tokens=False).input_ids, end]

    def expected(prefix: str, limit: int) -> list[int]:
        for sentence in reversed(SENTENCES):
            ids = whole(prefix + TEXT[: TEXT.index(sentence) + len(sentence)])
            if len(ids) <= limit:
                return ids
        return [*whole(prefix + TEXT)[: limit - 1], end]

    prefix = "one. two: "
    rows = Rows([TEXT, "", TEXT, "One."], ["One.", TEXT, "", TEXT])
    for limit in range(3, len(whole(prefix + TEXT)) + 2):
        cut = tokenize_rows(rows, used, limited(limit, limit, prefix), joined=joined)
        assert cut.sources[0] == cut.sources[2] == expected(prefix, limit), limit
        assert cut.targets[1] == cut.targets[3] == expected("", limit), limit
        assert cut.targets[2] == whole("")


@pytest.mark.parametrize("truncate", ["tokens", "sentences"])
@pytest.mark.parametrize("part", ["The quick brown fox. ", "a"])
def test_of_a_long_text_little_more_is_tokenized_than_is_read(tokenizer, part, truncate) -> None:
    """The same ids as if all of it had been: a row of 10 MB took 3.4 GB, for 48 tokens."""
    text, lengths = part * (500_000 // len(part)), []

    class Spy:
        truncation_side, is_fast = tokenizer.truncation_side, tokenizer.is_fast

        def __call__(self, text: list[str], **settings: Any) -> Any:
            lengths.extend(map(len, text))
            return tokenizer(text, **settings)

    (ids,) = encode_texts([text], Spy(), 700, truncate=truncate)
    assert max(lengths) <= LONG
    if truncate == "tokens":
        assert ids == tokenizer(text, truncation=True, max_length=700).input_ids
    else:
        assert 0 < len(ids) <= 700


def test_the_default_cuts_by_tokens(words) -> None:
    """And only with `sentences` is the way of cutting part of a key, of what reads token ids."""
    rows = Rows(["One two. Three four."], ["One two. Three"])
    plainly = limited(7, 5).model_copy(update={"truncate": "tokens"})
    cut = tokenize_rows(rows, words, plainly)
    assert cut.sources == [[CLS, ONE, TWO, STOP, THREE, FOUR, SEP]]
    assert cut.targets == [[CLS, ONE, TWO, STOP, SEP]]
    for reads, differs in (("texts", False), ("sources", True), ("pairs", True)):
        keys: list[dict[str, Any]] = [d.key("train", reads) for d in (plainly, limited(7, 5))]
        assert "truncate" not in keys[0]
        assert (keys[0] != keys[1]) is differs


def test_a_tokenizer_that_cannot_tell_places_is_refused(tokenizer) -> None:
    """One without offsets, and one that keeps the end of a text."""
    with pytest.raises(StageError, match=r"ByT5Tokenizer does not tell .* set 'tokens'"):
        tokenize_rows(ROWS, ByT5Tokenizer(), limited(6))
    other = plain(tokenizer, "</s>")
    other.truncation_side = "left"
    with pytest.raises(StageError, match="keeps the end of a text"):
        tokenize_rows(ROWS, other, limited(6))
