"""Run a program that must not outlive the process that starts it.

``python die_with_parent.py LOG PROGRAM ARGUMENTS...`` becomes PROGRAM, whose output goes to the file LOG.

Parsl's interchange does not notice that its driver was killed. Started in this way it is ended by the kernel; the
blocks then miss its heartbeat and end as well. The program gets a session of its own, so that a Ctrl-C at the terminal
reaches the driver alone, which then stops everything in order.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # Linux; elsewhere the next driver finds and ends what is left


def end_with_parent(parent: int) -> bool:
    """Let the kernel send SIGTERM to this process when its parent ends.

    Args:
        parent: process id of the parent.

    Returns:
        False if the parent has ended already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    return os.getppid() == parent


def redirect_output(log: str) -> None:
    """Append what this process writes to standard output and standard error to a file."""
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(opened, sys.stdout.fileno())
    os.dup2(opened, sys.stderr.fileno())
    os.close(opened)


def main() -> None:
    """Become the program on the command line."""
    if not end_with_parent(os.getppid()):
        sys.exit(1)
    os.setsid()
    log, *command = sys.argv[1:]
    redirect_output(log)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
