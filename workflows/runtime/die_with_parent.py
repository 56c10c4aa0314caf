"""Runs a program that must not outlive the process that starts it.

``python die_with_parent.py LOG PROGRAM ARGUMENTS...`` becomes PROGRAM, its output goes to the file LOG.

Parsl's interchange does not notice that its driver was killed; here the kernel ends it, the blocks miss its heartbeat
and end as well. The program gets a session of its own, so that a Ctrl-C at the terminal reaches the driver alone,
which then stops everything in order. On systems other than Linux the next driver finds and ends what is left.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # before the first import of ours: the project root goes first on sys.path
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from apps.base.processes import end_with_parent


def main() -> None:
    """Replace this process with the program of the command line."""
    end_with_parent(os.getppid())
    os.setsid()
    log, *command = sys.argv[1:]
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
