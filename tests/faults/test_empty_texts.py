"""Rows without text, tokenizers that end or pad nothing, and ids that no embedding has."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from compressor.checkpoint import Checkpoint
from compressor.data.sources import Bills
from compressor.errors import StageError
from compressor.stage import Launch, Planning
from compressor.stages.load import Load
from tests.faults import trials
from tests.faults.conftest import Tell
from tests.faults.stages import (
    SUMMARIES,
    TEXTS,
    pico_classifier,
    pico_t5,
    ran,
    rows_of_labels,
    rows_of_text,
    tokenizer,
)

ROWS = {
    "empty sources": (["", ""], ["a b", "c"]),
    "empty targets": (["a b c", "d e"], ["", ""]),
    "empty rows": (["", ""], ["", ""]),
    "special tokens alone": (["</s>", "<pad></s>"], ["</s>", "<pad>"]),
    "white space alone": (["  \n\t", "\u00a0\u2028"], ["\n", " "]),
    "some rows empty": (["abc", "", "de"], ["", "d", ""]),
}
STAGES: dict[str, dict[str, Any]] = {
    "finetune": {"epochs": 1, "batch_size": 1},
    "prune": {"amounts": {"lm_head": 0.5}, "importance": "taylor"},
    "sensitivity": {"amounts": [0.5], "only": ["lm_head"]},
    "smooth": {},
    "evaluate": {"max_length": [2, 6]},
    "pseudo_label": {"max_length": 6},
    "baseline": {},
    "trim_vocabulary": {},
}


def numbers(value: Any) -> list[float]:
    """All numbers of nested metrics."""
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return [number for item in inside for number in numbers(item)]
    return [value] if isinstance(value, int | float) else []


def endless() -> Any:
    """A tokenizer that puts nothing around a text, as GPT-2's does."""
    from tokenizers import processors

    made = tokenizer()
    made._tokenizer.post_processor = processors.Sequence([])
    return made


@pytest.mark.parametrize("name", list(ROWS)[: trials(6, 2)])
def test_stages_read_rows_without_text(tmp_path: Path, tell: Tell, name: str) -> None:
    """Each stage ends, with numbers: an empty text is its end token, which is learned."""
    for kind, settings in STAGES.items():
        folder = tmp_path / kind
        found = ran(kind, pico_t5(), rows_of_text(folder, *ROWS[name]), folder, **settings)
        assert all(map(math.isfinite, numbers(found)))
        tell("numbers", f"{name}, {kind}", "done")


def test_a_row_of_unknown_characters_is_read(tmp_path: Path) -> None:
    """A WordLevel tokenizer that knows eight words, and rows of Chinese."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: id_ for id_, word in enumerate(["<pad>", "</s>", "<unk>", "the", "of", "a"])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    checkpoint = pico_t5()
    checkpoint.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    data = rows_of_text(tmp_path, ["漢字 漢", "ÄÖ ß"], ["漢", "ß"])
    assert checkpoint.examples(data.load("train"), data).sources == [[2, 2], [2, 2]]
    assert math.isfinite(ran("finetune", checkpoint, data, tmp_path, epochs=1)["train_loss"])
    assert ran("evaluate", checkpoint, data, tmp_path, max_length=4)["count"] == 2


def test_empty_sources_are_decoded_under_a_tokenizer_that_ends_nothing(
    tmp_path: Path, tell: Tell
) -> None:
    """Such a row has no token at all; it used to fail, as a tensor of floats. It is one masked pad,
    as it is in training, beside whatever row.
    """
    checkpoint = pico_t5()
    checkpoint.tokenizer = endless()
    from compressor.generation import decode

    alone = decode(checkpoint.model, [[]], max_length=6).tokens[0]
    beside = decode(checkpoint.model, [[5, 6, 7], []], max_length=6).tokens[1]
    beams = decode(checkpoint.model, [[], []], max_length=6, num_beams=2).tokens
    assert alone == beside and len(beams) == 2
    data = rows_of_text(tmp_path, ["", ""], ["a", "b"])
    for kind in ("evaluate", "pseudo_label"):
        assert ran(kind, checkpoint, data, tmp_path, max_length=6)["count"] == 2
    tell("numbers", "empty sources, a tokenizer that ends nothing", "done")


def test_without_a_token_to_learn_a_training_says_so(tmp_path: Path, tell: Tell) -> None:
    """All targets empty, and a tokenizer that ends nothing: it used to be a division by 0."""
    checkpoint = pico_t5()
    checkpoint.tokenizer = endless()
    data = rows_of_text(tmp_path, ["a b c", "d e"], ["", ""])
    for kind, settings in (("finetune", {"epochs": 1}), ("sensitivity", {"amounts": [0.5]})):
        with pytest.raises(StageError, match="has a token to predict: all targets are empty"):
            ran(kind, checkpoint, data, tmp_path / kind, **settings)
    tell("numbers", "no target has a token", "exit 1: which split")


def test_a_batch_without_a_token_to_learn_is_a_step_like_any_other(tmp_path: Path) -> None:
    """One empty target in a batch of its own used to end the training, when chance came to it."""
    checkpoint = pico_t5()
    checkpoint.tokenizer = endless()
    data = rows_of_text(tmp_path, ["a b", "c", "d"], ["x y", "", "z"])
    found = ran("finetune", checkpoint, data, tmp_path, epochs=2, batch_size=1)
    losses = [loss for _, loss in found["train_losses"]]
    assert found["steps"] == 6 and losses.count(0.0) == 2
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("ends", [True, False])
def test_classifiers_read_rows_without_text(tmp_path: Path, model_type: str, ends: bool) -> None:
    """Also where nothing is around the text, so that there is no token at all; one class or two."""
    checkpoint = pico_classifier(model_type)
    if not ends:
        checkpoint.tokenizer = endless()
    for truth in ([(0, 1), (1, 0)], [(1, 1), (1, 1)]):
        folder = tmp_path / str(truth[0][0])
        data = rows_of_labels(folder, ["", ""], truth)
        assert math.isfinite(ran("finetune", checkpoint, data, folder, epochs=1)["train_loss"])
        found = ran("evaluate", checkpoint, data, folder)
        if truth[0][0]:  # all rows have both labels: there is nothing to rank
            assert found["roc_auc"] is None and found["average_precision"] is None
        else:  # constant scores
            assert found["roc_auc"] == 0.5
        assert all(map(math.isfinite, numbers(found)))


def test_words_are_wanted_by_tf_idf(tmp_path: Path) -> None:
    """Without any it has no floor to tell, and says so."""
    with pytest.raises(StageError, match="TF-IDF found no words in the rows"):
        ran("baseline", pico_classifier(), rows_of_labels(tmp_path, ["", ""], [(0, 1), (1, 0)]),
            tmp_path)  # fmt: skip


def test_a_tokenizer_that_fills_and_ends_nothing_is_told(tmp_path: Path, tell: Tell) -> None:
    """Neither pad nor eos: it used to be a TypeError of NumPy's. With one of them it trains."""
    data = rows_of_text(tmp_path)

    def with_tokens(**tokens: str | None) -> Checkpoint:
        checkpoint = pico_t5()
        checkpoint.tokenizer = tokenizer()
        for name, token in tokens.items():
            setattr(checkpoint.tokenizer, name, token)
        return checkpoint

    with pytest.raises(StageError, match="the tokenizer has no pad and no eos token"):
        ran("finetune", with_tokens(pad_token=None, eos_token=None), data, tmp_path, epochs=1)
    usual = ran("finetune", pico_t5(), data, tmp_path / "usual", epochs=1)["train_loss"]
    for name, tokens in {"no pad": {"pad_token": None}, "eos": {"pad_token": "</s>"}}.items():
        found = ran("finetune", with_tokens(**tokens), data, tmp_path / name, epochs=1)
        assert found["train_loss"] == usual  # what is masked may be anything
    tell("numbers", "no pad token, pad = eos", "the same loss")


def planned(outputs: Path, **settings: Any) -> list[str]:
    told: list[str] = []

    def tell(path: str, message: str) -> None:
        told.append(f"{path}: {message}")

    planning = Planning(None, Bills(source="bills"), Launch(), outputs, tell, tell)
    Load.model_validate(settings).preview(planning)
    return told


def test_more_pieces_than_rows_are_told_when_planned(tmp_path: Path, tell: Tell) -> None:
    """Of a directory, of a tokenizer's own, of one to be trained. The run used to be the first to
    know, and a training without `load`'s check would fail at the first such id.
    """
    pico_t5(vocab_size=200).model.save_pretrained(tmp_path / "source")
    tokenizer().save_pretrained(tmp_path / "source")
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    message = "the tokenizer has 304 pieces, the model's embedding only 200 rows; set "
    (told,) = planned(tmp_path, source=str(tmp_path / "source"))
    assert told.startswith(f"source: {message}")
    config = {"model_type": "t5", "vocab_size": 200}
    (told,) = planned(tmp_path, config=config, tokenizer=str(tmp_path / "tokenizer"))
    assert told.startswith(f"tokenizer: {message}")
    (told,) = planned(tmp_path, config=config, tokenizer={"vocab_size": 304})
    assert told.startswith(f"tokenizer.vocab_size: {message}")
    assert (
        planned(tmp_path, config={**config, "vocab_size": 304}, tokenizer={"vocab_size": 304}) == []
    )
    with pytest.raises(StageError, match="has 304 pieces, the model's embedding only 200 rows"):
        ran("load", tmp_path, rows_of_text(tmp_path), tmp_path, source=str(tmp_path / "source"))
    tell("numbers", "a vocabulary larger than the embedding", "exit 2 when planned")


@pytest.mark.parametrize("beams", [1, 303, 1000])
def test_more_beams_than_pieces_are_searched(tmp_path: Path, beams: int) -> None:
    """A batch may then have room for no row: each is decoded alone."""
    data = rows_of_text(tmp_path, TEXTS[:2], SUMMARIES[:2])
    assert ran("evaluate", pico_t5(), data, tmp_path, max_length=4, num_beams=beams)["count"] == 2


@pytest.mark.parametrize("source", [1, 2])
def test_limits_of_a_token_or_two(tmp_path: Path, source: int) -> None:
    """Source, target and summary: the end token alone."""
    data = rows_of_text(tmp_path, max_source_length=source, max_target_length=source)
    found = ran("finetune", pico_t5(), data, tmp_path, epochs=1)
    assert math.isfinite(found["validation_loss"])
    found = ran("evaluate", pico_t5(), data, tmp_path, max_length=2)
    assert found["gen_len"] == 1.0 and found["count"] == 8


@pytest.mark.parametrize("rows", [1, 9])
def test_one_row_and_equal_rows_train(tmp_path: Path, rows: int) -> None:
    """Fewer than a batch; and all alike. The summary is longer than its source."""
    data = rows_of_text(tmp_path, ["Be it."] * rows, [TEXTS[0]] * rows)
    assert ran("finetune", pico_t5(), data, tmp_path, epochs=1)["steps"] == -(-rows // 8)
    assert ran("evaluate", pico_t5(), data, tmp_path, max_length=4)["count"] == rows
