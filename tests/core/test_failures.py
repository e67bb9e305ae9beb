"""What a machine ran out of, told from what a library raised or a process ended with."""

from __future__ import annotations

import pytest

from compressor.core.failures import explain_error, explain_signal, is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail …] DefaultCPUAllocator: can't allocate memory: you tried …"),
        OSError(12, "Cannot allocate memory"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate …"),
    ],
)
def test_each_librarys_words_for_too_little_memory_are_known(error: Exception) -> None:
    """Python's, torch's on a CPU and on a GPU, the system's; and no other error is taken for it."""
    assert is_out_of_memory(error)
    other = ValueError("12 rows")
    assert not is_out_of_memory(other) and explain_error(other) is None


def test_a_killed_process_is_told_as_killed() -> None:
    """By its exit code, and by what torch's launcher logs."""
    expected = "was killed by signal 9 (SIGKILL), often by the system when memory runs out"
    log = "  exitcode  : -9 (pid: 7)\n  traceback : Signal 9 (SIGKILL) received by PID 7"
    for code, text in ((-9, ""), (1, log)):
        assert (explain_signal(code, text) or "").startswith(expected)
    assert explain_signal(-15) == "was killed by signal 15 (SIGTERM)"
    assert explain_signal(1, "Traceback …\nValueError: 9") is None
