"""The clock is set while runs go on, and between them: forwards by a day, back by a year."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compressor.display import Moving
from compressor.processes import described, is_there
from tests.faults import LONG
from tests.faults.conftest import MINI, Tell
from tests.faults.forked import Forked
from tests.faults.stored import artifacts, whole_only

DAY, YEAR = 86_400, 365 * 86_400
SOURCE = Path(__file__).parent / "shifted_clock.c"


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], Path]]:
    """Variables of processes whose time of day is shifted, and the file that says by how much."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a clock is shifted by a library that is compiled here: no C compiler")
    folder = tmp_path_factory.mktemp("clock")
    library, shift = folder / "clock.so", folder / "shift"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    shift.write_text("0")
    return {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(shift)}, shift


def jumping(shift: Path, ended: threading.Event) -> None:
    """Set the clock every tenth of a second."""
    for number in range(10_000):
        shift.write_text(str((0, DAY, -YEAR)[number % 3]))
        if ended.wait(0.1):
            return


def negative(value: Any, path: str = "") -> list[str]:
    """Where a JSON value has negative seconds."""
    if isinstance(value, dict):
        return [each for key, inner in value.items() for each in negative(inner, f"{path}.{key}")]
    if isinstance(value, list):
        return [each for inner in value for each in negative(inner, path)]
    is_time = "seconds" in path and isinstance(value, int | float)
    return [path] if is_time and value < 0 else []


@pytest.mark.skipif(not LONG, reason="commands under another clock import everything again")
def test_runs_under_a_clock_that_jumps(
    clock: tuple[dict[str, str], Path], whole: Path, tmp_path: Path, tell: Tell
) -> None:
    """The same bytes, no negative seconds in any record, and each run a folder of its own.

    These run with HF_HUB_OFFLINE=1 and the undisturbed one without: tokenizers said so in a file.
    """
    variables, shift = clock
    (tmp_path / "mini.yaml").write_text(MINI)
    ended = threading.Event()
    setter = threading.Thread(target=jumping, args=(shift, ended))
    with Forked(tmp_path, **variables) as forked:
        setter.start()
        try:
            folders = []
            for _ in range(5):
                shutil.rmtree(tmp_path / "outputs" / "store", ignore_errors=True)
                done = forked("run", "mini.yaml", cwd=tmp_path)
                assert done.code == 0, done.err
                folders.append(done.run_folder)
                shown = forked("show", done.run_folder, cwd=tmp_path)
                assert shown.code == 0 and "finished" in shown.out
                assert forked("watch", done.run_folder, cwd=tmp_path, seconds=30).code == 0
        finally:
            ended.set()
            setter.join()
    assert len(set(folders)) == 5
    started = [json.loads((each / "environment.json").read_text())["started"] for each in folders]
    assert len({text[:10] for text in started}) > 1, "the clock did not jump"
    found, expected = artifacts(tmp_path / "outputs"), artifacts(whole / "outputs")
    assert {
        (stage, name) for stage in expected for name in expected[stage]
        if found[stage].get(name) != expected[stage][name]
    } == set()  # fmt: skip
    whole_only(tmp_path / "outputs")
    for folder in folders:
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        assert not negative([json.loads((folder / "metrics.json").read_text()), events])
    for path in (tmp_path / "outputs").glob("store/*/manifest.json"):
        assert not negative(json.loads(path.read_text()))
    tell("clock", "set every tenth of a second, by a day and by a year", "the same bytes", 5)


_ASKS = "import json, sys; from compressor.processes import is_there; "
_ASKS += "sys.exit(not is_there(json.loads(sys.argv[1])))"


def test_a_process_is_the_same_one_after_the_clock_was_set(
    clock: tuple[dict[str, str], Path], tell: Tell
) -> None:
    """When it began is told in seconds of the day, which move with the clock: `watch` and `show`
    took a run that goes on for one that was killed. Here the whole system's clock was set: what a
    process is told of its own beginning is moved with it.
    """
    variables, shift = clock
    about = described()
    assert is_there(about)
    for seconds in (DAY, -YEAR):
        shift.write_text(str(seconds))
        moved = {**about, "created": about["created"] - seconds}  # as it was told before
        given = [sys.executable, "-c", _ASKS, json.dumps(moved)]
        assert subprocess.run(given, env=os.environ | variables, check=False).returncode == 0
        assert is_there(moved)
        tell("clock", "set while a process runs", "`show` and `watch` know that it runs")
    assert not is_there({**about, "since_boot": about["since_boot"] - 10})
    assert not is_there({**about, "boot": "another"})
    assert not is_there({"host": about["host"], "id": "x"})
    shift.write_text("0")


def test_a_bar_tells_no_negative_time() -> None:
    """Heard of at a time that, by the clock that was set back, is still to come."""
    bar = Moving(done=5, total=10, notes={}, began=time.time() + YEAR, began_at=0)
    assert bar.left(time.time()) is None
    assert Moving(5, 10, {}, 0.0, 0).left(20.0) == 20.0
