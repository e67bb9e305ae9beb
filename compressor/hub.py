"""The Hugging Face hub: which commit a name stands for, and small files of it. No models here."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Literal

from compressor.errors import Unreachable

Kind = Literal["model", "dataset"]


@cache
def commit(repository: str, revision: str, kind: Kind) -> str:
    """The commit that `revision` of `repository` stands for: asked of the hub, or of its cache.

    Raises Unreachable where neither knows, ValueError where the hub says there is no such thing.
    """
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    if not HF_HUB_OFFLINE:
        try:
            api = HfApi()
            ask = api.model_info if kind == "model" else api.dataset_info
            sha = ask(repository, revision=revision, timeout=5).sha
            assert sha is not None
            return sha
        except RepositoryNotFoundError as error:
            raise ValueError(f"the hub has no {kind} {repository!r}") from error
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code == 404:
                raise ValueError(f"{repository!r} has no revision {revision!r}") from error
        except OSError:
            pass  # no network: the cache below may know
        except Exception as error:  # the HTTP library's own errors are not OSErrors
            if type(error).__module__.partition(".")[0] not in {"httpx", "httpx2", "httpcore"}:
                raise
    cached = _cache_folder(repository, kind) / "refs" / revision
    if cached.is_file():
        return cached.read_text().strip()
    raise Unreachable(
        f"{kind} {repository!r} is not on this machine and the hub cannot be reached from here"
    )


def file(repository: str, name: str, commit_hash: str, kind: Kind) -> Path:
    """One file of a commit, from the cache or downloaded. Raises Unreachable, FileNotFoundError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        path = hf_hub_download(
            repository, name, revision=commit_hash, repo_type=kind, etag_timeout=5
        )
    except LocalEntryNotFoundError as error:
        raise Unreachable(
            f"{name} of {repository!r} is not on this machine and the hub cannot be reached"
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"{repository!r} has no file {name!r}") from error
    return Path(path)


def _cache_folder(repository: str, kind: Kind) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"{kind}s--{repository.replace('/', '--')}"
