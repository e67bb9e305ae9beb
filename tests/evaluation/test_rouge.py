"""ROUGE, its interval and the two ratios. Files are in test_predictions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from rouge_score import rouge_scorer  # type: ignore[import-untyped]

from compressor.evaluation.bootstrap import bootstrap_interval
from compressor.evaluation.rouge import (
    ROUGE_TYPES,
    choose_tokenizer,
    compute_closeness,
    compute_retention,
    score_rows,
    score_texts,
    summarize_scores,
    warn_of_wordless,
)
from compressor.evaluation.words import split_words

OFFLINE = """
import json, socket
def refuse(*_): raise AssertionError("a connection was asked for")
socket.socket.connect = refuse
from compressor.evaluation.metric import Rouge
print(json.dumps(Rouge().compute(
    predictions=["the cat sat on the mat"], references=["on the cat sat"], per_row=True)))
"""


def python(code: str, folder: Path) -> str:
    """What `code` prints when run by a fresh interpreter in `folder/here`, offline."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    for name in ("tmp", "here"):
        (folder / name).mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder / "here", env=environment, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_scores_are_those_worked_out_by_hand() -> None:
    """Precision, recall and F1 of 1-grams (4 of 6 and of 4), 2-grams (3 of 5, of 3), LCS (3)."""
    rows = score_rows(["the cat sat on the mat"], ["on the cat sat"])
    assert tuple(rows) == ROUGE_TYPES
    assert rows["rouge1"][0] == pytest.approx([4 / 6, 1, 0.8])
    assert rows["rouge2"][0] == pytest.approx([3 / 5, 1, 0.75])
    assert rows["rougeL"][0] == pytest.approx([3 / 6, 3 / 4, 0.6])
    assert rows["rougeLsum"][0] == pytest.approx([3 / 6, 3 / 4, 0.6])


def test_lsum_sees_sentences_written_on_one_line() -> None:
    """Regression: rougeLsum equalled rougeL, as nothing put sentences on lines of their own."""
    rows = score_rows(["The dog ran. A cat sat."], ["A cat sat. The dog ran."])
    assert rows["rougeL"][0] == pytest.approx([0.5, 0.5, 0.5])
    assert rows["rougeLsum"][0] == pytest.approx([1, 1, 1])
    # One sentence against its two halves in the other order: all words are found, in no line.
    rows = score_rows(["Fish birds. Cats dogs."], ["Cats dogs fish birds."])
    assert rows["rougeLsum"][0].tolist() == [1.0, 1.0, 1.0]
    assert rows["rougeL"][0].tolist() == [0.5, 0.5, 0.5]


def test_each_row_keeps_its_place() -> None:
    """Row i of every array is the score of pair i alone."""
    rows = score_rows(["a b", "c d", ""], ["a b", "x y", "a"])
    assert rows["rouge1"][:, 2].tolist() == [1, 0, 0]
    assert all(scores.shape == (3, 3) for scores in rows.values())


@pytest.mark.parametrize("text", ["", " \n ", "!?", "\N{GRINNING FACE}"])
def test_a_text_without_words_scores_zero(text: str) -> None:
    """Neither an error nor NaN, on either side or on both."""
    for rows in (
        score_rows([text], ["a b"]),
        score_rows(["a b"], [text]),
        score_rows([text], [text]),
    ):
        assert all(not scores.any() for scores in rows.values())


def test_summary_is_json_of_means() -> None:
    """F1 under the plain name, the other two beside it, an interval of F1 for each name."""
    summary = json.loads(json.dumps(summarize_scores(score_rows(["a b", "c"], ["a b", "d"]))))
    assert summary["count"] == 2
    assert (summary["rouge1"], summary["rouge1_precision"], summary["rouge1_recall"]) == (0.5,) * 3
    assert list(summary["intervals"]) == list(ROUGE_TYPES)
    assert summary["intervals"]["rouge1"] == [0, 1]
    summary = summarize_scores(score_rows(["a b", "a c d e", "a"], ["a"] * 3), level=0.9, seed=5)
    expected = bootstrap_interval([2 / 3, 2 / 5, 1.0], level=0.9, seed=5)
    assert summary["intervals"]["rouge1"] == pytest.approx(list(expected))


def test_nothing_is_not_scored() -> None:
    """The mean of no rows would be NaN, which is not JSON."""
    with pytest.raises(ValueError, match="no rows"):
        summarize_scores(score_rows([], []))
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval([])


def test_an_interval_of_a_mean() -> None:
    """Of 400 values about mean ± 1.96 standard errors; of a hundred times the rows about a tenth as
    wide. It depends on the seed alone, and one row has no spread.
    """
    values = np.random.default_rng(1).random(400)
    error = 1.96 * values.std() / 20
    expected = (values.mean() - error, values.mean() + error)
    low, high = bootstrap_interval(values, resamples=4000)
    assert (low, high) == pytest.approx(expected, abs=0.004)
    narrow_low, narrow_high = bootstrap_interval(np.tile(values[:100], 100))
    low, high = bootstrap_interval(values[:100])
    assert narrow_high - narrow_low == pytest.approx((high - low) / 10, rel=0.15)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    assert bootstrap_interval([0.25]) == (0.25, 0.25)


def test_closeness_flatters_where_retention_does_not() -> None:
    """The published example: 0.30 against 0.38."""
    assert compute_closeness(0.30, 0.38) == pytest.approx(0.92)
    assert compute_retention(0.30, 0.38) == pytest.approx(0.789, abs=5e-4)
    assert compute_retention(0.30, 0.0) is None


def test_metric_fetches_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    """Regression: `evaluate.load("rouge")` fetched a script, and metrics left files in a cache."""
    summary = json.loads(python(OFFLINE, tmp_path))
    assert summary["rouge1"] == pytest.approx(0.8)
    assert summary["per_row"]["rougeL"] == [[0.5, 0.75, pytest.approx(0.6)]]
    assert not list((tmp_path / "here").iterdir())
    assert not (tmp_path / "hub").exists()
    # torch, which `evaluate` imports, makes a folder of its own among the temporary ones.
    assert not list((tmp_path / "tmp").glob("compressor*"))


def test_import_waits_for_nothing_heavy(tmp_path: Path) -> None:
    """Those who only want these modules' names do not import numpy, nltk, evaluate or torch."""
    code = (
        "import sys, compressor.evaluation.rouge, compressor.evaluation.predictions, "
        "compressor.data.truncation; print(*sys.modules)"
    )
    assert not {"numpy", "nltk", "evaluate", "torch", "rouge_score"} & set(
        python(code, tmp_path).split()
    )


ENGLISH = (
    ("The committees reported 3.5 running studies.", "A committee's report runs studies: 3.5!"),
    ("Its café in São Paulo, naïvely re-opened", "The cafe in Sao Paulo naïvely opened again"),
    *[("Grants are made to states for the libraries' funding", "It makes grants for libraries")]
    * 9,
)


def test_english_is_scored_as_by_rouge_score_itself() -> None:
    """Bit for bit, with stems, and with the stray accents of names among 600 letters."""
    predictions, references = zip(*ENGLISH, strict=True)
    assert choose_tokenizer(references) == "english"
    rows = score_rows(predictions, references)
    plain = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for row, (prediction, reference) in enumerate(ENGLISH):
        expected = plain.score(reference, prediction)
        for name, score in expected.items():
            assert rows[name][row].tolist() == list(score)


SCRIPTS = {
    "hindi": ("सरकार ने नई योजना की घोषणा की", "भारत में मानसून समय पर आया"),
    "russian": ("Правительство утвердило новый бюджет", "Комитет изучит закон о воде"),
    "chinese": ("政府批准了新的预算", "委员会将研究水法"),
    "japanese": ("日本のコーヒーは高い", "新幹線が遅れた"),
    "thai": ("รัฐบาลอนุมัติงบ", "ไทย"),
    "arabic": ("وافقت الحكومة على ميزانية", "تدرس لجنة قانون مياه"),
    "korean": ("정부가 새 예산을 승인했다", "위원회는 물법을 검토한다"),
    "german": ("Größere Brücken für Köln", "Über Ämter müssen Bürger öfter üben"),
    "digits": ("٢٠٢٤", "१७"),
}


def test_the_same_text_scores_one_in_every_script_and_another_text_zero() -> None:
    """Regression: nothing but a-z and 0-9 was a word, and identical Hindi scored 0."""
    for text, other in SCRIPTS.values():
        rows = score_rows([text, text], [text, other])
        for name in ROUGE_TYPES:
            unigrams_alone = name == "rouge2" and " " not in text and len(text) < 5
            assert unigrams_alone or rows[name][0].tolist() == [1, 1, 1], (text, name)
            assert not rows[name][1].any()


def test_other_scripts_score_what_counting_by_hand_gives() -> None:
    """Precision and recall of words in Hindi, of characters in Chinese, of both in a mixture."""
    hindi = score_rows(["सरकार की नई योजना"], ["सरकार ने नई योजना की"])
    assert hindi["rouge1"][0].tolist() == pytest.approx([4 / 4, 4 / 5, 8 / 9])
    assert hindi["rouge2"][0, :2].tolist() == pytest.approx([1 / 3, 1 / 4])
    assert hindi["rougeL"][0, :2].tolist() == pytest.approx([3 / 4, 3 / 5])
    chinese = score_rows(["政府批准新预算"], ["政府批准了新的预算"])
    assert chinese["rouge1"][0].tolist() == pytest.approx([1, 7 / 9, 14 / 16])
    assert chinese["rouge2"][0, :2].tolist() == pytest.approx([4 / 6, 4 / 8])
    mixed = score_rows(["2024年 iPhone"], ["iPhone手机 2023年"])
    assert mixed["rouge1"][0].tolist() == pytest.approx([2 / 3, 2 / 5, 4 / 8])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी में लिखी", ["हिन्दी", "में", "लिखी"]),
        ("Ünïcode e\u0301te\u0301 ÉTÉ", ["ünïcode", "été", "été"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("İSTANBUL istanbul", ["istanbul", "istanbul"]),
        ("ＡＢＣ １２３ ﾊﾟ", ["abc", "123", "パ"]),
        ("Bundes\u00adtag می\u200cخواهم", ["bundestag", "میخواهم"]),
        ("ក\u200bខ 'don\u2019t' 3.5", ["ក", "ខ", "don", "t", "3", "5"]),
        ("コーヒー、人々。", ["コ", "ー", "ヒ", "ー", "人", "々"]),
        ("น้ำ", ["น\u0e49\u0e4d", "า"]),
        ("བོད་ཡིག", ["བོད", "ཡིག"]),
        ("\u0301 \N{GRINNING FACE} _ ...", []),
    ],
)
def test_unicode_words(text: str, words: list[str]) -> None:
    """Marks stay with their letters; composed or not, wide or narrow, any case: equal."""
    assert split_words(text) == words


def test_the_references_alone_choose_the_tokenizer() -> None:
    """Two models are scored alike, whatever they write; a decomposed text is as the composed."""
    assert choose_tokenizer(["a grant"] * 50) == choose_tokenizer([]) == "english"
    german = ["Die größte Brücke der Stadt wird für Bürger gesperrt"]
    for form in ("NFC", "NFD"):
        assert choose_tokenizer([unicodedata.normalize(form, text) for text in german]) == "unicode"
    cafe = "A café that the state closed in May may open again."
    assert choose_tokenizer([cafe]) == choose_tokenizer([cafe, *["a grant " * 9] * 9]) == "english"
    italian = "Il governo ha approvato la legge perché la città lo chiede. Più fondi alle scuole."
    assert choose_tokenizer([italian]) == choose_tokenizer([italian] * 99) == "unicode"
    rows = score_rows(["政府", "a grant"], ["a grant", "a grant"])
    assert rows["rouge1"][:, 2].tolist() == [0, 1]


def test_lsum_sees_the_full_stops_of_other_scripts() -> None:
    """A "。" and a "।" end a sentence without a space: sentences in another order lose nothing."""
    for one, two in (("政府批准了预算。", "委员会研究水法。"), ("सरकार आई।", "मानसून गया।")):
        rows = score_rows([one + two], [two + one])
        assert rows["rougeL"][0, 2] < 1
        assert rows["rougeLsum"][0].tolist() == [1, 1, 1]


def test_references_without_a_word_are_counted() -> None:
    """Chinese rows among English ones, signs and pictures score 0 whatever is written, and are said
    to; an empty one is not.
    """
    references = ["a grant to the states of the union"] * 200 + ["政府", "水法", "!?", "👍", " "]
    metrics = score_texts(references, references)
    assert (metrics["rouge_tokenizer"], metrics["wordless"]) == ("english", 4)
    told = warn_of_wordless(metrics) or ""
    assert "4 of 205 references have no word" in told and "`rouge_tokenizer: unicode`" in told
    metrics = score_texts(references, references, "unicode")
    assert metrics["rouge1"] == pytest.approx(202 / 205)
    assert metrics["wordless"] == 2
    assert "rouge_tokenizer: " not in (warn_of_wordless(metrics) or "")


def test_each_rouge_takes_the_best_of_several_references() -> None:
    """All words in another order, or two of them in theirs: 1-grams 4 of 4; 2-grams 1 of 3 and of
    5; longest in order 2 of 4 and of 6. A row with one reference is scored as ever.
    """
    several = [["d c b a", "a b x y z w"], "a b"]
    rows = score_rows(["a b c d", "a b c d"], several)
    assert rows["rouge1"][0] == pytest.approx([1, 1, 1])
    assert rows["rouge2"][0] == pytest.approx([1 / 3, 1 / 5, 1 / 4])
    assert rows["rougeL"][0] == pytest.approx([1 / 2, 1 / 3, 2 / 5])
    assert rows["rouge1"][1] == pytest.approx([1 / 2, 1, 2 / 3])
