"""`quantize`: every kind, on real pico models; what a plan says of bytes is what files have."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

import compressor
from compressor.data.bills import Bills
from compressor.data.messages import Messages
from compressor.data.source_base import SplitRows
from compressor.data.sources import Data
from compressor.models.checkpoint import Checkpoint
from compressor.models.facts import Facts
from compressor.models.loading import CHECKPOINT_JSON, WEIGHTS
from compressor.models.surgery import dequantize_checkpoint
from compressor.stages.base import Inputs, Planning
from compressor.stages.export import Export
from compressor.stages.finetune import Finetune
from compressor.stages.quantize import Quantize
from tests.harness.models import UNTIED, build_case, outputs
from tests.harness.stages import BILLS, preview, stage_context, tokenizer

KINDS = ["int8", "int4", "bfloat16", "float16"]
T5 = {"vocab_size": 1100, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4}
BERT = {"vocab_size": 1100, "hidden_size": 32, "intermediate_size": 64}
SETTINGS: dict[str, dict[str, Any]] = {
    "int8": {"weights": "int8", "activations": "float"},
    "int4": {"weights": "int4", "activations": "float", "group_size": 16},
    "bfloat16": {"weights": "bfloat16"},
    "float16": {"weights": "float16"},
}


def pico(**changes: Any) -> Checkpoint:
    return build_case("t5", T5 | changes, "seq2seq_lm")


def bert() -> Checkpoint:
    return build_case("bert", BERT, "sequence_classification")


def run_quantize(start: Checkpoint, folder: Path, **settings: Any) -> Checkpoint:
    """The quantized model, as it was before it was saved in `folder / "saved"`."""
    start.save(folder / "start")
    result = Quantize(**settings).run(Inputs(folder / "start"), stage_context(folder / "quantize"))
    result.save(folder / "saved")
    return result


def preview_facts(
    facts: Facts, stage: Any = None, data: Any = BILLS, **settings: Any
) -> tuple[Facts, list[str]]:
    result, problems = preview(stage or Quantize(**settings), facts, data)
    assert result is not None
    return result, [f"{path}: {message}" for path, message in problems]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [pico, lambda: pico(**UNTIED), bert])
def test_a_plan_knows_the_bytes_of_every_tensor(
    tmp_path: Path, kind: str, start: Callable[[], Checkpoint]
) -> None:
    """Names, types and sizes in the file are those of the plan; the same logits after a reload."""
    source = start()
    facts, told = preview_facts(source.derive_facts(), **SETTINGS[kind])
    result = run_quantize(source, tmp_path, **SETTINGS[kind])
    assert not told
    sizes = {name: t.nbytes for name, t in load_file(tmp_path / "saved" / WEIGHTS).items()}
    assert sizes.keys() - facts.shapes.keys() == {f"{n}_scale" for n in facts.int8 | facts.int4}
    for name in facts.shapes:
        assert sizes[name] + sizes.get(f"{name}_scale", 0) == facts.tensor_bytes(name), name
    assert sum(sizes.values()) == facts.bytes < source.derive_facts().bytes
    loaded = Checkpoint.load(tmp_path / "saved")
    assert loaded.quantization == result.quantization and loaded.quantization.weights == kind
    assert torch.equal(outputs(loaded.model), outputs(result.model))
    assert loaded.measure_sizes(tmp_path / "saved")["parameters"] == facts.parameters
    twin = outputs(dequantize_checkpoint(loaded).model)
    assert twin.dtype == torch.float32
    exact = kind in ("int8", "int4")
    torch.testing.assert_close(
        outputs(loaded.model).float(), twin, rtol=0, atol=1e-6 if exact else 0.02 * twin.abs().max()
    )
    assert not torch.equal(twin, outputs(start().model))


def test_which_weights_become_what() -> None:
    """int4 where groups divide the columns; tables int8; small tables and positions stay float."""
    facts, _ = preview_facts(bert().derive_facts(), weights="int4", group_size=64)
    words = "bert.embeddings.word_embeddings.weight"
    assert facts.int4 == {f"bert.encoder.layer.{i}.output.dense.weight" for i in range(3)}
    assert words in facts.int8 and "classifier.weight" in facts.int8
    assert "bert.embeddings.position_embeddings.weight" not in facts.int8 | facts.int4
    without, _ = preview_facts(bert().derive_facts(), embeddings=False)
    assert words not in without.int8
    small, _ = preview_facts(
        replace(bert().derive_facts(), shapes=bert().derive_facts().shapes | {words: (1023, 32)})
    )
    assert words not in small.int8
    tied, _ = preview_facts(pico().derive_facts(), weights="int4", embeddings=False)
    assert tied.int8 >= {"shared.weight"}  # a head is tied to it


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(tmp_path: Path, kind: str) -> None:
    """What was pruned is zero in the quantized model, and is counted as such."""
    start = pico(**UNTIED)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in start.model.parameters():
            parameter.mul_(torch.rand_like(parameter) > 0.5)
    before = start.model.state_dict()
    zeros = {name: tensor == 0 for name, tensor in before.items()}
    run_quantize(start, tmp_path, **SETTINGS[kind])
    loaded = Checkpoint.load(tmp_path / "saved")
    after = dequantize_checkpoint(loaded).model.state_dict()
    assert sum(int(zero.sum()) for zero in zeros.values()) > 10_000
    assert all(torch.all(after[name][zero] == 0) for name, zero in zeros.items())
    nonzero = sum(int(torch.count_nonzero(after[n])) for n in loaded.derive_facts().shapes)
    assert loaded.measure_sizes(tmp_path / "saved")["nonzero"] == nonzero


@pytest.mark.parametrize(("kind", "dtype"), [("bfloat16",) * 2, ("int4", "float32")])
def test_it_is_exported_with_its_own_values(tmp_path: Path, kind: str, dtype: str) -> None:
    """Of two bytes in its own type, else as the floats it stands for; equal to the bit."""
    result = run_quantize(pico(), tmp_path, **SETTINGS[kind])
    Export(parity=None).run(Inputs(tmp_path / "saved"), stage_context(tmp_path / "export"))
    folder = tmp_path / "export" / "model"
    assert {str(t.dtype) for t in load_file(folder / WEIGHTS).values()} == {f"torch.{dtype}"}
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert torch.equal(outputs(plain), outputs(dequantize_checkpoint(result).model))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_quantizes_or_packs_into_other_numbers_afterwards(kind: str) -> None:
    """A second `quantize`, and values of a packed file that the model has not."""
    facts, _ = preview_facts(pico().derive_facts(), **SETTINGS[kind])
    _, told = preview_facts(facts)
    article = "an" if kind.startswith("int") else "a"
    assert told == [f": this is {article} {kind} model already"]
    allowed = {"int8": {"int8"}, "int4": set(), "bfloat16": {"bfloat16", "float32"},
               "float16": {"float32"}}[kind]  # fmt: skip
    for values in ("int8", "bfloat16", "float32"):
        _, told = preview_facts(facts, Export(format="packed", weights=values))
        assert bool(told) == (values not in allowed), told


def test_defaults_are_part_of_the_key_as_what_they_mean() -> None:
    """`activations` left out is that of the weights; what decides nothing is left out."""
    assert Quantize().parameters() == Quantize(weights="int8", activations="int8").parameters()
    assert Quantize(weights="int4").parameters() == {
        "weights": "int4", "activations": "bfloat16", "group_size": 32, "embeddings": True,
    }  # fmt: skip
    assert Quantize(weights="bfloat16").parameters() == {
        "weights": "bfloat16", "activations": "float",
    }  # fmt: skip


def test_an_int8_model_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Its `checkpoint.json` says `int8_activations`."""
    result = run_quantize(pico(), tmp_path, weights="int8", activations="int8")
    about = {"head": "seq2seq_lm", "int8_activations": "int8"}
    (tmp_path / "saved" / CHECKPOINT_JSON).write_text(json.dumps(about))
    loaded = compressor.load_model(tmp_path / "saved")
    assert torch.equal(outputs(loaded), outputs(result.model))


def prepare_calibration(kind: str) -> tuple[Checkpoint, Data]:
    """A model with a tokenizer, a third of whose weights are pruned, and rows that it reads."""
    small = {"vocab_size": 304, "intermediate_size": 32, "hidden_size": 32}
    long = {"max_position_embeddings": 64}
    several = {"problem_type": "multi_label_classification"}
    head, changes = {
        "t5": ("seq2seq_lm", T5 | UNTIED | {"vocab_size": 304}),
        "bert": ("sequence_classification", small | long | several),
        "llama": ("causal_lm", small | long),
    }[kind]
    checkpoint = build_case(kind, changes, head)
    checkpoint.tokenizer = tokenizer()
    for name in checkpoint.derive_facts().list_linear_weights():
        weight = checkpoint.get_parameter(name).data
        weight.mul_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) > 0.3)
    limits = {"max_source_length": 24, "max_target_length": 16, "rows": SplitRows(train=24)}
    task = {"task": "language_modeling", "completion": "summary"} if kind == "llama" else {}
    data = (
        Messages(source="messages", **limits, labels=("refund", "delivery"))
        if kind == "bert"
        else None
    )
    return checkpoint, data or Bills(source="bills", **limits, **task)


def collect_inputs(checkpoint: Checkpoint, data: Data) -> dict[str, torch.Tensor]:
    """What comes into each linear layer on the training rows: name → [tokens, inputs]."""
    inputs: dict[str, list[torch.Tensor]] = {}
    for name, module in checkpoint.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, x, name=name: inputs.setdefault(name, []).append(x[0].flatten(0, -2))
            )
    rows = checkpoint.tokenize_rows(data.load("train").first(24), data)
    with torch.no_grad():
        for row in range(24):
            batch = rows.batch([row], checkpoint.pad_id)
            labels = {} if checkpoint.head != "seq2seq_lm" else {"labels": batch["labels"]}
            checkpoint.model(input_ids=batch["input_ids"], **labels)
    return {name: torch.cat(parts) for name, parts in inputs.items()}


@pytest.mark.parametrize("weights", ["int4", "int8"])
@pytest.mark.parametrize("kind", ["t5", "bert", "llama"])
def test_gptq_has_less_error_on_the_rows_that_it_looks_at(
    tmp_path: Path, kind: str, weights: str
) -> None:
    """Of what each layer gives; tables are as `round` has them, what was pruned is still zero."""
    start, data = prepare_calibration(kind)
    before = {n: p.detach().clone() for n, p in start.model.named_parameters()}
    inputs = collect_inputs(start, data)
    settings = {"weights": weights, "activations": "float", "calibration_rows": 24}
    settings |= {"group_size": 16} if weights == "int4" else {}
    facts, told = preview_facts(start.derive_facts(), Quantize(**settings, method="gptq"), data)
    assert not told
    start.save(tmp_path / "start")
    state, metrics = {}, {}
    for method in ("round", "gptq"):
        context = stage_context(tmp_path / method, data)
        stage = Quantize(**settings, method=method)
        result = stage.run(Inputs(tmp_path / "start"), context)
        result.save(tmp_path / f"saved_{method}")
        loaded = Checkpoint.load(tmp_path / f"saved_{method}")
        stored = load_file(tmp_path / f"saved_{method}" / WEIGHTS).values()
        assert sum(tensor.nbytes for tensor in stored) == facts.bytes
        state[method] = dequantize_checkpoint(loaded).model.state_dict()
        metrics[method] = context.metrics
    assert metrics["gptq"]["calibrated_tensors"] == len(inputs)
    errors = {}
    for name, tokens in inputs.items():
        weight = before[f"{name}.weight"]
        for method in state:
            rounded = state[method][f"{name}.weight"]
            assert not bool(rounded[weight == 0].any())
            error = (tokens @ (rounded - weight).T).square().sum()
            errors[method] = errors.get(method, 0.0) + float(
                error / (tokens @ weight.T).square().sum()
            )
    assert 0 < errors["gptq"] < 0.8 * errors["round"], errors
    tables = before.keys() - {f"{name}.weight" for name in inputs}
    assert all(
        torch.equal(state["gptq"][n], state["round"][n]) for n in tables & facts.shapes.keys()
    )


def test_keys_name_the_method_and_rows_of_gptq_alone() -> None:
    """`round` has the key that a recipe without `method` has always had."""
    calibrated = {"method": "gptq", "calibration_rows": 64}
    for settings in ({"weights": "int8"}, {"weights": "int4"}):
        old = Quantize(**settings)
        nearest, gptq = (Quantize(**settings, method=method) for method in ("round", "gptq"))
        assert nearest.parameters() == old.parameters() == {
            key: value for key, value in gptq.parameters().items() if key not in calibrated
        }  # fmt: skip
        assert {key: gptq.parameters()[key] for key in calibrated} == calibrated
        assert (old.reads(), nearest.reads(), gptq.reads()) == ({}, {}, {"train": "pairs"})


def test_int4_is_calibrated_where_it_can_be() -> None:
    """By rows that have a loss, but not after a training for the values of `round`."""

    def method_of(facts: Facts, data: Data = BILLS, **settings: Any) -> tuple[str | None, str]:
        planning = Planning(facts, data, report=lambda *_: None, report_unreached=lambda *_: None)
        stage = Quantize(**{"weights": "int4", **settings}).resolve(planning)
        return stage.method, stage.choice

    facts = pico().derive_facts()
    labels = Messages(source="messages", labels=("refund", "delivery"))
    assert method_of(facts) == ("gptq", "method: gptq (chosen: training rows have a loss)")
    assert method_of(facts, weights="int8") == (None, "")
    assert method_of(facts, weights="bfloat16") == (None, "")
    assert method_of(facts, method="round") == ("round", "")
    method, reason = method_of(facts, labels)
    assert method == "round" and "no loss" in reason
    for kind, expected in (("int4", "round"), ("int8", "gptq")):
        after, _ = preview_facts(facts, Finetune(epochs=1, quantization_aware=kind))
        assert method_of(after)[0] == expected


def test_what_cannot_be_calibrated_is_told() -> None:
    """Settings without a meaning, a model without such layers, rows of another task."""
    facts = pico().derive_facts()
    labels = Messages(source="messages", labels=("refund", "delivery"))
    gpt2 = build_case("gpt2", {}, "causal_lm").derive_facts()
    cases: list[tuple[Facts, Data, dict[str, Any], str]] = [
        (facts, BILLS, {"weights": "bfloat16", "method": "gptq"},
         "method: has no meaning with bfloat16 weights"),
        (facts, BILLS, {"method": "round", "calibration_rows": 8},
         "calibration_rows: means nothing without `method: gptq`"),
        (gpt2, Bills(source="bills", task="language_modeling", max_source_length=8),
         {"method": "gptq"}, "method: no weight of a gpt2 is one that gptq rounds; take 'round'"),
        (facts, labels, {"method": "gptq"},
         "data.task: is multi_label, and the model has the head 'seq2seq_lm'; it takes data of the"
         " task text2text or summarization"),
    ]  # fmt: skip
    for model, data, settings, message in cases:
        assert preview_facts(model, data=data, **settings)[1] == [message]
