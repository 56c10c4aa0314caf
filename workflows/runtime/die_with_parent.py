"""Runs a program that must not outlive the process that starts it.

``python die_with_parent.py LOG PROGRAM ARGUMENTS...`` becomes PROGRAM, its words go to the file LOG.

Parsl's interchange does not notice that its driver was killed; on this leash the kernel ends it, the blocks miss its
heartbeat and end as well. The program gets a session of its own, so that a Ctrl-C at the terminal reaches the driver
alone, which then stops everything in order.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # Linux; elsewhere the next driver finds and ends what is left


def main() -> None:
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the driver died before the leash held
            sys.exit(1)
    os.setsid()
    log, *command = sys.argv[1:]
    words = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(words, sys.stdout.fileno())
    os.dup2(words, sys.stderr.fileno())
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
