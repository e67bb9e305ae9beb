"""Make one run on several machines that share the outputs: the first leads, the others follow.

A person starts the same command on each. The first machine works as if it were alone. The others
find the tasks that it writes, start their part of the processes for each, and end when it ends.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.core.errors import StageError
from compressor.core.files import write_json
from compressor.engine import launcher
from compressor.engine.launcher import Session
from compressor.engine.plan import Plan
from compressor.engine.store.store import MACHINE_LOCKS, Store
from compressor.engine.worker import FAILURE, TASK
from compressor.training.launch_config import Processes

POLL_SECONDS = 0.2
LEADER_SECONDS = 1800.0
"""How long a follower waits for the first machine's run to begin."""
GONE_SECONDS = 5.0
"""How long a follower's processes may take to end after the first machine's run has."""


def _name_run(processes: Processes) -> str:
    """Name a run by the address that its processes meet at, which all its machines know."""
    return re.sub(
        r"[^A-Za-z0-9.-]", "_", f"{MACHINE_LOCKS}{processes.main_address}-{processes.main_port}"
    )


def _list_keys(plan: Plan) -> dict[str, str | None]:
    return {node.name: node.key for node in plan.nodes}


@contextmanager
def lead(
    plan: Plan, store: Store, processes: Processes, say: Callable[[str], None]
) -> Iterator[Session | None]:
    """Give the first machine's session while it runs a plan; None where there is no other."""
    if processes.machines == 1:
        yield None
        return
    name, session, ended = _name_run(processes), Session(), threading.Event()
    waiting = f"another run uses {processes.main_address}:{processes.main_port}; waiting for it"
    with store.lock(name, lambda: say(waiting)):
        about = {"session": session.name, "keys": _list_keys(plan)}
        write_json(store.folder / "locks" / f"{name}.json", about)
        locks = [f"{name}.{machine}" for machine in range(1, processes.machines)]
        thread = threading.Thread(
            target=_watch_followers, args=[store, locks, session, ended], daemon=True
        )
        thread.start()
        try:
            yield session
        finally:
            ended.set()
            thread.join()


def _watch_followers(
    store: Store, locks: list[str], session: Session, ended: threading.Event
) -> None:
    """Note which followers are gone: the processes here would wait for theirs.

    Each holds its lock while it takes part.
    """
    come: set[int] = set()
    while not ended.wait(POLL_SECONDS):
        here = {number for number, lock in enumerate(locks, 1) if store.is_locked(lock)}
        come |= here
        session.missing = set(range(1, len(locks) + 1)) - come
        session.gone = come - here
        if session.gone:
            session.one_is_gone.set()
        else:
            session.one_is_gone.clear()


@dataclass
class Follower:
    """A machine that lends its processes to the first machine's run."""

    plan: Plan
    store: Store
    processes: Processes
    say: Callable[[str], None]
    done_tasks: set[str] = field(default_factory=set)
    doubtful_session: str | None = None
    """It had another plan when this machine last looked."""

    def follow(self) -> None:
        """Take part until the first machine's run has ended. Raises StageError where it failed."""
        lock = f"{_name_run(self.processes)}.{self.processes.machine_rank}"
        with self.store.lock(lock, lambda: self._say_if_held(lock)):
            self._follow()

    def _say_if_held(self, lock: str) -> None:
        time.sleep(POLL_SECONDS)  # the first machine looks at this lock, too, for a moment
        if self.store.is_locked(lock):
            self.say(f"another run is machine {self.processes.machine_rank}; waiting for it")

    def _follow(self) -> None:
        place = f"machine {self.processes.machine_rank} of {self.processes.machines}"
        self.say(f"{place}: lends {self.processes.count_per_machine} processes to machine 0's run")
        session: str | None = None
        deadline = time.monotonic() + LEADER_SECONDS
        while True:
            leader = self._read_leader()
            if leader is not None and leader["session"] != session and self._has_same_plan(leader):
                session = leader["session"]
            elif leader is None and self._is_all_made():
                return
            elif leader is None and session is not None:
                raise StageError("machine 0 has ended without all that was planned; see there")
            elif session is None and time.monotonic() > deadline:
                raise StageError(
                    f"machine 0 has not begun this run in {LEADER_SECONDS / 60:.0f} minutes; run "
                    "the same command there, with the same outputs"
                )
            if session is not None and (task := self._find_task(session)) is not None:
                self._take_part(session, *task)
            time.sleep(POLL_SECONDS)

    def _is_all_made(self) -> bool:
        return all(node.key is not None and self.store.has(node.key) for node in self.plan.nodes)

    def _read_leader(self) -> dict[str, Any] | None:
        """Read what the first machine says of its run, while it holds the run's lock."""
        name = _name_run(self.processes)
        if not self.store.is_locked(name):
            return None
        try:
            text = (self.store.folder / "locks" / f"{name}.json").read_text(encoding="utf-8")
        except FileNotFoundError:  # it has just begun
            return None
        about: dict[str, Any] = json.loads(text)
        return about

    def _has_same_plan(self, leader: dict[str, Any]) -> bool:
        """Return whether the first machine runs our plan. Raises StageError the second time.

        The file of an earlier run is there for a moment after the first machine has begun.
        """
        keys = leader["keys"]
        other = [name for name, key in _list_keys(self.plan).items() if keys.get(name) != key]
        if other and leader["session"] == self.doubtful_session:
            raise StageError(
                f"machine 0 runs another plan: {other[0]!r} is not the same there; start the same "
                "recipe and overrides, with the same versions of torch and transformers"
            )
        self.doubtful_session = leader["session"] if other else None
        return not other

    def _find_task(self, session: str) -> tuple[Path, str] | None:
        """Find a task of this session, and its stage, that this machine has not taken part in."""
        for path in (self.store.folder / "partial").glob(f"*.task/{TASK}"):
            try:
                task = json.loads(path.read_text(encoding="utf-8"))
            except FileNotFoundError:  # done in the meantime
                continue
            if task["session"] == session and task["shared"] and task["id"] not in self.done_tasks:
                self.done_tasks.add(task["id"])
                return path, task["name"]
        return None

    def _take_part(self, session: str, task: Path, name: str) -> None:
        self.say(f"takes part in {name}")
        stop, ended = threading.Event(), threading.Event()
        thread = threading.Thread(target=self._watch_leader, args=[session, stop, ended])
        thread.start()
        try:
            with tempfile.TemporaryDirectory() as logs:
                code = launcher.run_processes(task, self.processes, Path(logs), self.say, stop=stop)
                if code != 0 and not stop.is_set() and not (task.parent / FAILURE).is_file():
                    self.say(f"a worker process ended with code {code}:")
                    self.say(launcher.last_lines(Path(logs)))
        finally:
            ended.set()
            thread.join()

    def _watch_leader(self, session: str, stop: threading.Event, ended: threading.Event) -> None:
        """Stop our processes when the first machine has ended: they would wait for its own."""
        seen = time.monotonic()
        while not ended.wait(POLL_SECONDS):
            leader = self._read_leader()
            if leader is not None and leader["session"] == session:
                seen = time.monotonic()
            elif time.monotonic() - seen > GONE_SECONDS:
                stop.set()
                return
