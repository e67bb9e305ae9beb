"""The tables of parameters are held against the real models, on the meta device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from compressor.engine.plan import plan
from compressor.engine.store.store import Store
from compressor.models.facts import Facts, derive_facts, load_architecture
from compressor.models.loading import AUTO_CLASSES, build_model, has_untied_head
from compressor.models.quantized_layers import quantize_weights
from compressor.recipe.compose import compose
from tests.harness.models import CHANGES, PICO, TWO_VOCABULARIES, UNTIED

VARIANTS = [
    *CHANGES,
    ("t5", {"num_layers": 1, "num_decoder_layers": 3}),
    *((kind, UNTIED) for kind in ("t5", "mt5", "longt5", "mbart", "pegasus", "marian")),
    ("mt5", {"feed_forward_proj": "relu"}),
    ("bart", {"num_hidden_layers": 1}),  # another name of encoder_layers, which it overrides
    ("marian", TWO_VOCABULARIES | UNTIED),
    *((kind, {"num_labels": 5}) for kind in ("bert", "roberta", "electra", "distilbert", "llama")),
    ("bert", {"type_vocab_size": 3}),
    ("electra", {"embedding_size": 16}),
    ("gpt2", {"num_labels": 5, "num_hidden_layers": 1}),
    ("llama", {"num_key_value_heads": 4}),
    ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
]
CASES = [
    (model_type, values, head)
    for model_type, changes in VARIANTS
    for values in (PICO[model_type] | changes,)
    for head in load_architecture(model_type).HEADS
]


def real(model_type: str, values: dict, head: str, device: str = "meta"):
    """The real model, its head untied where the config says so."""
    with torch.device(device):
        config = AutoConfig.for_model(model_type, **values)
        return build_model(config, head, untied_head=values.get("tie_word_embeddings") is False)


def known(model_type: str, values: dict, head: str) -> Facts:
    return derive_facts({"model_type": model_type, **values}, head=head)


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("model_type", "values", "head"), CASES)
def test_the_table_names_every_parameter_with_its_shape(model_type, values, head) -> None:
    """Names and shapes equal the real model's, planned from its config or from the model's own."""
    model = real(model_type, values, head)
    table = known(model_type, values, head)
    assert dict(table.shapes) == shapes(model)
    assert table.parameters == model.num_parameters()
    again = derive_facts(model.config.to_dict(), head=head, untied_head=has_untied_head(model))
    assert dict(again.shapes) == shapes(model)


@pytest.mark.parametrize("model_type", PICO)
def test_the_defaults_are_those_of_transformers(model_type) -> None:
    """A config that says nothing but its type gives the real model's parameters, for each head."""
    for head in load_architecture(model_type).HEADS:
        with torch.device("meta"):
            model = AUTO_CLASSES[head].from_config(AutoConfig.for_model(model_type))
        assert dict(known(model_type, {}, head).shapes) == shapes(model)


@pytest.mark.parametrize(("model_type", "values", "head"), CASES)
def test_the_groups_are_the_weights_of_the_layers(model_type, values, head) -> None:
    """Disjoint, and together every Linear or Conv1D weight of the layers and the language head."""
    model, table = real(model_type, values, head), known(model_type, values, head)
    groups = table.list_groups().items()
    members = [n for path, names in groups if "." in path or path == "lm_head" for n in names]
    prefixes = tuple(f"{stack.prefix}." for stack in table.list_stacks().values())
    expected = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and name.startswith(prefixes)
    ]
    if head in ("seq2seq_lm", "causal_lm"):
        output = model.get_output_embeddings().weight
        expected += [name for name, weight in model.named_parameters() if weight is output]
    assert sorted(members) == sorted(expected)


@pytest.mark.parametrize(("model_type", "values", "head"), CASES)
def test_what_a_plan_calls_linear_is_what_becomes_int8(model_type, values, head) -> None:
    """The names are those of the weights that `quantize_weights` replaces in the real model."""
    model = real(model_type, values, head, device="cpu")
    assert sorted(quantize_weights(model)) == sorted(
        known(model_type, values, head).list_linear_weights()
    )


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "gpt2", "bart"])
def test_as_many_tokens_as_there_are_positions_can_be_read_and_no_more(model_type) -> None:
    """RoBERTa's table of 514 is for 512 tokens: its positions begin behind the padding's."""
    head = {"gpt2": "causal_lm", "bart": "seq2seq_lm"}.get(model_type, "none")
    positions = derive_facts({"model_type": model_type} | PICO[model_type], head=head).positions
    config = AutoConfig.for_model(model_type, **PICO[model_type] | {"pad_token_id": 1})
    model = build_model(config, head).eval()
    model(input_ids=torch.full((1, positions), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, positions + 1), 5))


def test_long_t5_base_is_counted_as_published() -> None:
    """As `sft/long_documents` plans it, without a network."""
    (load, *_) = plan(compose("sft/long_documents"), Store(Path("/nonexistent"))).nodes
    assert load.facts is not None and load.facts.parameters == 247_587_456
