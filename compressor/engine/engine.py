"""Walk a plan: use what the store has, run and commit the rest. Does no stage's own work."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from compressor.core import machine
from compressor.core.display import METRICS
from compressor.core.errors import DamagedArtifact, EarlyStop, StageError, Unreachable
from compressor.core.failures import describe_error, explain_error, is_out_of_memory
from compressor.core.files import write_traceback
from compressor.core.numbers import require_finite_metrics
from compressor.core.packages import versions
from compressor.core.processes import is_ending
from compressor.core.progress import Progress
from compressor.core.redaction import redact
from compressor.engine import launcher, worker
from compressor.engine.plan import Node, Plan
from compressor.engine.run_folder import Run
from compressor.engine.store.store import Store, writer_lock
from compressor.stages.base import SIZES, Context, Inputs, oom_hint
from compressor.training.launch_config import Processes, read_processes

_COUNTED = {"tensor_bytes": "bytes of weights", "masked": "pruned entries"}
"""What a plan and a run both count of a model → how messages call it."""


class Engine:
    """Runs one plan on one store, into one run directory."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        run: Run,
        progress: Progress,
        *,
        session: launcher.Session | None = None,
    ) -> None:
        """`session`: of a run on several machines."""
        self.plan, self.store, self.run, self.progress = plan, store, run, progress
        self.session = session
        self._verified: set[str] = set()
        self._reported_damage: set[str] = set()

    def execute(self) -> None:
        """Bring every node into the store.

        Raises StageError at the first that fails, and EarlyStop where the progress' `watch` does.
        """
        for node in self.plan.nodes:
            started = time.monotonic()
            self.progress.emit("stage_started", name=node.name, key=node.key)
            try:
                manifest, cached = self._ensure(node)
            except EarlyStop:
                raise
            except Exception as error:  # whatever a library raises; the cause is kept
                # It broke as it cleaned up, or where an import was cut short.
                if isinstance(error.__context__, KeyboardInterrupt) or is_ending():
                    raise KeyboardInterrupt from error
                reason = self._explain_failure(node, error)
                self.progress.emit("stage_failed", name=node.name, error=reason)
                raise StageError(f"stage {node.name!r}: {reason}") from error
            seconds = time.monotonic() - started
            self.run.add(node, manifest, cached=cached, seconds=seconds)
            self._report_end(node, manifest, cached=cached, seconds=round(seconds, 3))

    def _explain_failure(self, node: Node, error: Exception) -> str:
        """Say why a stage failed, in one line, or with the end of a process's log."""
        is_ours = isinstance(error, StageError | Unreachable)
        cause = error.__cause__ if is_ours else error
        explanation = None if cause is None else explain_error(cause, self.store.folder)
        if cause is not None and explanation is not None and is_out_of_memory(cause):
            explanation += oom_hint(node.stage)
        if is_ours:
            return str(error) if explanation is None else f"{error} ({explanation})"
        if explanation is not None:
            return explanation
        reason, report = describe_error(error), self.run.folder / "error.txt"
        return f"{reason} (see {report})" if write_traceback(report, error) else reason

    def _report_end(
        self, node: Node, manifest: Mapping[str, Any], *, cached: bool, seconds: float
    ) -> None:
        model, metrics = manifest["model"], manifest["metrics"]
        values = {name: model[name] for name in ("parameters", "nonzero_ratio")}
        values["metrics"] = {n: metrics[n] for n in METRICS if metrics.get(n) is not None}
        if (losses := metrics.get("validation_losses")) is not None:
            values["validation_losses"] = losses
        self.progress.emit("stage_ended", name=node.name, cached=cached, seconds=seconds, **values)

    # Use what the store has

    def _ensure(self, node: Node) -> tuple[dict[str, Any], bool]:
        """Bring a node into the store. Returns its manifest, and whether it was a cache hit."""
        assert node.key is not None, "an unreachable part is refused before"
        if (manifest := self._find_usable(node, node.key)) is not None:
            self.store.mark_used(node.key)
            self.store.forget_committed(node.key)
            return manifest, True
        waiting = f"{node.name}: another process makes this; waiting for it"
        with self.store.lock(node.key, lambda: self.progress.say(waiting)):
            if (manifest := self._find_usable(node, node.key)) is not None:
                return manifest, True
            if (aside := self.store.set_aside(node.key)) is not None:
                self.progress.say(f"{node.name}: damaged in the store, made again; see {aside}")
            self._verify_inputs(node)
            return self._make(node), False

    def _find_usable(self, node: Node, key: str) -> dict[str, Any] | None:
        """Read the manifest of an artifact that is whole: by every byte where a person gets it.

        What only other stages read is compared when one does. Raises StageError where it is not as
        planned.
        """
        if not self.store.has(key):
            return None
        if key not in self._verified and self._is_result(node):
            try:
                self._verify(key, node.name)
            except (DamagedArtifact, FileNotFoundError) as error:
                if key not in self._reported_damage:  # it is verified again under its lock
                    self.progress.say(f"{node.name}: {error}")
                self._reported_damage.add(key)
                return None
        try:
            manifest = self.store.manifest(key)
        except FileNotFoundError:  # removed in the meantime
            return None
        _require_as_planned(node, manifest["model"])
        return manifest

    def _is_result(self, node: Node) -> bool:
        """Return whether a run links to it, as to scores and texts, an export, the last model."""
        inputs = {name for n in self.plan.nodes for name in (n.model, *n.artifacts.values())}
        return not node.stage.changes_model or node.name not in inputs

    def _verify(self, key: str, name: str) -> None:
        """Compare every file with its digest. Raises DamagedArtifact, FileNotFoundError."""
        self.store.verify(key)
        for file in self.store.set_unlisted_aside(key):
            self.progress.say(f"{name}: {file} is none of its files, and is set aside")
        self._verified.add(key)

    def _verify_inputs(self, node: Node) -> None:
        """Verify every byte that a stage will read, and make again what is damaged."""
        for name in filter(None, (node.model, *node.artifacts.values())):
            source, key = self.plan.node(name), self._key(name)
            if key in self._verified:
                continue
            try:
                self._verify(key, name)
            except (DamagedArtifact, FileNotFoundError) as error:
                self.progress.say(f"{name}: {error}; made again")
                with self.store.lock(key, lambda: None):
                    self.store.set_aside_if_damaged(key)
                self._ensure(source)
            self._verified.add(key)

    # Make the rest

    def _make(self, node: Node) -> dict[str, Any]:
        """Run a stage in a folder of its own and commit it; a failure commits nothing."""
        assert node.key is not None
        # A worker that outlives a killed parent for a moment must have stopped writing.
        with self.store.lock(writer_lock(node.key), lambda: None):
            folder = self.store.begin(node.key)
        recipe = self.plan.composed.recipe
        context = Context(
            folder=folder,
            resume=self.store.resume_folder(node.key),
            data=self.plan.data_for(node),
            seed=recipe.seed,
            launch=recipe.launch,
            progress=self.progress,
            run_folder=self.run.folder,
            name=node.name,
        )
        started = time.monotonic()
        try:
            self.plan.require_unchanged(node)
            if node.stage.choice:
                self.progress.say(f"{node.name}: {node.stage.choice}")
            model = self._run_stage(node, context)
            _require_as_planned(node, model)
            require_finite_metrics(context.metrics)
            self.plan.require_unchanged(node)
        except BaseException:
            self.store.abandon(node.key)
            raise
        about = {
            "stage": node.kind,
            "name": node.name,
            "key_parts": redact(node.key_parts),
            "model": model,
            "metrics": context.metrics,
            "seconds": round(time.monotonic() - started, 3),
            "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "frameworks": versions(),
            "computed_with": self._computed_with(node, context),
            "process": os.getpid(),
        }
        self._verified.add(node.key)
        return self.store.commit(node.key, folder, about)

    def _run_stage(self, node: Node, context: Context) -> dict[str, Any]:
        """Run a stage here or in worker processes. Returns what tables show of its model."""
        inputs = Inputs(
            None if node.model is None else self.store.path(self._key(node.model)),
            {role: self.store.path(self._key(name)) for role, name in node.artifacts.items()},
        )
        started = self._choose_processes(node, context)
        if started.is_distributed:
            model = launcher.launch(node.kind, node.stage, inputs, context, started, self.session)
        else:
            model = worker.run_stage(node.stage, inputs, context)
        if model is not None:
            return model
        if node.model is None:
            return dict.fromkeys(SIZES)
        source: dict[str, Any] = self.store.manifest(self._key(node.model))["model"]
        return {key: source[key] for key in SIZES} | context.sizes

    def _choose_processes(self, node: Node, context: Context) -> Processes:
        is_torch = node.model is None or self.plan.node(node.model).backend == "torch"
        together = node.stage.is_distributed and is_torch
        return read_processes(context.launch) if together else Processes()

    def _computed_with(self, node: Node, context: Context) -> dict[str, int]:
        """Record what decides the order of sums, and so a result's last bits: no key holds it."""
        started = self._choose_processes(node, context)
        return {
            "processes": started.world_size,
            "threads": machine.count_threads(started.count_per_machine),
        }

    def _key(self, name: str) -> str:
        key = self.plan.node(name).key
        assert key is not None
        return key


def _require_as_planned(node: Node, model: Mapping[str, Any]) -> None:
    """Raise StageError where a model has other counts than its plan calls exact.

    What an earlier version did not count is skipped.
    """
    facts = node.facts
    if facts is None or not node.stage.changes_model or not facts.exact_size:
        return
    planned = {"parameters": facts.parameters, "tensor_bytes": facts.bytes}
    if facts.exact:
        planned["masked"] = sum(count for _, count in facts.masked)
    wrong = [
        f"{number:,} {_COUNTED.get(name, name)} were planned, {model[name]:,} were found"
        for name, number in planned.items()
        if model.get(name, number) != number
    ]
    if wrong:
        raise StageError(
            f"the model is not the one that was planned: {'; '.join(wrong)}. Give the same command "
            "again; if it fails so once more, save the source as safetensors, which a plan can read"
        )
