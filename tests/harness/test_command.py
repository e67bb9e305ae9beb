"""A forked command sees and leaves what a new interpreter does; what it starts is its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness.command import start

SEES = """
import json, os, signal, sys
print(json.dumps({
    "arguments": sys.argv, "input": sys.stdin.read(), "environment": dict(os.environ),
    "folder": os.getcwd(), "path": sys.path, "leads": os.getsid(0) == os.getpid(),
    "name": [__name__, sys.modules["__main__"].__spec__.name],
    "open": [n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")],
    "signals": [str(signal.getsignal(number)) for number in (2, 13, 15, 17)],
    "streams": [
        [stream.encoding, stream.errors, stream.line_buffering, stream.write_through]
        for stream in (sys.stdin, sys.stdout, sys.stderr)
    ],
}))
"""
ENDS = [
    "sys.exit('no')",
    "raise ValueError('bad')",
    "raise KeyboardInterrupt",
    "print('lost', end=''); os._exit(4)",
    "atexit.register(print, 'last'); threading.Timer(0.1, print, ['first']).start()",
]


def _tell(folder: Path, code: str, **how: object) -> tuple[int, str, str]:
    (folder / "told.py").write_text(code)
    process = start("a", "b c", cwd=folder, module="told", **how)
    return process.wait(60), process.out, process.err


def test_it_sees_the_same(tmp_path: Path) -> None:
    """Arguments, input, variables, folder, path, streams, signals, and no open file but three."""
    told = [
        json.loads(_tell(tmp_path, SEES, stdin="text", fresh=fresh, ONE="1")[1])
        for fresh in (False, True)
    ]
    assert told[0] == told[1]
    assert told[0]["environment"]["ONE"] == "1" and told[0]["open"] == ["0", "1", "2"]


@pytest.mark.parametrize("ending", ENDS)
def test_it_ends_the_same(tmp_path: Path, ending: str) -> None:
    """Exit code or signal, outputs, and the error that ended it."""
    code = f"import atexit, os, sys, threading\n{ending}\n"
    forked, fresh = (_tell(tmp_path, code, fresh=fresh) for fresh in (False, True))
    assert forked[:2] == fresh[:2]
    assert forked[2].splitlines()[-1:] == fresh[2].splitlines()[-1:]


PARENT = """
import os, subprocess, sys
from compressor.core.processes import child_environment
variables = child_environment(1)
variables["PYTHONPATH"] += ":" + os.getcwd()
command = [sys.executable, "-m", "compressor.core.processes", "child", "x"]
done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True)
print(done.returncode, done.stdout == f"{os.getpid()} ['x'] True\\n")
"""
CHILD = """
import os, sys
print(os.getppid(), sys.argv[1:], "torch" in sys.modules)
sys.exit(7)
"""


def test_what_it_starts_is_forked_too(tmp_path: Path) -> None:
    """A module of ours is its own child, with its environment, and gives it its exit code."""
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "told.py").write_text(PARENT)
    process = start("run", cwd=tmp_path, module="told")
    assert (process.wait(60), process.out, process.err) == (0, "7 True\n", "")
