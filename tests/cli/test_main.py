"""The command's arguments, errors, exit codes, and what it imports before it works."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from compressor import __version__
from compressor.cli.main import COMMANDS, build_app, main
from compressor.core.errors import Problem, RecipeError, StageError, Unreachable
from tests.recipe.recipe_values import as_json

HEAVY = {"torch", "transformers", "datasets", "numpy"}
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Call:
    """Give a command in this process, in a folder of the test's own: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(words)
        return code, *capfd.readouterr()

    return run


def imported_by(*lines: str, cwd: Path) -> set[str]:
    """Give commands in a process of their own; the modules that it has imported then."""
    code = "\n".join(["import sys", "from compressor.cli.main import main", *lines])
    command = [sys.executable, "-c", f"{code}\nprint(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_names_every_command(words: list[str], call: Call) -> None:
    """With what each is for, in one line of 80 columns; also where nothing is asked."""
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    listed = re.findall(r"^  (\w+) +\S.*\.$", out.partition("Commands:")[2], re.MULTILINE)
    assert listed == list(COMMANDS)
    assert max(map(len, out.splitlines())) <= 80


def test_each_argument_and_option_is_explained(call: Call) -> None:
    """In the help of its command; and the version is printed on one line."""
    for name, command in get_command(build_app()).commands.items():
        assert all(parameter.help for parameter in command.params), name
    code, out, _ = call("gc", "--help")
    assert code == 0 and "--older-than AGE" in out and "90m, 12h, 30d, 8w" in out
    assert call("--version") == (0, f"compressor {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("rum demo", "no such command 'rum'. Did you mean 'run'?; see compressor --help"),
        ("run", "missing argument 'RECIPE'; see compressor run --help"),
        ("reproduce", "missing argument 'RUN'"),
        ("why demo", "missing argument 'STAGE'"),
        ("plan demo --jsn", "no such option: --jsn (Possible options: --json)"),
        ("run demo --seed=3", "no such option: --seed; a setting has no dashes: seed=3"),
        ("recipes demo", "unexpected extra argument(s) (demo)"),
        ("gc --older-than 30", "'30': expected a number and s, m, h, d or w"),
        ("gc --max-size=3GG", "'3GG': expected a number and a unit"),
        ("summarize demo --max-length 1", "'--max-length': Input should be greater than or equal"),
        ("summarize demo --num-beams=x", "'--num-beams': Input should be a valid integer"),
        ("score x.csv --rouge-tokenizer t5", "'t5' is not one of 'english', 'unicode'"),
        ("schema --group=x", "'x' is not one of 'model', 'data', 'training'"),
        ("schema --composed --group=data", "--composed and --group"),
        ("run homework/v7", "did you mean 'homework/v"),
        ("run demmo", "did you mean 'demo'?"),
        ("run nothere.yaml", "no recipe file 'nothere.yaml'"),
        ("run .", "is a folder"),
        ("run demo model=tinny", "did you mean 'tiny'?"),
        ("run demo seeed=1", "did you mean 'seed'?"),
        ("run demo stages.prun.amounts.lm_head=0.1", "did you mean 'prune'?"),
        ("run demo stages.prune.amount.lm_head=0.1", "did you mean 'amounts'?"),
        ("run demo stages.prune.amounts.lm_head=0.1,0.3", "add -m"),
        ("run demo --rehearse -m seed=1,2", "--rehearse is of one run"),
        ("run demo -m stages.prune.amounts.lm_head=0.1,1.5", "1.5"),
        ("run demo -m stages.prune.amounts.lm_head=range(1,3)", "got 2"),
        ("run demo -m training=quick,quik", "did you mean 'quick'?"),
        ("plan demo -m --json seed=1,2", "--json is of one run's stages"),
        ("run demo data=files", "files.yaml:"),
        ("run demo data=null", "must be a string"),
        ("run demo stages.prune=[oops", "override"),
        ("stages prun", "did you mean 'prune'?"),
        ("score nothere.csv", "nothere.csv"),
        ("show nothere", "no run's directory"),
        ("compare demo", "at least two runs"),
    ],
)
def test_a_wrong_command_is_refused_with_the_cure(words: str, expected: str, call: Call) -> None:
    """Exit code 2, a line for each error, the nearest thing that exists; nothing is written."""
    code, out, err = call(*words.split())
    assert (code, out) == (2, "")
    assert expected in err
    *errors, last = err.splitlines()
    assert all(line.startswith("error: ") for line in errors)
    assert last.startswith("error: ") or last == f"{len(errors)} errors"
    assert not list(Path().iterdir())


def test_what_a_person_wrote_is_repeated_in_part_and_without_secrets(call: Call) -> None:
    """A thousand characters, a control character, a token of the hub."""
    code, _, err = call("plan", "demo", f"--x\x1b{'a' * 1000}", f"--token=hf_{'b' * 34}")
    assert code == 2
    assert r"no such option: --x\x1baaa" in err
    assert len(err) < 700
    code, _, err = call("plan", "demo", f"--token=hf_{'b' * 34}")
    assert code == 2 and "hf_" not in err


def test_overrides_stand_before_and_behind_options(call: Call) -> None:
    """Also behind `--`; JSON has the documented fields of each stage."""
    words = "plan homework/v1 model=t5_small_fresh --json training=none -- seed=7"
    code, out, _ = call(*words.split())
    assert code == 0
    stages = json.loads(out)
    assert [(stage["name"], stage["model"]) for stage in stages] == [
        ("load", None),
        ("prune_1", "load"),
    ]
    expected = {"name", "stage", "key", "cached", "parameters", "nonzero_ratio", "bytes", "seconds"}
    assert all(expected <= set(stage) for stage in stages)


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (RecipeError("wrong"), 2, "error: wrong\n"),
        (RecipeError([Problem("a", "x"), Problem("b", "y")]), 2, "error: a: x\nerror: b: y\n2 err"),
        (StageError("no\x1b"), 1, "error: no\\x1b\n"),
        (Unreachable("hub"), 1, "error: hub\n"),
        (OSError(28, "full"), 1, "error: "),
        (MemoryError(), 1, "error: "),
        (KeyboardInterrupt(), 1, "\ninterrupted\n"),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_each_error_has_its_exit_code(
    error: BaseException, code: int, expected: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message of its own, and no traceback."""

    def fail() -> int:
        raise error

    monkeypatch.setitem(COMMANDS, "recipes", fail)
    if isinstance(error, BrokenPipeError):  # it redirects the standard output for good
        monkeypatch.setattr(os, "dup2", lambda *_: None)
    ended, _, err = call("recipes")
    assert ended == code
    assert err.startswith(expected) and "Traceback" not in err


def test_an_interrupted_run_says_that_it_goes_on(call: Call, monkeypatch) -> None:
    """A rehearsal, which keeps nothing, does not. Under torchrun, which would start every stage
    several times, it says what to set.
    """

    def interrupt(*words: Any, **options: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("compressor.cli.run._plan_one", interrupt)
    assert call("run", "demo")[2] == "\ninterrupted; the same command goes on from here\n"
    assert call("run", "demo", "--rehearse")[2] == "\ninterrupted\n"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    code, _, err = call("run", "demo")
    assert code == 2 and "launch.num_processes" in err


def test_without_outputs_it_prints_to_nowhere(tmp_path: Path) -> None:
    """Some services start a command so: `>&-`."""
    words = f"exec {sys.executable} -m compressor recipes >&- 2>&-"
    assert subprocess.run(["sh", "-c", words], cwd=tmp_path).returncode == 0


def test_help_imports_almost_nothing(tmp_path: Path) -> None:
    """It answers at once: without rich, pydantic, Hydra, YAML or any stage."""
    imported = imported_by("main(['--help'])", cwd=tmp_path)
    slow = {"rich", "pydantic", "hydra", "omegaconf", "yaml", "psutil", "compressor.stages.base"}
    assert not imported & (slow | HEAVY)
    assert len({name for name in imported if name.startswith("compressor.")}) < 20


def test_what_plans_or_explains_imports_no_torch(tmp_path: Path) -> None:
    """`plan`, `schema`, `stages` and `new` take no seconds. The schema is the recipes' own."""
    plan = "'plan', 'homework/v6', '--json', 'model=t5_small_fresh', 'training=none'"
    imported = imported_by(
        f"for words in ([{plan}], ['schema', '--composed', '--output', 'x.json'], "
        "['stages', 'prune'], ['stages', '--json'], ['new', 'mine.yaml']):",
        "    assert main(words) == 0, words",
        cwd=tmp_path,
    )
    assert not imported & HEAVY
    from compressor.recipe.schema import build_composed_schema

    assert json.loads((tmp_path / "x.json").read_text()) == as_json(build_composed_schema())


def test_a_library_that_breaks_as_it_is_interrupted_shows_no_traceback(call, monkeypatch) -> None:
    """Ctrl-C may meet a library's own clean-up; an error of its own is still one."""

    def work() -> int:
        try:
            raise KeyboardInterrupt
        finally:
            fail()

    def fail() -> int:
        raise AttributeError("a defect")

    monkeypatch.setitem(COMMANDS, "recipes", work)
    assert call("recipes") == (1, "", "\ninterrupted\n")
    monkeypatch.setitem(COMMANDS, "recipes", fail)
    with pytest.raises(AttributeError, match="a defect"):
        call("recipes")
