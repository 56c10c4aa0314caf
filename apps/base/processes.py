"""Ending a process together with the process that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of Linux's prctl


def end_with_parent(parent: int) -> None:
    """Ask the kernel to send SIGTERM to this process when its parent ends. Has no effect on systems other than Linux.

    Args:
        parent: process id of the parent; if it has ended already, this process exits with code 1.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the signal was set
            sys.exit(1)
