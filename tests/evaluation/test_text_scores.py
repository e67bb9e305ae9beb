"""Scores of texts beside sacrebleu's own, and the code of others that scores them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import evaluate
import numpy as np
import pytest
import sacrebleu
from sacrebleu.significance import PairedTest

from compressor.core.errors import StageError
from compressor.evaluation import metric as foreign
from compressor.evaluation.bootstrap import paired_difference
from compressor.evaluation.metric import ForeignMetric, TextMetric
from compressor.evaluation.metric_names import find_code, find_missing_packages, identify_metrics
from compressor.evaluation.text_scores import measure_texts, score_texts

CORPUS = {
    "sacrebleu": sacrebleu.corpus_bleu,
    "chrf": sacrebleu.corpus_chrf,
    "ter": sacrebleu.corpus_ter,
}
WORDS = [
    "The",
    "act",
    "shall",
    "give",
    "grants",
    "to",
    "states",
    ",",
    "for",
    "parks",
    "and",
    "rivers",
    "of",
    "any",
    "size",
    ".",
]
METRIC = """
import datasets
import evaluate


class Own(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features(
            {"predictions": text, "references": REFERENCES}))

    def _compute(self, predictions, references):
        hits = [p == r for p, r in zip(predictions, references)]
        return RESULT
"""


def _texts(seed: int = 0, most: int = 1) -> tuple[list[str], list[list[str]]]:
    """Make 50 references, some rows with several, and predictions that lack a few words."""
    chance = random.Random(seed)
    references = [
        [" ".join(chance.choices(WORDS, k=chance.randint(4, 15))) for _ in range(1 + row % most)]
        for row in range(50)
    ]
    kept = [[w for w in some[0].split() if chance.random() < 0.8] for some in references]
    return [" ".join(words) for words in kept], references


def _columns(references: list[list[str]]) -> list[list[str | None]]:
    most = max(map(len, references))
    return [[some[n] if n < len(some) else None for some in references] for n in range(most)]


def _write(folder: Path, result: str, references: str = "text", name: str = "own") -> str:
    text = METRIC.replace("RESULT", result).replace("REFERENCES", references)
    (folder / f"{name}.py").write_text(text)
    return str(folder / f"{name}.py")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have `evaluate` keep its copies of code that it runs in a folder that goes."""
    with patch.object(evaluate.config, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("code"))):
        yield


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("name", CORPUS)
def test_scores_of_a_corpus_are_sacrebleus_own(name: str, most: int) -> None:
    """Of one reference or up to three, and of a corpus without a match; with its signature."""
    predictions, references = _texts(most=most)
    summary, _ = score_texts(name, predictions, references)
    assert summary[name] == pytest.approx(CORPUS[name](predictions, _columns(references)).score)
    assert f"nrefs:{'var' if most > 1 else 1}|" in summary[f"{name}_signature"]
    none = ["zzz"] * len(predictions)
    assert measure_texts(name, none, references)[0].value == pytest.approx(
        CORPUS[name](none, _columns(references)).score
    )


@pytest.mark.parametrize("name", CORPUS)
def test_the_bootstrap_is_that_of_sacrebleu(name: str) -> None:
    """Of its default seed: the interval's width, and nearly the p-value of its paired test."""
    predictions, references = _texts()
    other = [text.rpartition(" ")[0] if n % 9 == 0 else text for n, text in enumerate(predictions)]
    before, after = (measure_texts(name, some, references)[0] for some in (predictions, other))
    metric = {"sacrebleu": sacrebleu.BLEU, "chrf": sacrebleu.CHRF, "ter": sacrebleu.TER}[name]()
    theirs = metric.corpus_score(predictions, _columns(references), n_bootstrap=1000)
    low, high = before.interval(seed=12345)
    assert (high - low) / 2 == pytest.approx(theirs._ci, rel=0.02)
    paired = paired_difference(before.rows, after.rows, before.score, seed=12345, resamples=1000)
    systems = [("one", predictions), ("two", other)]
    results = PairedTest(systems, {name: metric}, _columns(references), "bs", 1000)()[1]
    one, two = results[next(key for key in results if key != "System")]
    assert (paired.before, paired.after) == pytest.approx((one.score, two.score))
    # Theirs asks how often a centred difference is larger; ours how often the sign turns.
    assert paired.p == pytest.approx(two.p_value, abs=0.03)


def test_exact_match_is_of_any_reference() -> None:
    """The share of predictions that are one of the row's references, character by character."""
    summary, measure = score_texts("exact_match", ["a", "b", "A"], [["x", "a"], ["b"], ["a"]])
    assert summary["exact_match"] == pytest.approx(2 / 3)
    assert measure.row_scores == [1, 1, 0]


@pytest.mark.parametrize("name", ["exact_match", *CORPUS])
def test_rows_of_other_number_than_predictions_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="2 predictions and 1 rows of references"):
        score_texts(name, ["a", "b"], [["a"]])


def test_ours_have_the_form_of_evaluate() -> None:
    """One reference a row or a list of them, in memory."""
    predictions, references = _texts(most=2)
    expected = sacrebleu.corpus_bleu(predictions, _columns(references)).score
    metric = TextMetric("sacrebleu")
    computed = metric.compute(predictions=predictions, references=references)
    assert computed["sacrebleu"] == pytest.approx(expected)
    first = [some[0] for some in references]
    assert (
        TextMetric("exact_match").compute(predictions=first, references=first)["exact_match"] == 1
    )


def test_a_metric_of_ones_own_has_an_interval_and_row_scores_where_it_is_a_mean(tmp_path) -> None:
    """Tried on rows by themselves; of a list it is the mean; the rest is named after it."""
    predictions, references = ["a", "b", "c", "d"] * 5, [["a"], ["b"], ["x"], ["y"]] * 5
    expected = score_texts("exact_match", predictions, references)
    result = '{"own": sum(hits) / len(hits), "most": max(map(len, predictions)), "by": "hand"}'
    summary, measure = ForeignMetric(_write(tmp_path, result)).score(predictions, references, [])
    assert (summary["own"], summary["own_most"]) == (0.5, 1)
    assert summary["intervals"]["own"] == pytest.approx(expected[0]["intervals"]["exact_match"])
    assert measure is not None and measure.row_scores == expected[1].row_scores
    lists = ForeignMetric(_write(tmp_path, '{"precision": hits, "f1": hits}', name="listed"))
    summary, measure = lists.score(predictions, references, [])
    assert set(summary) == {"listed", "listed_precision", "intervals"}
    assert measure is not None and measure.row_scores == expected[1].row_scores


def test_another_metric_is_computed_of_resamples_if_there_is_time(tmp_path, monkeypatch) -> None:
    """A number alone is its result; the interval is that of the same draws by hand."""
    predictions, references = ["a", "b", "c", "d"] * 5, [["a"], ["b"], ["x"], ["y"]] * 5
    metric = ForeignMetric(_write(tmp_path, "sum(hits) ** 2"))
    summary, measure = metric.score(predictions, references, [])
    draws = np.random.default_rng(0)
    hits = np.array([1, 1, 0, 0] * 5)
    by_hand = [hits[draws.integers(20, size=20)].sum() ** 2 for _ in range(foreign.RESAMPLES)]
    assert summary["own"] == 100 and measure is None
    assert summary["intervals"]["own"] == pytest.approx(list(np.quantile(by_hand, [0.025, 0.975])))
    monkeypatch.setattr(foreign, "SECONDS", 0.0)
    assert metric.score(predictions, references, [])[0]["intervals"]["own"] is None


@pytest.mark.parametrize(
    ("result", "references", "says"),
    [
        ("1 / 0", "text", "failed: ZeroDivisionError: division by zero"),
        ("'none'", "text", "gave no number: none"),
        ("1", "text", "takes one reference a row, and row 1 has 2"),
        ("1", 'text, "questions": text', "wants questions; a stage has predictions, references"),
    ],
)
def test_a_metric_that_fails_is_named_before_anything_is_decoded(
    tmp_path, result: str, references: str, says: str
) -> None:
    metric = ForeignMetric(_write(tmp_path, result, references))
    rows = [["a"], ["b", "c"]] if "one reference" in says else [["a"], ["b"]]
    with pytest.raises(StageError, match=r"own\.py' ") as caught:
        metric.try_out(rows, ["x", "y"])
    assert says in str(caught.value)


def test_lists_of_references_and_sources_are_given_to_who_wants_them(tmp_path) -> None:
    references = 'datasets.Sequence(text), "sources": text'
    path = _write(tmp_path, "sum(len(r) for r in references)", references)
    text = Path(path).read_text()
    Path(path).write_text(text.replace(", references):", ", references, sources):"))
    metric = ForeignMetric(path)
    metric.try_out([["a"], ["b", "c"]], ["x", "y"])
    assert metric.score(["a", "b"], [["a"], ["b", "c"]], ["x", "y"])[0]["own"] == 3


def test_code_is_known_by_its_bytes_and_what_it_imports(tmp_path: Path) -> None:
    """Wherever it lies; with the files that it imports beside it. It is not run."""
    folder = tmp_path / "own"
    folder.mkdir()
    path = Path(_write(folder, "1 / 0"))
    path.write_text("from .helper import x\nimport nltk, not_there\n" + path.read_text())
    (folder / "helper.py").write_text("x = 1")
    assert [file.name for file in find_code(str(folder))] == ["own.py", "helper.py"]
    assert find_missing_packages(find_code(str(path))) == ["not_there"]
    one = identify_metrics([str(folder)])
    assert one["own"].keys() >= {"code", "nltk", "evaluate"}
    (folder / "helper.py").write_text("x = 2")
    other = identify_metrics([str(path)])
    assert one["own"]["code"].items() ^ other["own"]["code"].items() == {
        ("helper.py", hashlib.sha256(content).hexdigest()) for content in (b"x = 1", b"x = 2")
    }
    assert identify_metrics(["sacrebleu", "exact_match"]).keys() == {"sacrebleu"}
    path.write_text("def (")
    with pytest.raises(ValueError, match=r"own\.py, line 1: no Python"):
        find_code(str(path))
