"""Versions of the code and the libraries that a process runs, and their comparison between driver and site."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from apps.base.errors import REASON_LENGTH, VersionMismatch
from apps.base.own_packages import ROOT, foreign_package

WORKER_PACKAGES = ("apps", "data")  # what a task at a site imports of the project
GENERATOR = (ROOT / "data" / "build_chemistry.py", ROOT / "data" / "chemistry_build")  # no campaign runs it
LIBRARIES = ("torch", "transformers", "peft", "safetensors", "parsl", "dill")


@cache
def code_version() -> str:
    """Return the hash of the worker code: the modules that tasks may import."""
    return source_hash(worker_files())


def worker_files() -> list[Path]:
    """Return the files of the worker code."""
    files = [path for package in WORKER_PACKAGES for path in (ROOT / package).rglob("*.py")]
    return [path for path in files if not any(path.is_relative_to(part) for part in GENERATOR)]


def source_hash(files: Iterable[Path]) -> str:
    """Return the first 16 digits of the SHA-256 over the names and contents of source files of this project."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(ROOT)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def library_versions() -> dict[str, str]:
    """Return the installed versions of the libraries that a result may depend on; 'absent' for a missing one."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def require_same_code(expected: str, site: str) -> None:
    """Check that this process runs the driver's worker code.

    Args:
        expected: the driver's ``code_version``.
        site: this site's name, for the error.

    Raises:
        VersionMismatch: names both versions and this host, or another package under one of our names.
    """
    foreign = foreign_package(WORKER_PACKAGES)
    if foreign:
        raise VersionMismatch(f"{foreign} ({platform.node()})", site=site)
    if expected != code_version():
        raise VersionMismatch(
            f"this site runs crossfed code {code_version()} on {platform.node()}, the driver runs {expected}",
            site=site,
            file=str(ROOT),
            remedy="Bring both to the same commit, then resume",
        )


def versions_problem(reported: str) -> str | None:
    """Compare the versions that a site reports with the driver's.

    Args:
        reported: JSON object with ``python``, ``crossfed`` and the libraries.

    Returns:
        What differs, or None.
    """
    try:
        theirs = dict(json.loads(reported))
    except (ValueError, TypeError):
        return f"its python printed no versions, but {reported[:REASON_LENGTH]!r}"
    ours = {"python": platform.python_version(), "crossfed": code_version(), **library_versions()}
    differ = [
        f"{key} {theirs.get(key)} instead of {value}"
        for key, value in ours.items()
        if _compared_part(key, theirs.get(key)) != _compared_part(key, value)
    ]
    return ", ".join(differ) or None


def _compared_part(key: str, version: object) -> str:
    """Return the part that has to be equal: a site's torch may be built for other devices (2.13.0+rocm7)."""
    plain = str(version).partition("+")[0]
    return ".".join(plain.split(".")[:2]) if key == "python" else plain
