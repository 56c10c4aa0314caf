"""Put this project's packages first on ``sys.path``, and refuse other packages of their names.

``apps``, ``data``, ``site_configs`` and ``workflows`` are common names: a user's own ``data.py`` on PYTHONPATH or in
the current folder would be imported in place of ours. Scripts load this file by its path before they import a package
of the project, so it imports nothing of the project.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("apps", "data", "site_configs", "workflows")


def put_project_first() -> None:
    """Make the project root the first entry of ``sys.path``, in place of the script's own folder.

    Raises:
        SystemExit: with code 2, after one line: another package has one of the four names.
    """
    replaced = {ROOT, Path(__file__).resolve().parent, *(ROOT / name for name in PACKAGES)}
    sys.path[:] = [str(ROOT), *(entry for entry in sys.path if Path(entry).resolve() not in replaced)]
    problem = foreign_package(PACKAGES)
    if problem:
        sys.stderr.write(f"{problem}\n")
        sys.exit(2)


def foreign_package(names: Iterable[str]) -> str | None:
    """Return a message about the first of these names under which Python has or finds another package, or None."""
    for name in names:
        found = sys.modules[name] if name in sys.modules else find_spec(name)
        place = getattr(found, "__file__", None) or getattr(found, "origin", None) or "no file"
        if Path(place).resolve() != ROOT / name / "__init__.py":
            return (
                f"Python finds another package under the name {name!r} of this project: {place} instead of"
                f" {ROOT / name}. Remove it from this Python environment, or rename it"
            )
    return None
