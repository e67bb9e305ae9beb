"""Check that a store holds what was written, and that this machine has what a run needs."""

from __future__ import annotations

import os
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from compressor.core import machine
from compressor.core.errors import DamagedArtifact
from compressor.core.files import MANIFEST
from compressor.core.numbers import format_bytes
from compressor.core.packages import find_version, suggest_install
from compressor.engine.store.store import KEY, USERS, Store
from compressor.engine.store.survey import list_leftovers, list_trash, measure
from compressor.engine.store.timings import NOTES

State = Literal["ok", "warning", "error"]
"""`warning`: results are right, but there is something to do. `error`: a run will fail, or results
cannot be trusted."""

_LITTLE_BYTES = 5_000_000_000
"""Less disk than this is a warning: a T5-base takes 3 GB for a moment, with its optimizer."""
_REMAKE = "the next run that needs it sets it aside and makes it again; --repair does so now"
_ENTRIES = {"partial", "damaged", "locks", USERS, NOTES}
_LEFTOVERS: dict[str, tuple[State, str]] = {
    "unfinished": ("warning", "of runs that ended before they were done"),
    "checkpoint": ("ok", "of trainings that were killed: the same run goes on from them"),
    "damaged": ("warning", "set aside, damaged or unlisted: look at them, or remove them"),
}

_EXTRAS = {
    "tensorboard": "losses for TensorBoard",
    "sentencepiece": "tokenizers without a tokenizer.json",
    "ctranslate2": "`export` to CTranslate2, and running that",
    "onnx": "`export` to ONNX Runtime, and running that",
    "gguf": "`export` to llama.cpp, and running that",
    "lora": "trainings of adapters, `finetune: {lora: …}`",
    "search": "a recipe's `search`",
    "joblib": "hydra/launcher=processes",
    "slurm": "hydra/launcher=slurm",
    "ray": "hydra/launcher=ray_local",
}
"""What the package's own extras are for, without those for its developers."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked; without a `cure` there is nothing to do."""

    area: str
    state: State
    message: str
    place: str = ""
    """A file, a folder, a package, a device."""
    cure: str = ""


def examine(
    store: Store,
    outputs: Path,
    *,
    quick: bool = False,
    repair: bool = False,
    advance: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Finding]:
    """Check everything. `advance(done, total)` is called after each artifact.

    Changes nothing, but that `repair` sets damaged artifacts aside.
    """
    return [
        *check_versions(),
        *check_devices(),
        *check_disks(store),
        *check_artifacts(store, quick=quick, repair=repair, advance=advance),
        *check_leftovers(store),
        *check_links(outputs),
    ]


# What the store holds


def check_artifacts(
    store: Store, *, quick: bool, repair: bool, advance: Callable[[int, int], None]
) -> Iterator[Finding]:
    """Compare every artifact with its manifest, in as many threads as there are cores.

    What a `gc` removes meanwhile is no fault.
    """
    keys = store.list_keys()
    problems: list[Finding] = []
    with ThreadPoolExecutor(machine.count_cores()) as pool:  # SHA-256 and reading release the GIL
        checks = pool.map(lambda key: _check_artifact(store, key, quick=quick, repair=repair), keys)
        for done, findings in enumerate(checks, 1):
            problems += findings
            advance(done, len(keys))
    what = "files have the sizes" if quick else "bytes have the SHA-256"
    whole = len(keys) - len({finding.place for finding in problems if finding.state == "error"})
    yield Finding("store", "ok", f"{whole:,} of {len(keys):,} artifacts: {what} of their manifests")
    yield from problems


def _check_artifact(store: Store, key: str, *, quick: bool, repair: bool) -> list[Finding]:
    place = store.path(key)
    try:
        store.verify(key, sizes_alone=quick)
        unlisted = store.set_unlisted_aside(key) if repair else store.find_unlisted(key)
    except (DamagedArtifact, FileNotFoundError) as error:
        if not place.exists():  # removed meanwhile
            return []
        reason = error.reason if isinstance(error, DamagedArtifact) else f"it has no {MANIFEST}"
        if repair:
            return [_set_aside(store, key, reason)]
        return [Finding("store", "error", reason, str(place), _REMAKE)]
    except OSError as error:
        return [Finding("store", "error", str(error), str(place), "make it readable")]
    if not unlisted:
        return []
    message = f"has {len(unlisted)} files that its manifest does not list: {unlisted[0]}"
    cure = "the next run that reads it sets them aside: they can change what is loaded"
    return [Finding("store", "warning", message, str(place), "set aside" if repair else cure)]


def _set_aside(store: Store, key: str, reason: str) -> Finding:
    place = str(store.path(key))
    with store.try_lock(key) as is_ours:
        if not is_ours:
            return Finding("store", "warning", f"{reason}; a process is making it again", place)
        aside = store.set_aside_if_damaged(key)
    where = f"; set aside as {aside}" if aside is not None else ""
    return Finding("store", "warning", f"{reason}{where}", place, "the next run makes it again")


def check_leftovers(store: Store) -> Iterator[Finding]:
    """Report half artifacts, checkpoints, damaged artifacts, and what is not of our making."""
    items = list(list_leftovers(store))
    for kind, (state, message) in _LEFTOVERS.items():
        left = [item for item in items if item.kind == kind]
        if idle := [i for i in left if i.key is None or not store.is_locked(i.key)]:
            size = format_bytes(sum(item.bytes for item in idle))
            text = f"{len(idle)} {kind} ({size}) {message}"
            yield Finding("store", state, text, str(idle[0].path.parent), "compressor gc")
    if trash := list_trash(store):
        size = format_bytes(sum(measure(path)[0] for path in trash))
        text = f"{len(trash)} ({size}) that a killed gc was removing"
        yield Finding("store", "warning", text, str(store.folder), "compressor gc")
    names = sorted(path.name for path in store.folder.glob("*"))
    ours = {*_ENTRIES, *(path.name for path in trash)}
    if others := [name for name in names if name not in ours and not KEY.fullmatch(name)]:
        text = f"{len(others)} entries are not of the store: {', '.join(others[:3])}"
        yield Finding("store", "warning", text, str(store.folder), "gc leaves them alone")


def check_links(outputs: Path) -> Iterator[Finding]:
    """Report the runs and sweeps whose links lead nowhere."""
    links = [
        Path(folder) / name
        for part in ("runs", "sweeps")
        for folder, folders, files in os.walk(outputs / part)
        for name in (*folders, *files)
        if Path(folder, name).is_symlink()
    ]
    parents = (link.parent for link in links if not link.exists())
    broken = Counter(parent.parent if parent.name == "stages" else parent for parent in parents)
    good = len(links) - broken.total()
    yield Finding("runs", "ok", f"{good:,} of {len(links):,} links lead somewhere")
    for run, count in sorted(broken.items()):
        text = f"{count} links lead nowhere: the artifacts are gone"
        cure = f"compressor reproduce {run}, or remove the folder"
        yield Finding("runs", "warning", text, str(run), cure)


# What this machine has


def check_versions() -> Iterator[Finding]:
    """Compare Python and each required package with the least version that is asked for."""
    about = metadata.metadata("compressor")
    python = SpecifierSet(about["Requires-Python"])
    yield _check_version("python", platform.python_version(), python)
    requirements = [Requirement(text) for text in metadata.requires("compressor") or ()]
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            installed = find_version(requirement.name)
            yield _check_version(requirement.name, installed, requirement.specifier)
    optional = [(r, r.marker) for r in requirements if r.marker is not None]
    for extra, use in _EXTRAS.items():
        mine = [r for r, m in optional if m.evaluate({"extra": extra}) != m.evaluate({"extra": ""})]
        yield _check_extra(extra, use, mine)


def _check_version(package: str, version: str | None, wanted: SpecifierSet) -> Finding:
    if version is not None and wanted.contains(version, prereleases=True):
        return Finding("versions", "ok", version, package)
    problem = "is not installed" if version is None else f"is {version}"
    cure = f"pip install '{package}{wanted}'" if package != "python" else f"use Python {wanted}"
    return Finding("versions", "error", f"{problem}; expected {wanted}", package, cure)


def _check_extra(extra: str, use: str, requirements: list[Requirement]) -> Finding:
    versions = {r: find_version(r.name) for r in requirements}
    if too_old := [
        f"{r.name} {version} ({r.specifier})"
        for r, version in versions.items()
        if version is not None and not r.specifier.contains(version, prereleases=True)
    ]:
        text = f"too old: {', '.join(too_old)}; for {use}"
        return Finding("extras", "warning", text, extra, suggest_install(extra))
    if None in versions.values():
        text = f"not installed; only for {use}"
        return Finding("extras", "ok", text, extra, suggest_install(extra))
    return Finding("extras", "ok", f"installed, for {use}", extra)


def check_devices() -> Iterator[Finding]:
    """Report the processor, the GPUs, and whether the installed torch can use them."""
    cores, threads, gpus = machine.count_cores(), machine.count_threads(), machine.list_gpus()
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    has_bfloat16 = any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))
    text = f"{machine.processor_name()}: {cores} cores, {threads} threads, "
    text += f"bfloat16 in {'hardware' if has_bfloat16 else 'software'}"
    yield Finding("devices", "ok", text, "cpu")
    for number, gpu in enumerate(gpus):
        kind = "with bfloat16" if gpu.bfloat16 else "without bfloat16: training is in float32"
        yield Finding("devices", "ok", f"{gpu.name}, {kind}", f"gpu {number}")
    known = Path("/proc/driver/nvidia/gpus")
    count = len(list(known.iterdir())) if known.is_dir() else 0
    if count > len(gpus):
        text = f"the driver knows {count} GPUs, torch can use {len(gpus)}"
        cure = "install torch for CUDA, or look at CUDA_VISIBLE_DEVICES"
        yield Finding("devices", "warning", text, "gpu", cure)
    elif not count:
        yield Finding("devices", "ok", "none: everything runs on the CPU", "gpu")


def check_disks(store: Store) -> Iterator[Finding]:
    """Report how much room the disks of the store and of the hub's cache have."""
    from huggingface_hub.constants import HF_HUB_CACHE

    wanted = (Path(HF_HUB_CACHE).absolute(), store.folder.absolute())
    folders = [next(p for p in (path, *path.parents) if p.exists()) for path in wanted]
    for folder in {folder.stat().st_dev: folder for folder in folders}.values():
        usage = shutil.disk_usage(folder)
        text = f"{format_bytes(usage.free)} free of {format_bytes(usage.total)}"
        is_little = usage.free < _LITTLE_BYTES
        cure = "compressor gc; delete run folders" if is_little else ""
        yield Finding("disk", "warning" if is_little else "ok", text, str(folder), cure)
