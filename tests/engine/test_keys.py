"""Keys: what decides a result is in them, and what cannot decide one is not."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError
from transformers import T5Config

from compressor.compression.pruning import Grouping, Pruner
from compressor.core.errors import StageError
from compressor.data.examples import Examples
from compressor.data.sources import Hub
from compressor.engine.keys import digest
from compressor.engine.plan import Plan
from compressor.models.checkpoint import Checkpoint
from compressor.models.facts import derive_facts
from compressor.models.loading import build_model
from compressor.models.model_files import TOKENIZER_FILES, digest_model, digest_tokenizer
from compressor.stages.distill import Distill
from compressor.stages.prune import Prune
from compressor.stages.sensitivity import Sensitivity
from tests.engine.test_plan import plan_recipe
from tests.harness.models import T5

GROUPS = {"a": ["encoder.*.wi.weight"], "b": ["decoder.*.wi.weight"]}
REVERSED = dict(reversed(GROUPS.items()))


def keys(plan: Plan) -> dict[str, str | None]:
    return {node.name: node.key for node in plan.nodes}


def count_keys(stage: type[Prune | Sensitivity], *settings: dict[str, Any]) -> int:
    """Count how many of these settings have a key of their own."""
    return len({digest(stage.model_validate(values).parameters()) for values in settings})


@pytest.mark.parametrize("importance", ["magnitude", "random", "taylor", "wanda", "sparsegpt"])
def test_the_order_of_amounts_is_in_the_key_where_it_decides_masks(importance) -> None:
    """What is pruned first changes what a data-driven importance sees of the later groups."""
    amounts: dict[str, Any] = {"encoder": {"feed_forward": 0.5}, "lm_head": 0.3}
    orders = [{"amounts": dict(pairs)} for pairs in (amounts.items(), reversed(amounts.items()))]
    decides = importance in ("taylor", "wanda", "sparsegpt")
    assert count_keys(Prune, *(order | {"importance": importance} for order in orders)) == (
        2 if decides else 1
    )
    torch.manual_seed(0)
    start = build_model(T5Config(**T5, decoder_start_token_id=0), "seq2seq_lm").eval()
    ids = torch.randint(3, 50, (4, 12)).tolist()
    groups = Checkpoint(start, None, "seq2seq_lm").derive_facts().list_groups()
    masks = []
    for paths in (["encoder.feed_forward", "lm_head"], ["lm_head", "encoder.feed_forward"]):
        model = build_model(start.config, "seq2seq_lm").eval()
        model.load_state_dict(start.state_dict())
        checkpoint = Checkpoint(model, PadOnly(), "seq2seq_lm")
        examples = Examples(ids, [row[:6] for row in ids])
        pruner = Pruner(checkpoint, Grouping(importance=importance), examples=examples)
        for path in paths:
            pruner.prune_group(
                groups[path], sum(checkpoint.get_parameter(n).numel() for n in groups[path]) // 3
            )
        masks.append(checkpoint.masks)
    same = all(torch.equal(masks[0][name], mask) for name, mask in masks[1].items())
    assert same == (not decides)


class PadOnly:
    """What pruning asks of a tokenizer."""

    pad_token_id = eos_token_id = 0


def test_the_order_of_a_recipes_own_groups_is_in_the_key_where_no_list_names_one() -> None:
    """With a pattern all own groups are pruned in their order, with `only` in that list's; and a
    target goes through the groups as the curves of `sensitivity` list them.
    """
    wanda = {"pattern": "2:4", "importance": "wanda"}
    orders = [wanda | {"groups": groups} for groups in (GROUPS, REVERSED)]
    assert count_keys(Prune, *orders) == 2
    assert count_keys(Prune, *(order | {"only": ["a", "b"]} for order in orders)) == 1
    assert count_keys(Sensitivity, {"groups": GROUPS}, {"groups": REVERSED}) == 2
    small = derive_facts({"model_type": "t5", **T5}, head="seq2seq_lm")
    for layers in ({0: 1, 1: 0}, {1: 0, 0: 1}):
        pairs = Distill(teacher="t", layers={"encoder": layers})._layer_map(small, small)
        assert list(pairs["encoder"].items()) == [(0, 1), (1, 0)]


def test_where_a_layers_inputs_come_from_is_in_the_key_where_a_recipe_says_so() -> None:
    """A key from before there was such a setting stays."""
    wanda = {"amounts": {"lm_head": 0.5}, "importance": "wanda"}
    assert "inputs_from" not in Prune.model_validate(wanda).parameters()
    origins = [wanda, *(wanda | {"inputs_from": origin} for origin in ("dense", "pruned"))]
    assert count_keys(Prune, *origins) == 2


def test_the_model_that_others_are_compared_with_is_in_a_benchmarks_key(recipe) -> None:
    """Their speedup is over the first."""
    benchmarks = set()
    for models in ("[load, prune]", "[prune, load]"):
        settings = f"benchmark: {{models: {models}, batch_sizes: [1]}}"
        path = recipe(
            ("recover, evaluate]", "benchmark]"), ("evaluate: {max_length: [8, 16]}", settings)
        )
        benchmarks.add(keys(plan_recipe(path))["benchmark"])
    assert len(benchmarks) == 2


def test_a_raised_version_makes_new_keys_for_the_stage_and_what_depends_on_it(
    recipe, monkeypatch
) -> None:
    """What an earlier version of this package made is not used where results changed."""
    path = recipe()
    before = keys(plan_recipe(path))
    monkeypatch.setattr(Prune, "version", Prune.version + 1)
    after = keys(plan_recipe(path))
    assert [n for n in after if after[n] != before[n]] == ["prune", "recover", "evaluate"]


def test_libraries_that_compute_train_a_tokenizer_or_score_are_in_keys(recipe) -> None:
    """By their first two numbers, where they decide what the stage writes."""
    plan = plan_recipe(recipe())
    for node in plan.nodes:
        frameworks = node.key_parts["frameworks"]
        assert frameworks.keys() == {"torch", "transformers"}
        assert all(metadata.version(n).startswith(f"{v}.") for n, v in frameworks.items())
        assert all(version.count(".") == 1 for version in frameworks.values())
    for name, packages in (("load", ["tokenizers"]), ("evaluate", ["rouge_score", "nltk"])):
        identity = plan.node(name).key_parts["identity"]
        for package in packages:
            assert metadata.version(package).startswith(f"{identity[package]}.")


def test_the_columns_of_generated_bills_are_in_the_key(recipe) -> None:
    """`data.text: summary` learns other texts; the usual names change no key."""
    path = recipe()
    usual, same, other = (
        keys(plan_recipe(path, *overrides))["finetune"]
        for overrides in ((), ("data.text=text",), ("data.text=summary", "data.summary=text"))
    )
    assert usual == same != other


@pytest.mark.parametrize("file", ["https://a.b/c.csv", "/c.csv", "data/../../c.csv"])
def test_a_file_from_elsewhere_is_none_of_a_hubs_data_set(file) -> None:
    """The commit says nothing of it."""
    data = {"source": "hub", "dataset": "a/b", "splits": {"train": "train"}}
    Hub.model_validate(data | {"files": {"train": "data/c-*.csv"}})
    with pytest.raises(ValidationError, match="is no file of the data set"):
        Hub.model_validate(data | {"files": {"train": file}})


# What is read of a model's folder

READ = (
    *("source.spm", "target.spm", "vocab.bpe", "x.tiktoken", "spiece.model", "merges.txt"),
    *("vocab.json", "target_vocab.json", "tokenizer.json", "tokenizer_config.json", "tekken.json"),
    *("special_tokens_map.json", "added_tokens.json", "bpe.codes", "dict.txt", "vocab.txt"),
    *("chat_template.jinja", "additional_chat_templates/tools.jinja", "sentencepiece.bpe.model"),
)
UNREAD = (
    *("trainer_state.json", "training_args.bin", "README.md", "all_results.json", "optimizer.pt"),
    *("events.out.tfevents.1", "pytorch_model.bin", "flax_model.msgpack", "notes.txt"),
    *("consolidated.safetensors", "runs/config.json", "modelcard.json"),
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a model, as hubs and trainers leave them."""
    folder = tmp_path / "model"
    build_model(T5Config(**T5, decoder_start_token_id=0), "seq2seq_lm").save_pretrained(folder)
    for name in (*READ, *UNREAD):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def plan_load(folder: Path, load: str, *overrides: str) -> Plan:
    path = folder / "load.yaml"
    path.write_text(
        f"defaults: [/base, /data: bills, _self_]\npipeline: [load]\nstages: {{load: {load}}}\n"
    )
    return plan_recipe(path, *overrides)


def test_a_seed_is_in_the_key_of_what_draws_alone(model, recipe) -> None:
    """A model of a folder is the same under every seed; one that is made is not."""
    of_folder = {
        plan_load(model.parent, f"{{source: {model}}}", f"seed={seed}").node("load").key
        for seed in (0, 1)
    }
    made = {plan_recipe(recipe(), f"seed={seed}").node("load").key for seed in (0, 1)}
    assert (len(of_folder), len(made)) == (1, 2)


def test_the_files_of_a_models_folder_that_are_read_and_no_others_are_in_the_key(model) -> None:
    """By their content; of a tokenizer's folder no weights, but the config, which names it."""
    configs = {"config.json", "generation_config.json", "model.safetensors"}
    identity = plan_load(model.parent, f"{{source: {model}}}").node("load").key_parts["identity"]
    assert identity["files"] == digest_model(model, with_code=False)
    assert identity["files"].keys() == {*READ, *configs}
    assert digest_tokenizer(model).keys() == {*READ, "config.json"}
    load = f"{{config: {{model_type: t5}}, tokenizer: {model}}}"
    identity = plan_load(model.parent, load).node("load").key_parts["identity"]
    assert identity["tokenizer"] == digest_tokenizer(model)
    (model / "source.spm").write_text("other")
    changed = digest_tokenizer(model)
    assert [n for n, d in identity["tokenizer"].items() if changed[n] != d] == ["source.spm"]


def test_a_model_that_runs_its_own_code_has_every_file_in_its_key(model) -> None:
    """Code may read what it likes, in folders below too, but not what git keeps there."""
    for name in ("layers/attention.py", ".git/index"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("x = 1")
    load = f"{{source: {model}, trust_remote_code: true}}"
    files = plan_load(model.parent, load).node("load").key_parts["identity"]["files"]
    assert {"layers/attention.py", *READ, *UNREAD} < files.keys()
    assert ".git/index" not in files


def test_every_file_that_a_tokenizer_of_transformers_is_read_from_is_in_keys() -> None:
    """Their classes name them; a name that no pattern knows would change no key."""
    folder = Path(transformers.__file__).parent
    names = set()
    for path in [*folder.glob("models/*/tokenization*.py"), *folder.glob("tokenization*.py")]:
        for block in re.findall(r"VOCAB_FILES_NAMES = \{(.*?)\}", path.read_text(), re.DOTALL):
            names |= set(re.findall(r': *"([^"]+\.\w+)"', block))
    assert {"source.spm", "vocab.txt", "merges.txt", "spiece.model"} < names
    assert [n for n in names if not any(fnmatch(n, known) for known in TOKENIZER_FILES)] == []


def test_a_model_that_changes_after_planning_is_not_stored_under_its_old_key(model) -> None:
    """As a second `load` finds it hours later; another file of the folder may change."""
    plan = plan_load(model.parent, f"{{source: {model}}}")
    (model / "README.md").write_text("# Better")
    plan.require_unchanged(plan.node("load"))
    (model / "source.spm").write_text("other")
    with pytest.raises(StageError, match="its files changed since this run was planned"):
        plan.require_unchanged(plan.node("load"))
