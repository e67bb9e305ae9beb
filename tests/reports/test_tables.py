"""Tables of results: what a person reads of a run, on a console as wide as theirs."""

from __future__ import annotations

import io
from typing import Any

import pytest

from compressor.core.console import Console
from compressor.evaluation.rouge import METRIC_KEYS
from compressor.reports.tables import print_results, print_scores

LABELS = ("original", "half the decoder", "half the decoder, int8", "half of both")


def records(**changes: Any) -> list[dict[str, Any]]:
    """Four models, each looked at by `evaluate` and `benchmark`; the first is the original."""
    rows = []
    for index, label in enumerate(LABELS):
        sizes = {"parameters": 60_500_000, "nonzero_ratio": 1.0, "bytes": 242_000_000}
        model = {"name": f"m{index}", "label": label, "stage": "finetune", "model": None, **sizes}
        demo = {"text": "One [bold]text[/bold].", "summary": f"Summary {index}.", "cut_off": False}
        scores = dict.fromkeys(METRIC_KEYS, 0.4 - index / 100)
        evaluated = {**scores, "gen_len": 33.0, "demo": demo | changes}
        if index:
            kept, close = (dict.fromkeys(METRIC_KEYS, value) for value in (0.875, 0.9231))
            evaluated |= {"retention": 0.875, "retentions": kept}
            evaluated |= {"closeness": 0.9231, "closenesses": close}
        timed = {"latency_p50_ms": 63.6, "latency_p95_ms": 70.1, "texts_per_second": 30.2,
                 "resident_bytes": 310_000_000}  # fmt: skip
        rows.append(model | {"metrics": {}})
        for kind, metrics in (("evaluate", evaluated), ("benchmark", timed)):
            node = {"name": f"{kind}@m{index}", "stage": kind, "model": f"m{index}"}
            rows.append({**model, **node, "metrics": metrics})
    return rows


def print_text(work: Any, width: int, rows: Any = None, **changes: Any) -> str:
    out = io.StringIO()
    work(rows or records(**changes), Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_no_number_is_cut_off_however_narrow_the_console(width: int) -> None:
    """Columns that do not fit go into further tables, each of which names its models."""
    text = print_text(print_results, width)
    assert all(len(line) <= width for line in text.splitlines())
    for value in ("60.50 M", "242.00", "0.4000", "0.3700", "87.5 %", "0.9231", "70.1 ms", "310"):
        assert value in text
    assert "…" not in text


def test_a_wide_console_has_one_table() -> None:
    """Every column beside the model's name: a script that reads lines finds a model's once."""
    table = print_text(print_results, 200).partition("demo text")[0]
    assert table.count("┏") == 1
    (line,) = (line for line in table.splitlines() if "half of both" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        "half of both", "60.50 M", "1.0000", "242.00", "0.3700", "0.3700", "0.3700", "33.0",
        "87.5 %", "0.9231", "63.6 ms", "70.1 ms", "30.2", "310",
    ]  # fmt: skip


def test_summaries_of_a_demo_text_stand_side_by_side() -> None:
    """A column a model, three on 80 characters; markup in a text is shown, not obeyed."""
    text = print_text(print_results, 80, summary="A [red]word[/red] " * 8)
    assert "demo text: One [bold]text[/bold]." in text
    headings = [line for line in text.splitlines() if "┃ original" in line][-1]
    assert [name.strip() for name in headings.strip("┃").split("┃")] == list(LABELS[:3])
    assert text.count("[red]word[/red]") == 8 * len(LABELS)


def test_a_summary_that_is_cut_or_empty_says_so() -> None:
    """An ellipsis after one that the limit ended; a fresh model may give special tokens alone; of a
    demo text of 16,000 words a part is enough.
    """
    assert "Summary 0. …" in print_text(print_results, 120, cut_off=True)
    assert "…" not in print_text(print_results, 120)
    assert "(empty)" in print_text(print_results, 120, summary=" ")
    assert len(print_text(print_results, 120, text="many words " * 16_000)) < 8_000


def test_scores_are_shown_against_the_model_that_others_are_held_to() -> None:
    """For each of the others a table of 12 scores, with the original's beside them; where nothing
    is held to another, one table.
    """
    alone = records()
    for record in alone:
        for key in ("retentions", "closenesses"):
            record["metrics"].pop(key, None)
    for rows, width, tables, expected in (
        (None, 80, 3, ["rougeL recall", "0.4000", "0.3900", "87.5 %", "0.9231"]),
        (alone, 120, 1, ["rougeL recall", "0.4000", "0.3900", "0.3800", "0.3700"]),
    ):
        text = print_text(print_scores, width, rows)
        assert text.count("┏") == tables
        line = next(line for line in text.splitlines() if "rougeL recall" in line)
        assert [cell.strip() for cell in line.strip("│").split("│")] == expected
