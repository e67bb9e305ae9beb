"""Marian as OPUS-MT publishes it: two SentencePiece models, `vocab.json` and no fast tokenizer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, MarianTokenizer

from compressor.cli.main import main
from compressor.core.errors import RecipeError, StageError
from compressor.data.fast_tokenizer import Tokens
from compressor.data.rows import Rows
from compressor.data.sources import Files
from compressor.engine.plan import plan
from compressor.engine.store.store import Store
from compressor.models.loading import has_tokenizer, load_tokenizer
from compressor.recipe.compose import compose
from compressor.stages.export import require_same_tokens
from tests.data.tables import write_columns
from tests.support.families import FAMILIES, TEXTS, TOKENIZERS, write

spm = pytest.importorskip("sentencepiece", reason="needs the extra `sentencepiece`")

ODD = [
    "", " ", "Grants for schools.", "  two   spaces ", ">>fra<< Grants for water", ">>xyz<<water",
    "the >>fra<< act", ">>fra<<", "water</s>the act", "<unk> <pad></s>", "漢字 water 漢",
    "Ünïcode ﬁre ½ ＡＢＣ e\u0301", "line\nbreak\ttab\u00a0nbsp", "the\u2581act", "a" * 300,
]  # fmt: skip
RECIPE = """
defaults: [/base, /data: files, _self_]
pipeline: [load, ct2]
model: {source: model}
data: {files: {train: rows.jsonl, validation: rows.jsonl}, prefix: "", max_source_length: 40,
       max_target_length: 20}
stages:
  load: {}
  ct2: {stage: export, model: load, format: ctranslate2, weights: float32}
"""


@pytest.mark.parametrize("kind", ["marian", "marian_two"])
def test_ids_and_texts_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    """Languages, unknown pieces, special tokens within a text, both sides of truncation."""
    TOKENIZERS[kind](tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    vocabulary[">>fra<<"] = vocabulary.pop(list(vocabulary)[20])  # a piece goes
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    slow: Any = MarianTokenizer.from_pretrained(tmp_path)
    slow.save_pretrained(tmp_path / "saved")
    ours = Tokens.load(tmp_path / "saved")
    assert ours.eos_token_id == slow.eos_token_id
    texts = [*ODD, *TEXTS[:20], *(text[::-1] for text in TEXTS[20:40])]
    for side in ("right", "left"):
        slow.truncation_side = ours.truncation_side = side
        for limit in (3, 9, 1000):
            expected = slow(texts, truncation=True, max_length=limit).input_ids
            assert ours(texts, truncation=True, max_length=limit).input_ids == expected
    assert any(slow.unk_token_id in ids for ids in expected)
    rows = slow(text_target=texts).input_ids
    for skip in (True, False):
        expected = slow.batch_decode(rows, skip_special_tokens=skip)
        assert ours.batch_decode(rows, skip_special_tokens=skip) == expected


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with a published Marian beside it, and rows to translate."""
    write(FAMILIES["Marian"], tmp_path / "model")
    write_columns(tmp_path / "rows.jsonl", {"text": TEXTS[:12], "summary": TEXTS[12:24]})
    (tmp_path / "mine.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_export_is_kept_that_reads_and_writes_as_the_model(folder: Path) -> None:
    """Regression: it was refused after the training, for want of a fast tokenizer."""
    assert main(["run", "mine.yaml", "-q"]) == 0
    (metrics,) = folder.glob("outputs/runs/mine/*/metrics.json")
    (record,) = (r for r in json.loads(metrics.read_text()) if r["name"] == "ct2")
    assert record["metrics"]["parity"]["equal_tokens"] == 1


def refused(*overrides: str) -> str:
    """Plan the recipe with overrides: all that is wrong with it."""
    with pytest.raises(RecipeError) as caught:
        plan(compose("mine.yaml", overrides), Store(Path("store")))
    return str(caught.value)


def test_what_a_published_marian_cannot_do_is_refused_when_planned(folder: Path) -> None:
    """Sentences' places, and a vocabulary to trim."""
    trimmed = refused("pipeline=[load,trim_vocabulary,ct2]", "stages.trim_vocabulary={}")
    assert "cannot trim Marian's own tokenizer" in trimmed
    cut = "data.truncate: Marian's tokenizer does not tell where in a text a token ends; set 'token"
    assert cut in refused("data.truncate=sentences")


@pytest.mark.parametrize(
    ("missing", "file", "named"),
    [
        ("sentencepiece", "source.spm", "sentencepiece"),
        ("sentencepiece", "spiece.model", "sentencepiece"),
        ("google.protobuf", "tokenizer.model", "protobuf"),
    ],
)
def test_a_tokenizer_that_needs_a_missing_package_is_refused_when_planned(
    folder: Path, monkeypatch: pytest.MonkeyPatch, missing: str, file: str, named: str
) -> None:
    """Regression: transformers asked for `tiktoken`, or ended in a traceback, in the run."""
    (folder / "model" / "source.spm").rename(folder / "model" / file)
    monkeypatch.setitem(sys.modules, missing, None)
    expected = f"its tokenizer needs {named}, not installed: pip install 'sentencepiece"
    assert expected in refused()


@pytest.mark.parametrize(("name", "kind"), [("spiece.model", "t5"), ("tokenizer.model", "llama")])
def test_a_sentencepiece_model_alone_becomes_a_fast_tokenizer(tmp_path, name, kind) -> None:
    """As T5 and Llama are published: an export's `tokenizer.json` reads what transformers reads."""
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    assert not has_tokenizer(tmp_path)
    with (tmp_path / name).open("wb") as stream:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS), model_writer=stream, vocab_size=90, minloglevel=2,
            hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        )  # fmt: skip
    assert has_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.is_fast
    tokenizer.save_pretrained(tmp_path / "saved")
    assert Tokens.load(tmp_path / "saved")(TEXTS).input_ids == tokenizer(TEXTS).input_ids


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [("vocab", "text", "reads row 0"), ("target_vocab", "text_target", "target of row 0")],
)
def test_a_tokenizer_that_differs_on_a_row_is_not_exported(tmp_path, name, side, message) -> None:
    """Two ids exchanged: in the vocabulary that reads, or in the one that writes."""
    tokenizer: Any = TOKENIZERS["marian_two"](tmp_path)
    rows = Rows(TEXTS[:5], TEXTS[5:10])
    data = Files(source="files", files={"train": "rows.jsonl", "validation": "rows.jsonl"})
    tokenizer.save_pretrained(tmp_path / "saved")
    require_same_tokens(tokenizer, tmp_path / "saved", rows, data)
    path = tmp_path / "saved" / f"{name}.json"
    vocabulary = json.loads(path.read_text())
    first = tokenizer(**{side: (rows.texts if side == "text" else rows.summaries)[0]}).input_ids[0]
    piece, other = (next(p for p, i in vocabulary.items() if i == n) for n in (first, first + 1))
    vocabulary[piece], vocabulary[other] = first + 1, first
    path.write_text(json.dumps(vocabulary))
    with pytest.raises(StageError, match=message):
        require_same_tokens(tokenizer, tmp_path / "saved", rows, data)
