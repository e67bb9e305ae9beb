"""SLURM and Ray for real, on one machine: `make test-cluster`. Skipped where they are not there."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import time

import pytest

from tests.harness.command import compressor, start
from tests.harness.once import run_once
from tests.harness.recipes import RECIPE
from tests.harness.runs import kill
from tests.runs.sweeps.test_sweep import SWEEP, list_made, list_results, sweep_folder


def _slurm_is_up() -> bool:
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        return False
    try:
        asked = subprocess.run(
            ["sinfo", "--noheader"], capture_output=True, text=True, check=False, timeout=10
        )
    except subprocess.TimeoutExpired:  # its settings are here, and its daemons are not
        return False
    return asked.returncode == 0 and bool(asked.stdout.strip())


needs_slurm = pytest.mark.skipif(
    not _slurm_is_up(), reason="no SLURM here: tests/cluster/slurm.sh start"
)
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") is None,
    reason="needs pip install hydra-ray-launcher",
)
SLURM = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The table of the same sweep by Hydra's basic launcher."""
    done = run_once(tmp_path_factory, "sweep", RECIPE, *SWEEP)
    return list_results(sweep_folder(done.cwd / "outputs"))


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(SLURM, marks=needs_slurm, id="slurm"),
        pytest.param(("hydra/launcher=ray_local",), marks=needs_ray, id="ray"),
    ],
)
def test_a_launcher_gives_the_basic_one_s_bits_and_runs_nothing_twice(
    expected, tmp_path, launcher
) -> None:
    """Two points at once; what both need is made by one, and the same command starts none again."""
    (tmp_path / "mine.yaml").write_text(RECIPE)
    done = compressor("run", "mine.yaml", *SWEEP, *launcher, cwd=tmp_path, RAY_AUTH_MODE="disabled")
    assert done.code == 0, done.err
    folder = sweep_folder(tmp_path / "outputs")
    assert list_results(folder) == expected
    assert len(list_made(folder)) == len(set(list_made(folder))) == 11
    ended = [path.stat().st_mtime_ns for path in sorted(folder.glob("*/point.json"))]
    again = compressor("run", "mine.yaml", *SWEEP, *launcher, cwd=tmp_path)
    assert again.code == 0, again.err
    assert [path.stat().st_mtime_ns for path in sorted(folder.glob("*/point.json"))] == ended


@needs_slurm
@pytest.mark.parametrize("ending", ["killed", "cancelled"])
def test_the_same_command_joins_or_runs_the_jobs_of_one_that_ended(
    expected, tmp_path, ending
) -> None:
    """SLURM's jobs go on when the command that submitted them is killed; each point waits for the
    job that has it already. Of cancelled ones, as when they run out of time, submitit cannot learn
    on a cluster without accounts, and waits: the command is ended by hand, without a traceback.
    """
    (tmp_path / "mine.yaml").write_text(RECIPE)
    process = start("run", "mine.yaml", *SWEEP, *SLURM, cwd=tmp_path, fresh=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.glob("outputs/**/events.jsonl")):
        assert process.poll() is None
        time.sleep(0.05)
    if ending == "killed":
        kill(process)
    else:
        subprocess.run(["scancel", "--name", "mine"], check=True)
        process.send(signal.SIGINT)
        assert process.wait(60) == 1, process.err
        assert "the same command goes on from here" in process.err
        assert "Traceback" not in process.err
    done = compressor("run", "mine.yaml", *SWEEP, *SLURM, cwd=tmp_path)
    assert done.code == 0, done.err
    assert list_results(sweep_folder(tmp_path / "outputs")) == expected
