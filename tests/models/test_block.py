"""A block in the place of encoder layers: what it computes, and what can be done with the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
)

import compressor
from compressor.core.errors import StageError
from compressor.data.examples import Examples
from compressor.models.block import Block
from compressor.models.block_config import BLOCKS_FILE, BlockSizes
from compressor.models.checkpoint import Checkpoint
from compressor.models.facts import derive_facts, load_architecture
from compressor.models.loading import Head, build_model, load_pretrained
from compressor.models.surgery import replace_layers
from compressor.stages.approximate import Approximate
from compressor.stages.base import Inputs
from compressor.stages.distill import Distill
from compressor.stages.export import Export
from compressor.stages.quantize import Quantize
from compressor.stages.slice import Slice
from compressor.training.distillation import DistillationLoss
from tests.harness.models import BLOCKS, PICO, build_case
from tests.harness.stages import preview, stage_context

FAMILIES = ("bert", "roberta", "electra", "distilbert", "bart", "marian")
SIZES = BlockSizes(heads=2, head_size=4, depth=1)
LONG = {"max_position_embeddings": 32}  # as many as an export reads
IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0], [13, 14, 15, 16, 0]])
LENGTHS = (5, 3, 4)
REAL = torch.tensor([[i < n for i in range(5)] for n in LENGTHS])


def fresh(model_type: str = "bert", head: Head | None = None, **changes: Any) -> Checkpoint:
    """A pico model whose weights are large enough for its layers to matter."""
    checkpoint = build_case(model_type, changes, head or load_architecture(model_type).HEADS[0])
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            if parameter.requires_grad:  # Marian's positions are not
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return checkpoint


def outputs(model: Any, ids: Tensor = IDS, real: Tensor = REAL) -> Tensor:
    given = {"input_ids": ids, "attention_mask": real.long()}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = ids[:, :2]
    with torch.inference_mode():
        return next(iter(model(**given).values()))


def with_block(checkpoint: Checkpoint) -> Checkpoint:
    """A model with a block, drawn, in the place of its first two layers."""
    torch.manual_seed(1)
    return replace_layers(checkpoint, [0, 1], Block(16, SIZES))


def pico(model_type: str, **changes: Any) -> Any:
    known = {"model_type": model_type, **PICO[model_type], **changes}
    return derive_facts(known, head=load_architecture(model_type).HEADS[0])


def test_the_published_shape_has_the_published_counts() -> None:
    """Two layers of BERT-base, 14,175,744 parameters; the block, 5,022,336; both real modules."""
    with torch.device("meta"):
        layers = build_model(AutoConfig.for_model("bert"), "none").encoder.layer[:2]
        block = Block(768, BlockSizes())
    assert sum(p.numel() for p in layers.parameters()) == 14_175_744
    assert sum(p.numel() for p in block.parameters()) == 5_022_336
    base = derive_facts({"model_type": "bert"}, head="none")
    smaller = base.replace_layers("encoder", [0, 1], BlockSizes())
    assert base.parameters - smaller.parameters == 14_175_744 - 5_022_336
    assert len(smaller.list_groups()["encoder.block"]) == 12


def by_hand(block: Block, x: Tensor) -> Tensor:
    """The block on one row [T, D] without padding, head by head."""

    def network(part: nn.Sequential, x: Tensor) -> Tensor:
        *hidden, last = [layer for layer in part if isinstance(layer, nn.Linear)]
        for layer in hidden:
            z = x @ layer.weight.T + layer.bias
            x = z * 0.5 * (1 + torch.erf(z / 2**0.5))
        return x @ last.weight.T + last.bias

    size = block.sizes.head_size
    parts = (network(part, x).split(size, dim=-1) for part in (block.query, block.key, block.value))
    attended = [
        functional.softmax(q @ k.T / size**0.5, dim=-1) @ v for q, k, v in zip(*parts, strict=True)
    ]
    y = x + network(block.output, torch.cat(attended, dim=-1))
    centred = y - y.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
    return scaled * block.norm.weight + block.norm.bias


MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "boolean": lambda real: real[:, None, None, :],
    "boolean of all queries": lambda real: real[:, None, None, :].expand(-1, 1, 5, -1),
    "additive": lambda real: (~real)[:, None, None, :] * torch.finfo(torch.float32).min,
    "additive, infinite": lambda real: torch.zeros(3, 1, 1, 5).masked_fill(
        ~real[:, None, None, :], float("-inf")
    ),
    "flash attention's": lambda real: real.long(),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("depth", [0, 2])
def test_a_block_is_its_equations_and_padding_does_not_reach_them(kind: str, depth: int) -> None:
    """Each padded row gives what its real positions alone give, written out, under every mask."""
    torch.manual_seed(0)
    block = Block(6, BlockSizes(heads=3, head_size=4, depth=depth)).eval()
    nn.init.normal_(block.norm.weight), nn.init.normal_(block.norm.bias)
    x = torch.randn(3, 5, 6)
    y = block(x, MASKS[kind](REAL))
    assert not y.isnan().any()
    for row, length in enumerate(LENGTHS):
        expected = by_hand(block, x[row, :length])
        torch.testing.assert_close(y[row, :length], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block(x)[0], y[0], rtol=1e-4, atol=1e-5)  # nothing is padded


def test_a_block_drops_while_training_alone() -> None:
    """Its output, not the residual: with p near 1 what is left is the norm of what it reads."""
    torch.manual_seed(0)
    block = Block(8, SIZES.model_copy(update={"dropout": 0.999}))
    x = torch.randn(4, 5, 8)
    same = torch.isclose(block(x), block.norm(x), atol=1e-5).float().mean()
    assert same > 0.9
    assert not torch.isclose(block.eval()(x), block.norm(x), atol=1e-5).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_in_a_model_a_padded_row_gives_what_it_gives_alone(model_type: str, attention: str) -> None:
    """Whatever mask the encoder hands to its layers; and hidden states are those between layers."""
    model: Any = fresh(model_type, **BLOCKS).model
    model.set_attn_implementation(attention)
    together = outputs(model)
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    for row, length in enumerate(LENGTHS):
        alone = outputs(model, IDS[row : row + 1, :length], torch.ones(1, length))
        seen = slice(None, 2 if model.config.is_encoder_decoder else length)
        torch.testing.assert_close(together[row, seen], alone[0, seen], rtol=1e-4, atol=1e-5)
    states = encoder(IDS[:1], output_hidden_states=True).hidden_states
    assert len(states) == 4
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    torch.testing.assert_close(blocks[0](states[1]), states[2])


def test_it_comes_back_everywhere_but_in_plain_transformers(tmp_path) -> None:
    """Saved, exported both ways, int8: each loads with the same logits. `from_pretrained` fails,
    instead of giving a model with a layer drawn anew.
    """
    start = with_block(fresh("bert", "sequence_classification", num_labels=3, **LONG))
    places = {"saved": tmp_path / "saved", "int8": tmp_path / "int8"}
    start.save(places["saved"])
    int8 = Quantize(activations="float").run(Inputs(places["saved"]), stage_context(tmp_path / "q"))
    int8.save(places["int8"])
    for name, source, settings in (
        ("plain", "saved", {}),
        ("packed", "saved", {"format": "packed", "weights": "float32"}),
        ("dequantized", "int8", {}),
    ):
        places[name] = tmp_path / name / "model"
        context = stage_context(tmp_path / name)
        Export(parity=None, **settings).run(Inputs(places[source]), context)
    assert sum(isinstance(m, Block) for m in int8.model.modules()) == 1
    planned, _ = preview(Quantize(), start.derive_facts())
    scales = [name for name in int8.model.state_dict() if name.endswith("_scale")]
    assert planned is not None and len(planned.int8) == len(scales)
    ids = torch.arange(2, 9)[None]
    with torch.inference_mode():
        logits = {name: compressor.load_model(path)(ids).logits for name, path in places.items()}
        expected = start.model(ids).logits, int8.model(ids).logits
    for name in ("saved", "plain", "packed"):
        assert torch.equal(logits[name], expected[0]), name
    for name in ("int8", "dequantized"):
        torch.testing.assert_close(logits[name], expected[1])
    assert not torch.allclose(*expected, atol=1e-6)
    for name in ("saved", "plain"):
        for cls in (AutoModel, AutoModelForSequenceClassification, BertForSequenceClassification):
            with pytest.raises(OSError, match=r"no file named model\.safetensors"):
                cls.from_pretrained(places[name])


def test_load_model_loads_plain_directories_with_their_head(tmp_path) -> None:
    """What `from_pretrained` of the right class gives; and says where there is no model."""
    for model_type, head in (
        ("bert", "sequence_classification"), ("distilbert", "none"), ("marian", "seq2seq_lm"),
        ("t5", "seq2seq_lm"), ("gpt2", "causal_lm"),
    ):  # fmt: skip
        checkpoint = fresh(model_type, head, decoder_start_token_id=0)
        folder = tmp_path / model_type
        checkpoint.model.save_pretrained(folder)
        loaded = compressor.load_model(folder)
        assert type(loaded) is type(checkpoint.model) and not loaded.training
        assert torch.equal(outputs(loaded), outputs(checkpoint.model))
    with pytest.raises(StageError, match=r"expected a config\.json"):
        compressor.load_model(tmp_path / "none")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config | {"architectures": ["X"]}))
    with pytest.raises(StageError, match=r"what kind of model .* \['X'\]"):
        compressor.load_model(tmp_path / "bert")


def test_a_block_is_distilled_by_its_hidden_states() -> None:
    """By hand: the block's own output against the teacher's second layer; its weights learn."""
    teacher = fresh("bert", "sequence_classification", num_labels=2)
    student = with_block(teacher)
    loss = DistillationLoss(
        student.model, teacher.model, {"hidden": 1.0}, layers={"encoder": {0: 1}}
    )
    batch = Examples([IDS[0].tolist()], [[1]], "class").batch([0], 0)
    hidden = teacher.model.bert.embeddings(IDS[:1])
    first, second, _ = teacher.model.bert.encoder.layer
    gap = student.model.bert.encoder.layer[0](hidden) - second(first(hidden))
    computed = loss(batch)
    assert computed.item() == pytest.approx(gap.square().mean().item(), rel=1e-4)
    computed.backward()
    assert student.model.bert.encoder.layer[0].query[0].weight.grad.abs().sum() > 0


def test_a_body_with_a_block_takes_a_fresh_head(tmp_path) -> None:
    """As plain ones do: a body under a classifier of new labels, a classifier's body alone."""
    body = with_block(fresh("roberta"))
    body.save(tmp_path / "body")
    labels = {"num_labels": 4, "problem_type": "multi_label_classification"}
    loaded: Any = load_pretrained(tmp_path / "body", "sequence_classification", config=labels)
    assert loaded.config.num_labels == 4 and loaded.classifier.out_proj.weight.shape == (4, 16)
    expected = body.model(IDS, REAL.long()).last_hidden_state
    assert torch.equal(loaded.roberta(IDS, REAL.long()).last_hidden_state, expected)
    Checkpoint(loaded, None, "sequence_classification").save(tmp_path / "classifier")
    more: Any = load_pretrained(
        tmp_path / "classifier", "sequence_classification", config=labels | {"num_labels": 5}
    )
    assert more.classifier.out_proj.weight.shape == (5, 16)
    assert torch.equal(more.roberta(IDS, REAL.long()).last_hidden_state, expected)
    with pytest.raises(StageError, match="missing tensors, such as classifier"):
        load_pretrained(tmp_path / "body", "sequence_classification")
    start = with_block(fresh("bert", "sequence_classification"))
    start.save(tmp_path / "bert")
    alone: Any = load_pretrained(tmp_path / "bert", "none")
    assert torch.equal(outputs(alone), outputs(start.model.base_model))


def test_a_damaged_directory_is_refused(tmp_path) -> None:
    """A StageError that says what is wrong with which tensor or key."""
    with_block(fresh()).save(tmp_path)
    blocks, config = tmp_path / BLOCKS_FILE, tmp_path / "config.json"
    saved, values = load_file(blocks), json.loads(config.read_text())
    query = "encoder.layer.0.query.0.weight"

    def refuse(message: str, tensors: dict[str, Tensor] = saved, **changes: Any) -> None:
        save_file(tensors, blocks, metadata={"format": "pt"})
        config.write_text(json.dumps(values | changes))
        with pytest.raises(StageError, match=message):
            compressor.load_model(tmp_path)

    refuse(f"1 missing tensors, such as {query}", {n: t for n, t in saved.items() if n != query})
    refuse(f"1 mismatched tensors, such as {query}", saved | {query: torch.ones(1)})
    other = [SIZES.model_dump() | {"depth": 0}, None]
    refuse("8 mismatched tensors, such as encoder.layer.0.key.0.bias", encoder_blocks=other)
    refuse("head: Extra inputs", encoder_blocks=[{"head": 2}, None])


def test_stages_that_a_block_cannot_serve_say_so() -> None:
    """No attention maps of it, no cutting of unlike layers, no training of int8."""
    with_block, plain = pico("bert", **BLOCKS), pico("bert")
    stage = Distill(teacher="x", losses={"attention": 1.0})
    for student, teacher, role in ((with_block, plain, "student"), (plain, with_block, "teacher")):
        message = f"the {role} has a block, which gives no attention maps"
        assert ("losses.attention", message) in preview(stage, student, teacher=teacher)[1]
    message = "the encoder's layers are not all alike, one is a block; `shrink` them"
    assert preview(Slice(layers=2), with_block)[1] == [("layers", message)]
    int8, _ = preview(Quantize(), plain)
    assert "int8" in preview(Approximate(layers=[0]), int8)[1][0][1]
