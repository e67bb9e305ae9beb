"""Names are the field's words: functions are verb phrases, variables say what they hold."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
IRREGULAR = """
begun bound bought brought built chosen done drawn driven eaten fallen felt found frozen given
gone grown held hidden kept known laid led left lost made meant met paid said seen sent shown sold
sought spent stood stolen taken taught thought told torn understood won worn written
"""
NOT_PARTICIPLES = frozenset({"speed", "seed", "feed", "embed", "need", "proceed", "exceed"})
VERBS = """
accept add advance align allocate allow append apply approximate are arrange ask assert assign
attach average backward become begin bind bring build cache calibrate call can cast change check
choose clean clear clip close collate collect combine commit compare complete compose compress
compute configure connect consume contain continue convert copy correct count create cut decide
decode decompress define delete dequantize derive describe detect determine do download draw drop
dump enable encode end ensure enter escape estimate evaluate examine exclude execute exit expand
expect explain export extend extract fail feed fetch fill filter find finish fit fix flatten flush
fold follow forbid force forget fork format forward freeze gather generate get give group guard
guess handle has hash hear hide hold hook identify ignore import include infer insert install
interpret invert is iterate join judge keep kill launch lead learn leave let limit link list load
locate lock log look make map mark mask match measure merge move name narrow need needs normalize
note number observe offer open order pack pad parse pass pause penalize pick pin place plan play
plot predict prefer prepare print process produce profile project prune pull push put quantize
quote raise rank read rebuild recompute record recover redact reduce refer refuse register
rehearse reject release relay reload remember remove rename render renumber reorder repair repeat
replace replay report reproduce require rescale reset reshape resize resolve restart restore
restrict resume retry return reuse revive rewrite round run sample save say scale scan schedule
score search see select send separate serve set shard share shift shorten should show shrink
shuffle shut simulate skip slice smooth solve sort split start stop store stream strip suggest sum
summarize swap sweep take takes tell test tidy tie time tokenize touch trace track train transform
translate trim truncate try turn unfold unpack untie update use uses validate verify visit wait
walk warm warn watch weigh wrap write yield zero
"""
FORBIDDEN_VARIABLES = frozenset({"found", "each", "own", "whose"})


def is_participle(word: str) -> bool:
    """Tell whether a word has the form of a past participle."""
    return word in IRREGULAR.split() or (word.endswith("ed") and word not in NOT_PARTICIPLES)


def walk_nodes(*folders: str) -> Iterator[tuple[Path, ast.AST]]:
    """Walk the syntax trees of all modules under folders of the repository."""
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            yield path, node


def test_functions_are_verb_phrases() -> None:
    """At most 0.5 % bare participles and 45 % single words; at least 40 % begin with a verb."""
    names = [node.name for _, node in walk_nodes("compressor") if isinstance(node, ast.FunctionDef)]
    names = [name.strip("_") for name in names if not name.startswith("__")]
    single, verbs = [name for name in names if "_" not in name], set(VERBS.split())
    assert len(list(filter(is_participle, single))) <= 0.005 * len(names)
    assert len(single) <= 0.45 * len(names)
    assert sum(name.split("_")[0] in verbs for name in names) >= 0.40 * len(names)


def test_variables_say_what_they_hold() -> None:
    """No variable or argument is called `found`, `each`, `own` or `whose`."""
    for path, node in walk_nodes("compressor", "tests"):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            assert node.id not in FORBIDDEN_VARIABLES, f"{path.name}:{node.lineno}"
        elif isinstance(node, ast.arg):
            assert node.arg not in FORBIDDEN_VARIABLES, f"{path.name}:{node.lineno}"


def test_classes_are_nouns() -> None:
    """A class may have a participle before its noun, but is none itself."""
    names = {
        node.name.strip("_")
        for _, node in walk_nodes("compressor")
        if isinstance(node, ast.ClassDef)
    }
    words = {name for name in names if not any(letter.isupper() for letter in name[1:])}
    assert [name for name in sorted(words) if is_participle(name.lower())] == []
