"""What a machine ran out of, told from what a library raised or a process ended with."""

from __future__ import annotations

import pytest

from compressor.core.failures import ended_by, is_of_memory, told


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
    assert is_of_memory(error)
    assert not is_of_memory(ValueError("12 rows")) and told(ValueError("12 rows")) is None


def test_a_killed_process_is_told_as_killed() -> None:
    """By its exit code, and by what torch's launcher logs."""
    expected = "was killed by signal 9 (SIGKILL), often the system's for want of memory"
    log = "  exitcode  : -9 (pid: 7)\n  traceback : Signal 9 (SIGKILL) received by PID 7"
    for code, text in ((-9, ""), (1, log)):
        assert (ended_by(code, text) or "").startswith(expected)
    assert ended_by(-15) == "was killed by signal 15 (SIGTERM)"
    assert ended_by(1, "Traceback …\nValueError: 9") is None
