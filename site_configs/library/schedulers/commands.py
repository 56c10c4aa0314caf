"""Run a scheduler's commands with a time limit, and parse the durations they print."""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COMMAND_LIMIT_S = 60.0  # Slurm's commands give up by themselves after about 20 s without their controller
LAST_WORDS_S = 2.0  # a process that waits for a hung file system cannot be killed
NO_ANSWER = 124  # exit code of the command "timeout"
# Variables that change what the commands ask or print: sbatch prefers them to its script, squeue and sacct show only
# what they name, scancel spares what they name, qsub reads another prefix than #PBS.
OUTER = ("SBATCH_", "SLURM_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SCONTROL_", "PBS_DPREFIX")
KEPT = "SLURM_CONF"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """Result of a command.

    Attributes:
        code: exit code; None: the command does not exist, or did not end in time.
        out, error: its standard output and standard error.
        missing: the command does not exist.
    """

    code: int | None
    out: str
    error: str
    missing: bool = False

    @property
    def ok(self) -> bool:
        """Return True if the command succeeded."""
        return self.code == 0

    @property
    def message(self) -> str:
        """Return the error message of the command in one line."""
        return " ".join((self.error.strip() or self.out.strip() or f"exit code {self.code}").split())


def missing_commands(names: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return those of some commands that are not on PATH.

    Args:
        names: names of programs.
        environment: variables in addition to those of this process.
    """
    path = environment.get("PATH", os.environ.get("PATH", ""))
    return [name for name in names if shutil.which(name, path=path) is None]


def ask(command: Sequence[str], environment: Mapping[str, str], limit_s: float = COMMAND_LIMIT_S) -> Reply:
    """Run a query and wait for its end; its messages are in English whatever the user's language.

    Args:
        command: program and arguments.
        environment: variables in addition to those of this process.
        limit_s: time limit in seconds.
    """
    return run_bounded(command, {**scheduler_environment(), "LC_ALL": "C", **environment}, limit_s)


def scheduler_environment() -> dict[str, str]:
    """Return this process' variables without those that change what the scheduler's commands do."""
    return {name: value for name, value in os.environ.items() if name.startswith(KEPT) or not name.startswith(OUTER)}


def run_bounded(command: Sequence[str], environment: Mapping[str, str], limit_s: float) -> Reply:
    """Run a command for a limited time; after it, the command and what it has started are killed and not waited for.

    Args:
        command: program and arguments.
        environment: all its variables.
        limit_s: time limit in seconds.
    """
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        return Reply(None, "", f"{command[0]} cannot be run: {error.strerror}", missing=gone)
    try:
        out, error_text = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        _kill(process)
        return Reply(None, "", f"{command[0]} did not answer in {limit_s:.0f} s")
    return Reply(process.returncode, out, error_text)


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a process with all that it has started, so that it cannot act later."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.communicate(timeout=LAST_WORDS_S)
    except subprocess.TimeoutExpired:
        logger.warning("process %d cannot be killed: it waits for a file system", process.pid)


def user_name() -> str:
    """Return the name of this process' user, as schedulers know it; USER and LOGNAME may be anything."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container without this user
        return os.environ.get("LOGNAME") or os.environ.get("USER") or str(os.getuid())


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
