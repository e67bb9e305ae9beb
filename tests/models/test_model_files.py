"""What a folder's files say of a model is what `from_pretrained` makes of them, before it does."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from compressor.core.errors import RecipeError, StageError
from compressor.models.loading import load_pretrained
from compressor.stages.load import Load
from tests.engine.test_plan import plan_recipe
from tests.harness.models import BART, GPT2, LLAMA, T5, TWO_VOCABULARIES, UNTIED
from tests.harness.stages import preview

State = dict[str, Tensor]
LOAD = """
defaults: [/base, /data: bills, _self_]
pipeline: [load]
stages: {load: {source: model%s}}
"""
TIED = {"tie_word_embeddings": True}
TABLES = ("shared.weight", "wte.weight", "embed_tokens.weight")
WEIGHTS = "model.safetensors"


CAUSAL = {"gpt2", "llama"}


def auto_class(kind: str) -> Any:
    return AutoModelForCausalLM if kind in CAUSAL else AutoModelForSeq2SeqLM


def table(state: State) -> str:
    return next(name for name in state if name.endswith(TABLES))


def as_saved(state: State) -> None:
    pass


def own_head(state: State) -> None:
    state["lm_head.weight"] = torch.randn_like(state[table(state)])


def same_head(state: State) -> None:
    state["lm_head.weight"] = state[table(state)].clone()


def only_head(state: State) -> None:
    state["lm_head.weight"] = state.pop("shared.weight")


def three_names(state: State) -> None:
    for stack in ("encoder", "decoder"):
        state[f"{stack}.embed_tokens.weight"] = state["shared.weight"].clone()


def other_table(state: State) -> None:
    three_names(state)
    state["decoder.embed_tokens.weight"] += 1


def write(folder: Path, kind: str, config: dict[str, Any], change: Callable[[State], None]) -> None:
    """A model as plain transformers saves it, with tensors changed."""
    torch.manual_seed(0)
    values = {"decoder_start_token_id": 0} | config
    auto_class(kind).from_config(AutoConfig.for_model(kind, **values)).save_pretrained(folder)
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def shard(folder: Path) -> None:
    """Spread the tensors over two files, with the index that names them."""
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(state)
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: state[n] for n in names if files[n] == file}, folder / file, {"format": "pt"})
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def counts(folder: Path, kind: str) -> tuple[int, int]:
    """Parameters of a folder's model: what a plan says, and what plain transformers makes of it."""
    real = auto_class(kind).from_pretrained(folder)
    head = "causal_lm" if kind in CAUSAL else "seq2seq_lm"
    facts, problems = preview(Load(source=str(folder), head=head), None)
    assert problems == [] and facts.bytes == 4 * facts.parameters
    return facts.parameters, sum(p.numel() for p in real.parameters())


CASES = [
    *(("t5", T5 | tie, change) for tie in ({}, UNTIED) for change in (as_saved, own_head)),
    *(("t5", T5 | UNTIED, change) for change in (same_head, only_head, three_names)),
    *(("mt5", T5, own_head), ("longt5", T5 | UNTIED, as_saved)),
    *(("bart", BART, change) for change in (as_saved, own_head, same_head)),
    ("bart", BART | UNTIED, as_saved),
    *(("marian", BART | TWO_VOCABULARIES | tie, as_saved) for tie in ({}, UNTIED)),
    *(("gpt2", GPT2, change) for change in (as_saved, own_head, same_head)),
    *(("llama", LLAMA | tie, c) for tie in (TIED, UNTIED) for c in (as_saved, own_head, same_head)),
]


@pytest.mark.parametrize("kind", ["t5", "mt5", "longt5", "bart", "marian", "gpt2", "llama"])
def test_a_plan_counts_what_transformers_makes_of_the_files(tmp_path: Path, kind: str) -> None:
    """A stored head that is the embedding byte for byte is tied where the config ties it (T5's
    always does), and one of its own values never is: in one file, and in shards.
    """
    for case, (_, config, change) in enumerate(c for c in CASES if c[0] == kind):
        folder = tmp_path / str(case)
        write(folder, kind, config, change)
        planned, real = counts(folder, kind)
        assert planned == real, (config, change.__name__)
        if change is own_head:
            shard(folder)
            assert counts(folder, kind) == (real, real), (config, "sharded")


def test_tables_of_which_each_has_other_values_are_refused_by_name(tmp_path: Path) -> None:
    """Transformers leaves them apart, and nothing here knows a T5 with three embeddings."""
    write(tmp_path, "t5", T5, other_table)
    ((path, message),) = preview(Load(source=str(tmp_path)), None)[1]
    assert path == "source" and "embed_tokens.weight has other values than" in message


def test_a_shard_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "model", "t5", T5, as_saved)
    shard(tmp_path / "model")
    (tmp_path / "model" / "model-00002-of-00002.safetensors").unlink()
    (tmp_path / "load.yaml").write_text(LOAD.replace("model%s", f"{tmp_path}/model"))
    with pytest.raises(RecipeError, match=r"no file '.*model-00002-of-00002\.safetensors'"):
        plan_recipe(tmp_path / "load.yaml")


@pytest.mark.parametrize(
    ("file", "values", "expected"),
    [
        ("adapter_config.json", {}, "source: .* has a PEFT adapter beside the model"),
        ("config.json", {"transformers_weights": "x.safetensors"}, "source: its config's tran"),
        ("config.json", {"auto_map": {"X": "a/b--c.D"}}, "trust_remote_code: .* 'a/b--c.D'"),
    ],
)
def test_weights_and_code_from_elsewhere_are_refused(tmp_path, file, values, expected) -> None:
    """No key would know what they are."""
    write(tmp_path / "model", "t5", T5, as_saved)
    path = tmp_path / "model" / file
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | values))
    (tmp_path / "load.yaml").write_text(LOAD % ", trust_remote_code: true")
    with pytest.raises(RecipeError, match=expected):
        plan_recipe(tmp_path / "load.yaml", f"stages.load.source={tmp_path}/model")


@pytest.mark.parametrize("files", [(), (WEIGHTS,)])
def test_a_model_of_the_hub_is_counted_by_what_is_here_of_it(tmp_path, run, files) -> None:
    """Of LongT5's published files only the config says that the head is untied. What was fetched
    before is looked at: here a head of its own.
    """
    write(tmp_path / "model", "longt5", T5 | UNTIED, own_head if files else as_saved)
    cached = tmp_path / "home" / "hub" / "models--long--t5"
    (cached / "snapshots" / ("c" * 40)).mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("c" * 40)
    for name in ("config.json", *files):
        (tmp_path / "model" / name).rename(cached / "snapshots" / ("c" * 40) / name)
    (tmp_path / "load.yaml").write_text(LOAD.replace("model%s", "long/t5"))
    done = run("plan", "load.yaml", "--json", HF_HOME=str(tmp_path / "home"))
    assert done.code == 0, done.err
    assert json.loads(done.out)[0]["parameters"] == 8_864 + (50 * 16 if files else 0)


def test_a_head_that_only_unpickling_would_tell_fails_by_name(tmp_path: Path, run) -> None:
    """A plan does not read a `.bin`: the config ties a head that is stored with values of its own.
    Nothing is kept, and what follows would have been planned with other counts.
    """
    write(tmp_path / "model", "bart", BART, own_head)
    state = load_file(tmp_path / "model" / WEIGHTS)
    (tmp_path / "model" / WEIGHTS).unlink()
    torch.save(state, tmp_path / "model" / "pytorch_model.bin")
    (tmp_path / "load.yaml").write_text(LOAD % "")
    done = run("run", "load.yaml")
    assert done.code == 1
    assert "the head in model differs from its embedding, and its config says otherwise" in done.err
    assert "save the model again with transformers, as safetensors" in done.err
    assert not list((tmp_path / "outputs" / "store").glob("*/model.safetensors"))


def test_a_bin_is_read_as_tensors_alone(tmp_path: Path) -> None:
    """An old one of tensors loads; one that would run code when unpickled runs nothing; and one
    that does not fit its config is refused: transformers would make up the third layer.
    """
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return ran.touch, ()

    write(tmp_path, "t5", T5, as_saved)
    state, config = load_file(tmp_path / WEIGHTS), tmp_path / "config.json"
    (tmp_path / WEIGHTS).unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    loaded = load_pretrained(tmp_path, "seq2seq_lm").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    text = config.read_text()
    config.write_text(text.replace('"num_layers": 2', '"num_layers": 3'))
    with pytest.raises(StageError, match="missing tensors"):
        load_pretrained(tmp_path, "seq2seq_lm")
    config.write_text(text)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(StageError):
        load_pretrained(tmp_path, "seq2seq_lm")
    assert not ran.exists()
