"""The Hugging Face hub: which commit a name stands for, and small files of it. No models here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, Literal

from compressor.core.errors import Unreachable, first_line
from compressor.core.failures import explain_error
from compressor.core.files import hash_file, write_text

Kind = Literal["model", "dataset", "space"]
SILENCE_SECONDS = 60.0
"""How long a hub may say nothing."""


@cache
def resolve_commit(repository: str, revision: str, kind: Kind) -> str:
    """Find the commit that `revision` of `repository` stands for, at the hub or in its cache.

    Raises Unreachable where neither knows, ValueError where the hub says there is no such thing.
    """
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE  # the rest takes 0.3 s

    sha, why = (None, "") if HF_HUB_OFFLINE else _ask_commit(repository, revision, kind)
    folder = Path(HF_HUB_CACHE) / f"{kind}s--{repository.replace('/', '--')}"
    if sha is not None:
        _note_commit(folder, revision, sha)
        return sha
    if (reference := folder / "refs" / revision).is_file():
        return reference.read_text().strip()
    raise Unreachable(
        f"{kind} {repository!r} is not on this machine and the hub cannot be reached from here{why}"
    )


def _ask_commit(repository: str, revision: str, kind: Kind) -> tuple[str | None, str]:
    """Ask the hub for a commit; give it, or why there is no answer. Raises ValueError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        ask = getattr(HfApi(), f"{kind}_info")
        return ask(repository, revision=revision, timeout=5).sha, ""
    except RepositoryNotFoundError as error:
        raise ValueError(_explain_missing(repository, kind, error)) from error
    except Exception as error:
        if _read_status(error) == 404:
            raise ValueError(f"{repository!r} has no revision {revision!r}") from error
        if not (isinstance(error, HfHubHTTPError) or _is_of_network(error)):
            raise
        return None, _find_reason(error)


def fetch_file(repository: str, name: str, commit_hash: str, kind: Kind) -> Path:
    """Give one file of a commit, from the cache or downloaded, with the content that the hub names.

    Raises Unreachable, FileNotFoundError.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        with explain_unreachable(f"{name} of {repository!r}"):
            _ask_once(repository, name, commit_hash, kind)
            about: Any = {"revision": commit_hash, "repo_type": kind, "etag_timeout": 5}
            path = Path(hf_hub_download(repository, name, **about))
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"{repository!r} has no file {name!r}") from error
    require_whole([path], repository)
    return path


@cache
def find_file(repository: str, name: str, commit_hash: str, kind: Kind) -> Path | None:
    """Fetch a file, once a process; None where the commit has none. Raises Unreachable."""
    try:
        return fetch_file(repository, name, commit_hash, kind)
    except FileNotFoundError:
        return None


def fetch_files(repository: str, commit_hash: str, patterns: Sequence[str]) -> Path:
    """Give a folder with a model's files of these patterns, as the hub names their contents.

    Raises Unreachable.
    """
    from huggingface_hub import snapshot_download

    with explain_unreachable(repr(repository)):
        _bound_waits()
        about: Any = {"revision": commit_hash, "allow_patterns": list(patterns), "etag_timeout": 5}
        folder = Path(snapshot_download(repository, **about))
    files = [path for path in folder.rglob("*") if path.is_file()]
    require_whole([p for p in files if any(fnmatch(p.name, item) for item in patterns)], repository)
    return folder


def _bound_waits() -> None:
    """Have requests without a time limit of their own end: the hub's library waits for ever."""
    from huggingface_hub.utils._http import get_session

    get_session().timeout = SILENCE_SECONDS


def _ask_once(repository: str, name: str, commit_hash: str, kind: Kind) -> None:
    """Ask for a file that is not in the cache once: the library asks a silent hub six times."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_OFFLINE

    _bound_waits()
    cached = try_to_load_from_cache(repository, name, revision=commit_hash, repo_type=kind)
    if not HF_HUB_OFFLINE and not isinstance(cached, str):
        url = hf_hub_url(repository, name, revision=commit_hash, repo_type=kind)
        get_hf_file_metadata(url, timeout=5)


def require_whole(paths: Sequence[Path], repository: str) -> None:
    """Raise Unreachable, and take files out of the cache, whose content is not what the hub named.

    The cache calls a file by what the hub says its content is: SHA-256, or git's SHA-1 of a small
    one. Neither the hub's own library nor a later run would look at it again.
    """
    damaged = [path for path in paths if not _is_whole(path)]
    for path in damaged:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        raise Unreachable(
            f"{names} of {repository!r} came damaged, or was damaged in {damaged[0].parent}; it is "
            "removed from there, and the same command fetches it again"
        )


def _is_whole(path: Path) -> bool:
    """Tell whether a cached file has the content that its name there tells, where it tells any."""
    named = path.resolve()
    if named.parent.name != "blobs" or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", named.name):
        return True  # a copy, where a file system has no links
    if len(named.name) == 64:
        return hash_file(named) == named.name
    content = named.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return git.hexdigest() == named.name


@contextmanager
def explain_unreachable(what: str) -> Iterator[None]:
    """Turn what the network does to a download into Unreachable. What the hub does not have stays
    an error of its own: FileNotFoundError, or the hub's answer 404.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except LocalEntryNotFoundError as error:
        absent = "is not whole on this machine and the hub cannot be reached"
        raise Unreachable(f"{what} {absent}{_find_reason(error.__cause__)}") from error
    except FileNotFoundError:
        raise
    except HfHubHTTPError as error:
        if _read_status(error) == 404:
            raise
        raise Unreachable(f"{what} could not be fetched{_find_reason(error)}") from error
    except Exception as error:
        short = explain_error(error)  # a full disk or a read-only cache is no fault of the network
        if short is not None:
            raise Unreachable(f"{what} could not be stored: {short}") from error
        if not _is_of_network(error):
            raise
        raise Unreachable(f"{what} could not be fetched{_find_reason(error)}") from error


def _is_of_network(error: Exception) -> bool:
    # The HTTP library's own errors are not OSErrors; a file of another size than told is one.
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or library in {"httpx", "httpx2", "httpcore", "httpcore2"}


def _read_status(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def _find_reason(error: BaseException | None) -> str:
    """Write what is known of an error, to stand behind a sentence; nothing where nothing is."""
    if error is None:
        return ""
    status = _read_status(error) if isinstance(error, Exception) else None
    if status is not None:
        hint = {
            401: ": log in with `hf auth login`",
            403: ": this login may not read it",
            429: ": too many requests; wait a while",
        }
        return f" (it answered {status}{hint.get(status, '')})"
    return f" ({first_line(error)})"


def _explain_missing(repository: str, kind: Kind, error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError

    login = "log in with `hf auth login`"
    if isinstance(error, GatedRepoError):
        return f"the {kind} {repository!r} is gated: accept its terms on the hub, and {login}"
    private = f", or it is private: then {login}" if _read_status(error) in (401, 403) else ""
    return f"the hub has no {kind} {repository!r}{private}"


def _note_commit(folder: Path, revision: str, sha: str) -> None:
    """Note a commit that is in the cache, as a download by name does, for use without a network."""
    reference = folder / "refs" / revision
    if (folder / "snapshots" / sha).is_dir() or not reference.is_file():
        with suppress(OSError):  # of a cache that cannot be written
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_text(reference, sha)
