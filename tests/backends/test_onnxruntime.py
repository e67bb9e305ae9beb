"""What is written as ONNX gives what torch gives, without torch. Speed is in `benchmarks`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import GenerationConfig

from compressor.backends import formats
from compressor.backends.formats import ExportInfo
from compressor.backends.generation_config import find_unfollowed
from compressor.backends.onnx.export import WEIGHTS, write_model
from compressor.backends.onnx.runtime import OnnxModel
from compressor.backends.open import open_export
from compressor.core.errors import StageError
from compressor.models.checkpoint import Checkpoint
from compressor.models.quantization import Quantization
from compressor.models.quantized_layers import quantize_rows, quantize_weights
from compressor.models.surgery import dequantize_checkpoint
from tests.backends.test_generation import pico, texts
from tests.harness.models import generate_rows
from tests.training.test_distillation import build_pico

pytestmark = pytest.mark.filterwarnings("ignore:Unfeasible length constraints")

PAD, EOS, VOCABULARY = 0, 1, 100
# Seeds and scales of the end token's logits were looked for: rows end at many steps, or do not.
KINDS: dict[str, dict[str, Any]] = {
    "t5": {"seed": 16, "scale": 2.0},
    "bart": {"seed": 3, "scale": 2.0, "encoder_layers": 1, "decoder_layers": 1},
}
BASE = {"decoder_start_token_id": PAD, "eos_token_id": EOS, "pad_token_id": PAD}


def generator(kind: str, **changes: Any) -> Checkpoint:
    """Fresh weights, large, so that tokens vary and some rows end."""
    model = pico(kind, **KINDS[kind] | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases too: equal ones would share a tensor
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return Checkpoint(model, None, "seq2seq_lm")


def written(checkpoint: Checkpoint, folder: Path, weights: Any) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    write_model(checkpoint, folder, weights=weights)
    checkpoint.model.config.save_pretrained(folder)
    if checkpoint.model.can_generate():
        checkpoint.model.generation_config.save_pretrained(folder)
    return folder


Written = tuple[Checkpoint, Path]


@pytest.fixture(scope="module")
def float_models(tmp_path_factory: Any) -> Callable[[str], Written]:
    """A model of a kind and its graphs, written once: tracing takes seconds."""

    @cache
    def made(kind: str) -> Written:
        checkpoint = generator(kind)
        return checkpoint, written(checkpoint, tmp_path_factory.mktemp(kind), "float32")

    return made


@pytest.fixture
def bart(float_models: Callable[[str], Written]) -> Written:
    checkpoint, folder = float_models("bart")
    checkpoint.model.generation_config = GenerationConfig.from_pretrained(folder)
    return checkpoint, folder


def tensors(folder: Path, *, like: Callable[[onnx.TensorProto], bool]) -> list[onnx.TensorProto]:
    """Of all graphs in a folder."""
    graphs = [onnx.load(path, load_external_data=False).graph for path in folder.glob("*.onnx")]
    return [tensor for graph in graphs for tensor in graph.initializer if like(tensor)]


def place(tensor: onnx.TensorProto) -> tuple[int, int]:
    about = {entry.key: entry.value for entry in tensor.external_data}
    assert about["location"] == WEIGHTS
    return int(about["offset"]), int(about["length"])


def configured(folder: Path, into: Path, **settings: Any) -> OnnxModel:
    """The model in a folder with another generation config."""
    shutil.copytree(folder, into)
    (into / "generation_config.json").write_text(json.dumps(BASE | settings))
    return OnnxModel(into, 1)


def written_rows(model: OnnxModel, beams: int, limit: int, rows: Any = None) -> list[list[int]]:
    return model.generate_each_limit(rows or texts(), max_lengths=[limit], num_beams=beams)[
        limit
    ].tokens


def expected(checkpoint: Checkpoint, beams: int, limit: int, **settings: Any) -> list[list[int]]:
    checkpoint.model.generation_config = GenerationConfig(**BASE | settings)
    return generate_rows(checkpoint.model, texts(), max_length=limit, num_beams=beams).tokens


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_transformers_at_every_size(
    float_models: Callable[[str], Written], kind: str, beams: int
) -> None:
    """Greedily and with beams, whatever the rows, their lengths and the limit.

    The graphs were traced with another number of rows, source length and cache.
    """
    checkpoint, folder = float_models(kind)
    checkpoint.model.generation_config = GenerationConfig.from_pretrained(folder)
    model = OnnxModel(folder, 1)
    for count in (1, 5, 23):
        sources = texts(count)
        for limit in (2, 7, 30):
            wanted = generate_rows(checkpoint.model, sources, max_length=limit, num_beams=beams)
            assert written_rows(model, beams, limit, sources) == wanted.tokens
    rows = wanted.tokens
    assert len({token for row in rows for token in row}) > 8  # no model that repeats itself
    assert len({len(row) for row in rows}) > 2


SETTINGS: list[dict[str, Any]] = [
    {"min_length": 9},
    {"min_new_tokens": 9},
    {"eos_token_id": [EOS, 60, 61, 62, 63, 64]},
    {"repetition_penalty": 1.8},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"forced_bos_token_id": 7},
    {"forced_eos_token_id": 8},
    {"suppress_tokens": list(range(20, 60))},
    {"begin_suppress_tokens": list(range(20, 80))},
    {"begin_suppress_tokens": list(range(20, 80)), "forced_bos_token_id": 7},
    {"bad_words_ids": [[EOS], *([token] for token in range(30, 70))]},
    {"bad_words_ids": [[first, second] for first in range(30, 60) for second in range(20, 80)]},
    {"decoder_start_token_id": 5},
]
OF_BEAMS: list[dict[str, Any]] = [
    {"length_penalty": 2.5},
    {"length_penalty": -1.5},
    {"early_stopping": True},
    {"early_stopping": "never", "length_penalty": 2.5},
    {"renormalize_logits": True, "suppress_tokens": list(range(2, 50))},
]


@pytest.mark.parametrize("settings", SETTINGS + OF_BEAMS, ids="+".join)
def test_every_offered_setting_is_transformers(
    bart: Written, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Greedily and with beams, each changes what comes out; those of beams with some of them."""
    checkpoint, folder = bart
    model = configured(folder, tmp_path / "model", **settings)
    changed = []
    for beams, limit in ((1, 20), (3, 20)) if settings in SETTINGS else ((2, 30), (4, 9), (4, 30)):
        wanted = expected(checkpoint, beams, limit, **settings)
        assert written_rows(model, beams, limit) == wanted
        changed.append(wanted != expected(checkpoint, beams, limit))
    assert all(changed) if settings in SETTINGS else any(changed)


def test_of_several_forced_end_tokens_greedy_search_takes_the_first(
    bart: Written, tmp_path: Path
) -> None:
    """They score the same. With beams transformers takes any one; that is not promised here."""
    checkpoint, folder = bart
    model = configured(folder, tmp_path / "model", forced_eos_token_id=[8, 9])
    wanted = expected(checkpoint, 1, 9, forced_eos_token_id=[8, 9])
    assert any(row[-1] == 8 for row in wanted)
    assert written_rows(model, 1, 9) == wanted


def test_min_length_wins_over_the_generation_config(bart: Written, tmp_path: Path) -> None:
    """Over both of its settings there; and the shortest limits, and no rows."""
    checkpoint, folder = bart
    model = configured(folder, tmp_path / "a", min_new_tokens=3)
    swept = model.generate_each_limit(texts(), max_lengths=[1, 14], min_length=9)
    assert swept[14].tokens == expected(checkpoint, 1, 14, min_length=9)
    assert swept[14].tokens != expected(checkpoint, 1, 14, min_new_tokens=3)
    assert swept[1].tokens == [[]] * 12
    assert model.generate_each_limit([], max_lengths=[9])[9].tokens == []


def test_settings_that_are_not_offered_are_named(bart: Written, tmp_path: Path) -> None:
    """Those that would change the output; not those of sampling, nor a neutral value."""
    config = BASE | {
        "do_sample": True, "top_k": 5, "use_cache": False, "encoder_repetition_penalty": 1.0,
        "renormalize_logits": False, "guidance_scale": None, "transformers_version": "5.0",
    }  # fmt: skip
    assert find_unfollowed(config, "onnxruntime") == []
    config |= {"sequence_bias": [[[3], 1.0]], "encoder_repetition_penalty": 1.2, "of_later": 3}
    named = ["encoder_repetition_penalty", "of_later", "sequence_bias"]
    assert find_unfollowed(config, "onnxruntime") == named
    model = configured(bart[1], tmp_path / "model", guidance_scale=1.5)
    with pytest.raises(StageError, match=r"sets guidance_scale to 1\.5; onnxruntime does not"):
        written_rows(model, 1, 5)


def test_a_tied_weight_is_once_on_disk(float_models: Callable[[str], Written]) -> None:
    """Encoder's and decoder's embedding and the head of a T5 point at one place."""
    folder = float_models("t5")[1]
    tied = tensors(folder, like=lambda tensor: list(tensor.dims) == [VOCABULARY, 32])
    assert len(tied) == 2 and len({place(tensor) for tensor in tied}) == 1
    assert place(tied[0])[1] == 100 * 32 * 4
    # Of 2 + 2 layers: q, k, v, o of 32 x 32 floats, once in the encoder's and twice in the
    # decoder's; wi and wo of 64 x 32. The embedding's 12,800 bytes in pages of 4,096.
    assert (folder / WEIGHTS).stat().st_size == 24 * 4096 + 8 * 8192 + 4 * 4096
    assert {path.name for path in folder.iterdir()} == {
        "encoder.onnx", "decoder.onnx", WEIGHTS, "config.json", "generation_config.json"
    }  # fmt: skip


def test_int8_values_are_those_of_quantize_and_a_tied_one_is_once_on_disk(tmp_path: Path) -> None:
    """The values are those of `quantize_rows`, as unsigned ones around 128; so are the scales."""
    checkpoint = generator("t5", num_layers=1)
    folder = written(checkpoint, tmp_path, "int8")
    values, scale = quantize_rows(checkpoint.model.lm_head.weight)
    tied = tensors(folder, like=lambda tensor: list(tensor.dims) == [VOCABULARY, 1, 32])
    assert len(tied) == 2 and len({place(tensor) for tensor in tied}) == 1
    offset, length = place(tied[0])
    assert length == 100 * 32
    stored = np.fromfile(folder / WEIGHTS, np.uint8, length, offset=offset).reshape(100, 32)
    assert np.array_equal(stored.astype(int) - 128, values.numpy())
    (scales, *_) = tensors(folder, like=lambda tensor: list(tensor.dims) == [VOCABULARY, 1])
    assert np.array_equal(onnx.numpy_helper.to_array(scales), scale.numpy())
    large = tensors(folder, like=lambda tensor: tensor.data_type == onnx.TensorProto.FLOAT)
    assert all(np.prod(tensor.dims) < 32 * 32 for tensor in large)  # no matrix is left in float


def test_a_classifiers_logits_are_torchs(tmp_path: Path) -> None:
    """Within 1e-5, for rows of all lengths, in their order. Other families: `tests.support`."""
    checkpoint = Checkpoint(build_pico("bert", 0, "class"), None, "sequence_classification")
    model = OnnxModel(written(checkpoint, tmp_path, "float32"), 1)
    sources = [[token % 50 for token in row] for row in texts(20)]
    done: list[int] = []
    logits = model.logits(sources, progress=done.append)
    assert sum(done) == len(sources)
    with torch.inference_mode():
        wanted = [checkpoint.model(torch.tensor([row])).logits[0].numpy() for row in sources]
    assert np.ptp(wanted, axis=0).min() > 0.05  # else any rows would do
    assert np.allclose(logits, np.stack(wanted), rtol=0, atol=1e-5)
    with pytest.raises(StageError, match="a model without a language head writes no text"):
        model.generate_each_limit(sources, max_lengths=[4])


def test_an_int8_checkpoint_keeps_its_values(tmp_path: Path) -> None:
    """They are on disk as they are, and the logits are the float ones' of the same values."""
    checkpoint = Checkpoint(build_pico("bert", 0, "class"), None, "sequence_classification")
    quantize_weights(checkpoint.model)
    checkpoint.quantization = Quantization(weights="int8")
    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    folder = written(checkpoint, tmp_path, "int8")
    after = checkpoint.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    arrays = [
        onnx.numpy_helper.to_array(tensor, str(folder)).reshape(tensor.dims[0], -1)
        for tensor in tensors(folder, like=lambda t: t.data_type == onnx.TensorProto.UINT8)
    ]
    for name, weight in before.items():
        if weight.dtype == torch.int8:
            wanted = weight.numpy().astype(int) + 128
            width = wanted.shape[1]
            assert any(
                f.shape[0] == len(wanted) and np.array_equal(f[:, :width], wanted) for f in arrays
            ), name
    sources = [[token % 50 for token in row] for row in texts(20)]
    logits = OnnxModel(folder, 1).logits(sources)
    model = dequantize_checkpoint(checkpoint).model
    with torch.inference_mode():
        wanted = np.stack([model(torch.tensor([row])).logits[0].numpy() for row in sources])
    difference = np.abs(logits - wanted).max()
    assert 0 < difference < 0.03 * np.abs(wanted).max()


def test_what_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The missing or damaged file is named, and what to install for a package."""
    with pytest.raises(StageError, match=r"expected model\.onnx"):
        OnnxModel(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(StageError, match="cannot load the model in"):
        OnnxModel(tmp_path)
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    info = ExportInfo(
        head="seq2seq_lm", model_type="t5", task="summarization", max_source_length=8,
        max_target_length=8, format="onnx", weights="int8",
    )  # fmt: skip
    with pytest.raises(StageError, match=r"'onnx' needs onnxruntime, .* pip install 'onnx>="):
        open_export(tmp_path, info)
