"""A recipe from a stranger runs no code, reads no environment, and writes where it is told to."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compressor.data.sources import Files
from compressor.recipe import compose
from compressor.yaml_limits import MOST, excess
from tests.conftest import RECIPE
from tests.faults import LONG, fuzzed
from tests.faults.commands import told

SECRET = "geheim-1234567"
HEAD = "defaults: [/base, /model: tiny, /data: bills, other, _self_]"
"""Of a recipe that extends another beside it."""
TARGET = "{x: {_target_: os.system, _args_: [touch struck]}}"


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


def extending(files: dict[str, str]) -> None:
    """Write a recipe that extends `other.yaml`, and these files beside it."""
    text = RECIPE.replace(RECIPE.splitlines()[1], HEAD)
    files = {"other.yaml": "seed: 1\n", **files}
    files["mine.yaml"] = text + files.get("mine.yaml", "")
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content, encoding="utf-8")


def nothing_ran_and_nothing_was_read(place: Path) -> None:
    assert not (place / "struck").exists()
    for path in place.rglob("*"):
        assert path.is_dir() or SECRET not in path.read_text(errors="replace"), path


CODE = {
    "a callback": {"other.yaml": f"hydra: {{callbacks: {TARGET}}}\n"},
    "a package that is imported": {"other.yaml": "hydra: {searchpath: ['pkg://marking']}\n"},
    "a folder elsewhere": {"other.yaml": "hydra: {searchpath: ['file:///etc']}\n"},
    "a package, in the recipe itself": {"mine.yaml": "hydra: {searchpath: ['pkg://marking']}\n"},
    "a folder, in the recipe itself": {"mine.yaml": "hydra: {searchpath: ['file:///etc']}\n"},
    "another group of Hydra's": {
        "other.yaml": "defaults: [override /hydra/callbacks: evil]\n",
        "hydra/callbacks/evil.yaml": f"{TARGET[1:-1]}\n",
    },
    "a group at the top": {
        "other.yaml": "defaults: [/x: evil]\n",
        "x/evil.yaml": f"# @package _global_\nhydra: {{callbacks: {TARGET}}}\n",
    },
    "a group of Hydra's": {
        "other.yaml": "defaults: [/hydra/callbacks: evil]\n",
        "hydra/callbacks/evil.yaml": f"{TARGET[1:-1]}\n",
    },
    "a launcher of its own": {
        "other.yaml": "defaults: [override /hydra/launcher: evil]\n",
        "hydra/launcher/evil.yaml": "_target_: os.system\ncommand: touch struck\n",
    },
    "a launcher's commands": {
        "other.yaml": "defaults: [override /hydra/launcher: slurm]\n"
        "hydra: {launcher: {setup: [touch struck]}}\n"
    },
    "a line of a job's script": {
        "other.yaml": "defaults: [override /hydra/launcher: slurm]\n"
        'hydra: {launcher: {comment: "x\\ntouch struck"}}\n'
    },
    "a launcher's arguments": {
        "other.yaml": "defaults: [override /hydra/launcher: slurm]\n"
        "hydra: {launcher: {additional_parameters: {wrap: touch struck}}}\n"
    },
    "an expression of joblib's": {
        "other.yaml": "defaults: [override /hydra/launcher: processes]\n"
        "hydra: {launcher: {pre_dispatch: __import__('os').system('touch struck')}}\n"
    },
    "Ray's environment": {
        "other.yaml": "hydra: {launcher: {ray: {init: {runtime_env: {pip: [evil]}}}}}\n"
    },
    "logging by a class": {
        "other.yaml": "hydra: {job_logging: {handlers: {x: {(): os.system}}}}\n"
    },
    "a variable that is set": {"other.yaml": "hydra: {job: {env_set: {X: y}}}\n"},
    "a folder by a variable": {"other.yaml": "hydra: {run: {dir: '${oc.env:HARMLESS}'}}\n"},
    "a sweep over a callback": {
        "other.yaml": "hydra: {sweeper: {params: {hydra.callbacks.x._target_: 'a,b'}}}\n"
    },
    "a sweep by a variable": {
        "other.yaml": "hydra: {sweeper: {params: {description: '${oc.env:HARMLESS}'}}}\n"
    },
    "a merge key": {"other.yaml": f"<<: {{hydra: {{callbacks: {TARGET}}}}}\n"},
    "tags of Python": {"other.yaml": "seed: !!python/object/apply:os.system [touch struck]\n"},
}


REFUSED = "not allowed|not valid YAML|from the primary config|use 'override|no such setting"


@pytest.mark.parametrize("files", CODE.values(), ids=CODE)
def test_no_file_of_a_recipe_runs_anything(files: dict[str, str], place: Path, tell: Any) -> None:
    """Neither plan nor sweep, wherever it stands. A launcher's `setup` used to reach SLURM's jobs,
    and a text with a line break the script of one.
    """
    extending(files)
    for command in (["plan"], ["run", "-m"]):
        swept = [] if "sweeper" in str(files) or "-m" not in command else ["seed=1,2"]
        found = told(command[0], "mine.yaml", *command[1:], *swept)
        assert found.code == 2, found.out
        assert re.search(REFUSED, found.err), found.err
        nothing_ran_and_nothing_was_read(place)
    tell(
        "hostile", "recipes that would run code, by any file", "exit 2: not allowed, with its place"
    )


READS = [
    *("${oc.env:HARMLESS}", "${${name}:HARMLESS}", "${hydra:runtime.cwd}"),
    *("${oc.env:HARMLESS,x}", "${oc.env:${name}}"),
    *("${oc.decode:${oc.env:HARMLESS}}", "${oc.create:{a:1}}", "${oc.select:seed}", "${now:%Y}"),
    *(
        "${oc.dict.keys:stages}",
        "${python_version:}",
        "${oc.${name}:HARMLESS}",
        "${oc.env:${name}}",
    ),
    *("a${oc.env:HARMLESS}b", "${oc.deprecated:seed}"),
]


@pytest.mark.parametrize("text", READS if LONG else READS[:3])
def test_no_interpolation_runs_a_resolver(text: str, place: Path, tell: Any) -> None:
    """In a text, a list, a mapping, a parent, a group, on the command line or in a sweep."""
    for content in (
        f'description: "{text}"\n',
        f'skip: ["{text}"]\n',
        f'model: {{config: {{a: {{b: ["{text}"]}}}}}}\n',
        f'defaults: [/data: "{text}"]\n',
        f'stages: {{finetune: {{label: "x {text}"}}}}\n',
        f'hydra: {{launcher: {{comment: "{text}"}}}}\n',
    ):
        extending({"other.yaml": content})
        found = told("plan", "mine.yaml")
        assert found.code == 2 and "not allowed" in found.err, found.err
        assert SECRET not in found.err
    extending({})
    for override in (f'description="{text}"', f"+a={text}", f"hydra.launcher.n_jobs={text}"):
        found = told("run", "mine.yaml", override)
        assert found.code == 2 and SECRET not in found.err, found.err
        assert told("run", "mine.yaml", "-m", override, "seed=1,2").code == 2
    nothing_ran_and_nothing_was_read(place)
    tell(
        "hostile", "recipes that would read the environment", "exit 2: not allowed, with its place"
    )


@pytest.mark.parametrize(
    "override",
    [
        "+hydra.callbacks.x._target_=os.system",
        "hydra.searchpath=[pkg://marking]",
        "hydra.launcher._target_=os.system",
        "hydra.run.dir=/tmp/elsewhere",
        "hydra.sweep.dir=/tmp/elsewhere",
        "+hydra.job.env_set.X=y",
        "hydra/job_logging=stdout",
    ],
)
def test_the_command_line_gives_hydra_no_code_either(override: str, place: Path) -> None:
    """It is often copied from a stranger's instructions. `-m` used to run callbacks."""
    for arguments in (["plan"], ["run", "-m", "seed=1,2"]):
        found = told(arguments[0], "mine.yaml", *arguments[1:], override)
        assert found.code == 2 and "not allowed" in found.err, found.err
    nothing_ran_and_nothing_was_read(place)


def test_a_plain_setting_of_a_launcher_is_allowed() -> None:
    """A refusal of all would pass the tests above."""
    text = "defaults: [override /hydra/launcher: slurm]\n"
    text += "hydra: {launcher: {partition: gpu, timeout_min: 30, mem_gb: null, constraint: a&b}}\n"
    extending({"other.yaml": text})
    assert told("plan", "mine.yaml", "-m", "seed=1,2").code == 0


NAMES = ["../up", "/etc", "a/../../b", "..", ".", "a//b", "a\0b", "a\nb", "x" * 300, "C:", "~"]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_climbs_out_of_outputs(name: str, place: Path, tell: Any) -> None:
    """Of a recipe or a stage; one of 300 characters used to fail when its folder was made."""
    before = sorted(place.parent.iterdir())
    values = fuzzed.VALUES
    stages = {**values["stages"], name: {"stage": "finetune"}}
    for changed in (
        {**values, "name": name},
        {**values, "stages": stages, "pipeline": ["load", name]},
    ):
        Path("mine.yaml").write_bytes(fuzzed.dumped(changed))
        found = told("run", "mine.yaml")
        assert found.code == 2, found.err
        assert not Path("outputs").exists()
    assert sorted(place.parent.iterdir()) == before
    tell("hostile", "names that climb, with NUL or of 300 characters", "exit 2: what a name may be")


def test_outputs_that_hold_another_s_files_keep_them(place: Path, tell: Any) -> None:
    """A stranger's `outputs` may name the home folder: only `store` and `runs` come to it."""
    there = place / "there"
    for name in ("runs/mine/notes.txt", "store/readme.txt", "model/weights.bin", "sweeps.txt"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text(f"mine: {name}")
    before = {path: path.read_text() for path in there.rglob("*") if path.is_file()}
    found = told("run", "mine.yaml", "pipeline=[load]", f"outputs={there}")
    assert found.code == 0, found.err
    assert {path: path.read_text() for path in before} == before
    assert {path.name for path in there.iterdir()} == {"runs", "store", "model", "sweeps.txt"}
    tell("hostile", "`outputs` with somebody's files in it", "they stay; only store and runs come")


@pytest.mark.parametrize("outputs", ["/dev/null", "/proc/self", "mine.yaml", "'~nosuchuser/x'"])
def test_outputs_that_are_no_folder_are_told(outputs: str) -> None:
    """By a sentence; a home that nobody has used to be a RuntimeError."""
    found = told("run", "mine.yaml", "pipeline=[load]", f"outputs={outputs}")
    assert found.code in (1, 2) and "error: " in found.err
    assert not Path("~nosuchuser").exists()


@pytest.mark.parametrize("kind", ["fifo", "folder", "/dev/zero", "loop"])
def test_what_is_no_regular_file_is_not_waited_for(kind: str, place: Path, tell: Any) -> None:
    """A pipe in place of a file of `defaults` used to be read for ever."""
    os.mkfifo("fifo.yaml")
    os.mkfifo("fifo.jsonl")
    Path("folder.yaml").mkdir()
    Path("loop.yaml").symlink_to("loop.yaml")
    Path("loop.jsonl").symlink_to("loop.jsonl")
    extending({"other.yaml": f"defaults: [{kind}]\n"})
    assert told("plan", "mine.yaml").code == 2
    assert told("plan", f"{kind}.yaml").code == 2
    assert told("plan", "demo", "launch.config_file=" + kind + ".yaml").code == 2
    files = dict.fromkeys(("train", "validation"), f"{kind}.jsonl" if kind[0] != "/" else kind)
    source = Files(source="files", files=files)  # type: ignore[arg-type]
    problems: list[str] = []
    source.check("train", lambda _, message: problems.append(message))
    assert len(problems) == 1
    tell("hostile", "pipes, devices and circles of links for files", "exit 2, at once")


def test_a_few_lines_cannot_be_billions_of_values(tell: Any) -> None:
    """Aliases of aliases took planning forever; what they stand for is counted before."""
    for text in (fuzzed.LAUGHS, fuzzed.MERGED_LAUGHS, "a: &a [*a]", *fuzzed.DEEP[:3]):
        Path("mine.yaml").write_text(text)
        found = told("plan", "mine.yaml")
        assert found.code == 2 and found.seconds < 2
        assert re.search("more than|stands within itself", found.err), found.err
    shared = "a: &a [1, 2]\nb: {c: *a, d: *a}\n"
    assert excess(shared) is None
    assert excess(f"[{'x, ' * (MOST - 2)}x]") is None
    assert excess(f"[{'x, ' * MOST}x]") is not None
    tell("hostile", "YAML of aliases that double, 30 times", "exit 2: more than 20,000 values")


@pytest.mark.parametrize(
    ("written", "refused"),
    [("010", "10"), ("-0_17", "-17"), ("0", None), ("00", None), ("'010'", None), ("0x10", None)],
)
def test_a_number_is_what_it_looks_like(written: str, refused: str | None) -> None:
    """`batch_size: 010` used to be 8, which YAML 1.1 reads in base 8."""
    Path("mine.yaml").write_text(RECIPE.replace("batch_size: 8", f"batch_size: {written}"))
    found = told("plan", "mine.yaml")
    assert ("base 8" in found.err) == (refused is not None)
    if refused:
        assert found.code == 2 and f"write {refused}, or" in found.err
        assert re.search(r"mine.yaml:\d+: ", found.err)


def test_two_layers_are_two_however_they_are_written() -> None:
    """2.0 was refused of a model's config, while every stage takes 3.0."""
    keys = []
    for layers in ("2", "2.0", "2e0"):
        text = RECIPE.replace("num_layers: 2,", f"num_layers: {layers},")
        Path("mine.yaml").write_text(text)
        assert compose("mine.yaml").recipe.model["config"]["num_layers"] == 2
        keys.append(told("plan", "mine.yaml", "--json").out)
    assert keys[0] == keys[1] == keys[2] != ""


def test_a_recipe_among_its_own_defaults_is_refused_at_once() -> None:
    """It took 8 s of going round; a recipe called as a group's option is none."""
    for text in ("[mine]", "[/base, ./mine]", "[/base, {/: mine}]", "[other]"):
        Path("mine.yaml").write_text(f"defaults: {text}\n")
        Path("other.yaml").write_text("defaults: [mine]\n")
        found = told("plan", "mine.yaml")
        assert found.code == 2 and found.seconds < 1
        assert "among its own defaults" in found.err, found.err
    Path("tiny.yaml").write_text(RECIPE)
    assert told("plan", "tiny.yaml").code == 0


@pytest.fixture
def masked() -> Iterator[Any]:
    """Sets the mask of new files' permissions, for a while."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o027])
def test_files_have_the_user_s_own_permissions(
    mask: int, masked: Any, place: Path, tell: Any
) -> None:
    """Of folders 0777, of files 0666, without the mask's bits; no more, and no less."""
    masked(mask)
    found = told("run", "mine.yaml", "pipeline=[load,finetune]", "training.max_steps=2")
    assert found.code == 0, found.err
    made = [path for path in (place / "outputs").rglob("*") if not path.is_symlink()]
    assert len(made) > 20
    for path in made:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o777 if path.is_dir() else 0o666) & ~mask, (path, oct(mode))
    tell("hostile", f"a run with umask {mask:03o}", "no file has more permissions, or fewer")
