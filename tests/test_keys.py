"""Keys: what decides a result is in them, and what cannot decide one is not."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pytest
import torch
import transformers
from pydantic import ValidationError
from transformers import T5Config

from compressor import extras
from compressor.architectures import facts
from compressor.checkpoint import Checkpoint, build
from compressor.data.examples import Examples
from compressor.data.sources import Hub
from compressor.errors import StageError
from compressor.model_files import TOKENIZER_FILES
from compressor.pruning import Grouping, Pruner
from compressor.stages.distill import Distill
from compressor.stages.prune import Prune
from tests.pico import T5
from tests.test_plan import planned

AMOUNTS = "amounts: {encoder: {feed_forward: 0.5}, lm_head: 0.3}"
REVERSED = "amounts: {lm_head: 0.3, encoder: {feed_forward: 0.5}}"
ORDERED = ("taylor", "wanda", "sparsegpt")
"""Importances that see a model as the groups before have left it."""


def key_of(recipe, settings: str, stage: str = "prune", old: str = AMOUNTS) -> str | None:
    return planned(recipe((old, settings))).node(stage).key


@pytest.mark.parametrize("importance", ["magnitude", "random", *ORDERED])
def test_the_order_of_amounts_is_in_the_key_where_it_decides(recipe, importance) -> None:
    """What is pruned first changes what a data-driven importance sees of the later groups."""
    suffix = f", importance: {importance}"
    keys = {key_of(recipe, order + suffix) for order in (AMOUNTS, REVERSED)}
    assert len(keys) == (2 if importance in ORDERED else 1)


def test_a_seed_is_in_the_key_of_what_draws_alone(model, recipe) -> None:
    """A model of a folder is the same under every seed; one that is made is not."""
    path = model.parent / "load.yaml"
    path.write_text(LOAD.format(f"{{source: {model}}}"))
    for load, seeds_differ in ((path, False), (recipe(), True)):
        keys = {planned(load, f"seed={seed}").node("load").key for seed in (0, 1)}
        assert len(keys) == 1 + seeds_differ


def test_the_model_that_others_are_compared_with_is_in_a_benchmarks_key(recipe) -> None:
    """Their speedup is over the first."""
    keys = set()
    for models in ("[load, prune]", "[prune, load]"):
        changes = (
            ("recover, evaluate]", "benchmark]"),
            (
                "evaluate: {max_length: [8, 16]}",
                f"benchmark: {{models: {models}, batch_sizes: [1]}}",
            ),
        )
        keys |= {n.key for n in planned(recipe(*changes)).nodes if n.kind == "benchmark"}
    assert len(keys) == 2


def test_a_raised_version_makes_new_keys_for_the_stage_and_what_depends_on_it(
    recipe, monkeypatch
) -> None:
    """What an earlier version of this package made is not used where results changed."""
    path = recipe()
    before = {node.name: node.key for node in planned(path).nodes}
    monkeypatch.setattr(Prune, "version", Prune.version + 1)
    after = {node.name: node.key for node in planned(path).nodes}
    changed = [name for name in after if after[name] != before[name]]
    assert changed == ["prune", "recover", "evaluate"]


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_another_version_of_a_library_that_computes_makes_new_keys(
    recipe, monkeypatch, library
) -> None:
    """Of every stage: by its first two numbers, since a third mends and does not change."""
    path = recipe()
    real, keys = metadata.version, []
    for version in ("1.2.3", "1.2.4+cpu", "1.3.0"):
        monkeypatch.setattr(
            metadata, "version", lambda name, v=version: v if name == library else real(name)
        )
        extras._release.cache_clear()
        keys.append([node.key for node in planned(path).nodes])
    monkeypatch.undo()
    extras._release.cache_clear()
    assert keys[0] == keys[1]
    assert not set(keys[0]) & set(keys[2])


def test_what_trains_a_tokenizer_and_what_scores_are_in_keys(recipe) -> None:
    """By their first two numbers, where they compute what the stage leaves."""
    plan = planned(recipe())
    for name, packages in (("load", ["tokenizers"]), ("evaluate", ["rouge_score", "nltk"])):
        identity = plan.node(name).key_parts["identity"]
        for package in packages:
            assert metadata.version(package).startswith(f"{identity[package]}.")


@pytest.mark.parametrize("importance", ["magnitude", "random", "taylor", "wanda"])
def test_the_order_of_groups_changes_masks_just_where_it_is_in_the_key(importance) -> None:
    """Two groups of one model, pruned in either order."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    start = build(T5Config(**T5, decoder_start_token_id=0), "seq2seq_lm").eval()
    ids = torch.randint(3, 50, (4, 12)).tolist()
    groups = Checkpoint(start, None, "seq2seq_lm").facts().groups()
    masks = []
    for paths in (["encoder.feed_forward", "lm_head"], ["lm_head", "encoder.feed_forward"]):
        model = build(start.config, "seq2seq_lm").eval()
        model.load_state_dict(start.state_dict())
        checkpoint = Checkpoint(model, PadOnly(), "seq2seq_lm")
        examples = Examples(ids, [row[:6] for row in ids])
        pruner = Pruner(checkpoint, Grouping(importance=importance), examples=examples)
        for path in paths:
            entries = sum(model.get_parameter(name).numel() for name in groups[path])
            pruner.prune(groups[path], entries // 2)
        masks.append(checkpoint.masks)
    same = all(torch.equal(masks[0][name], mask) for name, mask in masks[1].items())
    assert same == (importance not in ORDERED)


class PadOnly:
    """What pruning asks of a tokenizer."""

    pad_token_id = eos_token_id = 0


def test_the_order_of_a_recipes_own_groups_is_in_the_key_where_no_list_names_one(recipe) -> None:
    """With a pattern all own groups are pruned, in their order; with `only` in that list's."""
    groups = ["a: ['encoder.*.wi.weight']", "b: ['decoder.*.wi.weight']"]
    settings = "pattern: '2:4', importance: wanda"
    orders = [f"groups: {{{', '.join(order)}}}" for order in (groups, groups[::-1])]
    assert len({key_of(recipe, f"{settings}, {order}") for order in orders}) == 2
    assert len({key_of(recipe, f"{settings}, only: [a, b], {order}") for order in orders}) == 1


def test_a_sensitivitys_key_has_the_order_that_a_target_follows(recipe) -> None:
    """`prune: {target: …}` goes through the groups as the curves list them."""
    groups = ["a: ['encoder.*.wi.weight']", "b: ['decoder.*.wi.weight']"]
    old = "prune: {" + AMOUNTS + "}"
    keys = {
        key_of(recipe, f"prune: {{stage: sensitivity, groups: {{{', '.join(order)}}}}}", old=old)
        for order in (groups, groups[::-1])
    }
    assert len(keys) == 2


def test_the_columns_of_generated_bills_are_in_the_key(recipe) -> None:
    """`data.text: summary` learns other texts; the usual names change no key."""
    path = recipe()
    keys = [
        planned(path, *overrides).node("finetune").key
        for overrides in ((), ("data.text=summary", "data.summary=text"), ("data.text=text",))
    ]
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize("file", ["https://a.b/c.csv", "/c.csv", "data/../../c.csv"])
def test_a_file_from_elsewhere_is_none_of_a_hubs_data_set(file) -> None:
    """The commit says nothing of it."""
    data = {"source": "hub", "dataset": "a/b", "splits": {"train": "train"}}
    Hub.model_validate(data | {"files": {"train": "data/c-*.csv"}})
    with pytest.raises(ValidationError, match="is no file of the data set"):
        Hub.model_validate(data | {"files": {"train": file}})


def test_the_order_of_a_layer_map_decides_nothing(tmp_path) -> None:
    """Projections are drawn in the order of the layers, however a map lists them."""
    stages = [
        Distill(teacher="t", layers={"encoder": layers}) for layers in ({0: 1, 1: 0}, {1: 0, 0: 1})
    ]
    small = facts({"model_type": "t5", **T5}, head="seq2seq_lm")
    maps = [list(stage._layer_map(small, small)["encoder"].items()) for stage in stages]
    assert maps[0] == maps[1] == [(0, 1), (1, 0)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a model, as hubs and trainers leave them."""
    folder = tmp_path / "model"
    build(T5Config(**T5, decoder_start_token_id=0), "seq2seq_lm").save_pretrained(folder)
    for name in (*READ, *UNREAD):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return folder


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


LOAD = "defaults: [/base, /data: bills, _self_]\npipeline: [load]\nstages: {{load: {}}}\n"


def load_key(tmp_path: Path, load: str) -> str | None:
    path = tmp_path / "load.yaml"
    path.write_text(LOAD.format(load))
    return planned(path).node("load").key


def test_the_files_of_a_models_folder_that_are_read_and_no_others_are_in_the_key(model) -> None:
    """A changed tokenizer, config or weight is another key; a changed log is not."""
    load, tmp_path = f"{{source: {model}}}", model.parent
    key = load_key(tmp_path, load)
    for name in (*READ, *UNREAD, "config.json", "generation_config.json", "model.safetensors"):
        before = (model / name).read_bytes()
        (model / name).write_bytes(before + b" ")
        assert (load_key(tmp_path, load) == key) == (name in UNREAD), name
        (model / name).write_bytes(before)
    assert load_key(tmp_path, load) == key


def test_a_tokenizers_folder_is_in_the_key_without_weights(model) -> None:
    """`tokenizer: <folder>` reads no weights; its config says which tokenizer it is."""
    tmp_path = model.parent
    load = f"{{config: {{model_type: t5}}, tokenizer: {model}}}"
    key = load_key(tmp_path, load)
    for name, same in (("model.safetensors", True), ("config.json", False), ("source.spm", False)):
        with (model / name).open("ab") as stream:
            stream.write(b" ")
        assert (load_key(tmp_path, load) == key) == same, name
        key = load_key(tmp_path, load)


def test_a_model_that_runs_its_own_code_has_every_file_in_its_key(model) -> None:
    """Code may read what it likes, in folders below too, but not what git keeps there."""
    load = f"{{source: {model}, trust_remote_code: true}}"
    keys = [load_key(model.parent, load)]
    for name in ("layers/attention.py", "trainer_state.json", ".git/index"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("x = 1")
        keys.append(load_key(model.parent, load))
    assert len(set(keys)) == 3 and keys[2] == keys[3]


def test_every_file_that_a_tokenizer_of_transformers_is_read_from_is_in_keys() -> None:
    """Their classes name them; a name that no pattern knows would change no key."""
    folder = Path(transformers.__file__).parent
    names = set()
    for path in [*folder.glob("models/*/tokenization*.py"), *folder.glob("tokenization*.py")]:
        for block in re.findall(r"VOCAB_FILES_NAMES = \{(.*?)\}", path.read_text(), re.DOTALL):
            names |= set(re.findall(r': *"([^"]+\.\w+)"', block))
    assert {"source.spm", "vocab.txt", "merges.txt", "spiece.model"} < names
    assert [n for n in names if not any(fnmatch(n, each) for each in TOKENIZER_FILES)] == []


def test_a_model_that_changes_after_planning_is_not_stored_under_its_old_key(model) -> None:
    """As a second `load` finds it hours later; another file of the folder may change."""
    path = model.parent / "load.yaml"
    path.write_text(LOAD.format(f"{{source: {model}}}"))
    plan = planned(path)
    plan.require_unchanged(plan.node("load"))
    (model / "README.md").write_text("# Better")
    plan.require_unchanged(plan.node("load"))
    (model / "source.spm").write_text("other")
    with pytest.raises(StageError, match="its files changed since this run was planned"):
        plan.require_unchanged(plan.node("load"))
