"""The README: its recipes are valid, its figures have a bench, and its commands work.

`make test-docs` runs every command, in the README's order, in a copy of the repository; without
a hub, and with a few rows and steps for each, or FULL=1 to run them as they stand there. Models and
data that a command names by a variable are small ones made here. Python blocks run after them.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from compressor.engine.plan import plan
from compressor.engine.store.store import Store
from compressor.recipe.compose import Recipe, compose
from compressor.stages.base import stage_class, stage_kinds
from tests.harness.command import compressor

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FULL = os.environ.get("FULL") == "1"
CLUSTER = os.geteuid() == 0 and shutil.which("apt-get") is not None

SMALL = "training.max_steps=2 data.rows.train=24 data.rows.validation=4 data.rows.test=4"
"""What a run's command gets, unless FULL is asked for."""
SMALLER = {
    "launch.num_processes=2": "skip=[benchmark] seed=2",  # of its own, or the store would answer
    "launch.config_file=fsdp2": "skip=[benchmark] seed=3",
    "launch.config_file=recipes": "skip=[benchmark] seed=4",
    "hydra/launcher=slurm": "skip=[benchmark] seed=5",
    "run demo": "skip=[benchmark]",
    "run deploy": "skip=[benchmark]",
    "run distill": "stages.distill.max_steps=2 stages.labels.max_steps=2",
    "run demo_search": "search.trials=2",
    "run bert/approximate_small": "stages.noise.max_steps=2 stages.text.max_steps=2",
    "run bert/emotions": "skip=[benchmark] data.rows.train=null",  # a row for each label at least
    "run half/classifier": "skip=[benchmark] data.rows.train=null",
    "run bert": "skip=[benchmark]",
    "run sft/long_documents": "skip=[benchmark]",
}
"""The same for some commands alone: the first that a command has in it."""
UNREACHED = {
    "compressor run my.yaml": "cannot be reached",
}
"""Commands that end with exit code 2 and these words where there is no hub."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


STAGES = [name for text in blocks("python") for name in re.findall(r"^# .*/stages/(\w+).py", text)]
"""The stages that the README itself adds."""


def commands() -> list[str]:
    """Every command, in the README's order: of its console blocks, and those inside its text."""
    lines = []
    for match in re.finditer(
        r"^```console\n(?P<block>.*?)^```$|`(?P<inline>(?:compressor|make) [^`]+)`",
        README,
        re.DOTALL | re.MULTILINE,
    ):
        text = match["block"] or " ".join(match["inline"].split())
        for line in text.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s\s+)#.*$", "", line).strip()
            if command:
                lines.append(" ".join(command.split()))
    return list(dict.fromkeys(lines))


def is_name_alone(command: str) -> bool:
    """Whether the text speaks of a command, such as `compressor plan`, without its arguments."""
    return re.fullmatch(r"compressor \w+", command) is not None and command not in {
        "compressor recipes",
        "compressor schema",
        "compressor doctor",
    }


# ---- what `make test` checks

UNSAID = {
    "recover": {"stage": "finetune"}, "teacher": {"stage": "finetune"},
    "shrink": {"decoder_layers": 2},
}  # fmt: skip
"""Settings for stages of a pipeline that a block leaves out, as the text around it says."""


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_recipe_and_setting_is_valid(text: str, tmp_path: Path) -> None:
    """What has a pipeline plans, as it stands there or on a tiny model, its other stages at their
    defaults; fragments are stages' or a recipe's settings, key by key.
    """
    loaded = yaml.safe_load(text)
    if set(loaded.get("stages", ())) & set(STAGES):
        pytest.skip("a recipe with the README's own stage: `make test-docs` runs it")
    if "pipeline" in loaded:
        usual = ["/base", {"/model": "tiny"}, {"/data": "bills"}, "_self_"]
        if "/base" in loaded.setdefault("defaults", usual):
            left_out = {name: UNSAID.get(name, {}) for name in loaded["pipeline"]}
            loaded["stages"] = left_out | loaded["stages"]
        path = tmp_path / "block.yaml"
        path.write_text(yaml.safe_dump(loaded))
        files = loaded.get("data", {}).get("files", {})
        named = [split for split, file in files.items() if file is not None]
        rows = [f"data.files.{split}={labelled_rows(tmp_path, loaded)}" for split in named]
        composed = compose(str(path), [f"outputs={tmp_path}", *rows])
        plan(composed, Store.of(composed.recipe.outputs))
        return
    stages = loaded.pop("stages", {})
    for key, value in [*stages.items(), *(pair for pair in pairs(text) if pair[0] != "stages")]:
        if key in stage_kinds():
            stage_class(key).model_validate(value)
        else:
            assert key in {*Recipe.model_fields, "hydra", "defaults"}, key


def labelled_rows(folder: Path, recipe: dict[str, Any]) -> Path:
    """A file with the columns that a block's data names."""
    labels = recipe["data"]["labels"]
    with (folder / "rows.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [recipe["data"]["text"], *labels])
        writer.writeheader()
        for number in range(20):
            given = {
                label: int(index == number % len(labels)) for index, label in enumerate(labels)
            }
            writer.writerow({recipe["data"]["text"]: f"a comment, number {number}"} | given)
    return folder / "rows.csv"


def pairs(text: str) -> Iterator[tuple[str, object]]:
    """The top-level keys and values of a YAML text, those that stand several times too."""
    node = yaml.compose(text)
    assert isinstance(node, yaml.MappingNode)
    loader = yaml.SafeLoader("")
    for key, value in node.value:
        yield key.value, loader.construct_object(value, deep=True)


def test_every_bench_that_is_named_is_there() -> None:
    """A figure names the bench that prints it."""
    named = set(re.findall(r"bench `(\w+)`", README))
    there = {path.stem for path in (ROOT / "tests" / "benchmarks").glob("*.py")}
    assert len(named) > 8
    assert named <= there, named - there


def test_every_command_that_is_named_alone_is_one() -> None:
    """The text speaks of no command that there is not."""
    told = compressor("--help").out
    for command in filter(is_name_alone, commands()):
        assert re.search(rf"^  {command.split()[1]} ", told, re.MULTILINE), command


def test_every_link_and_picture_leads_somewhere() -> None:
    """To a heading of the README, or to a file of the repository."""
    headings = {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", README):
        place = "".join(target)
        if place.startswith("#"):
            assert place[1:] in headings, place
        elif "://" not in place:
            assert (ROOT / place).is_file(), place


# ---- what `make test-docs` runs


@dataclass
class Copy:
    """A copy of the repository, in which commands are run one after another."""

    folder: Path
    variables: dict[str, str]
    assigned: list[str]
    """Shell variables that earlier commands have set."""

    def run(self, command: str, *, small: str = "") -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(self.folder / ".venv" / "bin"), os.environ["PATH"]])
        settings = {"PATH": path, "PYTHONPATH": str(self.folder), "HF_HUB_OFFLINE": "1"}
        text = "\n".join([*self.assigned, f"{command} {small}".strip()])
        return subprocess.run(
            ["bash", "-euc", text],
            cwd=self.folder,
            env=os.environ | settings | self.variables,
            capture_output=True,
            text=True,
            timeout=3600,
        )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """What git has of the repository, this environment as its `.venv`, and small stand-ins."""
    folder = tmp_path_factory.mktemp("docs") / "compressor"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    environment = folder / ".venv"
    environment.mkdir()
    for entry in Path(sys.prefix).iterdir():
        (environment / entry.name).symlink_to(entry)
    (environment / ".installed").unlink(missing_ok=True)
    (environment / ".installed").touch()
    (folder / "text.txt").write_text("A bill to fund parks in every state.\n")
    for text in [*blocks("yaml"), *blocks("python")]:
        if named := re.match(r"# ([\w/-]+\.(yaml|py))\n", text):
            (folder / named[1]).write_text(text)
    return Copy(folder, stand_ins(folder.parent), [])


def stand_ins(folder: Path) -> dict[str, str]:
    """The variables of the README's commands: a T5, a BERT, and rows for each."""
    t5 = """
defaults: [/base, /model: tiny, /data: bills, _self_]
pipeline: [load, export]
model: {config: {d_model: 32, d_kv: 8, d_ff: 64, num_layers: 6, num_decoder_layers: 6}}
data: {rows: {train: 64, test: 4}}
stages: {load: {}, export: {}}
"""
    bert = """
defaults: [/base, /model: tiny_bert, /data: messages, _self_]
pipeline: [load, export]
model: {config: {hidden_size: 32, num_hidden_layers: 6, intermediate_size: 64}}
data: {rows: {train: 64, test: 4}}
stages: {load: {}, export: {}}
"""
    for name, text in (("t5", t5), ("bert", bert)):
        (folder / f"{name}.yaml").write_text(text)
        made = compressor("run", f"{name}.yaml", cwd=folder)
        assert made.code == 0, made.err
    rows = [{"text": f"A bill to fund park {n}.", "summary": f"Funds park {n}."} for n in range(40)]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    group = ROOT / "recipes" / "data" / "go_emotions_files.yaml"
    labels = yaml.safe_load(group.read_text())["labels"]
    for split in ("train", "validation"):
        with (folder / f"{split}.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["comment_text", *labels])
            writer.writeheader()
            for number in range(60):
                given = dict.fromkeys(labels, 0) | {labels[number % 28]: 1}
                writer.writerow({"comment_text": f"I feel {labels[number % 28]}."} | given)
    place = folder / "outputs" / "runs"
    (t5_run,), (bert_run,) = place.glob("t5/*"), place.glob("bert/*")
    return {
        "T5": str(t5_run / "model"),
        "MINILM": str(bert_run / "model"),
        "SCITLDR": str(folder),
        "GOEMOTIONS": str(folder),
    }


def shortened(command: str) -> str:
    """What makes a run small: a chain of real size would take an hour for each."""
    runs = re.match(r"(\.venv/bin/)?compressor run ", command) is not None
    if FULL or not runs or "--rehearse" in command:
        return ""
    more = next((settings for part, settings in SMALLER.items() if part in command), "")
    settings = {override.partition("=")[0]: override for override in f"{SMALL} {more}".split()}
    return " ".join(settings.values()) if "skip=" not in command else SMALL


@pytest.mark.docs
@pytest.mark.parametrize("command", [entry for entry in commands() if not is_name_alone(entry)])
def test_the_command_works(command: str, copy: Copy) -> None:
    """It ends well or, where it needs what is not here, with a message that says so."""
    if ("slurm" in command or command == "squeue") and not CLUSTER:
        pytest.skip("a cluster is set up by root, on Debian")
    if re.match(r"\w+=\(", command):
        copy.assigned.append(command)
        return
    done = copy.run(command, small=shortened(command))
    assert "Traceback" not in done.stderr, done.stderr
    words = UNREACHED.get(command)
    if words is not None:
        assert done.returncode == 2 and words in done.stderr, done.stderr
    else:
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.docs
@pytest.mark.parametrize("text", blocks("python"))
def test_the_python_works(text: str, copy: Copy) -> None:
    """On the run of that recipe that the commands above have left."""
    for place in re.findall(r"outputs/runs/[\w/]+/<time>", text):
        runs = sorted((copy.folder / place).parent.glob("*/metrics.json"))
        text = text.replace(place, str(runs[-1].parent.relative_to(copy.folder)))
    (copy.folder / "block.py").write_text(text)
    done = copy.run("python block.py")
    assert done.returncode == 0, done.stderr
