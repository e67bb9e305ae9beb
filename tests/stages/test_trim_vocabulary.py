"""`trim_vocabulary`: what the rows use stays as it was, in tokenizer and model; the rest leaves."""

from __future__ import annotations

import json
import random

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    MBartTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

from compressor.core.errors import StageError
from compressor.data.tokenizers import Vocabulary
from compressor.models.loading import has_untied_head
from compressor.stages.trim_vocabulary import TrimVocabulary
from tests.conftest import SHARED
from tests.engine.test_plan import plan_recipe
from tests.harness.models import build_case
from tests.harness.stages import preview, run_stage
from tests.support.trimmed_tokenizers import (
    DATA,
    KINDS,
    SENTINELS,
    TEXTS,
    byte_level,
    characters_bpe,
    rows,
    t5,
    unigram,
)


def pieces(tokenizer, texts: list[str]) -> list[list[str]]:
    return [tokenizer.convert_ids_to_tokens(ids) for ids in tokenizer(texts).input_ids]


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        *((make, {"characters": characters}) for make in KINDS for characters in (True, False)),
        (unigram, {"keep": -3}),
        (byte_level, {"size": -7}),
    ],
)
def test_rows_encode_to_the_same_pieces(tmp_path, make, settings) -> None:
    """Also as plain transformers loads the tokenizer; ids are rows of the smaller embedding."""
    old = make()
    settings = {k: v if k == "characters" else len(old) + v for k, v in settings.items()}
    result, metrics = run_stage(TrimVocabulary(**settings), t5(old), tmp_path, DATA)
    new = AutoTokenizer.from_pretrained(tmp_path / "after")
    expected = pieces(old, rows())
    assert pieces(new, rows()) == expected
    assert [new.decode(i) for i in new(rows()).input_ids] == [
        old.decode(i) for i in old(rows()).input_ids
    ]
    assert max(index for ids in new(rows()).input_ids for index in ids) < len(new)
    count = result.model.config.vocab_size
    assert len(new) == metrics["pieces"] <= count < len(old)
    used = {piece for row in expected for piece in row}
    assert metrics["pieces_used"] == len(used)
    assert used <= new.get_vocab().keys() < old.get_vocab().keys()
    if "size" in settings:
        assert count == settings["size"]
    if "keep" in settings:
        assert len(new) >= settings["keep"]
    for name in ("pad_token", "eos_token", "bos_token", "unk_token", "sep_token", "mask_token"):
        assert getattr(new, name) == getattr(old, name)
    assert new.model_max_length == old.model_max_length
    assert new.model_input_names == old.model_input_names
    if settings == {"characters": True}:
        assert_other_text_encodes(old, new)


def assert_other_text_encodes(old, new) -> None:
    """Of words that no row has: no `<unk>` that was not there before, the same text decoded."""
    draw = random.Random(0)
    words = sorted({word for text in TEXTS for word in text.split()})
    texts = [" ".join(draw.choices(words, k=20)) for _ in range(50)]

    def read(tokenizer) -> list[tuple[int, str]]:
        encoded = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        return [(ids.count(tokenizer.unk_token_id), tokenizer.decode(ids)) for ids in encoded]

    assert read(new) == read(old)
    assert pieces(new, texts) != pieces(old, texts)  # they are other texts


@pytest.mark.parametrize("untied", [False, True])
def test_masks_and_a_search_go_along_with_the_rows(tmp_path, untied) -> None:
    """Of a tied table or a head; ids that left are suppressed no more; a cache decodes the same.
    Logits of all families are in the README's table.
    """
    checkpoint = t5(characters_bpe(), untied)
    head = "lm_head.weight" if untied else "shared.weight"
    checkpoint.masks[head] = torch.rand(checkpoint.get_parameter(head).shape) > 0.3
    checkpoint.apply_masks()
    generation, start = checkpoint.model.generation_config, checkpoint.tokenizer.pad_token_id
    generation.suppress_tokens = [start, len(checkpoint.tokenizer) + 1]
    generation.forced_eos_token_id = checkpoint.tokenizer.eos_token_id
    result, _ = run_stage(TrimVocabulary(multiple_of=8), checkpoint, tmp_path, DATA)
    assert result.model.config.vocab_size % 8 == 0
    assert has_untied_head(result.model) == untied
    tokens = result.tokenizer.convert_ids_to_tokens(list(range(len(result.tokenizer))))
    kept = checkpoint.tokenizer.convert_tokens_to_ids(tokens)
    assert torch.equal(result.masks[head][: len(kept)], checkpoint.masks[head][kept])
    assert torch.equal(result.get_parameter(head) != 0, result.masks[head])
    weights = (c.get_parameter(head).detach() for c in (result, checkpoint))
    assert torch.equal(next(weights)[: len(kept)], next(weights)[kept])
    generation = result.model.generation_config
    assert generation.suppress_tokens == [result.model.config.decoder_start_token_id]
    assert generation.forced_eos_token_id == result.tokenizer.eos_token_id
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "after").eval()
    plain.generation_config.suppress_tokens = None
    ids = result.tokenizer(rows()[:3], return_tensors="pt", padding=True).input_ids
    output = plain.generate(ids, max_length=8, do_sample=False)
    assert torch.equal(output, plain.generate(ids, max_length=8, do_sample=False, use_cache=False))


@pytest.mark.parametrize("kind", ["roberta", "bert"])
def test_positions_count_from_a_pad_that_may_move(tmp_path, kind) -> None:
    """RoBERTa numbers a row's positions from its pad's id, which therefore stays; BERT's moves."""
    document = json.loads(characters_bpe().backend_tokenizer.to_str())
    vocab, unused = document["model"]["vocab"], "ÜÄÖßλ"
    order = dict.fromkeys(["<unk>", *unused, "<pad>", *sorted(vocab, key=vocab.get)])
    document["model"]["vocab"] = ids = {piece: number for number, piece in enumerate(order)}
    for token in document["added_tokens"]:
        token["id"] = ids.setdefault(token["content"], len(ids))
    document["post_processor"] = None
    old = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(document)), pad_token="<pad>",
        eos_token="</s>", unk_token="<unk>",
    )  # fmt: skip
    sizes = {"vocab_size": len(old), "max_position_embeddings": 64, "pad_token_id": 6}
    checkpoint = build_case(kind, sizes, "sequence_classification")
    checkpoint.tokenizer = old
    result, _ = run_stage(TrimVocabulary(characters=False), checkpoint, tmp_path, DATA)
    assert len(result.tokenizer) < len(old)
    assert (result.tokenizer.pad_token_id == 6) == (kind == "roberta")
    logits = []
    for model in (checkpoint, result):
        inputs = model.tokenizer([rows()[0][:18], rows()[0][:9]], return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        logits.append(model.model(**inputs).logits)
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def test_sentinels_go_unless_they_are_wanted(tmp_path) -> None:
    """T5's `<extra_id_…>` are pieces of its pretraining; what is kept stays special."""
    without, _ = run_stage(TrimVocabulary(), t5(unigram()), tmp_path / "a", DATA)
    assert not set(SENTINELS) & without.tokenizer.get_vocab().keys()
    result, _ = run_stage(TrimVocabulary(sentinels=True), t5(unigram()), tmp_path / "b", DATA)
    ids = result.tokenizer("<extra_id_0> parks").input_ids
    assert result.tokenizer.convert_ids_to_tokens(ids)[0] == "<extra_id_0>"
    assert set(SENTINELS) <= set(result.tokenizer.all_special_tokens)


def test_a_rare_low_piece_cannot_make_unknown_characters_cheap(tmp_path) -> None:
    """Unigram's price of an unknown character hangs on the lowest score of any piece.

    Without the lowest piece it would fall from 42 to 11, and `<unk>` + `bc` would beat `a` + `bc`.
    """
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), ("a", -20.0)]
    vocab += [("b", -20.0), ("c", -20.0), ("abc", -25.0), ("bc", -1.0), ("zzz", -32.0)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    vocabulary = Vocabulary(json.loads(tokenizer.to_str()))
    kept = vocabulary.find_required_ids(characters=False, sentinels=False)
    assert wrapped.convert_tokens_to_ids("zzz") in kept
    used = set(wrapped("abc").input_ids)
    assert wrapped.convert_tokens_to_ids("a") in used  # ▁ a bc, at -22
    smaller, order = vocabulary.trim(kept | used)
    again = Tokenizer.from_str(json.dumps(smaller))
    assert again.encode("abc").tokens == tokenizer.encode("abc").tokens
    assert [vocabulary.pieces[i] for i in order] == [
        again.id_to_token(i) for i in range(len(order))
    ]


def test_every_way_to_a_bpe_piece_stays() -> None:
    """`abc` is made of `ab` + `c` or `a` + `bc`: both merges stay, with their parts, in order."""
    vocab = {piece: i for i, piece in enumerate(["a", "b", "c", "d", "ab", "bc", "abc", "cd"])}
    merges = [("a", "b"), ("c", "d"), ("b", "c"), ("a", "bc"), ("ab", "c")]
    document = json.loads(Tokenizer(models.BPE(vocab, merges)).to_str())
    vocabulary = Vocabulary(document)
    kept = vocabulary.add_parts([vocab["abc"]])
    assert {vocabulary.pieces[i] for i in kept} == {"a", "b", "c", "ab", "bc", "abc"}
    smaller, _ = vocabulary.trim(kept)
    expected = [["a", "b"], ["b", "c"], ["a", "bc"], ["ab", "c"]]
    assert [list(merge) for merge in smaller["model"]["merges"]] == expected


def test_a_size_that_the_rows_do_not_fit_is_an_error(tmp_path) -> None:
    """It says how many are needed; a tokenizer of another kind is refused by name."""
    with pytest.raises(StageError, match=r"\d+ tokens must stay.* more than the 300 of `size`"):
        run_stage(TrimVocabulary(size=300), t5(byte_level()), tmp_path, DATA)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1}, unk_token="<pad>"))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="a")
    with pytest.raises(StageError, match="cannot trim a WordLevel tokenizer, only Unigram"):
        run_stage(TrimVocabulary(), t5(wrapped), tmp_path / "words", DATA)


def test_a_plan_knows_the_size_or_an_upper_bound() -> None:
    """Exact with `size`, also rounded; without, what the model had, and said to be no more."""
    facts = t5(byte_level()).derive_facts()
    bound, problems = preview(TrimVocabulary(), facts)
    assert (bound.parameters, bound.exact_size, bound.exact) == (facts.parameters, False, True)
    small, more = preview(TrimVocabulary(size=500, multiple_of=8), facts)
    assert (small.shapes["shared.weight"], small.exact_size) == ((504, 16), True)
    assert problems == more == []
    ((path, message),) = preview(TrimVocabulary(size=10**6), facts)[1]
    assert path == "size" and "outside 1 … " in message


def test_a_trimmed_model_is_trained_pruned_sliced_evaluated_and_exported(recipe, run) -> None:
    """Through the command; the plan says what is a bound; another prefix is another key. Sizes of
    the slice are those of the run, and masks hold through the repair.
    """
    path = recipe(
        (
            "  load: {}",
            "  load: {}\n  trim_vocabulary: {multiple_of: 8}\n"
            "  slice: {heads: 0.5, feed_forward: 20, multiple_of: 8}",
        ),
        ("[load, finetune, prune,", "[load, trim_vocabulary, prune, slice,"),
        ("recover, evaluate]", "recover, evaluate, export]"),
        ("  finetune: {epochs: 1}", "  export: {}"),
        ("train: 64, validation: 16", "train: 12, validation: 4"),
        ("vocab_size: 400, d_model", "vocab_size: 1000, d_model"),
        ("tokenizer: {vocab_size: 400}", "tokenizer: {vocab_size: 1000, data: {source: bills}}"),
    )
    plan, other = plan_recipe(path), plan_recipe(path, "data.prefix=x")
    assert [n.name for n in plan.nodes if n.key == other.node(n.name).key] == ["load"]
    facts = {node.name: node.facts for node in plan.nodes}
    names = ("load", "trim_vocabulary", "slice")
    assert [facts[name].exact_size for name in names] == [True, False, False]
    assert "≤ " in run("plan", path).out
    done = run("run", path)
    assert done.code == 0, done.err
    metrics = done.record("trim_vocabulary")["metrics"]
    assert metrics["pieces_used"] < metrics["rows"] < 1000
    assert metrics["rows"] % 8 == 0
    dropped = (metrics["pieces_before"] - metrics["rows"]) * 32  # of a tied head
    assert done.record("recover")["parameters"] == facts["recover"].parameters - dropped
    assert done.record("recover")["nonzero_ratio"] == done.record("slice")["nonzero_ratio"] < 0.99
    model = AutoModelForSeq2SeqLM.from_pretrained(done.run_folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(done.run_folder / "model")
    assert (model.config.vocab_size, len(tokenizer)) == (metrics["rows"], metrics["pieces"])
    assert (model.config.num_heads, model.config.d_ff) == (2, 24)
    assert model.generate(torch.arange(2, 12)[None], max_length=8).shape[1] <= 8


@pytest.mark.skipif(
    not (SHARED / "assets/t5-tokenizer").is_dir(),
    reason="T5's own tokenizer is not on this machine",
)
def test_t5s_own_tokenizer_is_trimmed_and_stays_trimmed_when_loaded(tmp_path) -> None:
    """T5's class would add the sentinels again; the trimmed one says plainly what it has."""
    old = AutoTokenizer.from_pretrained(SHARED / "assets/t5-tokenizer")
    result, metrics = run_stage(TrimVocabulary(multiple_of=8), t5(old, spare=28), tmp_path, DATA)
    new = AutoTokenizer.from_pretrained(tmp_path / "after")
    assert len(new) == metrics["pieces"] == result.model.config.vocab_size < 1000
    assert pieces(new, rows()) == pieces(old, rows())
    assert new("Größe: 1999 zebras").input_ids.count(new.unk_token_id) == 0


def test_what_a_search_is_asked_keeps_its_effect(tmp_path) -> None:
    """Biases, forced tokens and words: the same pieces are written; what has left is left out."""
    old = byte_level()
    checkpoint = t5(old)
    with torch.no_grad():
        checkpoint.get_parameter("shared.weight").mul_(20)
    ids = old(rows()[0]).input_ids
    used = list(dict.fromkeys(ids[:-1]))[:8]
    trimmed, _ = run_stage(TrimVocabulary(), checkpoint, tmp_path / "once", DATA)
    kept = trimmed.tokenizer.get_vocab()
    unused = next(index for piece, index in old.get_vocab().items() if piece not in kept)
    settings = {
        "sequence_bias": [[[used[0]], 30.0], [[used[0], used[1]], 30.0], [[unused], 99.0]],
        "bad_words_ids": [[used[2], used[3]], [used[4]], [unused, used[5]]],
        "suppress_tokens": [used[6], unused],
        "begin_suppress_tokens": [used[0]],
        "forced_bos_token_id": used[7],
    }
    checkpoint.model.generation_config.update(**settings)
    result, _ = run_stage(TrimVocabulary(), checkpoint, tmp_path, DATA)
    new = result.tokenizer

    kept = result.model.generation_config
    assert len(kept.sequence_bias) == len(kept.bad_words_ids) == 2
    assert new.convert_ids_to_tokens(kept.suppress_tokens) == old.convert_ids_to_tokens([used[6]])

    def write(checkpoint) -> list[str]:
        ids = checkpoint.tokenizer(rows()[1], return_tensors="pt").input_ids
        limits = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
        return checkpoint.tokenizer.convert_ids_to_tokens(
            checkpoint.model.generate(ids, **limits)[0]
        )

    assert write(checkpoint) == write(result)


@pytest.mark.parametrize("target", ["en_XX", "ro_RO"])
def test_an_mbarts_targets_end_with_their_own_language(tmp_path, target) -> None:
    """Which its tokenizer's class sees to, and no JSON says; so is the forced first token."""
    words = json.loads(unigram().backend_tokenizer.to_str())["model"]["vocab"][3:]
    named = ["<s>", "<pad>", "</s>", "<unk>"], [*FAIRSEQ_LANGUAGE_CODES, "<mask>"]
    first, last = ([(piece, 0.0) for piece in pieces] for pieces in named)
    vocab = [*first, *map(tuple, words), *last]
    old = MBartTokenizer(vocab=vocab, src_lang="en_XX", tgt_lang=target)
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    checkpoint = build_case("mbart", special | {"vocab_size": len(old)}, "seq2seq_lm")
    checkpoint.tokenizer = old
    code = old.convert_tokens_to_ids(target)
    checkpoint.model.generation_config.forced_bos_token_id = code
    tasks = {"translation": {"decoder_start_token_id": code, "max_length": 9}}
    checkpoint.model.config.task_specific_params = tasks
    result, _ = run_stage(TrimVocabulary(), checkpoint, tmp_path, DATA)
    new = result.tokenizer
    assert len(new) < len(old) - 100
    for way in ("text", "text_target"):
        text = {way: rows()[-1]}
        tokens = old.convert_ids_to_tokens(old(**text).input_ids)
        assert new.convert_ids_to_tokens(new(**text).input_ids) == tokens
        assert tokens[-1] == (target if way == "text_target" else "en_XX")
    forced = result.model.generation_config.forced_bos_token_id
    assert new.convert_ids_to_tokens(forced) == target and forced != code
    tasks["translation"]["decoder_start_token_id"] = forced
    assert result.model.config.task_specific_params == tasks
