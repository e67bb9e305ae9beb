"""A forked command sees what a new interpreter does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def test_it_sees_the_same(tmp_path: Path) -> None:
    """Arguments, input, variables, folder, path, streams, signals, and no open file but three."""
    (tmp_path / "told.py").write_text(SEES)
    told = []
    for fresh in (False, True):
        how: Any = {"cwd": tmp_path, "module": "told", "stdin": "text", "fresh": fresh}
        process = start("a", "b c", ONE="1", **how)
        assert process.wait(60) == 0, process.err
        told.append(json.loads(process.out))
    assert told[0] == told[1]
    assert told[0]["environment"]["ONE"] == "1" and told[0]["open"] == ["0", "1", "2"]
