"""Set-up of a started process: end with its parent, write its output to a file."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # of Linux's prctl


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


def redirect_output(log: str | Path) -> None:
    """Append what this process writes to standard output and standard error to a file, including libraries in C."""
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(opened, sys.stdout.fileno())
    os.dup2(opened, sys.stderr.fileno())
    os.close(opened)
