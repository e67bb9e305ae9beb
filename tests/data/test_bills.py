"""Promises of the generated bills: which rows come out. How well a model learns is not here."""

import hashlib
import json
import os
import re
import subprocess
import sys
from itertools import islice

import pytest

from compressor.data.bills import SPLITS, VERSION, make_bill, make_bills

PINNED = "59216acbbdd73f6fb38c04e7d2c73a56ad29934dce41514e57b73fa4407dd72f"
FACTS = re.compile(
    r"^(?P<title>.+) - Directs the (?P<agency>.+?) to (?P<duty>.+?)\."
    r"(?: Authorizes (?P<amount>\S+) for fiscal year (?P<year>\d{4})\.)?"
    r"(?: Requires a report to Congress within (?P<deadline>.+?)\."
    r"| Sets a penalty of up to (?P<fine>\S+) for false statements\."
    r"| Terminates the authority on (?P<end>.+?)\."
    r"| Limits the Federal share to (?P<share>\d+ percent) of the cost\.)?$"
)


def digest(seed: int = 7, rows: int = 20) -> str:
    chosen = [make_bill(seed, split, index) for split in SPLITS for index in range(rows)]
    return hashlib.sha256(json.dumps(chosen).encode()).hexdigest()


def test_rows_are_pinned() -> None:
    """Rows change only together with VERSION: update both, never the digest alone."""
    assert (VERSION, digest()) == (1, PINNED)


def test_rows_do_not_depend_on_the_hash_seed() -> None:
    """Another process with another PYTHONHASHSEED makes the same rows."""
    code = "from compressor.data.bills import make_bill; print(make_bill(7, 'test', 3))"
    for hash_seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
        assert str(make_bill(7, "test", 3)) == out.stdout.decode().strip()


def test_fewer_rows_are_a_prefix_of_more() -> None:
    """Row i does not depend on how many rows are asked for."""
    many = list(make_bills(50, seed=3, split="train"))
    assert many[:8] == list(make_bills(8, seed=3, split="train"))
    assert many[:8] == list(islice(make_bills(10**9, seed=3, split="train"), 8))


def test_splits_share_neither_texts_nor_titles() -> None:
    """What is tested on was not trained on, even when the two are made with different seeds."""
    rows = {split: list(make_bills(1000, seed=s, split=split)) for s, split in enumerate(SPLITS)}
    titles = {s: {row["summary"].split(" - ")[0] for row in r} for s, r in rows.items()}
    texts = {s: {row["text"] for row in r} for s, r in rows.items()}
    for kinds in (titles, texts):
        assert sum(len(kind) for kind in kinds.values()) == len(set().union(*kinds.values()))


def test_another_seed_gives_other_rows() -> None:
    """The seed matters."""
    assert make_bill(0, "train", 0) != make_bill(1, "train", 0)


def test_every_fact_of_the_summary_is_in_the_text() -> None:
    """Nothing has to be invented: each operative fact can be copied from the bill."""
    for row in make_bills(500, seed=1, split="train"):
        found = FACTS.match(row["summary"])
        assert found is not None, row["summary"]
        missing = [fact for fact in found.groupdict().values() if fact and fact not in row["text"]]
        assert missing == []


def test_sizes_stay_small_and_varied() -> None:
    """Texts of about 100 words in lines, summaries of 2 or 3 sentences on one line."""
    rows = list(make_bills(500, seed=1, split="train"))
    assert all(65 <= len(row["text"].split()) <= 140 for row in rows)
    assert all("\n" not in row["summary"] for row in rows)
    assert {2, 3} == {len(re.findall(r"\.(?: |$)", row["summary"])) for row in rows}


def test_unknown_split_names_the_known_ones() -> None:
    """A wrong split is the caller's mistake, and the message says what exists."""
    with pytest.raises(ValueError, match=r"'dev'.*train, validation, test"):
        make_bill(0, "dev", 0)
