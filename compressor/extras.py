"""What to install for what the package can do with more than it needs for itself."""

from __future__ import annotations

import shlex
from importlib import metadata


def installing(extra: str) -> str:
    """The command that brings the packages of one of our extras, such as `onnx`.

    It names them, and not this package: a `compressor` of an index may be somebody else's.
    """
    marker = f'extra == "{extra}"'
    requirements = [
        requirement.partition(";")[0].strip()
        for requirement in metadata.requires("compressor") or ()
        if marker in requirement.replace("'", '"')
    ]
    return f"pip install {shlex.join(requirements)}"
