"""Set-up of a started process: end with its parent, keep its files private, write its output to a file."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # of Linux's prctl
PRIVATE_UMASK = 0o077


def end_with_parent(parent: int) -> bool:
    """Let the kernel send SIGTERM to this process when its parent ends; without effect on other systems than Linux.

    Args:
        parent: process id of the parent.

    Returns:
        False if the parent has ended already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    return os.getppid() == parent


def keep_files_private() -> None:
    """Make all files and folders that this process and its children create readable by their owner only.

    Whoever wants to share a run directory changes its modes afterwards.
    """
    os.umask(PRIVATE_UMASK)


def redirect_output(log: str | Path) -> None:
    """Append what this process writes to standard output and standard error to a file, including libraries in C."""
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(opened, sys.stdout.fileno())
    os.dup2(opened, sys.stderr.fileno())
    os.close(opened)
