"""The tables of parameters are held against the real models, on the meta device."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from compressor.architectures import evenly_spaced, facts

CLASSES = {
    "seq2seq_lm": AutoModelForSeq2SeqLM,
    "none": AutoModel,
    "sequence_classification": AutoModelForSequenceClassification,
}
PICO_T5 = {
    "model_type": "t5",
    "vocab_size": 50,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_heads": 3,
}
PICO_BERT = {
    "model_type": "bert", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3,
    "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 20,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "head"),
    [
        (PICO_T5 | {"num_layers": 2}, "seq2seq_lm"),
        (PICO_T5 | {"num_layers": 1, "num_decoder_layers": 3}, "seq2seq_lm"),
        (PICO_T5 | {"num_layers": 2, "feed_forward_proj": "gated-gelu"}, "seq2seq_lm"),
        ({"model_type": "t5"}, "seq2seq_lm"),
        ({"model_type": "mt5", "vocab_size": 50, "d_model": 16}, "seq2seq_lm"),
        (PICO_BERT, "none"),
        (PICO_BERT | {"num_labels": 5}, "sequence_classification"),
        ({"model_type": "bert"}, "none"),
    ],
)
def test_the_table_names_every_parameter_with_its_shape(config: dict, head: str) -> None:
    """Names and shapes equal the real model's, for plain and gated, even and uneven stacks."""
    values = dict(config)
    with torch.device("meta"):
        model = CLASSES[head].from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    real = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    untied = "lm_head.weight" in real if head == "seq2seq_lm" else None
    assert dict(facts(config, head=head, untied_head=untied).shapes) == real


def test_the_groups_of_t5_small_are_linear_weights_and_disjoint() -> None:
    """The six groups of system B cover every Linear weight of the model once."""
    known = facts({"model_type": "t5"}, head="seq2seq_lm")
    groups = {
        path: names for path, names in known.groups().items() if "." in path or path == "lm_head"
    }
    assert list(groups) == [
        "encoder.self_attention", "encoder.feed_forward", "decoder.self_attention",
        "decoder.cross_attention", "decoder.feed_forward", "lm_head",
    ]  # fmt: skip
    members = [name for names in groups.values() for name in names]
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5"))
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert sorted(members) == sorted(linear - {"lm_head.weight"} | {"shared.weight"})


@pytest.mark.parametrize(
    ("layers", "keep", "expected"),
    [
        (6, 3, [0, 2, 4]),
        (6, 2, [0, 3]),
        (6, 4, [0, 1, 3, 4]),
        (6, 1, [0]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_layers_are_kept_evenly_spaced(layers: int, keep: int, expected: list[int]) -> None:
    """Halving keeps every other layer (system A); any other count works too."""
    assert evenly_spaced(layers, keep) == expected


@pytest.mark.parametrize(
    ("config", "head"),
    [
        (PICO_T5 | {"num_layers": 2, "num_decoder_layers": 3}, "seq2seq_lm"),
        (PICO_T5 | {"num_layers": 1, "feed_forward_proj": "gated-gelu"}, "seq2seq_lm"),
        (PICO_BERT, "none"),
        (PICO_BERT, "sequence_classification"),
    ],
)
def test_units_lie_in_equal_blocks_along_their_axes(config: dict, head: str) -> None:
    """Every width of the config that a tensor has is declared once, on the right axis."""
    known = facts(config, head=head, untied_head=head == "seq2seq_lm")
    owned: dict[str, str] = {}
    for kind in ("heads", "feed_forward", "vocabulary"):
        for units in known.units(kind):
            assert units.count == known.config[units.config_key]
            for name, axis in units.tensors.items():
                assert known.shapes[name][axis] % units.count == 0, name
                assert owned.setdefault(name, units.name) == units.name
    norms = ("layer_norm", "LayerNorm", "embeddings.p", "embeddings.t", "pooler", "classifier")
    rest = [n for n in known.shapes.keys() - owned if not any(part in n for part in norms)]
    # Only the biases behind a sub-layer, which are as wide as the model, belong to no unit.
    assert all(name.endswith("output.dense.bias") for name in rest), rest
