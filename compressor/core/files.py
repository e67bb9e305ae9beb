"""Hash files, write them atomically, expand `~`, and find the recipes of this package."""

from __future__ import annotations

import hashlib
import json
import os
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from compressor.core.redaction import redact, redact_text

MANIFEST = "manifest.json"
"""The file that lists an artifact's files and checksums; a folder without it is no artifact."""


def hash_file(path: Path) -> str:
    """Compute a file's SHA-256, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_to_disk(path: Path) -> None:
    """Sync a file's content, or a folder's entries, to disk, so that they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically and with secrets redacted, but for numbers.

    Raises ValueError for NaN and infinity.
    """
    write_text(path, to_json(redact(value, numbers=False)))


def to_json(value: Any) -> str:
    """Format `value` as indented JSON. Raises ValueError for NaN and infinity."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_traceback(path: Path, *errors: BaseException) -> bool:
    """Write tracebacks with secrets redacted. Returns False if that fails, as on a full disk."""
    text = "".join("".join(traceback.format_exception(error)) for error in errors)
    try:
        # A lone surrogate in a message cannot be encoded, and would hide the whole traceback.
        write_text(path, redact_text(text).encode(errors="replace").decode())
    except OSError:
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: readers see the old or the new text, even after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # half a file would keep a full disk full
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a full disk's error names no file
            error.filename = str(path)
        raise


def expand_home(path: str | Path) -> Path:
    """Expand a leading `~`; unlike pathlib, leave the `~name` of an unknown user as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # pathlib raises


def find_recipes_folder() -> Path:
    """Find the checked-in recipes: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def list_accelerate_configs() -> dict[str, Path]:
    """Map the name of each checked-in Accelerate config to its file."""
    folder = find_recipes_folder() / "accelerate"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
