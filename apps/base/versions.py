"""Versions of the code and the libraries that a process runs, and their comparison between driver and site."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from apps.base.errors import REASON_LENGTH, VersionMismatch
from apps.base.own_packages import ROOT, foreign_package

WORKER_PACKAGES = ("apps", "data")  # what a task at a site imports of the project
GENERATOR = (ROOT / "data" / "build_chemistry.py", ROOT / "data" / "chemistry_build")  # no campaign runs it
LIBRARIES = ("torch", "transformers", "peft", "safetensors", "parsl", "dill")
ONLY_PARSL = ("parsl", "dill")  # libraries that only the connection between driver and batch jobs uses
LOWEST = {"python": "3.11", "torch": "2.8", "transformers": "5.23", "peft": "0.18", "safetensors": "0.6"}


def code_version() -> str:
    """Return the hash of the worker code that this process runs: the modules that tasks may import.

    The files are read again whenever a module of theirs was imported since: it may have been changed meanwhile. As long
    as none is, this process runs what it has loaded, whatever becomes of the files.
    """
    return _version_with(frozenset(name for name in sys.modules if name.partition(".")[0] in WORKER_PACKAGES))


@cache
def _version_with(_loaded: frozenset[str]) -> str:
    return code_on_disk()


def code_on_disk() -> str:
    """Return the hash of the worker code that a process which is started now would run."""
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


def require_same_code(expected: str, site: str | None, *, started_now: bool = False) -> None:
    """Check that this process runs the driver's worker code.

    Args:
        expected: the driver's ``code_version``.
        site: this site's name, for the error; None: the caller adds it.
        started_now: check what a process would run that is started now, not what this one has loaded.

    Raises:
        VersionMismatch: names both versions and this host, or another package under one of our names.
    """
    foreign = foreign_package(WORKER_PACKAGES)
    if foreign:
        raise VersionMismatch(f"{foreign} ({platform.node()})", site=site)
    found = code_on_disk() if started_now else code_version()
    if expected != found:
        raise VersionMismatch(
            f"this site runs crossfed code {found} on {platform.node()}, the driver runs {expected}",
            site=site,
            file=str(ROOT),
            remedy="Bring both to the same commit, then resume",
        )


@dataclass(frozen=True)
class Comparison:
    """Comparison of a site's versions with the driver's: why tasks cannot run there, and harmless differences."""

    problem: str | None
    note: str = ""

    @property
    def ending(self) -> str:
        """Return the harmless differences as the end of a line; empty if there is a problem or no difference."""
        return f"; other versions: {self.note}" if self.note and self.problem is None else ""


def compare_versions(reported: str, by_parsl: bool) -> Comparison:
    """Compare the versions that a site reports with the driver's.

    Facilities build torch for their own devices, so the versions of four of them are never the same: another torch or
    transformers is a note, one below `LOWEST` a problem. Parsl refuses workers with another Parsl or another minor
    version of Python.

    Args:
        reported: JSON object with ``python``, ``crossfed`` and the libraries.
        by_parsl: True if Parsl's interchange connects driver and site (the route ``batch``).
    """
    try:
        theirs = dict(json.loads(reported))
    except (ValueError, TypeError):
        return Comparison(f"its python printed no versions, but {reported[:REASON_LENGTH]!r}")
    ours = {"python": platform.python_version(), "crossfed": code_version(), **library_versions()}
    problems = [reason for key in ours if (reason := _problem(key, str(theirs.get(key)), ours[key], by_parsl))]
    notes = [
        f"{key} {theirs.get(key)} (here {ours[key]})"
        for key in ours
        if key not in ONLY_PARSL and str(theirs.get(key)) != ours[key]
    ]
    return Comparison("; ".join(problems) or None, ", ".join(notes))


def _problem(key: str, theirs: str, ours: str, by_parsl: bool) -> str | None:
    """Return why a version at a site does not fit, or None."""
    if key == "crossfed":
        return None if theirs == ours else f"its crossfed code is {theirs}, the driver's {ours}: use one commit"
    if key in (*ONLY_PARSL, "python") and by_parsl:
        same = _minor(theirs) == _minor(ours) if key == "python" else theirs == ours
        return None if same else f"{key} {theirs}; jobs that this driver submits need {key} {_needed(key, ours)}"
    lowest = LOWEST.get(key)
    if lowest is None:
        return None
    if theirs in ("absent", "None"):
        return f"no {key}; {lowest} or later is needed"
    return f"{key} {theirs} is older than {lowest}" if _numbers(theirs) < _numbers(lowest) else None


def _needed(key: str, version: str) -> str:
    return _minor(version) if key == "python" else version


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _numbers(version: str) -> tuple[int, ...]:
    """Return major and minor version; a pre-release such as 2.10.0a0 counts as its release."""
    found = re.match(r"(\d+)(?:\.(\d+))?", version)
    return tuple(int(part or 0) for part in found.groups()) if found else (0, 0)
