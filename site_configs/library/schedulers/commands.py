"""Run a scheduler's commands and parse the durations they print."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COMMAND_LIMIT_S = 60.0  # Slurm's commands give up by themselves after about 20 s without their controller


@dataclass(frozen=True)
class Reply:
    """Result of a command.

    Attributes:
        code: exit code; None: the command does not exist, or did not end in time.
        out, error: its standard output and standard error.
    """

    code: int | None
    out: str
    error: str

    @property
    def ok(self) -> bool:
        """Return True if the command succeeded."""
        return self.code == 0

    @property
    def message(self) -> str:
        """Return the error message of the command in one line."""
        return " ".join((self.error.strip() or self.out.strip() or f"exit code {self.code}").split())


def ask(command: Sequence[str], environment: Mapping[str, str], limit_s: float = COMMAND_LIMIT_S) -> Reply:
    """Run a command and wait for its end.

    Args:
        command: program and arguments.
        environment: variables in addition to those of this process.
        limit_s: time limit in seconds.
    """
    merged = {**os.environ, **environment}
    try:
        done = subprocess.run(
            command,
            env=merged,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Reply(None, "", f"{command[0]} did not answer in {limit_s:.0f} s")
    except OSError as error:
        return Reply(None, "", f"{command[0]} cannot be run: {error.strerror}")
    return Reply(done.returncode, done.stdout, done.stderr)


def duration_s(text: str) -> int | None:
    """Return the seconds of ``[days-]hours:minutes:seconds`` or ``minutes:seconds``; None for text like UNLIMITED."""
    days, dash, rest = text.strip().rpartition("-")
    total_s = 0
    try:
        for part in rest.split(":"):
            total_s = total_s * 60 + int(part)
        return total_s + (int(days) * 86_400 if dash else 0)
    except ValueError:
        return None
