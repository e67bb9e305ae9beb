"""What a run needs of this machine: versions, devices, room on disks, folders it can write in."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from filelock import FileLock, Timeout
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from compressor import machine
from compressor.doctor.finding import Finding
from compressor.extras import installing
from compressor.garbage.told import size

_LITTLE_BYTES = 5_000_000_000
"""A T5-base with its optimizer's state takes some 3 GB for a moment."""
_EXTRAS = {
    "tensorboard": "losses for TensorBoard",
    "sentencepiece": "tokenizers without a tokenizer.json",
    "ctranslate2": "`export` to CTranslate2, and running that",
    "onnx": "`export` to ONNX Runtime, and running that",
    "gguf": "`export` to llama.cpp, and running that",
    "search": "a recipe's `search`",
    "joblib": "hydra/launcher=processes",
    "slurm": "hydra/launcher=slurm",
    "ray": "hydra/launcher=ray_local",
}
"""Of the package's own extras, what each is for; those for working on it are left out."""


def versions() -> Iterator[Finding]:
    """Python and each package that this one requires, against the least that it asks for."""
    about = metadata.metadata("compressor")
    yield _version("python", platform.python_version(), SpecifierSet(about["Requires-Python"]))
    for text in metadata.requires("compressor") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        yield _version(wanted.name, _installed(wanted.name), wanted.specifier)
    for extra, use in _EXTRAS.items():
        yield _extra(extra, use)


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _version(package: str, found: str | None, wanted: SpecifierSet) -> Finding:
    if found is not None and wanted.contains(found, prereleases=True):
        return Finding("versions", "ok", found, package)
    have = "is not installed" if found is None else f"is {found}"
    cure = f"pip install '{package}{wanted}'" if package != "python" else f"use Python {wanted}"
    return Finding("versions", "error", f"{have}; expected {wanted}", package, cure)


def _extra(extra: str, use: str) -> Finding:
    asked = [Requirement(text) for text in metadata.requires("compressor") or ()]
    those = [each for each in asked if _belongs(each.marker, extra)]
    lacking = [each.name for each in those if _installed(each.name) is None]
    old = [
        f"{each.name} {found} ({each.specifier})"
        for each in those
        if (found := _installed(each.name)) and not each.specifier.contains(found, prereleases=True)
    ]
    if old:
        text = f"too old: {', '.join(old)}; for {use}"
        return Finding("extras", "warning", text, extra, installing(extra))
    if lacking:
        text = f"not installed, and not needed but for {use}"
        return Finding("extras", "ok", text, extra, installing(extra))
    return Finding("extras", "ok", f"installed, for {use}", extra)


def _belongs(marker: Marker | None, extra: str) -> bool:
    if marker is None:
        return False
    return marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def devices() -> Iterator[Finding]:
    """The processor, its threads, the GPUs, and whether the installed torch can use them."""
    bfloat16 = "bfloat16 in hardware" if _cpu_has_bfloat16() else "bfloat16 in software"
    cores, threads = machine.cores(), machine.threads()
    text = f"{machine.processor()}: {cores} cores, {threads} threads, {bfloat16}"
    yield Finding("devices", "ok", text, "cpu")
    for number, gpu in enumerate(machine.gpus()):
        kind = "with bfloat16" if gpu.bfloat16 else "without bfloat16: training is in float32"
        yield Finding("devices", "ok", f"{gpu.name}, {kind}", f"gpu {number}")
    listed = Path("/proc/driver/nvidia/gpus")
    there = len(list(listed.iterdir())) if listed.is_dir() else 0
    if there > len(machine.gpus()):
        text = f"the driver knows {there} GPUs, and torch here can use {len(machine.gpus())}"
        cure = "install torch for CUDA, or look at CUDA_VISIBLE_DEVICES"
        yield Finding("devices", "warning", text, "gpu", cure)
    elif not there:
        yield Finding("devices", "ok", "none: everything runs on the CPU", "gpu")


def _cpu_has_bfloat16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    return any(flag in text for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def folders(outputs: Path) -> Iterator[Finding]:
    """Whether `outputs` can be written, and has what a store needs; the hub's cache; the disks."""
    yield from _outputs(outputs)
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    cache = Path(HF_HUB_CACHE)
    offline = "; HF_HUB_OFFLINE is set: nothing is downloaded" if HF_HUB_OFFLINE else ""
    if (error := _unwritable(_existing(cache))) is None:
        yield Finding("hub", "ok", f"the cache can be written{offline}", str(cache))
    else:
        text = f"the cache cannot be written: {error}{offline}"
        yield Finding("hub", "warning", text, str(cache), "set HF_HOME to a folder of yours")
    store = outputs / "store"
    disks = {each.stat().st_dev: each for each in map(_existing, (cache, store, outputs))}
    for place in disks.values():
        yield _room(place)


def _existing(place: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(each for each in (place, *place.absolute().parents) if each.exists())


def _room(place: Path) -> Finding:
    usage = shutil.disk_usage(place)
    text = f"{size(usage.free)} free of {size(usage.total)}"
    if usage.free >= _LITTLE_BYTES:
        return Finding("disk", "ok", text, str(place))
    return Finding("disk", "warning", text, str(place), "compressor gc; delete run folders")


def _unwritable(folder: Path) -> str | None:
    """Why nothing can be written in a folder, or None."""
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(bytes(4096))
    except OSError as error:
        return error.strerror or str(error)
    return None


def _outputs(outputs: Path) -> Iterator[Finding]:
    """In a folder of its own there, which is removed, do what a store does."""
    place = _existing(outputs)
    probes: dict[str, tuple[Callable[[Path], None], str]] = {
        "renames a folder": (_renames, "use another file system: a commit is one rename"),
        "keeps a lock from a second process": (
            _locks,
            "use a file system with flock: without it two runs can make the same artifact",
        ),
        "has symbolic links": (_links, ""),
    }
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as folder:
            (Path(folder) / "file").write_bytes(bytes(4096))
            yield Finding("outputs", "ok", "can be written", str(place))
            for what, (probe, cure) in probes.items():
                try:
                    probe(Path(folder))
                except (OSError, Timeout) as error:
                    if probe is _links:
                        text = "has no symbolic links: runs have copies, and no links"
                        yield Finding("outputs", "warning", text, str(place))
                        continue
                    text = f"not so: {what} ({error})"
                    yield Finding("outputs", "error", text, str(place), cure)
                else:
                    yield Finding("outputs", "ok", what, str(place))
    except OSError as error:
        text = f"cannot be written: {error.strerror or error}"
        cure = "outputs=DIR (--outputs DIR here) takes another folder"
        yield Finding("outputs", "error", text, str(place), cure)


def _renames(folder: Path) -> None:
    (folder / "from" / "below").mkdir(parents=True)
    (folder / "from").rename(folder / "to")


def _locks(folder: Path) -> None:
    first, second = FileLock(folder / "lock"), FileLock(folder / "lock")
    with first.acquire(timeout=0):
        try:
            second.acquire(timeout=0)
        except Timeout:
            return
        second.release()
        raise OSError("two have it at once")


def _links(folder: Path) -> None:
    (folder / "link").symlink_to("file")
