"""Find and end the processes of a facility by a token in their environment, which all their children inherit.

As a program it waits for the end of its standard input, which is the end of the process that started it, and then ends
the processes that are left: ``reaper.py TOKEN``.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

VARIABLE = "CROSSFED_FACILITY"


def marked(token: str) -> list[psutil.Process]:
    """Return the live processes that were started with a token in their environment."""
    mark, found = f"{VARIABLE}={token}".encode(), []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if mark in environment and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end_marked(token: str, limit_s: float = 20) -> int:
    """Kill all processes with a token until no new ones appear; return their number.

    Raises:
        TimeoutError: some are still running.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + limit_s
    while left := marked(token):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still there: {left}")
        for process in left:
            killed.add(process.pid)
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)
    return len(killed)


def start_reaper(token: str) -> subprocess.Popen[bytes]:
    """Start a process that ends those with the token when its standard input is closed, also by this one's death."""
    command = [sys.executable, str(Path(__file__).resolve()), token]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)


if __name__ == "__main__":
    sys.stdin.read()
    end_marked(sys.argv[1])
