"""Which code runs here: compared between driver and site before any training counts."""

from __future__ import annotations

import hashlib
import json
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from apps.base.errors import REASON_LENGTH, VersionMismatch

WORKER_PACKAGES = ("apps", "data")  # what a task at a site imports of the project
LIBRARIES = ("torch", "transformers", "peft", "safetensors", "parsl", "dill")


@cache
def code_version() -> str:
    """First 16 digits of the SHA-256 over the source of the packages that tasks run."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for package in WORKER_PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def library_versions() -> dict[str, str]:
    """Installed versions of what a result may depend on; 'absent' where a library is missing."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def require_same_code(expected: str, site: str) -> None:
    """Refuse to work for a driver that runs other code.

    Raises:
        VersionMismatch: names both versions and this host.
    """
    if expected != code_version():
        raise VersionMismatch(
            f"this site runs crossfed code {code_version()} on {platform.node()}, the driver runs {expected}",
            site=site,
            file=str(Path(__file__).resolve().parents[2]),
            remedy="Bring both to the same commit, then resume",
        )


def _counting(key: str, version: object) -> str:
    """The part of a version that has to be the same: a site's torch may be built for other devices (2.13.0+rocm7)."""
    plain = str(version).partition("+")[0]
    return ".".join(plain.split(".")[:2]) if key == "python" else plain


def versions_problem(told: str) -> str | None:
    """What of a site's versions differs from the driver's, or None."""
    import platform

    from apps.base.versions import code_version

    try:
        theirs = dict(json.loads(told))
    except (ValueError, TypeError):
        return f"its python is none: it says {told[:REASON_LENGTH]!r}"
    ours = {"python": platform.python_version(), "crossfed": code_version(), **library_versions()}
    differ = [
        f"{key} {theirs.get(key)} instead of {value}"
        for key, value in ours.items()
        if _counting(key, theirs.get(key)) != _counting(key, value)
    ]
    return ", ".join(differ) or None
