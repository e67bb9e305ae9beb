"""Marian as OPUS-MT publishes it: two SentencePiece models, `vocab.json` and no fast tokenizer."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, MarianTokenizer

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

spm = pytest.importorskip("sentencepiece", reason="needs the extra `sentencepiece`")

WORDS = (
    "the", "act", "shall", "report", "annual", "energy", "grants", "to", "each", "state", "for",
    "schools", "and", "water",
)  # fmt: skip
ODD = [
    "", " ", "Grants for schools.", "  two   spaces ", ">>fra<< Grants for water", ">>xyz<<water",
    "the >>fra<< act", ">>fra<<", "water</s>the act", "<unk> <pad></s>", "漢字 water 漢",
    "Ünïcode ﬁre ½ ＡＢＣ e\u0301", "line\nbreak\ttab\u00a0nbsp", "the\u2581act", "a" * 300,
]  # fmt: skip


def write_texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randrange(4, 12))) + "." for _ in range(count)]


def train(file: Path, texts: list[str], **settings: Any) -> list[str]:
    """Train a SentencePiece model; gives its pieces."""
    about: dict[str, Any] = {"vocab_size": 90, "hard_vocab_limit": False, "minloglevel": 2}
    with file.open("wb") as stream:
        how = about | settings
        spm.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=stream, **how)
    model = spm.SentencePieceProcessor(model_file=str(file))
    return [model.id_to_piece(i) for i in range(model.vocab_size())]


def write_tokenizer(folder: Path, *, separate: bool = False) -> int:
    """Write Marian's files, a few pieces missing in the vocabulary; gives the vocabulary's size."""
    folder.mkdir()
    texts = write_texts(300, 0)
    source = train(folder / "source.spm", texts, bos_id=-1)
    target = train(folder / "target.spm", [text[::-1] for text in texts], bos_id=-1)
    first, lost = ["</s>", "<unk>", ">>fra<<"], {source[20], source[30], target[20]}

    def write_vocabulary(name: str, pieces: list[str]) -> int:
        order = list(dict.fromkeys([*first, *(p for p in pieces if p not in lost), "<pad>"]))
        (folder / name).write_text(json.dumps({piece: i for i, piece in enumerate(order)}))
        return len(order)

    size = write_vocabulary("vocab.json", source if separate else source + target)
    settings = {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "fr"}
    if separate:
        write_vocabulary("target_vocab.json", target)
        settings |= {"separate_vocabs": True, "target_vocab_file": "target_vocab.json"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return size


@pytest.mark.parametrize("separate", [False, True])
def test_ids_and_texts_are_those_of_transformers(tmp_path: Path, separate: bool) -> None:
    """Languages, unknown pieces, special tokens within a text, both sides of truncation."""
    write_tokenizer(tmp_path / "model", separate=separate)
    slow: Any = MarianTokenizer.from_pretrained(tmp_path / "model")
    slow.save_pretrained(tmp_path / "saved")
    ours = Tokens.load(tmp_path / "saved")
    assert ours.eos_token_id == slow.eos_token_id
    texts = [*ODD, *write_texts(20, 1), *(text[::-1] for text in write_texts(20, 2))]
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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with a published Marian beside it, of large weights, and rows to translate."""
    size = write_tokenizer(tmp_path / "model")
    write_model(tmp_path, size, pad_token_id=size - 1)
    rows = [{"text": f">>fra<< {t}", "summary": t[::-1]} for t in write_texts(12, 3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_model(folder: Path, size: int, **settings: Any) -> None:
    torch.manual_seed(2)
    config = AutoConfig.for_model(
        "marian", vocab_size=size, decoder_vocab_size=size, d_model=32, encoder_layers=1,
        decoder_layers=1, encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_attention_heads=2,
        decoder_attention_heads=2, max_position_embeddings=64, init_std=1.0, eos_token_id=0,
        forced_eos_token_id=0, decoder_start_token_id=size - 1, **settings,
    )  # fmt: skip
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder / "model")


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
    return "\n".join(f"{problem.path}: {problem.message}" for problem in caught.value.problems)


def test_what_a_published_marian_cannot_do_is_refused_when_planned(folder: Path) -> None:
    """Sentences' places, and a vocabulary to trim; CTranslate2's converter reads one vocabulary."""
    trimmed = refused("pipeline=[load,trim_vocabulary,ct2]", "stages.trim_vocabulary={}")
    assert "cannot trim Marian's own tokenizer" in trimmed
    cut = "data.truncate: Marian's tokenizer does not tell where in a text a token ends; set 'token"
    assert refused("data.truncate=sentences").startswith(cut)
    size = len(json.loads((folder / "model" / "vocab.json").read_text()))
    write_model(folder, size, share_encoder_decoder_embeddings=False, pad_token_id=size - 1)
    assert refused().startswith("stages.ct2.format: CTranslate2 reads no Marian with two")


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


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model"])
def test_a_sentencepiece_model_alone_becomes_a_fast_tokenizer(tmp_path: Path, name: str) -> None:
    """As T5 and Llama are published: an export's `tokenizer.json` reads what transformers reads."""
    kind = "t5" if name == "spiece.model" else "llama"
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    assert not has_tokenizer(tmp_path)
    train(tmp_path / name, write_texts(300, 0), pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    assert has_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.is_fast
    tokenizer.save_pretrained(tmp_path / "saved")
    texts = write_texts(20, 1)
    assert Tokens.load(tmp_path / "saved")(texts).input_ids == tokenizer(texts).input_ids


def test_a_tokenizer_that_differs_on_a_row_is_not_exported(tmp_path: Path) -> None:
    """Two ids exchanged: in the vocabulary that reads, or in the one that writes."""
    write_tokenizer(tmp_path / "model", separate=True)
    tokenizer = MarianTokenizer.from_pretrained(tmp_path / "model")
    texts = write_texts(5, 3)
    rows = Rows(texts, [text[::-1] for text in texts])
    files = {"train": "rows.jsonl", "validation": "rows.jsonl"}
    data = Files(source="files", files=files)
    sides = (("vocab", "text", "reads row 0"), ("target_vocab", "text_target", "summary of row 0"))
    for name, side, message in sides:
        tokenizer.save_pretrained(tmp_path / name)
        require_same_tokens(tokenizer, tmp_path / name, rows, data)
        path = tmp_path / name / f"{name}.json"
        vocabulary = json.loads(path.read_text())
        text = rows.texts[0] if side == "text" else rows.summaries[0]
        first = tokenizer(**{side: text}).input_ids[0]
        piece = next(piece for piece, i in vocabulary.items() if i == first)
        vocabulary[piece], vocabulary[">>fra<<"] = vocabulary[">>fra<<"], vocabulary[piece]
        path.write_text(json.dumps(vocabulary))
        with pytest.raises(StageError, match=message):
            require_same_tokens(tokenizer, tmp_path / name, rows, data)
