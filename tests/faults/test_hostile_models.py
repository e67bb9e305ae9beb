"""A model's folder from a stranger: weights that are pickles, code, headers that lie."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import modeling_utils
from transformers.integrations import hub_kernels

import compressor
from compressor.cli.main import main
from tests.conftest import RECIPE
from tests.faults.commands import Told, told

PACKAGE = Path(compressor.__file__).parent


class Evil:
    """Pickled, it leaves a mark where it is read."""

    def __reduce__(self) -> Any:
        return os.system, ("touch struck",)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico model's folder, as `export` writes it."""
    folder = tmp_path_factory.mktemp("made")
    text = RECIPE.replace("[load, finetune, prune, recover, evaluate]", "[load, export]")
    (folder / "mine.yaml").write_text(text.replace("load: {}", "load: {}\n  export: {}"))
    before = Path.cwd()
    os.chdir(folder)
    try:
        found = told("run", "mine.yaml", "-q")
        assert found.code == 0, found.err
        (model,) = folder.glob("outputs/runs/mine/*/model")
        return model.resolve()
    finally:
        os.chdir(before)


@pytest.fixture
def model(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in a folder of the test's own, with a recipe that loads it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    for path in made.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    text = RECIPE.replace("[load, finetune, prune, recover, evaluate]", "[load]")
    text = text.replace("load: {}", "load: {source: ./model}")
    config = next(line for line in RECIPE.splitlines() if line.startswith("  config: "))
    text = text.replace(config + "\n", "")
    Path("mine.yaml").write_text(
        text.replace("  tokenizer: {vocab_size: 400}", "  tokenizer: null")
    )
    return folder


def loaded() -> Told:
    """Run the recipe; nothing struck."""
    found = told("run", "mine.yaml")
    assert not Path("struck").exists()
    return found


def test_the_model_of_these_tests_is_loaded(model: Path) -> None:
    """Else all would be refused, and nothing tested."""
    assert loaded().code == 0


def to_pickle(model: Path, save: Callable[[Any, Path], None]) -> None:
    (model / "model.safetensors").unlink()
    save({"shared.weight": Evil()}, model / "pytorch_model.bin")


def plain_pickle(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("save", [torch.save, plain_pickle])
def test_a_pickle_is_not_unpickled(model: Path, save: Any, tell: Any) -> None:
    """Neither torch's own archive nor a bare one; the message names the folder."""
    Path("proof").mkdir()
    with pytest.MonkeyPatch.context() as patch:  # the pickle would strike
        patch.chdir("proof")
        pickle.loads(pickle.dumps(Evil()))  # to see that it does
        assert Path("struck").exists()
    to_pickle(model, save)
    found = loaded()
    assert found.code == 1 and "cannot load the model in" in found.err, found.err
    tell("hostile", "a pickle for a model's weights", "exit 1: cannot load; nothing of it ran")


def test_pickles_beside_a_model_are_left_alone(model: Path, tell: Any) -> None:
    """What training leaves: optimizer, arguments, random state, a tokenizer, NumPy's arrays."""
    names = ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "tokenizer.pkl"]
    for name in (*names, "pytorch_model.bin", "model.joblib", "dataset_dict.pkl", "vocab.pkl"):
        plain_pickle(Evil(), model / name)
    np.save(model / "masks.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    assert loaded().code == 0
    assert compressor.load_model(model) is not None
    assert not Path("struck").exists()
    tell("hostile", "pickles beside a model", "they are not read")


def header(tensors: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(tensors).encode() if not isinstance(tensors, bytes) else tensors
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, shape: list[int], kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


HEADERS = {
    "a header of 16 exabytes": header({}, length=2**63),
    "a header of 90 MB that is not there": header({}, length=90_000_000),
    "no file at all": b"",
    "seven bytes": b"1234567",
    "tensors that overlap": header({"a": entry(0, 32, [8]), "b": entry(16, 48, [8])}, bytes(48)),
    "a shape that is another": header({"shared.weight": entry(0, 32, [2**40, 2])}, bytes(32)),
    "a negative offset": header({"a": entry(-32, 32, [8])}, bytes(32)),
    "an end before its begin": header({"a": entry(32, 0, [8])}, bytes(32)),
    "a name that climbs": header({"../../struck": entry(0, 32, [8])}, bytes(32)),
    "offsets that are texts": header({"a": {"data_offsets": ["x", "y"]}}, bytes(32)),
    "offsets that are none": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": []}}),
    "a list for a header": header([1, 2], bytes(32)),
    "brackets": header(b"[" * 100_000),
    "no type that there is": header({"a": entry(0, 32, [8], "F33")}, bytes(32)),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_a_safetensors_file_that_lies_is_told(content: bytes, model: Path, tell: Any) -> None:
    """By the plan or the run, in a sentence. Offsets of another form used to be tracebacks."""
    (model / "model.safetensors").write_bytes(content)
    found = loaded()
    assert found.code in (1, 2) and "error: " in found.err, found.err
    assert "error.txt" not in found.err, "not foreseen"
    tell("hostile", "safetensors whose header lies", "exit 1 or 2: what is wrong with the file")


CODE = "open('struck', 'w')\n"


def with_code(model: Path, name: str, values: dict[str, Any]) -> None:
    """Have a config name classes of a module in the folder."""
    path = model / name
    own = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(own | values))
    for module in ("modeling_evil.py", "tokenization_evil.py", "configuration_evil.py"):
        (model / module).write_text(CODE)


MAPS = {
    "AutoConfig": "configuration_evil.EvilConfig",
    "AutoModel": "modeling_evil.Evil",
    "AutoModelForSeq2SeqLM": "modeling_evil.Evil",
    "AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"],
}


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_folder_s_code_does_not_run(
    name: str, model: Path, monkeypatch: pytest.MonkeyPatch, tell: Any
) -> None:
    """Whatever its configs say, and even where the standard input says yes to transformers' own
    question, which a `y` in a pipe used to answer.
    """
    values: dict[str, Any] = {"auto_map": MAPS, "trust_remote_code": True, "custom_generate": "."}
    values |= {"_name_or_path": "evil/evil", "architectures": ["os.system"]}
    if name == "tokenizer_config.json":
        values |= {"tokenizer_class": "EvilTokenizer"}
    with_code(model, name, values)
    for variable in ("HF_TRUST_REMOTE_CODE", "TRUST_REMOTE_CODE", "HF_DATASETS_TRUST_REMOTE_CODE"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    assert loaded().code in (0, 1, 2)
    for arguments in (["summarize", "model"], ["plan", "mine.yaml"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
        assert told(*arguments).code in (0, 1, 2)
        assert not Path("struck").exists()
    assert sys.stdin.read() != "" or name, "read as a text, and no answer to a question"
    tell("hostile", "a model's folder with code", "it does not run, whatever configs say")


def test_a_tokenizer_s_code_does_not_run(
    model: Path, monkeypatch: pytest.MonkeyPatch, tell: Any
) -> None:
    """Of a folder whose kind of model is known to nobody but its own code."""
    other = Path("other")
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "evil"}')
    with_code(other, "config.json", {"auto_map": MAPS})
    with_code(other, "tokenizer_config.json", {"auto_map": MAPS, "tokenizer_class": "Evil"})
    (other / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    found = told("run", "mine.yaml", "model.tokenizer=./other")
    assert found.code == 1 and "custom code" in found.err, found.err
    assert not Path("struck").exists()
    tell("hostile", "a tokenizer with code", "exit 1: it is named, and does not run")


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_does_not_choose_what_computes_attention(
    key: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Any
) -> None:
    """It may name a repository of the hub, whose kernels are code: transformers went for them, and
    only because the package that fetches kernels was not installed did it fail.
    """
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {key: "evil/kernel"}))
    asked = []
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda *given, **_: asked.append(given))
    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", asked.append)
    assert loaded().code == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("a text"))
    summarized = told("summarize", "model")
    assert summarized.code == 0, summarized.err
    (saved,) = tmp_path.glob("outputs/store/*/config.json")
    assert "evil" not in saved.read_text() and asked == []
    tell("hostile", "a config that names kernels of the hub", "they are not fetched")


def test_code_runs_where_the_recipe_alone_says_so(model: Path) -> None:
    """The key that allows it is the recipe's own; it is off by default."""
    from compressor.stages.load import Load

    assert Load.model_fields["trust_remote_code"].default is False
    source = (PACKAGE / "stages/load.py").read_text()
    assert source.count("trust = self.trust_remote_code") == 1


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def name_of(call: ast.Call) -> str:
    return ast.unparse(call.func)


NEVER = ("pickle.load", "pickle.loads", "joblib.load", "torch.load", "dill.load", "eval", "exec")
SAFE_ONLY_WITH = {"from_pretrained": "trust_remote_code", "np.load": "allow_pickle"}
WITHOUT_CODE = ("GenerationConfig.from_pretrained",)
"""It reads JSON into fields, and takes no class from it."""


def test_every_way_to_read_a_model_is_a_safe_one() -> None:
    """Nothing in the package unpickles, and each loader that could run code is told not to."""
    seen = set()
    for path in PACKAGE.rglob("*.py"):
        for call in calls(ast.parse(path.read_text(encoding="utf-8"))):
            name = name_of(call)
            harmless = ast.unparse(call) == "exec('')"  # the command line's: a text without code
            assert name not in NEVER or harmless, f"{path}:{call.lineno}: {name}"
            for ending, keyword in SAFE_ONLY_WITH.items():
                if name.endswith(ending) and name not in WITHOUT_CODE:
                    seen.add(name)
                    given = {each.arg: ast.unparse(each.value) for each in call.keywords}
                    if "AUTO_CLASSES" in name:
                        assert given.get("weights_only") == "True", f"{path}:{call.lineno}"
                    assert keyword in given, f"{path}:{call.lineno}: {name} without {keyword}"
    assert {"AutoConfig.from_pretrained", "AutoTokenizer.from_pretrained", "np.load"} <= seen


def test_onnx_data_that_lies_elsewhere_is_not_read(tmp_path: Path, tell: Any) -> None:
    """A path that climbs out of an ONNX file's folder is refused by its runtime."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    (tmp_path / "secret.bin").write_bytes(bytes(range(16)))
    (tmp_path / "model").mkdir()
    weight = onnx.TensorProto(name="w", dims=[4], data_type=onnx.TensorProto.FLOAT)
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret.bin")
    value = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])
    node = onnx.helper.make_node("Identity", ["w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [], [value], [weight])
    opset = [onnx.helper.make_opsetid("", 17)]
    made = onnx.helper.make_model(graph, ir_version=8, opset_imports=opset)
    (tmp_path / "model/model.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(Exception, match=r"(?i)external|escape|directory|path"):
        runtime.InferenceSession(tmp_path / "model/model.onnx")
    tell("hostile", "ONNX weights that lie in another folder", "refused by the runtime")


def test_a_damaged_tensor_is_not_taken_for_another(model: Path) -> None:
    """A weight of another shape than the config's is told by its name."""
    state = load_file(model / "model.safetensors")
    name = next(name for name in state if name.endswith("wi.weight"))
    state[name] = state[name][:-1].clone()
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    found = loaded()
    assert found.code == 1 and "mismatched" in found.err, found.err
    assert main(["recipes"]) == 0
