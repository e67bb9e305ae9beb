"""Every run leaves its report: one that failed, was interrupted, or is a point of a sweep."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import ModelCard

from tests.harness.command import Command, start
from tests.harness.runs import wait_for_step

TINY = ("recover, evaluate]", "recover]")


def _words(path: Path) -> str:
    main = path.read_text("utf-8").split("<main>")[1].split("</main>")[0]
    return re.sub(r"(<[^>]+>|\s)+", " ", main)


def test_a_run_that_fails_tells_it_in_its_report(
    recipe: Callable[..., Path], run: Callable[..., Command], tmp_path: Path
) -> None:
    """What was done, the error, what was not reached; the error and exit code as ever."""
    failed = run("run", recipe(TINY), "training.learning_rate=1e30")
    assert failed.code == 1 and "stage 'finetune'" in failed.err
    assert "was not written" not in failed.err
    (folder,) = (tmp_path / "outputs/runs/mine").iterdir()
    words = _words(folder / "report.html")
    assert "stage &#39;finetune&#39;" in words and "1 of 4 stages done" in words
    assert "finetune finetune failed" in words and "recover finetune not reached" in words
    assert "This run is not complete" in ModelCard.load(folder / "README.md").text


def test_an_interrupted_run_has_a_report(recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Ctrl-C while it trains: the page says so, and the same command goes on from there."""
    path = recipe(TINY, ("{epochs: 1}\n  prune", "{epochs: 200}\n  prune"))
    process = start("run", path, cwd=tmp_path)
    wait_for_step(process, -1)
    process.send(signal.SIGINT)
    assert process.wait(120) == 1 and "interrupted" in process.err
    assert "Traceback" not in process.err
    (folder,) = (tmp_path / "outputs/runs/mine").iterdir()
    words = _words(folder / "report.html")
    assert "interrupted" in words and "finetune finetune interrupted" in words


def test_a_sweeps_page_leads_to_its_points_reports(
    recipe: Callable[..., Path], run: Callable[..., Command], tmp_path: Path
) -> None:
    """A report in each point's folder, and a link to each in the sweep's page."""
    path = recipe(("recover, evaluate]", "prune]"), ("prune, prune]", "prune]"))
    done = run("run", path, "-m", "stages.prune.amounts.lm_head=0.1,0.2", "training.max_steps=1")
    assert done.code == 0, done.err
    (sweep,) = (tmp_path / "outputs/sweeps/mine").iterdir()
    links = re.findall(r'href="([^"]+/report\.html)"', (sweep / "sweep.html").read_text("utf-8"))
    assert len(links) == 2
    for report in sweep.glob("*/report.html"):
        assert "Changed by this command: 2 keys" in _words(report)
