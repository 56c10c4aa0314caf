"""Paths and commands as a user types them."""

from __future__ import annotations

import sys
from pathlib import Path

WORKFLOWS = Path(__file__).resolve().parents[1]
DEFAULT_CAMPAIGN = WORKFLOWS / "campaigns" / "demo.yaml"


def command_line(script: str) -> str:
    """Return the command that runs one of the scripts from the current folder with this Python."""
    return f"{short(Path(sys.executable))} {short(WORKFLOWS / script)}"


def short(path: Path) -> Path:
    """Return the path relative to the current folder if it lies below it, else unchanged."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
