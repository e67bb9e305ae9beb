"""What llama.cpp computes from a GGUF file is what transformers does, for every family it takes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from compressor.backends.formats import FORMATS, derive_stored_facts
from compressor.backends.gguf import export as gguf
from compressor.backends.torch.model import TorchModel
from compressor.core.errors import StageError
from compressor.data.bills import Bills
from compressor.data.examples import tokenize_sources
from compressor.data.source_base import SplitRows
from compressor.data.tokenizers import train_tokenizer
from compressor.evaluation.parity import Parity, check_parity
from compressor.evaluation.resources import measure_sizes
from compressor.models.checkpoint import Checkpoint
from compressor.models.facts import Facts, derive_facts
from compressor.models.quantized_layers import quantize_weights
from compressor.models.surgery import dequantize_checkpoint, keep_layers, list_int4_scales
from compressor.stages.base import Inputs
from compressor.stages.export import Export
from compressor.stages.quantize import Quantize
from tests.backends.models import (
    assert_same_tokens,
    build_large,
    export,
    sources,
    summarize_alone,
)
from tests.harness.models import PICO, decode_sweep
from tests.harness.stages import preview, stage_context

gguf_reader = pytest.importorskip("gguf")

DECODERS = sorted(FORMATS["gguf"].models["causal_lm"])


def exported(model: Checkpoint, folder: Path, weights: str = "float32") -> Any:
    """What llama.cpp loads. Where it is not installed (pip compiles it), the test is skipped."""
    pytest.importorskip("llama_cpp")
    from compressor.backends.gguf.runtime import LlamaCppModel

    gguf.write_model(model, folder, weights)
    return LlamaCppModel(folder, 1)


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "t5"},
        {"model_type": "t5", "tie_word_embeddings": False},
        {"model_type": "t5", "num_layers": 2, "num_decoder_layers": 2},
        {"model_type": "t5", "feed_forward_proj": "gated-gelu"},
        {"model_type": "mt5"},
    ],
    ids=str,
)
def test_tokens_are_those_of_transformers_at_every_limit(values, tmp_path) -> None:
    """Of models without near ties: llama.cpp looks GELU up in a table of float16 numbers."""
    model = build_large(**values, seed=1)
    assert_same_tokens(exported(model, tmp_path / "model"), model)


def test_beams_are_those_of_transformers(tmp_path) -> None:
    model = build_large("t5")
    expected = decode_sweep(model.model, sources(), max_lengths=[12], num_beams=3)
    got = exported(model, tmp_path / "model").generate_each_limit(
        sources(), max_lengths=[12], num_beams=3
    )
    assert got[12].tokens == expected[12].tokens


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        *((kind, {"tie_word_embeddings": tied}) for kind in DECODERS for tied in (True, False)),
        ("llama", {"rope_parameters": LLAMA3}),  # scaled by a factor of its own for each pair
        ("llama", {"attention_bias": True, "mlp_bias": True}),  # laid out as its weights
    ],
)
def test_logits_are_those_of_transformers(model_type, values, tmp_path) -> None:
    model = build_large(model_type, **values)
    expected = TorchModel(model).logits(sources())
    got = exported(model, tmp_path / "model").logits(sources())
    assert np.median(np.ptp(expected, axis=0)) > 0.5, "too alike to tell"
    # GELU is looked up in a table of float16; all else is computed in float32.
    limit = 1e-3 if model_type == "gpt2" else 1e-5
    np.testing.assert_allclose(got, expected, atol=limit * np.abs(expected).max())


@pytest.mark.parametrize("model_type", DECODERS)
def test_transformers_reads_the_same_model_out_of_the_file(model_type, tmp_path) -> None:
    """Its GGUF reader undoes llama.cpp's layout; of some sizes it knows the default alone."""
    sizes = {
        "gpt2": {"n_inner": 128, "n_positions": 1024},
        "llama": {"head_dim": 8},
        "qwen3": {"head_dim": 128},
    }
    model = build_large(model_type, tie_word_embeddings=True, **sizes.get(model_type, {}))
    gguf.write_model(model, tmp_path, "float32")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=gguf.FILE).eval()
    for source in sources(3):
        ids = torch.tensor([source])
        with torch.inference_mode():
            torch.testing.assert_close(again(ids).logits, model.model(ids).logits)


def test_int8_is_blocks_of_32_with_a_float16_scale(tmp_path) -> None:
    """As computed here by hand; rows that are no multiple of 32 are float16."""
    model = build_large("gpt2")
    gguf.write_model(model, tmp_path, "int8")
    tensors = {t.name: t for t in gguf_reader.GGUFReader(tmp_path / gguf.FILE).tensors}
    weight = model.model.transformer.h[0].mlp.c_fc.weight.detach().numpy().T  # [48, 32]
    scale = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    expected = np.round(weight / scale) * scale.astype(np.float16).astype(np.float32)
    tensor = tensors["blk.0.ffn_up.weight"]
    assert tensor.tensor_type.name == "Q8_0"
    assert tensor.n_bytes == 48 * 34
    values = gguf_reader.quants.dequantize(tensor.data, tensor.tensor_type)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    kinds = {name: tensors[name].tensor_type.name for name in tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"  # [32, 48]
    assert kinds["position_embd.weight"] == kinds["output_norm.weight"] == "F32"


@pytest.mark.parametrize(
    ("weights", "limit"), [("float16", 5e-3), ("bfloat16", 0.05), ("int8", 0.1)]
)
@pytest.mark.parametrize("model_type", ["gpt2", "qwen3"])
def test_rounded_weights_give_like_logits(model_type, weights, limit, tmp_path) -> None:
    model = build_large(model_type)
    expected = TorchModel(model).logits(sources())
    got = exported(model, tmp_path / "model", weights).logits(sources())
    assert 0 < np.abs(got - expected).max() < limit * np.abs(expected).max()


def make_int4(model_type: str, group_size: int) -> tuple[Checkpoint, Facts]:
    """A model of which each linear layer's weight is int4, and what a plan knows of it."""
    width, neurons = ("d_model", "d_ff") if model_type == "t5" else (
        "hidden_size", "intermediate_size")  # fmt: skip
    heads = {"d_kv": 16, "num_heads": 4} if model_type == "t5" else {}
    model = build_large(model_type, **{width: 64, neurons: 128}, **heads)
    stage = Quantize(weights="int4", group_size=group_size)
    facts, _ = preview(stage, model.derive_facts())
    assert facts is not None
    quantize_weights(model.model, stage.choose_kinds("int4", model.derive_facts()), group_size)
    model.quantization = stage.quantization
    return model, facts


@pytest.mark.parametrize(("model_type", "group_size"), [("t5", 64), ("qwen2", 32)])
def test_int4_keeps_the_values_of_an_int4_model(model_type, group_size, tmp_path) -> None:
    """As the package `gguf` reads them, to the bit; in the bytes that a plan says."""
    model, facts = make_int4(model_type, group_size)
    floats, context = dequantize_checkpoint(model), stage_context(tmp_path / "export")
    model.save(tmp_path / "model")
    stage = Export(format="gguf", weights="int4", parity=None)
    stage.run(Inputs(tmp_path / "model"), context)
    written = gguf_reader.GGUFReader(tmp_path / "export" / "model" / gguf.FILE)
    tensors = {t.name: t for t in written.tensors}
    claimed, size = context.metrics["claimed_bytes"], sum(t.n_bytes for t in written.tensors)
    assert claimed == pytest.approx(size, rel=0.01)  # T5's position biases are float32
    architecture = getattr(gguf_reader.MODEL_ARCH, model_type.upper())
    names = gguf_reader.get_tensor_name_map(architecture, 4)
    stored = derive_stored_facts(facts, "int4", "gguf")
    assert len(facts.int4) > 10
    for name in facts.int4:
        tensor = tensors[names.get_name(name, try_suffixes=(".weight",))]
        values = gguf_reader.quants.dequantize(tensor.data, tensor.tensor_type)
        assert tensor.tensor_type.name == "Q4_0"
        assert np.array_equal(values, floats.get_parameter(name).detach().numpy())
        assert tensor.n_bytes == stored.tensor_bytes(name)
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"


def test_int4_gives_like_logits(tmp_path) -> None:
    """Also where rows are laid out otherwise, as Llama's: products round activations to int8."""
    pytest.importorskip("llama_cpp")
    from compressor.backends.gguf.runtime import LlamaCppModel

    model, _ = make_int4("llama", 32)
    floats = dequantize_checkpoint(model)
    gguf.write_model(floats, tmp_path, "int4", list_int4_scales(model))
    expected = TorchModel(floats).logits(sources())
    logits = LlamaCppModel(tmp_path, 1).logits(sources())
    assert 0 < np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()


def test_int4_is_of_an_int4_model_alone() -> None:
    """A float model is refused by name, and so are groups that blocks of 32 do not divide."""
    pytest.importorskip("llama_cpp")  # without which the format is refused first
    export = Export(format="gguf", weights="int4", parity=None)
    for facts in (build_large("t5").derive_facts(), replace(make_int4("t5", 32)[1], group_size=16)):
        _, problems = preview(export, facts)
        assert problems == [
            ("weights", "int4 are those of an int4 model; put before it "
             "`quantize: {weights: int4, group_size: 32}`, or a multiple"),
        ]  # fmt: skip


TEXTS = [
    "The bill's text, and 12345 words:\n\n  two  spaces\t a tab", "naïve café ½ Ⅳ ﬁne",
    "日本語のテスト 🚀 ok", "</s> inside", "", "I'll, WE'LL don't", "a_b+c==d!?",
]  # fmt: skip


QUIET: Any = {"special_tokens": ["<pad>", "</s>", "<unk>"], "show_progress": False}


def trained(model: Any, trainer: Any, **parts: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of TEXTS with an end token."""
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def bpe(split: str, *, ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    steps = [
        pre_tokenizers.Split(Regex(split), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return trained(
        models.BPE(ignore_merges=ignore_merges),
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, **QUIET),
        pre_tokenizer=pre_tokenizers.Sequence(steps), decoder=decoders.ByteLevel(),
    )  # fmt: skip


def unigram() -> PreTrainedTokenizerFast:
    return trained(
        models.Unigram(), trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", **QUIET),
        pre_tokenizer=pre_tokenizers.Metaspace(),
        normalizer=normalizers.Replace(Regex(" {2,}"), " "), decoder=decoders.Metaspace(),
    )  # fmt: skip


QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
gpt2 = partial(train_tokenizer, TEXTS * 3, vocab_size=400)
TOKENIZERS = {
    "gpt2": gpt2,
    "llama3": lambda: bpe(QWEN2.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?"), ignore_merges=True),
    "qwen2": lambda: bpe(QWEN2),
    "smollm": lambda: with_part(gpt2(), pre_tokenizer=DIGITS),
    "unigram": unigram,
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tokenizer_in_the_file_reads_as_its_source(name, tmp_path) -> None:
    tokenizer = TOKENIZERS[name]()
    source = build_large("llama", vocab_size=len(tokenizer) + 3)
    vocabulary = exported(Checkpoint(source.model, tokenizer, "causal_lm"), tmp_path).tokenizer
    for limit in (4, 500):
        options = {"truncation": True, "max_length": limit}
        expected = tokenizer(TEXTS, **options)["input_ids"]
        assert vocabulary(TEXTS, **options).input_ids == expected
        written = tokenizer.batch_decode(expected, skip_special_tokens=True)
        assert vocabulary.batch_decode(expected, skip_special_tokens=True) == written
    bare = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    assert vocabulary(TEXTS, add_special_tokens=False).input_ids == bare


def test_a_chat_template_goes_into_the_file(tmp_path) -> None:
    """Without one llama.cpp would take another model's."""
    model = build_large("qwen3")
    model.tokenizer.chat_template = "{{ messages[0].content }}"  # type: ignore[union-attr]
    gguf.write_model(model, tmp_path, "float16")
    field = gguf_reader.GGUFReader(tmp_path / gguf.FILE).get_field("tokenizer.chat_template")
    assert field.contents() == "{{ messages[0].content }}"


def with_part(tokenizer: PreTrainedTokenizerFast, **parts: Any) -> PreTrainedTokenizerFast:
    for name, part in parts.items():
        setattr(tokenizer.backend_tokenizer, name, part)
    return tokenizer


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=True)
PLAIN_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), PLAIN_BYTES])
WORDS = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (lambda: with_part(unigram(), pre_tokenizer=WORDS), "WhitespaceSplit and no Precompiled"),
        (lambda: with_part(gpt2(), pre_tokenizer=BYTES), "the pre-tokenizer ByteLevel"),
        (lambda: with_part(gpt2(), normalizer=normalizers.Lowercase()), "normalizer Lowercase"),
        (lambda: bpe(QWEN2, ignore_merges=True), "ignore_merges: True"),
        (lambda: bpe("[a-z]+"), r"the pre-tokenizer Split \+ ByteLevel"),
    ],
)
def test_a_tokenizer_that_llama_cpp_reads_otherwise_is_refused(
    tokenizer, message, tmp_path
) -> None:
    made = tokenizer()
    model = build_large("llama", vocab_size=len(made)).model
    with pytest.raises(StageError, match=f"llama.cpp would read texts otherwise.*{message}"):
        gguf.write_model(Checkpoint(model, made, "causal_lm"), tmp_path, "float32")


@pytest.mark.parametrize(
    ("model_type", "values", "name"),
    [
        ("t5", {"num_decoder_layers": 4}, "decoder, which has more layers than the encoder"),
        ("t5", {"relative_attention_max_distance": 64}, "relative_attention_max_distance"),
        ("t5", {"feed_forward_proj": "gated-silu"}, "feed_forward_proj"),
        ("gpt2", {"activation_function": "relu"}, "activation_function"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
         "sliding window"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0,
         "original_max_position_embeddings": 32}}, "rope_type 'yarn'"),
    ],
)  # fmt: skip
def test_what_llama_cpp_does_not_follow_is_refused(model_type, values, name, tmp_path) -> None:
    with pytest.raises(StageError, match=f"does not follow this model's {name}"):
        gguf.write_model(build_large(model_type, **values), tmp_path / "model", "float32")
    head = "seq2seq_lm" if model_type == "t5" else "causal_lm"
    shape = PICO[model_type] | {"model_type": model_type} | values
    assert gguf.list_unsupported(derive_facts(shape, head=head).config)[0].startswith(
        name
    )  # while planning


DATA = Bills(
    source="bills", rows=SplitRows(test=8), prefix="summarize: ", max_source_length=48,
    max_target_length=12,
)  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "layers", "message"),
    [
        ("t5", {"encoder": [0, 1, 2], "decoder": [1]}, "of greedy tokens are equal"),
        ("qwen3", {"decoder": [0, 2]}, "a logit differs by"),
    ],
)
def test_the_gate_passes_the_source_and_not_one_without_a_layer(
    model_type, layers, message, tmp_path
) -> None:
    """In a process of its own, by llama.cpp, the texts read by the tokenizer in the file."""
    pytest.importorskip("llama_cpp")
    source, rows = build_large(model_type), DATA.load("test")
    whole = export(source, tmp_path / "whole", DATA, "gguf", "float32")
    measured = check_parity(Parity(), source, whole, rows, DATA, weights=["float32"])["parity"]
    assert measured.get("equal_tokens", 1.0) == 1.0
    assert measured.get("logits_difference", 0.0) < 1e-5
    if model_type == "t5":
        ids = tokenize_sources(rows.texts, source.tokenizer, DATA)
        tokens = decode_sweep(source.model, ids, max_lengths=[12])[12].tokens
        expected = source.tokenizer.batch_decode(tokens, skip_special_tokens=True)  # type: ignore[union-attr]
        assert summarize_alone(whole, rows.texts) == expected
    shorter = export(keep_layers(source, layers), tmp_path / "shorter", DATA, "gguf", "float32")
    with pytest.raises(StageError, match=message):
        check_parity(Parity(), source, shorter, rows, DATA, weights=["float32"])


def test_the_plan_claims_the_size_of_the_blocks(tmp_path) -> None:
    """Of a model whose rows can all be cut into blocks; the vocabulary is not counted."""
    model = build_large("llama", hidden_size=64, intermediate_size=96, head_dim=32)
    facts = derive_stored_facts(model.derive_facts(), "int8", "gguf")
    written = export(model, tmp_path, DATA, "gguf", "int8")
    tensors = gguf_reader.GGUFReader(written / gguf.FILE).tensors
    assert sum(tensor.n_bytes for tensor in tensors) == facts.bytes
    assert 0 < measure_sizes(written)["bytes"] - facts.bytes < 20_000


def test_the_plan_tells_what_llama_cpp_cannot_do(recipe, run) -> None:
    """Or, where it is not installed, what to install."""
    path = recipe(
        ("recover, evaluate]", "recover, evaluate, export]"),
        ("num_layers: 2, num_decoder_layers: 2", "num_layers: 1, num_decoder_layers: 2"),
        ("max_source_length: 96", "truncate: sentences, max_source_length: 96"),
        ("  load: {}", "  load: {}\n  export: {format: gguf}"),
    )
    planned = run("plan", path)
    assert planned.code == 2
    if find_spec("llama_cpp") is None:
        assert "pip install 'gguf>=0.19' 'llama-cpp-python>=0.3.36'" in planned.err
        return
    assert (
        "export.format: llama.cpp does not follow this model's decoder, which has more layers"
        in planned.err
    )
    assert "llama.cpp's tokenizer does not tell where a token ends" in planned.err
