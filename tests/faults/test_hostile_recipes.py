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
from tests.faults.conftest import Tell

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


SECTIONS = [
    f"callbacks: {TARGET}",
    *("searchpath: ['pkg://marking']", "searchpath: ['file:///etc']", "job: {env_set: {X: y}}"),
    *("launcher: {_target_: os.system}", "run: {dir: '${oc.env:HARMLESS}'}"),
    "launcher: {ray: {init: {runtime_env: {pip: [evil]}}}}",
    "job_logging: {handlers: {x: {(): os.system}}}",
    "sweeper: {params: {hydra.callbacks.x._target_: 'a,b'}}",
    "sweeper: {params: {description: '${oc.env:HARMLESS}'}}",
]
LAUNCHERS = [
    ("slurm", "launcher: {setup: [touch struck]}"),
    ("slurm", 'launcher: {comment: "x\\ntouch struck"}'),  # a line of the job's script
    ("slurm", "launcher: {additional_parameters: {wrap: touch struck}}"),
    ("processes", "launcher: {pre_dispatch: __import__('os').system('touch struck')}"),
]
EVIL = f"{TARGET[1:-1]}\n"
CODE: list[dict[str, str]] = [
    *({"other.yaml": f"hydra: {{{section}}}\n"} for section in SECTIONS),
    *({"mine.yaml": f"hydra: {{{section}}}\n"} for section in SECTIONS[:3]),
    *(
        {"other.yaml": f"defaults: [override /hydra/launcher: {name}]\nhydra: {{{what}}}\n"}
        for name, what in LAUNCHERS
    ),
    {
        "other.yaml": "defaults: [override /hydra/launcher: evil]\n",
        "hydra/launcher/evil.yaml": "_target_: os.system\ncommand: touch struck\n",
    },
    {
        "other.yaml": "defaults: [override /hydra/callbacks: evil]\n",
        "hydra/callbacks/evil.yaml": EVIL,
    },
    {"other.yaml": "defaults: [/hydra/callbacks: evil]\n", "hydra/callbacks/evil.yaml": EVIL},
    {
        "other.yaml": "defaults: [/x: evil]\n",
        "x/evil.yaml": f"# @package _global_\nhydra: {{callbacks: {TARGET}}}\n",
    },
    {"other.yaml": f"<<: {{hydra: {{callbacks: {TARGET}}}}}\n"},
    {"other.yaml": "seed: !!python/object/apply:os.system [touch struck]\n"},
]
REFUSED = "not allowed|not valid YAML|from the primary config|use 'override|no such setting"


@pytest.mark.parametrize("files", CODE, ids=lambda files: "".join(files.values())[:60])
def test_no_file_of_a_recipe_runs_anything(files, place: Path, call, tell) -> None:
    """Neither plan nor sweep, wherever it stands."""
    extend(files)
    with pytest.raises(RecipeError, match=REFUSED):
        compose("mine.yaml")
    code, printed = call(
        "run", "mine.yaml", "-m", *([] if "sweeper" in str(files) else ["seed=1,2"])
    )
    assert code == 2 and re.search(REFUSED, printed), printed
    assert_nothing_ran(place)
    tell("hostile", "recipes that would run code, by any file", "refused, with its place")


def test_a_recipe_called_hydra_is_checked_as_any_other() -> None:
    """Neither its name nor a group of that name hides a section that would run code."""
    Path("hydra_x.yaml").write_text(f"{RECIPE}hydra: {{callbacks: {TARGET}}}\n")
    with pytest.raises(RecipeError, match=r"hydra\.callbacks\S+: is not allowed"):
        compose("hydra_x.yaml")


@pytest.mark.parametrize(
    "text",
    [
        *("${oc.env:HARMLESS}", "${${name}:HARMLESS}", "${hydra:runtime.cwd}", "${now:%Y}"),
        *("${oc.decode:${oc.env:HARMLESS}}", "${oc.select:seed}", "a${oc.env:HARMLESS,x}b"),
    ],
)
def test_no_interpolation_runs_a_resolver(text: str, place: Path, call: Call, tell: Tell) -> None:
    """In a text, a list, a mapping, a parent, a group, on the command line or in a sweep."""
    for content in (
        f'description: "{text}"\n',
        f'skip: ["{text}"]\n',
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
    for override in (f'description="{text}"', f"+a={text}", f"hydra.launcher.n_jobs={text}"):
        with pytest.raises(RecipeError) as refusal:
            compose("mine.yaml", [override])
        assert SECRET not in str(refusal.value)
    code, printed = call("run", "mine.yaml", "-m", f'description="{text}"', "seed=1,2")
    assert code == 2 and SECRET not in printed
    assert_nothing_ran(place)
    tell("hostile", "recipes that would read the environment", "refused, with its place")


@pytest.mark.parametrize(
    "override",
    [
        *("+hydra.callbacks.x._target_=os.system", "hydra.searchpath=[pkg://marking]"),
        *("hydra.launcher._target_=os.system", "hydra.run.dir=/tmp/elsewhere"),
        *("hydra.sweep.dir=/tmp/elsewhere", "+hydra.job.env_set.X=y", "hydra/job_logging=stdout"),
    ],
)
def test_the_command_line_gives_hydra_no_code_either(override: str, place: Path, call) -> None:
    """It is often copied from a stranger's instructions. `-m` used to run callbacks."""
    with pytest.raises(RecipeError, match="not allowed"):
        compose("mine.yaml", [override])
    code, printed = call("run", "mine.yaml", "-m", "seed=1,2", override)
    assert code == 2 and "not allowed" in printed
    assert_nothing_ran(place)


def test_a_plain_setting_of_a_launcher_is_allowed(call: Call) -> None:
    """A refusal of all would pass the tests above."""
    text = "defaults: [override /hydra/launcher: slurm]\n"
    text += "hydra: {launcher: {partition: gpu, timeout_min: 30, mem_gb: null, constraint: a&b}}\n"
    extend({"other.yaml": text})
    assert call("plan", "mine.yaml", "-m", "seed=1,2")[0] == 0


@pytest.mark.parametrize(
    "name", ["../up", "/etc", "a/../../b", "..", ".", "a//b", "a\0b", "a\nb", "x" * 300, "C:", "~"]
)
def test_no_name_climbs_out_of_outputs(name: str, tell: Tell) -> None:
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
    tell("hostile", "names that climb, with NUL or of 300 characters", "refused: what one may be")


def test_outputs_that_hold_another_s_files_keep_them(place: Path, call: Call, tell: Tell) -> None:
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
    tell("hostile", "`outputs` with somebody's files in it", "they stay; only store and runs come")


@pytest.mark.parametrize(
    "outputs", ["/dev/null", "/proc/self", "mine.yaml", "mine.yaml/here", "'~nosuchuser/x'"]
)
def test_outputs_that_are_no_folder_are_told(outputs: str, call: Call) -> None:
    """By a sentence; a home that nobody has used to be a RuntimeError."""
    code, printed = call("run", "mine.yaml", "pipeline=[load]", f"outputs={outputs}")
    assert code in (1, 2) and "error: " in printed
    assert "is a file, not a folder" in printed or "mine.yaml" not in outputs
    assert not Path("~nosuchuser").exists()


@pytest.mark.parametrize("mask", [0o077, 0o027])
def test_files_have_the_user_s_own_permissions(mask: int, place: Path, call, tell) -> None:
    """Of folders 0777, of files 0666, without the mask's bits; no more, and no less."""
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
    tell("hostile", f"a run with umask {mask:03o}", "no file has more permissions, or fewer")
