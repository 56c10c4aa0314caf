"""Last words of a program, to explain why it has ended or does not start."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from apps.base.errors import REASON_LENGTH


def last_line(log: Path) -> str:
    """Return the last line of a log that is not blank, or ``no output``."""
    with suppress(OSError):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "no output")[:REASON_LENGTH]
    return "no output"
