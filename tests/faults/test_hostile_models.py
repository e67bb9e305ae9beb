"""A model's folder from a stranger: weights that are pickles, code, headers that lie."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import modeling_utils
from transformers.integrations import hub_kernels

import compressor as package
from compressor.stages.load import Load
from tests.harness.command import Command, compressor
from tests.harness.stages import measure, pico_t5, rows_of_text

RECIPE = """
defaults: [/base, /data: bills, _self_]
pipeline: [load]
stages: {load: {source: ./model}}
"""


class Evil:
    """Pickled, it leaves a mark where it is read."""

    def __reduce__(self) -> Any:
        return os.system, ("touch struck",)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pico model's folder, as `export` writes it, and a recipe that loads it."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(RECIPE)
    measure("export", pico_t5(), rows_of_text(tmp_path), tmp_path, parity=None)
    return Path("export/model").rename("model").absolute()


def load(*overrides: str, **how: Any) -> Command:
    """Run the recipe; nothing strikes."""
    done = compressor("run", "mine.yaml", *overrides, **how)
    assert not Path("struck").exists()
    return done


def test_pickles_beside_a_model_are_left_alone(model: Path) -> None:
    """What training leaves: optimizer, arguments, a tokenizer, NumPy's arrays; one strikes where
    it is read.
    """
    names = ["training_args.bin", "optimizer.pt", "tokenizer.pkl", "pytorch_model.bin"]
    for name in names:
        (model / name).write_bytes(pickle.dumps(Evil()))
    np.save(model / "masks.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    assert load().code == 0
    assert package.load_model(model) is not None and not Path("struck").exists()
    pickle.loads((model / names[0]).read_bytes())
    assert Path("struck").exists()


def header(tensors: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(tensors) if length is None else length) + tensors + data


OVERLAP = {
    name: {"dtype": "F32", "shape": [8], "data_offsets": [begin, begin + 32]}
    for name, begin in {"a": 0, "b": 16}.items()
}


@pytest.mark.parametrize(
    "content",
    [
        header(b"{}", length=2**63),
        header(json.dumps(OVERLAP).encode(), bytes(48)),
        header(b"[" * 100_000),
    ],
    ids=["length", "overlap", "brackets"],
)
def test_a_safetensors_file_that_lies_is_refused(content: bytes, model: Path) -> None:
    """By the plan or the run, in a sentence."""
    (model / "model.safetensors").write_bytes(content)
    done = load()
    assert done.code in (1, 2) and "error: " in done.err, done.err
    assert "error.txt" not in done.err, "not foreseen"


MAPS = {
    "AutoConfig": "configuration_evil.EvilConfig",
    "AutoModel": "modeling_evil.Evil",
    "AutoModelForSeq2SeqLM": "modeling_evil.Evil",
    "AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"],
}
YES = "y\n" * 20
"""To transformers' own question whether code may run, which a `y` in a pipe used to answer."""


def add_code(folder: Path, name: str, values: dict[str, Any]) -> None:
    """Have a config name classes of a module in the folder."""
    path = folder / name
    config = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**config, "auto_map": MAPS, **values}))
    for module in ("modeling_evil.py", "tokenization_evil.py", "configuration_evil.py"):
        (folder / module).write_text("open('struck', 'w')\n")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_folders_code_does_not_run(name: str, model: Path) -> None:
    """Whatever its configs and the standard input say."""
    values = {"trust_remote_code": True, "custom_generate": ".", "architectures": ["os.system"]}
    more = {"tokenizer_class": "EvilTokenizer"} if name == "tokenizer_config.json" else {}
    add_code(model, name, {**values, "_name_or_path": "evil/evil", **more})
    load(stdin=YES)
    summarized = compressor("summarize", "model", stdin=YES)
    assert "has no model" not in summarized.err and not Path("struck").exists()


def test_a_tokenizers_code_does_not_run(model: Path) -> None:
    """Of a folder whose kind of model is known to nobody but its own code."""
    shutil.copytree(model, "other")
    add_code(Path("other"), "config.json", {"model_type": "evil"})
    add_code(Path("other"), "tokenizer_config.json", {"tokenizer_class": "Evil"})
    done = load("model.tokenizer=./other", stdin=YES)
    assert done.code == 1 and "custom code" in done.err, done.err


def refuse_kernels() -> None:
    """Fail where transformers goes for kernels."""

    def refuse(*given: Any, **settings: Any) -> None:
        Path("struck").touch()

    hub_kernels.get_kernel = modeling_utils.lazy_import_flash_attention = refuse


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_does_not_choose_what_computes_attention(key: str, model: Path) -> None:
    """It may name a repository of the hub, whose kernels are code."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {key: "evil/kernel"}))
    assert load(prepare=refuse_kernels).code == 0
    done = compressor("summarize", "model", stdin="a text", prepare=refuse_kernels)
    assert done.code == 0 and not Path("struck").exists(), done.err
    (saved,) = Path("outputs/store").glob("*/config.json")
    assert "evil" not in saved.read_text()


NEVER = ("pickle.load", "pickle.loads", "joblib.load", "torch.load", "dill.load", "eval", "exec")
SAFE_ONLY_WITH = {"from_pretrained": "trust_remote_code", "np.load": "allow_pickle"}
WITHOUT_CODE = ("GenerationConfig.from_pretrained",)
"""It reads JSON into fields, and takes no class from it."""


def test_every_way_to_read_a_model_is_a_safe_one() -> None:
    """Nothing in the package unpickles, and each loader that could run code is told not to; code
    runs where the recipe alone says so.
    """
    seen, folder = set(), Path(package.__file__).parent
    for path in folder.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            name, place = ast.unparse(call.func), f"{path}:{call.lineno}"
            assert name not in NEVER, place
            settings = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            for ending, keyword in SAFE_ONLY_WITH.items():
                if name.endswith(ending) and name not in WITHOUT_CODE:
                    seen.add(name)
                    assert keyword in settings, f"{place}: {name} without {keyword}"
                    weights_only = settings.get("weights_only") == "True"
                    assert weights_only or "AUTO_CLASSES" not in name, place
    assert {"AutoConfig.from_pretrained", "AutoTokenizer.from_pretrained", "np.load"} <= seen
    assert Load.model_fields["trust_remote_code"].default is False
