"""Run commands of the operating system that build a place: mount, ip, unshare, nsenter."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/bin", "/bin"])


class RehearsalError(RuntimeError):
    """The rehearsal cannot go on, for a reason that is not the campaign's."""


def program(name: str) -> str:
    """Return the full path of a program, also of programs in sbin."""
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        raise RehearsalError(f"{name} is not installed")
    return path


def run(*command: object, check: bool = True, limit_s: float = 60) -> str:
    """Run a command and return its output.

    Raises:
        RehearsalError: it failed; with its error message.
    """
    words = [program(str(command[0])), *map(str, command[1:])]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=limit_s, check=False)
    if check and done.returncode:
        raise RehearsalError(f"{' '.join(words)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def works(*command: object) -> bool:
    """Return True if a command exists and succeeds."""
    if shutil.which(str(command[0]), path=SEARCH_PATH) is None:
        return False
    return subprocess.run([str(c) for c in command], capture_output=True, check=False).returncode == 0


def namespaces(user: bool, *kinds: str) -> list[str]:
    """Return the prefix that starts a program in new namespaces of these kinds; all its children end with it."""
    own = ["--user", "--map-root-user"] if user else []
    return [program("unshare"), *own, *(f"--{kind}" for kind in kinds), "--fork", "--kill-child=KILL"]


def inside(pid: int, kinds: Sequence[str]) -> list[str]:
    """Return the prefix that starts a program in the namespaces of a process."""
    return [program("nsenter"), f"--target={pid}", *(f"--{kind}" for kind in kinds), "--"]
