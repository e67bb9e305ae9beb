"""What becomes of each setting of a generation config, and what a config must say, at planning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    GenerationConfig,
    T5ForConditionalGeneration,
)

from compressor.backends.generation_config import SETTINGS
from compressor.core.errors import RecipeError
from compressor.engine.plan import plan
from compressor.engine.store.store import Store
from compressor.recipe.compose import compose
from tests.harness.models import PICO

RECIPE = """
defaults: [/base, /data: files, _self_]
pipeline: [load, {stages}]
model: {{source: {here}/model{model}}}
data: {{files: {{train: {here}/rows.jsonl, validation: {here}/rows.jsonl}}, prefix: "",
  max_source_length: 12, max_target_length: 12}}
training: {{batch_size: 4, max_steps: 2}}
stages:
  load: {{}}
  finetune: {{epochs: 1}}
  greedy: {{stage: evaluate, max_length: 12}}
  beams: {{stage: evaluate, max_length: 12, num_beams: 2}}
  label: {{stage: pseudo_label, max_length: 12}}
  speed: {{stage: benchmark, max_length: 12}}
  sensitive: {{stage: sensitivity, rouge: true, max_length: 12, amounts: [0.5]}}
  onnx: {{stage: export, format: onnx, weights: float32}}
  ct2: {{stage: export, format: ctranslate2, weights: float32}}
"""
IDS = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


def problems(
    folder: Path,
    stages: str = "greedy",
    kind: str = "t5",
    *overrides: str,
    generation: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    model: str = "",
) -> list[str]:
    """What a plan reports of a model's folder with these two configs; an id of None is left out."""
    (folder / "model").mkdir(exist_ok=True)
    configs = {
        "config": {"model_type": kind} | PICO[kind] | IDS | (config or {}),
        "generation_config": IDS | (generation or {}),
    }
    for name, values in configs.items():
        given = {key: value for key, value in values.items() if value is not None}
        (folder / "model" / f"{name}.json").write_text(json.dumps(given))
    (folder / "rows.jsonl").write_text('{"text": "a b c", "summary": "a"}\n' * 4)
    (folder / "it.yaml").write_text(RECIPE.format(stages=stages, model=model, here=folder))
    try:
        plan(compose(str(folder / "it.yaml"), [*overrides]), Store(folder / "store"))
    except RecipeError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_every_setting_of_transformers_is_classified() -> None:
    """A newer transformers that has another one fails here until its effect is known."""
    bookkeeping = {"_original_object_hash", "_mask_length"}
    assert set(vars(GenerationConfig())) - bookkeeping <= SETTINGS.keys()


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ({"max_time": 0.001}, ("greedy", "beams", "label", "speed", "sensitive", "onnx")),
        ({"max_time": 0}, ("greedy",)),
        ({"max_new_tokens": 9}, ("greedy", "beams")),
        ({"stop_strings": ["."]}, ("greedy",)),
        ({"guidance_scale": 1.5}, ("greedy",)),
        ({"penalty_alpha": 0.6, "top_k": 4}, ("greedy",)),
        ({"dola_layers": "high"}, ("greedy",)),
        ({"force_words_ids": [[[5]]], "num_beams": 2}, ("greedy",)),
        ({"watermarking_config": {"bias": 2.0}}, ("greedy",)),
        ({"num_beam_groups": 2, "num_beams": 4}, ("beams",)),
        ({"begin_suppress_tokens": [5]}, ("ct2",)),
        ({"sequence_bias": [[[5], 1.0]]}, ("ct2", "onnx")),
        ({"encoder_no_repeat_ngram_size": 2}, ("ct2", "onnx")),
    ],
    ids=str,
)
def test_what_is_not_followed_is_refused_by_name(settings, stages, tmp_path) -> None:
    """In each stage that would decode so, with what to type; and then the plan has no problem."""
    name = next(name for name in settings if name not in ("num_beams", "top_k"))
    for stage in stages:
        told = [line for line in problems(tmp_path, stage, generation=settings) if stage in line]
        assert any(f"sets {name} to" in line and f"{{{name}: null}}" in line for line in told)
    left_out = f", generation: {{{name}: null}}"
    assert problems(tmp_path, ", ".join(stages), generation=settings, model=left_out) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 0.7, "top_k": 5},
        {"num_beams": 4, "num_return_sequences": 3, "max_length": 7, "early_stopping": True},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
        {"prompt_lookup_num_tokens": 3},
        {"cache_implementation": "static"},
        {"max_time": None, "guidance_scale": 1.0, "stop_strings": None, "a_name_of_mine": 3},
        {"no_repeat_ngram_size": 3, "renormalize_logits": True, "bad_words_ids": [[7]]},
    ],
    ids=str,
)
def test_what_is_followed_or_has_no_effect_is_not_refused(settings, tmp_path) -> None:
    assert problems(tmp_path, generation=settings) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"num_return_sequences": 3},
        {"num_return_sequences": 3, "num_beams": 2},
        {"early_stopping": "sometimes"},
        {"forced_eos_token_id": 5, "suppress_tokens": [4, 5]},
        {"compile_config": {"mode": "default"}},
        {"num_beams": 2.5},
        {"suppress_tokens": {"5": 1}},
        {"bad_words_ids": [5]},
        {"bad_words_ids": [[]]},
        {"eos_token_id": "</s>"},
        {"eos_token_id": []},
        {"repetition_penalty": 2},
        {"encoder_repetition_penalty": 0.0},
        {"min_length": 5.0},
        {"sequence_bias": {"5": 1.0}},
        {"exponential_decay_length_penalty": [3]},
    ],
    ids=str,
)
def test_what_transformers_does_not_load_or_follow_is_refused_by_name(settings, tmp_path) -> None:
    name, value = next(iter(settings.items()))
    told = problems(tmp_path, generation=settings)
    assert any(f"generation config's {name}, {value!r}" in line for line in told), told
    if name not in IDS:
        left_out = f", generation: {{{name}: null}}"
        assert problems(tmp_path, generation=settings, model=left_out) == []


def test_settings_in_an_old_config_and_in_a_recipe_count_too(tmp_path) -> None:
    """Without a file of its own they stand in `config.json`, as in models of before 2023."""
    problems(tmp_path, config={"max_time": 3.0})
    (tmp_path / "model" / "generation_config.json").unlink()
    with pytest.raises(RecipeError, match=r"sets max_time to 3\.0"):
        plan(compose(str(tmp_path / "it.yaml"), []), Store(tmp_path / "store"))
    told = problems(tmp_path, model=", generation: {max_tim: 3, num_beams: 4, max_time: 2}")
    for expected in (
        "model.generation.max_tim: no such setting; did you mean 'max_time'",
        "model.generation.num_beams: is a setting of the stages that decode",
        "sets max_time to 2",
    ):
        assert any(expected in line for line in told)


@pytest.mark.parametrize("kind", ["t5", "longt5", "mt5", "bart", "mbart", "pegasus", "marian"])
def test_ids_that_a_config_lacks_or_that_no_row_stands_for_are_named(kind, tmp_path) -> None:
    """Missing ones with the value that was published: T5's pad, BART's end of a text."""
    start = {"bart": "1", "mbart": "the id of the language it writes"}.get(kind, "0")
    lacking = {"decoder_start_token_id": None}
    (told,) = problems(tmp_path, kind=kind, generation=lacking, config=lacking)
    assert "model.source: its config has no decoder_start_token_id" in told
    assert f"`generation: {{decoder_start_token_id: {start}}}` under `model`" in told
    if kind != "mbart":
        given = f", generation: {{decoder_start_token_id: {start}}}"
        assert problems(tmp_path, kind=kind, generation=lacking, config=lacking, model=given) == []
    (told,) = problems(tmp_path, kind=kind, generation={"eos_token_id": None})
    assert "its config has no eos_token_id, with which a text ends" in told
    for name in ("decoder_start_token_id", "eos_token_id", "forced_eos_token_id"):
        (told,) = problems(tmp_path, kind=kind, generation={name: 50})
        assert f"{name}: no row stands for 50; the vocabulary has 50" in told
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": None}))
    with pytest.raises(RecipeError, match="no pad_token_id, which fills batches"):
        plan(compose(str(tmp_path / "it.yaml"), []), Store(tmp_path / "store"))


def test_a_start_that_the_recipe_gives_is_that_of_training_and_of_decoding(run, tmp_path) -> None:
    """A T5 without `decoder_start_token_id` runs with that of every published T5."""
    config = AutoConfig.for_model("t5", **PICO["t5"] | {"vocab_size": 400}, **IDS)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    lacking: dict[str, Any] = {"decoder_start_token_id": None}
    model = ", generation: {decoder_start_token_id: 0}, tokenizer: {vocab_size: 300}"
    config = lacking | {"vocab_size": 400}
    assert not problems(
        tmp_path, "finetune, greedy", generation=lacking, config=config, model=model
    )
    done = run("run", "it.yaml")
    assert done.code == 0, done.err
    for file in ("config", "generation_config"):
        (saved,) = (done.run_folder / "stages").glob(f"*load*/{file}.json")
        assert json.loads(saved.read_text())["decoder_start_token_id"] == 0


@pytest.mark.parametrize(("pad", "longest"), [(0, 19), (1, 18), (3, 16)])
def test_positions_of_a_roberta_begin_behind_its_pad(pad: int, longest: int) -> None:
    """As many as plain transformers reads."""
    from compressor.models.facts import derive_facts

    config = AutoConfig.for_model("roberta", **PICO["roberta"] | {"pad_token_id": pad})
    model = AutoModelForSequenceClassification.from_config(config).eval()
    assert derive_facts(config.to_dict(), head="sequence_classification").positions == longest
    model(torch.full((1, longest), 40))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, longest + 1), 40))


@pytest.mark.parametrize("kind", ["bart", "pegasus"])
def test_more_tokens_than_positions_are_named_in_every_stage(kind, tmp_path) -> None:
    """A table that is learned has an end, and so has one of sines. 20 tokens fit."""
    for stage, override in (
        ("finetune", "data.max_target_length"),
        ("finetune", "data.max_source_length"),
        ("label", "data.max_source_length"),
        ("label", "stages.label.max_length"),
        ("greedy", "stages.greedy.max_length"),
        ("speed", "stages.speed.max_length"),
        ("speed", "stages.speed.output_lengths.0"),
        ("sensitive", "stages.sensitive.max_length"),
        ("onnx", "data.max_target_length"),
        ("onnx", "stages.onnx.parity.max_length"),
    ):
        key, listed = override.removesuffix(".0"), override.endswith(".0")
        for tokens, count in ((20, 0), (21, 1)):
            value = f"{key}=[{tokens}]" if listed else f"{key}={tokens}"
            told = problems(tmp_path, stage, kind, value)
            assert len(told) == count, (stage, value, told)
            assert all("the model has 20 positions" in line for line in told)
            assert all(key in line for line in told)
