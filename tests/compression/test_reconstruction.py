"""What is left of a layer's inputs is refit by least squares: against torch.linalg.lstsq."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.compression.sparsegpt import DAMPING
from compressor.models.checkpoint import Checkpoint
from compressor.stages.slice import Slice
from tests.harness.models import build_case
from tests.harness.stages import pico_classifier, rows_of_labels, rows_of_text, run_stage, tokenizer


def pico(model_type: str, head: str, **changes: int) -> Checkpoint:
    checkpoint = build_case(model_type, {"vocab_size": 304, **changes}, head)
    checkpoint.tokenizer = tokenizer()
    return checkpoint


CASES = {
    "t5 neurons": (lambda: pico("t5", "seq2seq_lm"), {"feed_forward": 0.5}, "wo"),
    "t5 heads": (lambda: pico("t5", "seq2seq_lm"), {"heads": 2}, "o"),
    "bart": (
        lambda: pico("bart", "seq2seq_lm", max_position_embeddings=64),
        {"feed_forward": 0.5},
        "fc2",
    ),
    "bert": (pico_classifier, {"feed_forward": 0.25}, "output.dense"),
    "gpt2": (
        lambda: pico("gpt2", "causal_lm", n_positions=64), {"feed_forward": 0.5}, "mlp.c_proj",
    ),
    "llama groups": (lambda: pico("llama", "causal_lm"), {"heads": 1}, "o_proj"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_refit_to_what_stays(tmp_path, name) -> None:
    """Of each layer: what is solved from its plain inputs on the same rows, bias and damping in it,
    comes nearest to what the layer gave.
    """
    make, widths, suffix = CASES[name]
    original = make()
    labels = original.head == "sequence_classification"
    about = {"task": "language_modeling"} if original.head == "causal_lm" else {}
    data = rows_of_labels(tmp_path) if labels else rows_of_text(tmp_path, **about)
    settings = {**widths, "importance": "taylor", "calibration_rows": 4}
    cut, refit = (
        run_stage(Slice(**settings, reconstruct=r), original, tmp_path / str(r), data)[0].model
        for r in (False, True)
    )
    inputs = watch(original, suffix, data)
    assert len(inputs) >= 2
    for path, tokens in inputs.items():
        old, plain, new = (model.get_submodule(path) for model in (original.model, cut, refit))
        stays = match_columns(as_rows(old), as_rows(plain))
        errors = [
            (layer(tokens[:, stays]) - old(tokens)).square().sum().item() for layer in (new, plain)
        ]
        assert errors[0] < 0.9 * errors[1]
        x = tokens if old.bias is None else torch.cat([tokens, torch.ones(len(tokens), 1)], 1)
        stays += [] if old.bias is None else [tokens.shape[1]]
        weight = with_bias(old)
        damping = (DAMPING * x.square().sum(0).mean()).sqrt() * torch.eye(len(stays))
        left = torch.cat([x[:, stays], damping]).double()
        right = torch.cat([x @ weight.T, damping @ weight[:, stays].T]).double()
        expected = torch.linalg.lstsq(left, right).solution.T.float()
        torch.testing.assert_close(with_bias(new), expected, atol=1e-4, rtol=1e-3)


def with_bias(layer: nn.Module) -> torch.Tensor:
    """A layer's weight with its bias, if it has one, as the last column."""
    rows = as_rows(layer)
    return rows if layer.bias is None else torch.cat([rows, layer.bias.detach()[:, None]], 1)


def as_rows(module: nn.Module) -> torch.Tensor:
    """A layer's weight [outputs, inputs]; GPT-2's are the other way round."""
    weight = module.weight.detach()
    return weight if isinstance(module, nn.Linear) else weight.T


def match_columns(old: torch.Tensor, cut: torch.Tensor) -> list[int]:
    """Which columns of a weight a smaller one has."""
    return [int((old - column[:, None]).abs().sum(0).argmin()) for column in cut.T]


def watch(checkpoint: Checkpoint, suffix: str, data) -> dict[str, torch.Tensor]:
    """What comes into each layer whose path ends so, from plain forwards of a row each."""
    seen: dict[str, list[torch.Tensor]] = {}
    modules = {
        path: module
        for path, module in checkpoint.model.named_modules()
        if path.endswith(f".{suffix}") and ("attention" not in path or "o_proj" in path)
    }
    hooks = [
        module.register_forward_pre_hook(
            lambda _, given, path=path: seen.setdefault(path, []).append(given[0].flatten(0, -2))
        )
        for path, module in modules.items()
    ]
    examples = checkpoint.tokenize_rows(data.load("train").first(4), data)
    with torch.no_grad():
        for row in range(len(examples)):
            batch = examples.batch([row], checkpoint.pad_id)
            if checkpoint.head == "sequence_classification":
                del batch["labels"]
            checkpoint.model(**batch)
    for hook in hooks:
        hook.remove()
    return {path: torch.cat(tokens) for path, tokens in seen.items()}


def test_a_masked_weight_is_left_as_it_is(tmp_path) -> None:
    """Its zeros stay, and so does the rest of it."""
    original = pico("t5", "seq2seq_lm")
    name = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    weight = original.get_parameter(name)
    original.masks[name] = (
        torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > 0.3
    )
    original.apply_masks()
    stage = Slice(feed_forward=0.5, importance="taylor", calibration_rows=8)
    cut, _ = run_stage(stage, original, tmp_path, rows_of_text(tmp_path))
    smaller = cut.get_parameter(name)
    assert torch.equal(smaller != 0, cut.masks[name])
    assert torch.equal(smaller, weight[:, match_columns(weight.detach(), smaller.detach())])
