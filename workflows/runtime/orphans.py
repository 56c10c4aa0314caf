"""Find and end the processes that a dead driver has left, by the campaign's token in their environment."""

from __future__ import annotations

import logging
import os

import psutil

TOKEN_VARIABLE = "CROSSFED_RUN"
GRACE_S = 3.0
logger = logging.getLogger(__name__)


def find_orphans(token: str) -> list[psutil.Process]:
    """Return the processes of this user that were started for the campaign, without this process.

    A process id alone may by now belong to another program; the token is in the environment of every process that a
    driver starts, and of no other.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(TOKEN_VARIABLE) == token:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue  # it has ended meanwhile, or is another user's
    return found


def end_orphans(token: str) -> list[int]:
    """End the processes of the campaign on this machine and return their ids."""
    orphans = find_orphans(token)
    for process in orphans:
        _signal(process, kill=False)
    _, stubborn = psutil.wait_procs(orphans, timeout=GRACE_S)
    for process in stubborn:
        _signal(process, kill=True)
    psutil.wait_procs(stubborn, timeout=GRACE_S)
    if orphans:
        logger.info("ended %d processes of an earlier driver", len(orphans))
    return [process.pid for process in orphans]


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.NoSuchProcess:
        return
