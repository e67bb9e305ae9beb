"""The versions that a run recorded, put back: a command for pip, or a virtual environment."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

from compressor.errors import RecipeError, StageError
from compressor.explain.past import PastRun
from compressor.explain.show import packages
from compressor.files import expand_home


def requirements(recorded: Mapping[str, str | None]) -> list[str]:
    """What pip is told to install: the recorded versions, without compressor itself."""
    return [
        f"{name}=={version}"
        for name, version in recorded.items()
        if version is not None and name != "compressor"
    ]


def pip_command(recorded: Mapping[str, str | None]) -> str | None:
    """The command that restores versions; None where there is none to restore."""
    wanted = requirements(recorded)
    return shlex.join(["pip", "install", *wanted]) if wanted else None


def environment(folder: Path, run: PastRun) -> Path:
    """Make a virtual environment with a run's versions and this compressor; its Python.

    One that is there already is brought to those versions. Raises RecipeError for a folder that is
    something else, and StageError where pip cannot install.
    """
    import venv

    if not packages(run):
        raise RecipeError(f"--venv: {run.folder} has no environment.json with versions to install")
    folder = expand_home(folder).absolute()
    if folder.exists() and not (folder / "pyvenv.cfg").is_file() and any(folder.iterdir()):
        raise RecipeError(f"--venv: {folder} is there and is no virtual environment")
    made_by = str(run.environment.get("python", ""))
    if made_by.split(".")[:2] != platform.python_version().split(".")[:2]:
        raise RecipeError(
            f"--venv: the run was made by Python {made_by}, and this is "
            f"{platform.python_version()}: start `compressor reproduce` with that Python"
        )
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    recorded, tree = packages(run), source()
    _pip(python, [*requirements(recorded), tree])
    return python


def _pip(python: Path, wanted: Sequence[str]) -> None:
    # What pip says is for the person; the standard output is for the result.
    command = [str(python), "-m", "pip", "install", "--quiet", *wanted]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
        builds = [each for each in wanted if "+" in each.partition("==")[2]]
        hint = f"; {builds[0]} is a build that pip has to be told the index of" if builds else ""
        raise StageError(f"--venv: pip could not install {shlex.join(wanted)}{hint}")


def source() -> str:
    """What pip installs this compressor from: its checkout, or where it was installed from."""
    tree = Path(__file__).parent.parent.parent
    if (tree / "pyproject.toml").is_file():
        return str(tree)
    try:
        text = metadata.distribution("compressor").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        text = None
    url = str(json.loads(text)["url"]) if text else ""
    if url.startswith("file:"):
        path = unquote(urlparse(url).path)
        url = path if Path(path).exists() else ""
    if not url:
        raise RecipeError("--venv: where this compressor was installed from is no longer there")
    return url


def run_in(python: Path, arguments: Sequence[str]) -> int:
    """Run a `compressor` command with another Python; its exit code."""
    # The code of this process must not be found before what was installed there.
    environment_ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    start = "import sys; from compressor.cli import main; sys.exit(main())"
    sys.stdout.flush()
    command = [str(python), "-I", "-c", start, *arguments]
    process = subprocess.Popen(command, env=environment_)
    try:
        return process.wait()
    except KeyboardInterrupt:  # it has workers to end, and a report to write
        process.terminate()
        process.wait()
        raise
