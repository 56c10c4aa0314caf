"""Run a program that must not outlive the process that starts it.

``python die_with_parent.py LOG PROGRAM ARGUMENTS...`` becomes PROGRAM, whose output goes to the file LOG.

Parsl's interchange does not notice that its driver was killed. Started in this way it is ended by the kernel; the
blocks then miss its heartbeat and end as well. The program gets a session of its own, so that a Ctrl-C at the terminal
reaches the driver alone, which then stops everything in order. On systems other than Linux the next driver finds and
ends what is left.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # before the first import of ours: the project root goes first on sys.path
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from apps.base.processes import end_with_parent, redirect_output


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
