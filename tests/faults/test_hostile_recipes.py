"""A recipe from a stranger runs no code, reads no environment, and writes where it is told to."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from compressor.cli.main import main
from compressor.core.errors import RecipeError
from compressor.recipe.compose import compose
from tests.conftest import RECIPE

SECRET = "geheim-1234567"
HEAD = "defaults: [/base, /model: tiny, /data: bills, other, _self_]"
"""Of a recipe that extends another beside it."""
TARGET = "{x: {_target_: os.system, _args_: [touch struck]}}"
Call = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, and a module that leaves a mark where it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARMLESS", SECRET)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("mine.yaml").write_text(RECIPE, encoding="utf-8")
    Path("marking").mkdir()
    Path("marking/__init__.py").write_text("open('struck', 'w')\n")
    Path("marking/evil.yaml").write_text("seed: 3\n")
    return tmp_path


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    """Give a command in this process: its exit code, and what it prints."""

    def run(*words: str) -> tuple[int, str]:
        code = main(words)
        return code, "".join(capfd.readouterr())

    return run


def extend(files: dict[str, str]) -> None:
    """Write a recipe that extends `other.yaml`, and these files beside it."""
    text = RECIPE.replace(RECIPE.splitlines()[1], HEAD)
    files = {"other.yaml": "seed: 1\n", **files}
    files["mine.yaml"] = text + files.get("mine.yaml", "")
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content, encoding="utf-8")


def assert_nothing_ran(place: Path) -> None:
    """And that nothing was read from the environment."""
    assert not (place / "struck").exists()
    for path in place.rglob("*"):
        assert path.is_dir() or SECRET not in path.read_text(errors="replace"), path


EVIL = f"{TARGET[1:-1]}\n"
GLOBAL = "# @package _global_\n"
CODE: list[dict[str, str]] = [
    {"mine.yaml": f"hydra: {{callbacks: {TARGET}}}\n"},
    {"other.yaml": "hydra: {searchpath: ['pkg://marking']}\n"},
    {"other.yaml": "hydra: {job: {env_set: {X: y}}}\n"},
    {"other.yaml": "hydra: {sweeper: {params: {hydra.callbacks.x._target_: 'a,b'}}}\n"},
    {  # a line of the job's script
        "other.yaml": "defaults: [override /hydra/launcher: slurm]\n"
        'hydra: {launcher: {comment: "x\\ntouch struck"}}\n'
    },
    {
        "other.yaml": "defaults: [override /hydra/launcher: processes]\n"
        "hydra: {launcher: {pre_dispatch: __import__('os').system('touch struck')}}\n"
    },
    {"other.yaml": "defaults: [/hydra/callbacks: evil]\n", "hydra/callbacks/evil.yaml": EVIL},
    {
        "other.yaml": "defaults: [/x: evil]\n",
        "x/evil.yaml": f"{GLOBAL}hydra: {{callbacks: {TARGET}}}\n",
    },
    {"other.yaml": f"<<: {{hydra: {{callbacks: {TARGET}}}}}\n"},
    {"other.yaml": "seed: !!python/object/apply:os.system [touch struck]\n"},
]
ARGUMENTS = [
    *("+hydra.callbacks.x._target_=os.system", "hydra.searchpath=[pkg://marking]"),
    *("hydra.run.dir=/tmp/elsewhere", "+hydra.job.env_set.X=y", "hydra/job_logging=stdout"),
]
REFUSED = "not allowed|not valid YAML|from the primary config|use 'override|no such setting"


@pytest.mark.parametrize(
    ("files", "arguments"), [*((files, []) for files in CODE), *(({}, [a]) for a in ARGUMENTS)]
)
def test_nothing_of_a_recipe_or_a_command_runs_code(files, arguments, place: Path, call) -> None:
    """Neither plan nor sweep, wherever it stands; a command is often copied from a stranger."""
    extend(files)
    with pytest.raises(RecipeError, match=REFUSED):
        compose("mine.yaml", arguments)
    swept = [] if "sweeper" in str(files) else ["seed=1,2"]
    code, printed = call("run", "mine.yaml", "-m", *swept, *arguments)
    assert code == 2 and re.search(REFUSED, printed), printed
    assert_nothing_ran(place)


def test_a_recipe_called_hydra_is_checked_as_any_other() -> None:
    """Neither its name nor a group of that name hides a section that would run code."""
    Path("hydra_x.yaml").write_text(f"{RECIPE}hydra: {{callbacks: {TARGET}}}\n")
    with pytest.raises(RecipeError, match=r"hydra\.callbacks\S+: is not allowed"):
        compose("hydra_x.yaml")


@pytest.mark.parametrize("text", ["${oc.env:HARMLESS}", "${${name}:HARMLESS}", "a${now:%Y}b"])
def test_no_interpolation_runs_a_resolver(text: str, place: Path, call: Call) -> None:
    """In a text, a mapping, a parent, a group, a launcher, on the command line or in a sweep."""
    for content in (
        f'description: "{text}"\n',
        f'model: {{config: {{a: {{b: ["{text}"]}}}}}}\n',
        f'defaults: [/data: "{text}"]\n',
        f'defaults: ["/{text}"]\n',
        f'hydra: {{launcher: {{comment: "{text}"}}}}\n',
    ):
        extend({"other.yaml": content})
        with pytest.raises(RecipeError, match="not allowed") as refusal:
            compose("mine.yaml")
        assert SECRET not in str(refusal.value)
    extend({})
    for override in (f'description="{text}"', f"hydra.launcher.n_jobs={text}"):
        code, printed = call("run", "mine.yaml", "-m", override, "seed=1,2")
        assert code == 2 and SECRET not in printed
    assert_nothing_ran(place)


def test_a_plain_setting_of_a_launcher_is_allowed(call: Call) -> None:
    """A refusal of all would pass the tests above."""
    text = "defaults: [override /hydra/launcher: slurm]\n"
    text += "hydra: {launcher: {partition: gpu, timeout_min: 30, mem_gb: null, constraint: a&b}}\n"
    extend({"other.yaml": text})
    assert call("plan", "mine.yaml", "-m", "seed=1,2")[0] == 0


@pytest.mark.parametrize("name", ["../up", "/etc", "..", "a\0b", "x" * 300])
def test_no_name_climbs_out_of_outputs(name: str) -> None:
    """Of a recipe or a stage; one of 300 characters used to fail when its folder was made."""
    values = yaml.safe_load(RECIPE)
    stages = {"load": {}, name: {"stage": "finetune"}}
    for change, rule in (
        ({"name": name}, "name: expected letters|name: string should have at most 200"),
        ({"stages": stages, "pipeline": ["load", name]}, "a stage's name has letters"),
    ):
        Path("mine.yaml").write_text(yaml.safe_dump({**values, **change}))
        with pytest.raises(RecipeError, match=rule):
            compose("mine.yaml")


def test_outputs_that_hold_another_s_files_keep_them(place: Path, call: Call) -> None:
    """A stranger's `outputs` may name the home folder: only `store` and `runs` come to it."""
    folder = place / "home"
    for name in ("runs/mine/notes.txt", "store/readme.txt", "model/weights.bin", "sweeps.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")
    before = {path: path.read_text() for path in folder.rglob("*") if path.is_file()}
    code, printed = call("run", "mine.yaml", "pipeline=[load]", f"outputs={folder}")
    assert code == 0, printed
    assert {path: path.read_text() for path in before} == before
    assert {path.name for path in folder.iterdir()} == {"runs", "store", "model", "sweeps.txt"}


@pytest.mark.parametrize("outputs", ["/dev/null", "mine.yaml/here", "'~nosuchuser/x'"])
def test_outputs_that_are_no_folder_are_told(outputs: str, call: Call) -> None:
    """By a sentence; a home that nobody has used to be a RuntimeError."""
    code, printed = call("run", "mine.yaml", "pipeline=[load]", f"outputs={outputs}")
    assert code in (1, 2) and "error: " in printed
    assert "is a file, not a folder" in printed or "mine.yaml" not in outputs
    assert not Path("~nosuchuser").exists()


def test_files_have_the_user_s_own_permissions(place: Path, call: Call) -> None:
    """Of folders 0777, of files 0666, without the mask's bits; no more, and no less."""
    mask = 0o027
    before = os.umask(mask)
    try:
        code, printed = call("run", "mine.yaml", "pipeline=[load,finetune]", "training.max_steps=2")
    finally:
        os.umask(before)
    assert code == 0, printed
    paths = [path for path in (place / "outputs").rglob("*") if not path.is_symlink()]
    assert len(paths) > 20
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o777 if path.is_dir() else 0o666) & ~mask, (path, oct(mode))
