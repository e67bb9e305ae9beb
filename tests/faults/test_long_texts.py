"""One row of 10 MB: read, cut, scored, in time and memory that its length bounds."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compressor.core.processes import environment
from compressor.data.truncation import LONG, LONGEST, encode, ends, sentences, spans
from compressor.evaluation.resources import Peak
from tests.faults import trials
from tests.faults.conftest import Tell
from tests.faults.stages import TEXTS, pico_t5, ran, rows_of_text, tokenizer

SENTENCE = "The quick brown fox jumps over the lazy dog. "
SIZE = trials(10_000_000, 1_000_000)
SLOW = {
    "questions": "? ", "exclamations": "!", "dots": ".", "initials": "A. ", "ellipses": "... ",
    "spaced dots": ". . ", "one word": "a", "quotes": '")."', "lines": "a.\n",
    "no-break spaces": "a.\u00a0", "numbers": "1.", "words": "the quick brown fox ",
}  # fmt: skip


def of_length(part: str, size: int) -> str:
    return (part * (size // len(part) + 1))[:size]


def in_its_own_process(folder: Path, kind: str, text: str) -> tuple[float, int]:
    """(CPU seconds, MB at the peak) of a stage on one row with this text."""
    (folder / "text").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.faults.test_long_texts", str(folder), kind],
        capture_output=True, text=True, env=environment(1), check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seconds, megabytes = done.stdout.split()[-2:]
    return float(seconds), int(megabytes)


def main(folder: Path, kind: str) -> None:
    """A process's own peak: the system's `ru_maxrss` begins at that of the one that started it."""
    peak, text = Peak(), (folder / "text").read_text(encoding="utf-8")
    settings = {"finetune": {"epochs": 1}, "evaluate": {"max_length": 6}, "baseline": {}}[kind]
    for truncate in ("tokens", "sentences"):
        data = rows_of_text(folder / truncate, [text], ["A short summary."], truncate=truncate)
        ran(kind, pico_t5(), data, folder / truncate, **settings)  # type: ignore[arg-type]
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, (peak.bytes() or 0) // 10**6)


@pytest.mark.parametrize("kind", ["evaluate", "finetune", "baseline"][: trials(3, 1)])
@pytest.mark.parametrize("part", [SENTENCE, "a"][: trials(2, 1)])
def test_a_row_of_megabytes_takes_time_and_memory_by_its_length(
    tmp_path: Path, tell: Tell, kind: str, part: str
) -> None:
    """10 MB used to be 3.4 GB of tokens, of which 48 are read, and more than five seconds of nltk's
    expressions, which ended the run with their TimeoutError. torch and the rest take 0.5 to 0.8 GB.
    """
    seconds, megabytes = in_its_own_process(tmp_path, kind, of_length(part, SIZE))
    assert 100 < megabytes < 900 + 60 * SIZE / 1e6
    assert seconds < 20 + 6 * SIZE / 1e6
    tell("numbers", f"a text of {SIZE // 10**6} MB in one row, {kind}", "done in bounded memory")


@pytest.mark.parametrize("name", SLOW)
def test_text_without_sentences_takes_time_in_proportion(tell: Tell, name: str) -> None:
    """1 MB of "? ? ?" ended in nltk's TimeoutError, as did any text of some megabytes."""
    size = trials(300_000, 25_000)
    text = of_length(SLOW[name], size)
    started = time.process_time()
    found = spans(text)
    seconds = time.process_time() - started
    assert seconds < 5 + 1e-4 * size
    assert all(stop - start <= LONGEST for start, stop in found)
    assert "".join("".join(text[a:b] for a, b in found).split()) == "".join(text.split())
    assert ends(text, 100) == [stop for _, stop in found if stop <= 100]
    tell("numbers", "text that sentences are hard to find in", "found, in time by its length")


def test_sentences_of_a_long_text_are_those_of_its_parts() -> None:
    """Where a part that is read at once ends decides nothing: 300 kB of bills, each on a line."""
    texts = [" ".join(text.split()) for text in TEXTS]
    apart = [sentence for text in texts for sentence in sentences(text)]
    assert sentences("\n".join(texts)) == apart
    whole = " ".join(texts * 10)  # in one line, of which a part ends anywhere
    assert len(whole) > 10 * LONGEST
    from compressor.data.truncation import _joined, _punkt

    assert spans(whole) == _joined(_punkt().span_tokenize(whole))


@pytest.mark.parametrize("truncate", ["tokens", "sentences"])
def test_a_long_text_has_the_tokens_of_all_of_it(truncate: str) -> None:
    """Those that are read: the same as if all of it had been tokenized. Without a space, too."""
    read = tokenizer()
    for part in (SENTENCE, "a", " ")[: trials(3, 2)]:
        text = of_length(part, LONG + trials(2 * LONG, 20_000))
        (found,) = encode([text], read, 700, truncate=truncate)  # type: ignore[arg-type]
        if truncate == "tokens":
            assert found == read(text, truncation=True, max_length=700).input_ids
        else:
            assert 0 < len(found) <= 700
    (short,) = encode([SENTENCE], read, 700)
    assert short == read(SENTENCE).input_ids


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
