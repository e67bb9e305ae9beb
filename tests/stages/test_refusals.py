"""What a stage cannot do is refused while planning, at its key, with what would go."""

from __future__ import annotations

import pytest

BART = ("model.config.model_type=bart", "+model.config.max_position_embeddings=48",
        "data.max_source_length=48")  # fmt: skip
REFUSED = [
    ("slice", "{heads: 0}", ["stages.slice.heads", "at least 1", "got 0"]),
    ("slice", "{heads: 1.5}", ["stages.slice.heads", "share in (0, 1]", "got 1.5"]),
    ("slice", "{feed_forward: 0.0}", ["stages.slice.feed_forward", "share in (0, 1]"]),
    ("slice", "{encoder: {feedforward: 2}}", ["encoder.feedforward", "'feed_forward'"]),
    ("slice", "{}", ["stages.slice", "set `heads`, `feed_forward` or `layers`"]),
    ("slice", "{heads: 9}", ["stages.slice.heads", "9 is outside 1 … 4"]),
    ("quantize, slice", "{heads: 2}", ["cannot slice an int8 model"]),
    ("trim_vocabulary", "{size: 300, keep: 300}", ["not both"]),
    ("trim_vocabulary", "{size: 401}", ["trim_vocabulary.size", "401 is outside 1 … 400"]),
    ("trim_vocabulary", "{from_splits: [training]}", ["from_splits.0", "'train'"]),
    ("quantize, smooth", "{}", ["cannot smooth an int8 model; put `quantize` after it"]),
    ("benchmark", "{input_lengths: [1, 64]}", ["input_lengths.0: expected at least 2, got 1"]),
    ("benchmark", "{training_step: true}", ["training_step needs input_lengths"]),
    ("packed", "{stage: quantize, weights: int4, activations: int8}",
     ["activations: int4 weights go with 'bfloat16'"]),
    ("packed", "{stage: quantize, weights: bfloat16, activations: int8}",
     ["activations: bfloat16 weights go with"]),
    ("packed", "{stage: quantize, weights: int8, group_size: 64}",
     ["group_size: has no meaning with int8 weights"]),
    ("packed", "{stage: quantize, weights: float16, embeddings: false}",
     ["embeddings: has no meaning with float16"]),
    ("packed", "{stage: quantize, weights: int4, group_size: 40}",
     ["group_size: 40 divides the columns of no linear"]),
    ("bart", "{stage: smooth}", ["knows T5 and mT5, and this is a bart"]),
    ("bart", "{stage: benchmark, input_lengths: [48, 49], max_length: 48}",
     ["stages.bart.input_lengths.1: the model has 48 positions, too few for 49 tokens"]),
]  # fmt: skip


@pytest.mark.parametrize(("pipeline", "settings", "expected"), REFUSED)
def test_what_a_stage_cannot_do_is_refused(plan_errors, pipeline, settings, expected) -> None:
    """With the key's path and the cure; `bart` is a stage of that model."""
    name = pipeline.rpartition(" ")[2]
    error = plan_errors(
        ("[load, finetune, prune, recover, evaluate]", f"[load, {pipeline}]"),
        ("  load: {}", f"  load: {{}}\n  quantize: {{}}\n  {name}: {settings}"),
        overrides=BART if name == "bart" else (),
    )
    assert all(text in error for text in expected), error
