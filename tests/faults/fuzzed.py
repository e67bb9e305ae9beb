"""Wrong recipes and commands for the fuzzer, as `hypothesis` strategies. Nothing is run here.

Values of fields, in and out of their ranges, are `tests.recipe.recipe_values`'s.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.conftest import RECIPE
from tests.recipe.recipe_values import changed, places

_LISTS: dict[str, str] = yaml.safe_load(
    Path(__file__).with_name("fuzzed.yaml").read_text(encoding="utf-8")
)
VALUES: dict[str, Any] = yaml.safe_load(RECIPE)
INTERPOLATIONS = _LISTS["interpolations"].splitlines()
TARGETS: list[dict[str, Any]] = [
    {"_target_": "os.system", "_args_": ["touch struck"]},
    {"_target_": "builtins.open", "_partial_": True},
    {"_recursive_": False, "_convert_": "all"},
    {"_target_": {"_target_": "os.getcwd"}},
]
ODD: list[Any] = [
    *(None, True, False, "", " ", "\n", "\0", "\ud83d\ude00", "é" * 70, "a" * 5000, "../../x"),
    *("/etc", "~", "~nobody/x", "~root", "[red]", "\x1b[31m", "'", '"', "a=b", "*", "%s", "{}"),
    *(0, -1, 10**30, -(10**30), 1e308, 1e-320, float("inf"), float("-inf"), float("nan")),
    *(2**31, 2**63, 2**64, "1e400", "0x10", "010", [], {}, [[]], [{}], {"": ""}, [None], {1: 2}),
    *({None: 1}, {True: {}}, {1.5: 1}, {"a.b": {"c": 1}}, {"a": {"a": {"a": {"a": []}}}}),
]
odd = st.one_of(st.sampled_from(INTERPOLATIONS), st.sampled_from(TARGETS), st.sampled_from(ODD))

SNIPPETS = _LISTS["snippets"].splitlines()
WHOLE: list[bytes] = [
    *(text.encode() for text in ("", "\0", "null", "3", "[]", "x")),
    *(RECIPE.encode(name) for name in ("utf-16", "utf-16-be", "utf-32", "utf-8-sig", "cp037")),
    *(b"\xef\xbb\xbf\xef\xbb\xbf" + RECIPE.encode(), RECIPE.replace("\n", "\r").encode()),
    *(RECIPE.replace("\n", "\r\n").encode(), RECIPE.replace("\n", "\u2028").encode()),
    *(RECIPE.replace("\n", "\x85").encode("latin-1"), b"\xff" * 1000),
    *(RECIPE.encode() * 2, b"seed: " + b"9" * 100_000),
    *(b"? " * 2000, b"&a " * 500, b"!" * 5000, b"seed: " + b"1" * 5000),
]
WEDGES = st.sampled_from(
    [
        *"\t\0\x07\x1b\ufeff\u2028:-?*&!|>%@`'\"[]{},#~=$\\0._é\ud7ff\U0001f600\n\r",
        *("\n\n", "${", "${seed}", "- ", "<<: ", ": ", "!!", "---\n", "...\n", "null"),
    ]
)


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """A recipe's bytes: some cut, swapped, doubled or replaced; or lines of odd YAML in it."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(WHOLE))
    text = RECIPE
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        how = draw(st.sampled_from(["wedge", "cut", "swap", "line", "line", "indented", "drop"]))
        lines = text.splitlines()
        place = draw(st.integers(0, len(text)))
        if how == "wedge":
            text = text[:place] + draw(WEDGES) + text[place:]
        elif how == "cut":
            text = text[:place] + text[place + draw(st.integers(1, 40)) :]
        elif how == "swap":
            other = draw(st.integers(0, len(text)))
            first, last = sorted((place, other))
            text = text[:first] + text[last:] + text[first:last]
        elif how == "drop" and lines:
            del lines[draw(st.integers(0, len(lines) - 1))]
            text = "\n".join(lines)
        else:
            line = draw(st.sampled_from(SNIPPETS)).replace("\\n", "\n")
            lines.insert(draw(st.integers(0, len(lines))), "  " * (how == "indented") + line)
            text = "\n".join(lines)
    encoded = text.encode("utf-8", "replace")
    if draw(st.integers(0, 9)) == 0 and encoded:  # a byte that may be in no text
        place = draw(st.integers(0, len(encoded) - 1))
        encoded = encoded[:place] + bytes([draw(st.integers(0, 255))]) + encoded[place + 1 :]
    return encoded


def dumped(values: Any) -> bytes:
    """Values as a recipe's file."""
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def trees(draw: st.DrawFn) -> bytes:
    """A recipe with values of every type at any key, keys renamed, removed and moved."""
    found: dict[str, Any] = copy.deepcopy(VALUES)
    if draw(st.booleans()):
        found = draw(changed(found))
    for _ in range(draw(st.sampled_from([0, 1, 1, 2]))):
        path = draw(st.sampled_from(list(places(found)) or [("seed",)]))
        owner: Any = found
        for part in path[:-1]:
            owner = owner[part]
        last: Any = path[-1]
        how = draw(st.sampled_from(["odd", "odd", "odd", "move", "key"]))
        if how == "move" and isinstance(owner, dict):
            found[str(last)] = owner.pop(last)
        elif how == "key" and isinstance(owner, dict):
            owner[draw(st.sampled_from([None, 1, True, "", "_target_", "a.b", "${seed}", "é"]))] = (
                copy.deepcopy(draw(odd))
            )
        else:
            owner[last] = copy.deepcopy(draw(odd))  # what is drawn may be drawn again
    return dumped(found)


ENTRIES: list[Any] = [
    *("/base", "_self_", "base", "mine", "/mine", "other", "./other", "../mine", "nowhere", ""),
    *(
        "/etc/passwd",
        "//base",
        "/model/tiny",
        "model/tiny",
        "/demo",
        "homework/v3",
        "\0",
        "a" * 300,
    ),
    *(
        {"/model": "tiny"},
        {"/data": "bills"},
        {"/data": ["bills", "files"]},
        {"/data": None},
        {"/data@training": "bills"},
        {"/model@_global_": "tiny"},
        {"/model@_here_": "tiny"},
        {"/model@a.b.c": "tiny"},
        {"/model@": "tiny"},
        {"override /model": "tiny"},
        {"override /data": "bills"},
        {"override hydra/launcher": "processes"},
        {"override hydra/launcher": "nowhere"},
        {"override hydra/sweeper": "basic"},
        {"override hydra/job_logging": "stdout"},
        {"override hydra/help": "default"},
        {"optional /model": "nowhere"},
        {"optional /data": "${seed}"},
        {"optional": "x"},
        {"/data": "${oc.env:HOME}"},
        {"/data": "${data}"},
        {"/data": "../model/tiny"},
        {"/data": 3},
        {"/data": {"a": "b"}},
        {"/data": "???"},
        {"hydra": "default"},
        {"a": "b", "c": "d"},
        {},
    ),
    *(
        "${oc.env:HOME}",
        "${name}",
        None,
        3,
        [],
        ["base"],
        True,
        "é",
        "/model@x: tiny",
        "hydra/output",
    ),
]


@st.composite
def defaults(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two recipes that may extend each other, themselves, what is not there and what is odd."""
    entries = st.lists(st.sampled_from(ENTRIES), max_size=5)
    keep: list[Any] = ["/base", {"/model": "tiny"}, {"/data": "bills"}, "_self_"]
    own = draw(entries)
    place = draw(st.integers(0, 4))
    values = VALUES | {"defaults": keep[:place] + own + keep[place:]}
    if draw(st.integers(0, 9)) == 0:
        values["defaults"] = draw(odd)
    other = {"defaults": draw(entries), "seed": draw(odd)}
    return dumped(values), dumped(other)


KEYS = _LISTS["keys"].splitlines()
GIVEN = _LISTS["given"].splitlines()


VALUE_TEXTS = [*GIVEN, "", " ", "\n", "\t", "a" * 500, "(" * 300, "[" * 500]


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    """What may stand behind a recipe on the command line: most in Hydra's grammar."""
    found = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        sign = draw(st.sampled_from(["", "", "", "", "+", "++", "~", "+++", "~~", "--"]))
        key = draw(st.sampled_from([*KEYS, *KEYS, "", " ", "=", "é"]))
        value = draw(st.sampled_from(VALUE_TEXTS))
        equals = draw(st.sampled_from([*"=======", "", "==", " = ", ":"]))
        found.append(f"{sign}{key}{equals}{value}")
    return found


NAMES = [
    *("demo", "homework/v3", "mine.yaml", "mine", ".", "..", "/", "", " ", "-", "nowhere"),
    *("../mine.yaml", "/dev/null", "a.yaml", "x" * 300, "x" * 300 + ".yaml", "~"),
    *("é", "\udcff", "a\nb", "base", "model/tiny", "hydra/launcher/slurm", "*", "~nobody"),
    *("run", "empty", "broken", "outputs", "empty.csv", "broken.csv", "load"),
    *("prune", "stage", "metrics.json", "broken/metrics.json", "loop", "loop.yaml", "0", "a\0b"),
    *("folder.yaml", "folder", "\x1b[31m", "../../etc/passwd", "recipe", "model", "2:4"),
]
OPTIONS: dict[str, list[str]] = {
    "plan": ["--json", "-m"],
    "run": ["-q"],
    "new": ["--full", "--force", "--from=demo", "--from=mine.yaml", "--from=nowhere"],
    "show": ["--json", "--scores", "--outputs=run", "--outputs=mine.yaml"],
    "compare": ["--json", "--html=x.html", "--html=/nowhere/x", "--html=.", "--outputs=broken"],
    "why": ["--json", "--outputs=run"],
    "schema": ["--composed", "--group=model", "--group=x", "--output=x.json", "--output=/no/x"],
    "stages": ["--json"],
    "recipes": [],
    "score": ["--json"],
    "reproduce": ["--json", "--into=run", "--into=mine.yaml", "--outputs=run"],
    "watch": ["--outputs=run"],
    "summarize": ["--lines", "--max-length=1", "--max-length=x", "--num-beams=0"],
    "classify": ["--lines"],
    "gc": ["--dry-run", "--outputs=run"],
    "doctor": ["--json", "--outputs=broken"],
    "nothing": [],
}


@st.composite
def commands(draw: st.DrawFn) -> list[str]:
    """A command with names, options of its own, and now and then one that it has not."""
    command = draw(st.sampled_from(list(OPTIONS)))
    some = st.lists(st.sampled_from(NAMES), max_size=3)
    given = [*draw(some), *draw(st.lists(st.sampled_from(OPTIONS[command] or ["-h"]), max_size=2))]
    if draw(st.integers(0, 9)) == 0:
        given.append(draw(st.sampled_from(["--nothing", "-x", "--", "--version", "--js", "-mq"])))
    if command == "run":  # which must not run: its recipe is one that cannot be
        given = ["mine.yaml", *given, "seed=nothing"]
    return [command, *given]
