"""Commands run in this process, as a fuzzer wants them; tests.conftest starts one of its own."""

from __future__ import annotations

import io
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from compressor.cli.main import main


@dataclass(frozen=True)
class Told:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float


class Standard(io.StringIO):
    """An output as the system has it: bytes that are no UTF-8 go back as they came."""

    encoding = "utf-8"
    errors = "strict"

    def write(self, text: str) -> int:
        text.encode("utf-8", "backslashreplace")
        return super().write(text)


def told(*arguments: str) -> Told:
    """What a command says, run in this process. An exception is a defect, and fails the test."""
    out, err = Standard(), Standard()
    began = time.process_time()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    return Told(code, out.getvalue(), err.getvalue(), time.process_time() - began)
