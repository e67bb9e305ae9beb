"""Tell which releases of packages are installed, and how to install those of an extra."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from functools import cache
from importlib import metadata

FRAMEWORKS = ("torch", "transformers")
"""Packages whose release may change any result."""


def suggest_install(extra: str) -> str:
    """Give the command for an extra's packages: `compressor` on an index may be another's."""
    marker = f'extra == "{extra}"'
    requirements = [
        requirement.partition(";")[0].strip()
        for requirement in metadata.requires("compressor") or ()
        if marker in requirement.replace("'", '"')
    ]
    return f"pip install {shlex.join(requirements)}"


def versions(packages: Iterable[str] = FRAMEWORKS) -> dict[str, str]:
    """Read major.minor of those packages that are installed, without importing them."""
    releases = {package: _release(package) for package in packages}
    return {package: release for package, release in releases.items() if release is not None}


@cache
def _release(package: str) -> str | None:
    """Read a release once: sweeps ask thousands of times, and the answer lies in a file."""
    release = find_version({"llama_cpp": "llama_cpp_python"}.get(package, package))
    return release and ".".join(release.split("+")[0].split(".")[:2])


def find_version(distribution: str) -> str | None:
    """Read a distribution's version; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
