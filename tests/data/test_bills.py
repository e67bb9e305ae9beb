"""Promises of the generated bills: which rows come out. How well a model learns is not here."""

import hashlib
import json

from compressor.data.bills import VERSION, make_bill, make_bills

SPLITS = ("train", "validation", "test")
PINNED = "59216acbbdd73f6fb38c04e7d2c73a56ad29934dce41514e57b73fa4407dd72f"


def test_rows_are_pinned() -> None:
    """Rows change only together with VERSION: update both, never the digest alone. Row i depends on
    the seed, and not on how many rows are asked for.
    """
    chosen = [make_bill(7, split, index) for split in SPLITS for index in range(20)]
    assert (VERSION, hashlib.sha256(json.dumps(chosen).encode()).hexdigest()) == (1, PINNED)
    assert list(make_bills(20, seed=7, split="train")) == chosen[:20]
    assert make_bill(0, "train", 0) != make_bill(1, "train", 0)


def test_splits_share_neither_texts_nor_titles() -> None:
    """What is tested on was not trained on, even when the two are made with different seeds."""
    rows = {split: list(make_bills(1000, seed=s, split=split)) for s, split in enumerate(SPLITS)}
    titles = {s: {row["summary"].split(" - ")[0] for row in r} for s, r in rows.items()}
    texts = {s: {row["text"] for row in r} for s, r in rows.items()}
    for kinds in (titles, texts):
        assert sum(len(kind) for kind in kinds.values()) == len(set().union(*kinds.values()))
